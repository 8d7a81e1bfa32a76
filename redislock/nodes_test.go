package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// randomKey returns a key with more braces than people write.
func randomKey() string {
	const alphabet = "{}{}{}ab:\x00é "
	key := make([]byte, 1+rand.IntN(12))
	for i := range key {
		key[i] = alphabet[rand.IntN(len(alphabet))]
	}
	return string(key)
}

// TestCompanionsShareTheSlot asks a real cluster where keys and their companions are.
func TestCompanionsShareTheSlot(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	admin, ctx := c.Admin(c.Nodes()[0]), t.Context()
	for range 50 {
		pipe := admin.Pipeline()
		var keys [][]string
		for range 100 {
			prefix := []string{"", redislock.DefaultPrefix, "{p}", "}{"}[rand.IntN(4)]
			names := redislock.NamesOf(prefix, randomKey())
			keys = append(keys, names)
			for _, name := range names {
				pipe.ClusterKeySlot(ctx, name)
			}
		}
		cmds, err := pipe.Exec(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, names := range keys {
			n := len(names)
			for j := range names {
				if got, want := cmds[i*n+j].(*redis.IntCmd).Val(), cmds[i*n].(*redis.IntCmd).Val(); got != want {
					t.Fatalf("%q is in slot %d, its lock %q in %d", names[j], got, names[0], want)
				}
			}
		}
	}
}

// TestClusterKeysWithBraces locks keys whose companions are hard to place.
func TestClusterKeysWithBraces(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	a, b := open(t, c.Client(t)), open(t, c.Client(t))
	for range 200 {
		key := randomKey()
		lease := mustLock(t, a, key)
		if _, err := b.TryLock(t.Context(), key); !errors.Is(err, locker.ErrLocked) {
			t.Fatalf("TryLock(%q), which is held: %v", key, err)
		}
		mustUnlock(t, lease)
	}
}

// TestClusterScriptFlush has the nodes forget the scripts while leases are renewed, and while somebody waits.
func TestClusterScriptFlush(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	const ttl = 9 * time.Second // its renewals are in time also when the machine is busy
	a, b := open(t, c.Client(t), locker.TTL(ttl)), open(t, c.Client(t), locker.TTL(ttl))
	leases := make([]*locker.Lease, 30) // on all nodes
	for i := range leases {
		leases[i] = mustLock(t, a, "k"+strconv.Itoa(i))
	}
	waited := make(chan *locker.Lease, 1)
	go func() { waited <- mustLock(t, b, "k0") }()
	granted := time.Now()
	eventuallyWithin(t, 2*ttl, "every lease is renewed, or lost", func() bool {
		for _, node := range c.Nodes()[:3] {
			if err := c.Admin(node).ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond)
		return !slices.ContainsFunc(leases, func(lease *locker.Lease) bool {
			return lease.Err() == nil && !lease.Deadline().After(granted.Add(ttl))
		})
	})
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	mustUnlock(t, <-waited)
}

// TestSlotThatIsBeingMoved holds a lock while its slot is in neither place for longer than a TTL, with another in line
// for it. The lease goes on, as it is one key; who wants to take or free the lock waits, and is told when that takes
// too long.
func TestSlotThatIsBeingMoved(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	ttl := 4 * time.Second
	a, b := open(t, c.Client(t), locker.TTL(ttl)), open(t, c.Client(t), locker.TTL(ttl))
	ctx, name := t.Context(), redislock.DefaultPrefix+"k"
	lease := mustLock(t, a, "k")
	waited := make(chan error, 1)
	go func() {
		next, err := b.Lock(ctx, "k")
		if err == nil {
			err = next.Unlock()
		}
		waited <- err
	}()
	from, _ := c.MasterOf(t, name)
	var to *redistest.Server
	for _, node := range c.Nodes()[:3] {
		if node != from {
			to = node
		}
	}
	slot := c.Slot(t, name)
	eventually(t, "the waiter is in line", func() bool {
		return c.Admin(from).ZCard(ctx, "{"+name+"}:locker:queue:").Val() == 1
	})
	for _, step := range []func(context.Context, int, *redistest.Server, *redistest.Server) error{c.BeginMove, c.MoveKeys} {
		if err := step(ctx, slot, from, to); err != nil {
			t.Fatal(err)
		}
	}
	locktest.Tries(t, func() error {
		start := time.Now()
		_, err := b.TryLock(ctx, "other{"+name+"}") // which is in the same slot
		if !errors.Is(err, redislock.ErrSlot) || errors.Is(err, locker.ErrLocked) {
			return fmt.Errorf("TryLock in a slot that is being moved: %w; want ErrSlot", err)
		}
		if took := time.Since(start); took > ttl+time.Second {
			return fmt.Errorf("TryLock took %v, with a TTL of %v", took, ttl)
		}
		return nil
	})
	time.Sleep(ttl) // in which the lease has to be renewed
	if err := lease.Err(); err != nil {
		t.Errorf("the lease was lost while its slot was being moved: %v", err)
	}
	select {
	case err := <-waited:
		t.Fatalf("who waits in line got %v", err)
	default:
	}
	if err := c.EndMove(ctx, slot, from, to); err != nil {
		t.Fatal(err)
	}
	mustUnlock(t, lease)
	select {
	case err := <-waited:
		if err != nil {
			t.Errorf("who waited in line: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("who waited in line was not served")
	}
}

// TestClusterNodeDies has a master die, or hang. Leases that its replica has received are ridden out, and those of
// other slots are not touched; nobody gets a lock that is held, also when the old master is back.
func TestClusterNodeDies(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ down, up func(*redistest.Server) error }{
		"killed": {func(s *redistest.Server) error { s.Kill(); return nil }, (*redistest.Server).Restart},
		"paused": {(*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := redistest.NewCluster(t, redistest.ClusterOptions{})
			ttl := 30 * time.Second
			a, b := open(t, c.Client(t), locker.TTL(ttl)), open(t, c.Client(t), locker.TTL(ttl))
			leases := make(map[string]*locker.Lease)
			for i := range 30 {
				key := "k" + strconv.Itoa(i)
				leases[key] = mustLock(t, a, key)
			}
			name := redislock.DefaultPrefix + "k0"
			old, _ := c.MasterOf(t, name)
			if n, err := waitFor(t, c.Admin(old), 1); n != 1 || err != nil {
				t.Fatalf("the replica did not receive the locks: %d, %v", n, err)
			}
			if err := test.down(old); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err := b.TryLock(t.Context(), "k0", locker.TTL(time.Second))
			if err == nil || errors.Is(err, locker.ErrLocked) {
				t.Errorf("TryLock of a key whose node has just died: %v; want an error of its own", err)
			}
			c.AwaitFailover(t, c.Slot(t, name), old)
			t.Logf("the failover took %v", time.Since(start))
			isLocked := func() bool {
				second, err := b.TryLock(t.Context(), "k0")
				if err == nil {
					t.Errorf("there is a second holder, with token %d after %d", second.Token(), leases["k0"].Token())
				}
				return err == nil || errors.Is(err, locker.ErrLocked)
			}
			eventuallyWithin(t, 20*time.Second, "the new master is found", isLocked)
			t.Logf("it was found after %v", time.Since(start))
			if err := test.up(old); err != nil {
				t.Fatal(err)
			}
			c.AwaitHealthy(t)
			time.Sleep(ttl/3 + ttl/10) // every lease is renewed
			eventuallyWithin(t, time.Second, "the lock is held", isLocked)
			for key, lease := range leases {
				if err := lease.Err(); err != nil {
					t.Errorf("%s: %v", key, err)
				}
				mustUnlock(t, lease)
			}
			mustUnlock(t, mustLock(t, b, "k0"))
		})
	}
}

// TestFailoverClusterClient has a client that go-redis calls one of a cluster, and which asks sentinels.
func TestFailoverClusterClient(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t, redistest.SentinelOptions{})
	o := s.FailoverOptions()
	o.RouteRandomly = true // what only reads may go to a replica
	rdb := redis.NewFailoverClusterClient(o)
	defer rdb.Close()
	l := open(t, rdb)
	use := func() {
		t.Helper()
		lease := mustLock(t, l, "k", locker.TTL(9*time.Second))
		next := make(chan *locker.Lease, 1)
		go func() { next <- mustLock(t, l, "k") }()
		locktest.Outlives(t, lease, 1)
		mustUnlock(t, lease)
		mustUnlock(t, <-next)
	}
	use()
	old := s.Master(t)
	old.Kill()
	s.AwaitFailover(t, old)
	eventuallyWithin(t, 20*time.Second, "the new master is found", func() bool {
		lease, err := l.TryLock(t.Context(), "k")
		return err == nil && lease.Unlock() == nil
	})
	use()
}

// waitFor makes a write on a connection and waits until so many replicas have it, and what came before.
func waitFor(t *testing.T, rdb *redis.Client, replicas int) (int64, error) {
	conn := rdb.Conn()
	defer conn.Close()
	if err := conn.Publish(t.Context(), "x", "y").Err(); err != nil { // which is replicated
		return 0, err
	}
	return conn.Wait(t.Context(), replicas, 10*time.Second).Result()
}

func TestRingIsRefused(t *testing.T) {
	t.Parallel()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	replicated := redislock.Config{Replicas: 1, ReplicasWithin: time.Second}
	for _, l := range []locker.Locker{redislock.New(ring), replicated.New(ring)} {
		if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("TryLock: %v; want ErrInvalidOption", err)
		}
		if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("Lock: %v; want ErrInvalidOption", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestPlainClientOfACluster has a client that does not follow redirections.
func TestPlainClientOfACluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	l := open(t, dial(t, c.Addrs()[0]))
	moved := 0
	for i := range 20 {
		lease, err := l.TryLock(t.Context(), "k"+strconv.Itoa(i))
		switch {
		case err == nil:
			mustUnlock(t, lease)
		case errors.Is(err, redislock.ErrSlot):
			moved++
		default:
			t.Error(err)
		}
	}
	if moved == 0 {
		t.Error("all slots are on one node")
	}
}

// TestWrappedClient has a client of a type that is not known, around one that is.
func TestWrappedClient(t *testing.T) {
	t.Parallel()
	type wrapped struct{ redis.UniversalClient }
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	for _, rdb := range []redis.UniversalClient{wrapped{c.Client(t)}, wrapped{dial(t, redistest.Address(t))}} {
		a, b := open(t, rdb, locker.TTL(9*time.Second)), open(t, rdb, locker.TTL(9*time.Second))
		lease := mustLock(t, a, t.Name())
		next := make(chan *locker.Lease, 1)
		go func() { next <- mustLock(t, b, t.Name()) }()
		locktest.Outlives(t, lease, 1)
		mustUnlock(t, lease)
		mustUnlock(t, <-next)
	}
}

// TestManyOnACluster has many leases on all nodes renewed together.
func TestManyOnACluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	l := open(t, c.Client(t), locker.TTL(9*time.Second))
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			lease, err := l.Lock(t.Context(), fmt.Sprint("k", i))
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(5 * time.Second)
			mustUnlock(t, lease)
		})
	}
	all.Wait()
}
