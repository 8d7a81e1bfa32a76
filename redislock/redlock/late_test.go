package redlock_test

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestLeavesTheLineLate has somebody get a lock by two servers of three, and what he sends to leave the line of the
// third one be on its way until the lock has been brought there: it must not take the lock away. If it did, the
// holder, who has only that server and one other by then, would have one, and a rival the two others.
func TestLeavesTheLineLate(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	const ttl = 6 * time.Second
	a, b := openRedlock(t, addresses, locker.TTL(ttl)), openRedlock(t, servers.Addresses(), locker.TTL(ttl))
	locktest.Warm(a, 1)
	locktest.Warm(b, 1)
	name := redlock.DefaultPrefix + "k"
	get := func(i int) string { return rdbs[i].Get(context.Background(), name).Val() }
	rdbs[0].Set(t.Context(), name, "a minority of somebody", ttl/3)

	release := redlock.ReleaseSHA + "\r\n$1\r\n6\r\n$" + strconv.Itoa(len(name)) + "\r\n" + name + "\r\n"
	caught := holdWhere(proxies[0], sends(release))
	lease := mustLock(t, a, "k")
	value := get(2)
	eventuallyWithin(t, ttl, "the request to leave the line is on its way", caught)
	eventuallyWithin(t, 3*ttl, "the server has been repaired", func() bool { return get(0) == value })

	proxies[1].Set(faultproxy.BlackHole()) // one of those that granted the lock is cut off, and lets it expire
	eventuallyWithin(t, 3*ttl, "the lock has expired there", func() bool { return get(1) == "" })
	proxies[0].Heal() // it arrives
	mustUnlock(t, mustLock(t, a, "later"))
	second, err := b.TryLock(t.Context(), "k")
	if err == nil && lease.Err() == nil {
		t.Errorf("two holders, of tokens %d and %d", lease.Token(), second.Token())
	} else if err != nil && !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock: %v; want ErrLocked", err)
	}
	if get(0) != value || lease.Err() != nil {
		t.Errorf("the lock is %q at the server that was repaired, and the lease %v; want %q and held", get(0),
			lease.Err(), value)
	}
	proxies[1].Heal()
	mustUnlock(t, lease)
}

// TestUnlockOfABareMajority unlocks a lease that was on two servers of three, of which one has died: two have said
// that the lock is not there any more, so anybody can have it.
func TestUnlockOfABareMajority(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	const ttl = 10 * time.Second
	l := openRedlock(t, servers.Addresses(), locker.TTL(ttl))
	locktest.Warm(l, 1)
	rdbs[2].Set(t.Context(), redlock.DefaultPrefix+"k", "a minority of somebody", ttl)
	lease, err := l.TryLock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	servers[1].Kill()
	start := time.Now()
	mustUnlock(t, lease)
	if took := time.Since(start); took > ttl/3 {
		t.Errorf("it took %v", took)
	}
}

// TestWaitsBesideAServerThatHangs has many wait for a long time, who are called by one server of three, while another
// one does not answer: what they send to that one must not pile up.
func TestWaitsBesideAServerThatHangs(t *testing.T) {
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	l := openRedlock(t, addresses)
	locktest.Warm(l, 1)
	const keys = 20
	for i := range keys {
		rdbs[1].Set(t.Context(), redlock.DefaultPrefix+"k"+strconv.Itoa(i), "a stranger", 0)
	}
	proxies[0].Set(faultproxy.BlackHole())
	defer proxies[0].Heal() // go-redis waits for answers when it is closed, for seconds
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, keys)
	for i := range keys {
		go func() {
			_, err := l.Lock(ctx, "k"+strconv.Itoa(i))
			done <- err
		}()
	}
	time.Sleep(10 * time.Second) // the lines are gone through every second or so, and a request is given up after two
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	// One that is at it and one that is next for each waiter, and at this moment some whose time is over. If they piled
	// up, each waiter would have ten.
	if n := strings.Count(string(stacks), "redlock.(*claim).settle("); n > 4*keys {
		t.Errorf("%d goroutines of %d waiters have something to tell a server that does not answer", n, keys)
	}
	cancel()
	for range keys {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// TestDialThatHangs has two servers of three reset connections, and then not answer when new ones are made, as behind
// a firewall: a request to them is given up in time all the same.
func TestDialThatHangs(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	proxies, addresses := servers.Proxied(t)
	var hangs [2]atomic.Bool
	over := make(chan struct{})
	clients := make([]redis.UniversalClient, 3)
	for i, address := range addresses {
		rdb := redis.NewClient(
			&redis.Options{
				Addr:            address,
				DisableIdentity: true,
				Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
					if i < len(hangs) && hangs[i].Load() {
						select {
						case <-ctx.Done():
						case <-over:
						}
						return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
					}
					return new(net.Dialer).DialContext(ctx, network, addr)
				},
			},
		)
		t.Cleanup(func() { _ = rdb.Close() })
		clients[i] = rdb
	}
	const ttl = 4 * time.Second
	l := redlock.New(clients, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	locktest.Warm(l, 1)
	for i := range hangs {
		var requests atomic.Int32
		proxies[i].SetWhere(func(sent []byte) bool {
			if !strings.Contains(string(sent), "locker:k\r\n") {
				return false
			}
			if requests.Add(1) >= 3 { // it is tried three times
				hangs[i].Store(true)
			}
			return true
		}, faultproxy.Refuse())
	}
	start := time.Now()
	_, err := l.Lock(t.Context(), "k")
	took := time.Since(start)
	if !errors.Is(err, redlock.ErrNoQuorum) {
		t.Errorf("Lock: %v; want ErrNoQuorum", err)
	}
	if took > ttl {
		t.Errorf("it took %v, with a TTL of %v", took, ttl)
	}
	t.Logf("after %v: %v", took, err)
	close(over)
}

// TestBlamesWhoFailed has three servers of five refuse, before the others have answered: the error is about those
// three.
func TestBlamesWhoFailed(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 5)
	proxies, addresses := servers.Proxied(t)
	l := openRedlock(t, addresses)
	locktest.Warm(l, 1)
	for _, rdb := range servers.DialEach(t)[:3] {
		if err := rdb.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, proxy := range proxies[3:] {
		proxy.Set(faultproxy.Delay(300 * time.Millisecond))
	}
	_, err := l.TryLock(t.Context(), "k")
	if !errors.Is(err, redlock.ErrNoQuorum) || !errors.Is(err, redislock.ErrReplicas) {
		t.Errorf("TryLock: %v; want ErrNoQuorum with ErrReplicas", err)
	}
	if err != nil && !strings.Contains(err.Error(), "3 of 5 servers failed") {
		t.Errorf("TryLock: %v; want 3 of 5", err)
	}
}

// TestSameServerTwice: a majority has to be one of different servers.
func TestSameServerTwice(t *testing.T) {
	t.Parallel()
	type wrapped struct{ redis.UniversalClient }
	one, two := dial(t, redistest.Address(t)), dial(t, redistest.Address(t))
	for name, clients := range map[string][]redis.UniversalClient{
		"the same client":       {one, one, one},
		"the same address":      {one, two, dial(t, "127.0.0.1:1")},
		"a client in a wrapper": {wrapped{one}, dial(t, "127.0.0.1:1"), wrapped{one}},
	} {
		l := redlock.New(clients)
		if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) ||
			!strings.Contains(err.Error(), "twice") {
			t.Errorf("%s: %v; want ErrInvalidOption", name, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// holdWhere keeps the first request that matches on its way until the proxy is healed, and reports whether there has
// been one.
func holdWhere(proxy *faultproxy.Proxy, match func(sent []byte) bool) (caught func() bool) {
	var armed, once atomic.Bool // armed: what was sent before does not count
	proxy.SetWhere(func(sent []byte) bool { return armed.Load() && match(sent) && once.CompareAndSwap(false, true) },
		faultproxy.Fault{ToServer: faultproxy.Flow{Mode: faultproxy.Hold}})
	armed.Store(true)
	return once.Load
}

// TestLateAfterRefusal has a request to take the lock, or to repair it, be on its way at one server of three when the
// repetition of it is refused there, and arrive when the holder has unlocked, and the key is free: nobody may have it
// then.
func TestLateAfterRefusal(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	begin := func(t *testing.T) (rdb *redis.Client, proxy *faultproxy.Proxy, l locker.Locker) {
		servers := redistest.NewIndependent(t, 3)
		proxies, addresses := servers.Proxied(t)
		return servers.DialEach(t)[0], proxies[0], openRedlock(t, addresses, locker.TTL(ttl))
	}
	end := func(t *testing.T, rdb *redis.Client, proxy *faultproxy.Proxy, lease *locker.Lease, name string) {
		mustUnlock(t, lease)
		rdb.Del(t.Context(), name)
		// What the server is told after Unlock has returned, it is told when its request before that is given up.
		eventuallyWithin(t, ttl, "the server refuses what comes late", func() bool {
			marks := rdb.Keys(t.Context(), "{"+name+"}:locker:tombstone:*").Val() // not those of other keys
			for _, mark := range marks {
				if rdb.Get(t.Context(), mark).Val() == "left" {
					return true
				}
			}
			return false
		})
		proxy.Heal()
		for start := time.Now(); time.Since(start) < time.Second; time.Sleep(2 * time.Millisecond) {
			if value := rdb.Get(t.Context(), name).Val(); value != "" {
				t.Fatalf("nobody holds the key, and %q has it at one server for %v", value,
					rdb.PTTL(t.Context(), name).Val())
			}
		}
	}
	t.Run("acquire", func(t *testing.T) {
		t.Parallel()
		rdb, proxy, l := begin(t)
		locktest.Tries(t, func() error {
			locktest.Warm(l, 60) // only a server that answers fast is asked again before long
			key := locktest.Unique("k")
			name := redlock.DefaultPrefix + key
			rdb.Set(t.Context(), name, "a minority of somebody", 0)
			rdb.ConfigResetStat(t.Context())
			caught := holdWhere(proxy, sends(name+"\r\n"))
			lease := mustLock(t, l, key)
			if !locktest.Within(ttl/3, func() bool {
				joined := strings.Contains(rdb.Info(t.Context(), "commandstats").Val(), "cmdstat_zadd:")
				return caught() && joined && inLine(t, rdb, key) == 0
			}) {
				proxy.Heal()
				mustUnlock(t, lease)
				return errors.New("the line was not joined by the repetition, and left, while a request is on its way")
			}
			end(t, rdb, proxy, lease, name)
			return nil
		})
	})
	t.Run("repair", func(t *testing.T) {
		t.Parallel()
		rdb, proxy, l := begin(t)
		locktest.Warm(l, 60)
		name := redlock.DefaultPrefix + "k"
		lease := mustLock(t, l, "k")
		eventuallyWithin(t, ttl/3, "the lock is everywhere",
			func() bool { return rdb.Exists(t.Context(), name).Val() == 1 })
		rdb.Del(t.Context(), name)
		var requests atomic.Int32
		caught := holdWhere(proxy, func(sent []byte) bool {
			if !repairs(sent) {
				return false
			}
			if requests.Add(1) == 1 {
				rdb.Set(context.Background(), name, "a minority of somebody", 0) // by which the repetition is refused
			}
			return true
		})
		eventuallyWithin(t, 2*ttl, "a request is on its way, and its repetition has been sent", func() bool {
			return caught() && requests.Load() > 1
		})
		end(t, rdb, proxy, lease, name)
	})
}

// TestRepairInDoubt has a TryLock be refused by one server of three that had not answered its first request: that this
// one is refused, should it come, must not keep the lock from being brought there when it can be had.
func TestRepairInDoubt(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdb := servers.DialEach(t)[0]
	proxies, addresses := servers.Proxied(t)
	const ttl = 3 * time.Second
	l := openRedlock(t, addresses, locker.TTL(ttl))
	locktest.Tries(t, func() error {
		defer proxies[0].Heal()
		locktest.Warm(l, 60) // only a server that answers fast is asked again before long
		key := locktest.Unique("k")
		name := redlock.DefaultPrefix + key
		rdb.Set(t.Context(), name, "a minority of somebody", 0)
		caught := holdWhere(proxies[0], sends(name+"\r\n"))
		lease, err := l.TryLock(t.Context(), key)
		if err != nil {
			return err
		}
		defer lease.Unlock() //nolint:errcheck // it may be lost if the machine is busy
		if !locktest.Within(ttl, func() bool {
			return caught() && len(rdb.Keys(t.Context(), "{"+name+"}:locker:tombstone:*").Val()) > 0
		}) {
			return errors.New("the repetition was not refused in time")
		}
		rdb.Del(t.Context(), name)
		if !locktest.Within(2*ttl, func() bool { return rdb.Exists(t.Context(), name).Val() == 1 }) {
			return errors.New("the lock was not brought to the server in time")
		}
		return nil
	})
}
