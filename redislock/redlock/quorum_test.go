package redlock_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/redlock"
)

// openRedlock returns a Locker with clients of its own, closed with the test.
func openRedlock(t testing.TB, addresses []string, opts ...locker.Option) locker.Locker {
	t.Helper()
	return redistest.Open(t, addresses, opts, redlock.New)
}

// behindProxies returns a Locker over three servers, by way of a proxy to each, that has been used so many times; and
// clients of the servers.
func behindProxies(
	t *testing.T, ttl time.Duration, times int,
) (l locker.Locker, proxies []*faultproxy.Proxy, rdbs []*redis.Client) {
	t.Helper()
	servers := redistest.NewIndependent(t, 3)
	proxies, addresses := servers.Proxied(t)
	l = openRedlock(t, addresses, locker.TTL(ttl))
	locktest.Warm(l, times)
	return l, proxies, servers.DialEach(t)
}

func TestWithoutQuorumOfServers(t *testing.T) {
	one := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer one.Close()
	same := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer same.Close()
	for _, clients := range [][]redis.UniversalClient{nil, {nil, nil, nil}, {one, same}} {
		l := redlock.New(clients)
		if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("Lock without servers: %v; want ErrInvalidOption", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestEvenSplit has four servers, two of which say that one rival has the lock, and two, another one.
func TestEvenSplit(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 4)
	rdbs := servers.DialEach(t)
	for i, rdb := range rdbs {
		rdb.Set(t.Context(), redlock.DefaultPrefix+"k", "rival "+strconv.Itoa(i%2), time.Minute)
	}
	l := openRedlock(t, servers.Addresses())
	start := time.Now()
	if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock: %v; want ErrLocked", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to see that nobody has a quorum", took)
	}
	granted := make(chan *locker.Lease)
	go func() { granted <- mustLock(t, l, "k") }()
	eventually(t, "the waiter is in line everywhere", func() bool {
		for _, rdb := range rdbs {
			if inLine(t, rdb, "k") != 1 {
				return false
			}
		}
		return true
	})
	rdbs[0].Del(t.Context(), redlock.DefaultPrefix+"k") // one of the rivals gives up, who would not call anybody
	rdbs[2].Del(t.Context(), redlock.DefaultPrefix+"k")
	select {
	case <-granted:
		t.Fatal("granted by two of four")
	case <-time.After(1500 * time.Millisecond): // longer than the poll that finds out
	}
	rdbs[1].Del(t.Context(), redlock.DefaultPrefix+"k")
	mustUnlock(t, <-granted)
}

// TestContenders has many Lockers after one key at once, on an odd and on an even number of servers: none is starved.
func TestContenders(t *testing.T) {
	for _, n := range []int{4, 5} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			servers := redistest.NewIndependent(t, n)
			const contenders, each = 20, 15
			var wg sync.WaitGroup
			var holders atomic.Int32
			var mu sync.Mutex
			var tokens []uint64
			var slowest time.Duration
			start := time.Now()
			for range contenders {
				l := openRedlock(t, servers.Addresses())
				wg.Go(func() {
					for range each {
						asked := time.Now()
						lease := mustLock(t, l, "k")
						if holders.Add(1) > 1 {
							t.Error("two holders")
						}
						mu.Lock()
						tokens = append(tokens, lease.Token())
						slowest = max(slowest, time.Since(asked))
						mu.Unlock()
						holders.Add(-1)
						mustUnlock(t, lease)
					}
				})
			}
			wg.Wait()
			for i := range tokens[1:] {
				if tokens[i+1] <= tokens[i] {
					t.Fatalf("token %d after %d", tokens[i+1], tokens[i])
				}
			}
			t.Logf("%.0f acquisitions per second, the slowest took %v", contenders*each/time.Since(start).Seconds(),
				slowest)
		})
	}
}

// TestTryLockContest has many try a free key at the same moment: somebody gets it, and only one.
func TestTryLockContest(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 5)
	var ls []locker.Locker
	for range 8 {
		ls = append(ls, openRedlock(t, servers.Addresses()))
		locktest.Warm(ls[len(ls)-1], 1)
	}
	nobody := 0
	for range 30 {
		leases := make(chan *locker.Lease, len(ls))
		start := time.Now()
		var wg sync.WaitGroup
		for _, l := range ls {
			wg.Go(func() {
				lease, err := l.TryLock(t.Context(), "k")
				if err == nil {
					leases <- lease
				} else if !errors.Is(err, locker.ErrLocked) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(leases)
		switch len(leases) {
		case 0:
			if time.Since(start) < redlock.ContestFor { // else who has tried for so long may give up
				nobody++
			}
		case 1:
			mustUnlock(t, <-leases)
		default:
			t.Errorf("%d holders", len(leases))
		}
	}
	if nobody > 3 {
		t.Errorf("in %d of 30 contests, nobody got the lock", nobody)
	}
}

// TestTokenIsWrittenBack lets one server be far ahead with its tokens: what it mints, a majority has to know.
func TestTokenIsWrittenBack(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	l := openRedlock(t, servers.Addresses())
	mustUnlock(t, mustLock(t, l, "k"))
	fence := "{" + redlock.DefaultPrefix + "k}:locker:fence:"
	before, err := rdbs[2].Get(t.Context(), fence).Uint64()
	if err != nil {
		t.Fatal(err)
	}
	ahead := before + uint64(time.Hour.Microseconds())
	rdbs[2].Set(t.Context(), fence, ahead, time.Hour)
	// A grant that the one ahead has a part in: it need not have, when two others were faster.
	var token uint64
	for range 100 {
		lease := mustLock(t, l, "k")
		token = lease.Token()
		knows := 0
		for _, rdb := range rdbs {
			if last, err := rdb.Get(t.Context(), fence).Uint64(); err == nil && last >= token {
				knows++
			}
		}
		if knows < 2 {
			t.Fatalf("token %d was granted, and %d of 3 servers know it", token, knows)
		}
		mustUnlock(t, lease)
		if token > ahead {
			break
		}
	}
	servers[2].Kill()
	if lease := mustLock(t, l, "k"); lease.Token() <= token {
		t.Errorf("token %d after %d, which was of the server that is dead now", lease.Token(), token)
	}
}

// TestRepair restarts servers without data under a lease: a minority gets it back, a majority is a loss.
func TestRepair(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	servers := redistest.NewIndependent(t, 5)
	rdbs := servers.DialEach(t)
	l := openRedlock(t, servers.Addresses(), locker.TTL(ttl))
	lease := mustLock(t, l, "k")
	value := func(i int) string { return rdbs[i].Get(context.Background(), redlock.DefaultPrefix+"k").Val() }
	everywhere := func() bool {
		for i := range rdbs {
			if value(i) == "" || value(i) != value(0) {
				return false
			}
		}
		return true
	}
	eventuallyWithin(t, 3*ttl, "the lock is everywhere", everywhere)
	for i := range servers { // one after the other: a rolling restart
		if err := servers[i].Restart(); err != nil {
			t.Fatal(err)
		}
		eventuallyWithin(t, 3*ttl, "the lock is everywhere again", everywhere)
	}
	if err := lease.Err(); err != nil {
		t.Fatalf("after each server was restarted: %v", err)
	}
	mustUnlock(t, lease)
	// A renewal that has begun before the first of them is killed may end when they are up, and repair them.
	locktest.Tries(t, func() error {
		lease := mustLock(t, l, "k")
		defer func() { _ = lease.Unlock() }()
		eventuallyWithin(t, 3*ttl, "the lock is everywhere", everywhere)
		for i := range 3 { // all are down before one is up, and could be repaired
			servers[i].Kill()
		}
		for i := range 3 {
			if err := servers[i].Restart(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-lease.Done():
		case <-time.After(3 * ttl):
			return errors.New("a majority has lost the lock, and its holder is not told")
		}
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			return fmt.Errorf("Err: %w; want ErrLost", err)
		}
		for i := range 3 {
			if value(i) != "" {
				return fmt.Errorf("server %d was repaired: %q", i, value(i))
			}
		}
		return nil
	})
}

// TestMajorityDead: a typed error, in a bounded time, that says what is wrong.
func TestMajorityDead(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faultproxy.Fault{"refused": faultproxy.Refuse(), "black-holed": faultproxy.BlackHole()} {
		t.Run(name, func(t *testing.T) {
			servers := redistest.NewIndependent(t, 5)
			proxies, addresses := servers.Proxied(t)
			l := openRedlock(t, addresses)
			canLock := func() bool {
				lease, err := l.TryLock(context.Background(), "k")
				if err == nil {
					mustUnlock(t, lease)
				}
				return err == nil
			}
			eventuallyWithin(t, 20*time.Second, "the lock can be had", canLock)
			for _, proxy := range proxies[:3] {
				proxy.Set(fault)
			}
			for i := range 3 {
				start := time.Now()
				_, err := l.Lock(t.Context(), "k")
				took := time.Since(start)
				// On a busy machine, more of them may be late.
				counted := regexp.MustCompile("[345] of 5 servers failed").MatchString(err.Error())
				if !errors.Is(err, redlock.ErrNoQuorum) || errors.Is(err, locker.ErrLocked) || !counted {
					t.Errorf("Lock: %v; want ErrNoQuorum, and how many have failed", err)
				}
				if took > 5*time.Second {
					t.Errorf("it took %v to say so", took)
				}
				t.Logf("attempt %d: after %v: %v", i+1, took, err)
			}
			for _, proxy := range proxies {
				proxy.Heal()
			}
			eventuallyWithin(t, 20*time.Second, "the lock can be had again", canLock)
		})
	}
}

// TestMinorityBlackHoled prints what two servers of five that do not answer cost, beside what a round trip takes.
func TestMinorityBlackHoled(t *testing.T) {
	servers := redistest.NewIndependent(t, 5)
	proxies, addresses := servers.Proxied(t)
	l := openRedlock(t, addresses)
	rdb := dial(t, addresses[4])
	measure := func(f func()) time.Duration {
		took := make([]time.Duration, 200)
		for i := range took {
			start := time.Now()
			f()
			took[i] = time.Since(start)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	pair := func() { mustUnlock(t, mustLock(t, l, "k")) }
	measure(pair)
	locktest.Tries(t, func() error {
		healthy, ping := measure(pair), measure(func() { rdb.Ping(t.Context()) })
		for _, proxy := range proxies[:2] {
			proxy.Set(faultproxy.BlackHole())
		}
		start := time.Now()
		pair()
		first := time.Since(start)
		cut := measure(pair)
		t.Logf(
			"Lock and Unlock, p50: %v with five servers, %v with two of them black-holed (%.2f times as long), %v the first time; a PING takes %v",
			healthy,
			cut,
			cut.Seconds()/healthy.Seconds(),
			first,
			ping,
		)
		for _, proxy := range proxies[:2] {
			proxy.Heal()
		}
		if cut > 2*healthy+ping {
			return fmt.Errorf("with two servers of five black-holed, Lock and Unlock take %v; want less than twice %v",
				cut, healthy)
		}
		return nil
	})
}

// TestCloseMinorityBlackHoled closes a Locker that waits, when nobody knows yet that one server of three does not
// answer.
func TestCloseMinorityBlackHoled(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	proxies[0].Set(faultproxy.BlackHole())
	defer proxies[0].Heal() // go-redis waits for answers when it is closed, for seconds
	other := openRedlock(t, servers.Addresses())
	held := mustLock(t, other, "k")
	// closing closes a new Locker that waits, and returns how long that takes, and what the wait has come to.
	closing := func() (took time.Duration, waited error) {
		l := openRedlock(t, addresses)
		waits := make(chan error, 1)
		go func() {
			_, err := l.Lock(t.Context(), "k")
			waits <- err
		}()
		for _, rdb := range rdbs[1:] {
			eventually(t, "the waiter is in line", func() bool { return inLine(t, rdb, "k") == 1 })
		}
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		took = time.Since(start)
		waited = <-waits
		for _, rdb := range rdbs[1:] {
			eventuallyWithin(t, 10*time.Second, "Close has left the line",
				func() bool { return inLine(t, rdb, "k") == 0 })
		}
		return took, waited
	}
	locktest.Tries(t, func() error {
		took, err := closing()
		if !errors.Is(err, locker.ErrClosed) { // where the machine is busy, the other servers may be late, too
			return fmt.Errorf("Lock while its Locker was closed: %w; want ErrClosed", err)
		}
		if took >= 1500*time.Millisecond { // the bound of a request is two seconds
			return fmt.Errorf("it took %v to close a Locker, with one server of three black-holed", took)
		}
		return nil
	})
	mustUnlock(t, held)
}

// TestLateRequest has the first request to one server arrive when all is over.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	l, other := openRedlock(t, addresses, locker.TTL(4*time.Second)), openRedlock(t, servers.Addresses(),
		locker.TTL(4*time.Second))
	locktest.Warm(l, 5)
	for name, test := range map[string]func(key string){
		"unlocked": func(key string) { mustUnlock(t, mustLock(t, l, key)) },
		"refused": func(key string) {
			held := mustLock(t, other, key)
			if _, err := l.TryLock(t.Context(), key); !errors.Is(err, locker.ErrLocked) {
				t.Errorf("TryLock: %v; want ErrLocked", err)
			}
			mustUnlock(t, held)
		},
		"cancelled in line": func(key string) {
			held := mustLock(t, other, key)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if _, err := l.Lock(ctx, key); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lock: %v; want DeadlineExceeded", err)
			}
			mustUnlock(t, held)
		},
	} {
		t.Run(name, func(t *testing.T) {
			key := fmt.Sprintf("%s/%s", t.Name(), name)
			redistest.HoldBack(proxies[0])
			test(key)
			lock, queue := redlock.DefaultPrefix+key, "{"+redlock.DefaultPrefix+key+"}:locker:queue:"
			marks := func(i int) (all []string) {
				for _, mark := range rdbs[i].Keys(context.Background(), "{"+lock+"}:locker:tombstone:*").Val() {
					all = append(all, rdbs[i].Get(context.Background(), mark).Val())
				}
				return all
			}
			left := func() (what []string) {
				for i, rdb := range rdbs {
					if rdb.Exists(context.Background(), lock, queue).Val() > 0 {
						what = append(what, fmt.Sprintf("server %d: %q, in line %v, marks %v", i,
							rdb.Get(context.Background(), lock).Val(),
							rdb.ZRange(context.Background(), queue, 0, -1).Val(), marks(i)))
					}
				}
				return what
			}
			// By new connections, once the old ones are given up, which takes a while; the mark says that this was
			// done. There is none if a new connection was used in the first place. One that is a number is for the
			// earlier ones of several requests, whose owner goes on.
			begin := time.Now()
			eventuallyWithin(t, 30*time.Second, "nothing is left at any server", func() bool {
				return len(left()) == 0 && (slices.Contains(marks(0), "left") || time.Since(begin) > 10*time.Second)
			})
			proxies[0].Heal() // what was held back arrives
			deadline := time.Now().Add(500 * time.Millisecond)
			for time.Now().Before(deadline) {
				if what := left(); len(what) > 0 {
					t.Fatalf("what arrived late has left something behind: %v", what)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}
