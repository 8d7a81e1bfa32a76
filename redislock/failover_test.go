package redislock_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// TestFailover has the master die, or hang for a while, while a lease is held that the replicas have received: the
// lease goes on, and nobody else gets the lock, also when the old master is back.
func TestFailover(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ down, up func(*redistest.Server) error }{
		"killed": {func(s *redistest.Server) error { s.Kill(); return nil }, (*redistest.Server).Restart},
		"paused": {(*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.NewSentinels(t, redistest.SentinelOptions{})
			ttl := 90 * time.Second // sentinels that were late do nothing for half a minute
			a, b := open(t, s.Client(t), locker.TTL(ttl)), open(t, s.Client(t), locker.TTL(ttl))
			old := s.Master(t)
			stale := open(t, dial(t, old.Addr()), locker.TTL(ttl)) // somebody who does not hear of the failover
			lease := mustLock(t, a, "k")
			if n, err := waitFor(t, s.Admin(old), 2); n != 2 || err != nil {
				t.Fatalf("the replicas did not receive the lock: %d, %v", n, err)
			}
			if err := test.down(old); err != nil {
				t.Fatal(err)
			}
			master := s.Admin(s.AwaitFailover(t, old))
			rivals := func(l locker.Locker, until func(err error) bool, what string) {
				t.Helper()
				eventuallyWithin(t, 60*time.Second, what, func() bool {
					second, err := l.TryLock(t.Context(), "k")
					if err == nil {
						t.Errorf("there is a second holder, with token %d after %d", second.Token(), lease.Token())
					}
					return err == nil || until(err)
				})
			}
			isLocked := func(err error) bool { return errors.Is(err, locker.ErrLocked) }
			rivals(b, isLocked, "the new master says that the lock is held")
			expiry := func() time.Time {
				return time.Now().Add(master.PTTL(t.Context(), redislock.DefaultPrefix+"k").Val())
			}
			before := expiry()
			if err := test.up(old); err != nil {
				t.Fatal(err)
			}
			if name == "paused" { // it takes itself for the master still, and has the lock
				rivals(stale, func(err error) bool { return errors.Is(err, redislock.ErrReadOnly) }, "the old master is a replica")
			}
			s.AwaitHealthy(t)
			eventuallyWithin(t, ttl, "the lease is renewed at the new master, or lost",
				func() bool { return expiry().After(before.Add(time.Second)) || lease.Err() != nil })
			if err := lease.Err(); err != nil {
				t.Errorf("the lease: %v", err)
			}
			rivals(b, isLocked, "the new master says that the lock is held")
			next := make(chan *locker.Lease, 1)
			go func() { next <- mustLock(t, b, "k") }()
			eventually(t, "somebody waits in line",
				func() bool { return inLine(t, s.Admin(s.Master(t)), "k") == 1 })
			mustUnlock(t, lease)
			mustUnlock(t, <-next)
		})
	}
}

// TestFailoverToAReplicaWithoutTheLock has the link to the replicas cut before a lock is granted, and then the master
// die. The new master grants the lock to somebody else. Its former holder is told at the next renewal, and has the
// smaller token.
func TestFailoverToAReplicaWithoutTheLock(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t, redistest.SentinelOptions{})
	ttl := 10 * time.Second
	a, b := open(t, s.Client(t), locker.TTL(ttl)), open(t, s.Client(t), locker.TTL(ttl))
	mustUnlock(t, mustLock(t, a, "k"))
	old := s.Master(t)
	cutReplicas(t, s, old)
	lease := mustLock(t, a, "k")
	granted := time.Now()
	old.Kill()
	s.AwaitFailover(t, old)
	var second *locker.Lease
	eventuallyWithin(t, 20*time.Second, "the new master grants the lock", func() (ok bool) {
		var err error
		second, err = b.TryLock(t.Context(), "k")
		return err == nil
	})
	select {
	case <-lease.Done():
	case <-time.After(ttl):
		t.Fatal("the former holder was not told")
	}
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Err: %v; want ErrLost", err)
	}
	t.Logf("the former holder was told %v after it had got the lock, with a TTL of %v", time.Since(granted), ttl)
	if second.Token() <= lease.Token() {
		t.Errorf("the second holder has token %d; the first had %d", second.Token(), lease.Token())
	}
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v; want ErrLost", err)
	}
	if err := second.Err(); err != nil {
		t.Errorf("the second holder: %v", err)
	}
	mustUnlock(t, second)
}

// cutReplicas disconnects the replicas of a master, for good.
func cutReplicas(t *testing.T, s *redistest.Sentinels, master *redistest.Server) {
	t.Helper()
	ctx, admin := t.Context(), s.Admin(master)
	if err := admin.Do(ctx, "acl", "setuser", "default", "-psync", "-sync").Err(); err != nil {
		t.Fatal(err)
	}
	if err := admin.ClientKillByFilter(ctx, "type", "replica").Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the master has no replicas", func() bool {
		return strings.Contains(admin.Info(ctx, "replication").Val(), "connected_slaves:0")
	})
}

func TestReplicated(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t, redistest.SentinelOptions{})
	replicated := func(replicas int, within time.Duration, opts ...locker.Option) locker.Locker {
		l := redislock.Config{Replicas: replicas, ReplicasWithin: within}.New(s.Client(t), opts...)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	one, two, three := replicated(1, 5*time.Second), replicated(2, 5*time.Second), replicated(3, 200*time.Millisecond)
	ctx := t.Context()
	for range 20 {
		lease := mustLock(t, two, "k")
		for _, server := range s.Servers() { // at once
			if n, err := s.Admin(server).Exists(ctx, redislock.DefaultPrefix+"k").Result(); n != 1 || err != nil {
				t.Errorf("%s does not have the lock: %v", server.Addr(), err)
			}
		}
		if _, err := one.TryLock(ctx, "k"); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock of a key that is held: %v", err)
		}
		mustUnlock(t, lease)
	}
	checkShortfall(t, three, one, "k")
	if _, err := replicated(1, 5*time.Second, locker.TTL(time.Second)).TryLock(ctx, "k"); !errors.Is(err,
		locker.ErrInvalidOption) {
		t.Errorf("a TTL shorter than replicas have time: %v; want ErrInvalidOption", err)
	}
	for _, bad := range []locker.Locker{replicated(0, time.Second), replicated(1, 0), replicated(-1, time.Second)} {
		if _, err := bad.TryLock(ctx, "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%v; want ErrInvalidOption", err)
		}
	}
	// Handed over to a waiter.
	lease := mustLock(t, one, "k")
	next := make(chan *locker.Lease, 1)
	go func() { next <- mustLock(t, two, "k") }()
	eventually(t, "somebody waits in line",
		func() bool { return inLine(t, s.Admin(s.Master(t)), "k") == 1 })
	mustUnlock(t, lease)
	mustUnlock(t, <-next)

	// Who waits rides it out, and gives back what too few have.
	lease = mustLock(t, one, "k")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waits := replicated(3, 50*time.Millisecond, locker.Observe(&locker.Observer{Retry: func(info locker.RetryInfo) {
		if errors.Is(info.Err, redislock.ErrReplicas) {
			cancel()
		}
	}}))
	waited := locktest.Started(func() error {
		_, err := waits.Lock(ctx, "k")
		return err
	})
	eventually(t, "somebody waits in line",
		func() bool { return inLine(t, s.Admin(s.Master(t)), "k") == 1 })
	mustUnlock(t, lease)
	if err := waited.Get(t); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits: %v; want Canceled, after a retry", err)
	}
	mustUnlock(t, mustLock(t, one, "k"))

	plain := open(t, s.Client(t))
	cutReplicas(t, s, s.Master(t))
	checkShortfall(t, replicated(1, 200*time.Millisecond), plain, "k")
}

// checkShortfall checks that a lock for which there are too few replicas is given back.
func checkShortfall(t *testing.T, l, other locker.Locker, key string) {
	t.Helper()
	for _, lock := range []func() (*locker.Lease, error){
		func() (*locker.Lease, error) { return l.TryLock(t.Context(), key) },
		func() (*locker.Lease, error) { return l.Lock(t.Context(), key) },
	} {
		_, err := lock()
		if !errors.Is(err, redislock.ErrReplicas) || errors.Is(err, locker.ErrLocked) {
			t.Errorf("with too few replicas: %v; want ErrReplicas", err)
		}
		start := time.Now()
		mustUnlock(t, mustLock(t, other, key))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the lock was given back after %v", took)
		}
	}
}

func TestReplicatedOnACluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	one := redislock.Config{Replicas: 1, ReplicasWithin: 5 * time.Second}.New(c.Client(t))
	two := redislock.Config{Replicas: 2, ReplicasWithin: 200 * time.Millisecond}.New(c.Client(t))
	defer one.Close()
	defer two.Close()
	for _, key := range []string{"a", "b", "c", "d"} {
		master, replica := c.MasterOf(t, redislock.DefaultPrefix+key)
		for range 3 {
			lease := mustLock(t, one, key)
			if err := c.Admin(replica).ReadOnly(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			// On a connection of the pool that may not have been told READONLY, a replica refers to its master.
			n, err := c.Admin(replica).Exists(t.Context(), redislock.DefaultPrefix+key).Result()
			if err != nil && !strings.HasPrefix(err.Error(), "MOVED ") || err == nil && n != 1 {
				t.Errorf("the replica does not have the lock: %v", err)
			}
			mustUnlock(t, lease)
		}
		checkShortfall(t, two, one, key)
		// The map of the slots is out of date.
		for _, to := range c.Nodes()[:3] {
			if to != master {
				if err := c.MoveSlot(t.Context(), c.Slot(t, redislock.DefaultPrefix+key), to); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		mustUnlock(t, mustLock(t, one, key))
	}
}
