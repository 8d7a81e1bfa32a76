package redlock_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock/redlock"
)

// What the tests of all stores use.
var (
	mustLock         = locktest.MustLock
	mustUnlock       = locktest.MustUnlock
	eventually       = locktest.Eventually
	eventuallyWithin = locktest.EventuallyWithin
	dial             = redistest.Dial
)

// inLine returns how many wait for a key, according to Redis.
func inLine(t testing.TB, rdb *redis.Client, key string) int {
	return len(redistest.MembersInLine(t, rdb, redlock.DefaultPrefix+key))
}

// dialProxies returns clients with wires of their own, and what closes both.
func dialProxies(
	t *testing.T, w *wires.Wires,
) (clients []redis.UniversalClient, proxies []*faultproxy.Proxy, closeAll func()) {
	proxies = w.Proxies(t)
	var addresses []string
	for _, proxy := range proxies {
		addresses = append(addresses, proxy.Addr())
	}
	clients, closeClients := redistest.DialAll(addresses)
	closeAll = sync.OnceFunc(func() {
		for _, proxy := range proxies {
			_ = proxy.Close() // first: go-redis waits for answers, for seconds
		}
		closeClients()
	})
	t.Cleanup(closeAll)
	return clients, proxies, closeAll
}

// redlockHarness is the harness over servers of which the first few, a minority, may be in trouble. What a test does
// to the store, it does to the others: a holder is cut off from a majority only, unless there is no trouble to come.
func redlockHarness(
	t *testing.T, servers redistest.Independent, minority int, fault faultproxy.Fault,
) conformance.Harness {
	sick, well := servers[:minority], servers[minority:]
	sickWires, wellWires := wires.New(sick.Addresses()...), wires.New(well.Addresses()...)
	admins, closeAdmins := redistest.DialAll(well.Addresses())
	t.Cleanup(closeAdmins)
	dialBoth := func(t *testing.T) (clients []redis.UniversalClient, closeAll func()) {
		clients, proxies, closeSick := dialProxies(t, sickWires)
		for _, proxy := range proxies {
			proxy.Set(fault)
		}
		others, _, closeWell := dialProxies(t, wellWires)
		return append(clients, others...), func() { closeSick(); closeWell() }
	}
	var features conformance.Features
	if minority > 0 {
		// The majority that granted a lock may not answer a second time; and of the others, one may have been late for
		// the least token, and have minted a greater one.
		features.GreaterTokenAgain = "some of the servers that have granted a lock may fail"
		features.WakeWithin = 200 * time.Millisecond // connections break all the time
	}
	return conformance.Harness{
		Features: features,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			clients, closeAll := dialBoth(t)
			return wires.Closing(redlock.New(clients, opts...), closeAll)
		},
		Cut: wellWires.Cut,
		Backend: func(t *testing.T) locker.Backend {
			clients, _ := dialBoth(t)
			b := redlock.NewBackend(clients)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) { // a majority without its data: beyond what is promised, and tokens increase all the same
			redistest.RestartAll(t, well...)
		},
		Break:  func(t *testing.T, key string) { takeAway(t, admins, redlock.DefaultPrefix+key) },
		TTL:    redlockTTL,
		Trials: wires.Trials(t, 3),
	}
}

// takeAway deletes a lock on all of some servers. A holder that has a majority just then brings it back to the others,
// as it may also do right after it was granted the lock: so it is deleted again, until it has stayed away for a while.
func takeAway(t *testing.T, admins []redis.UniversalClient, lock string) {
	ctx := context.Background()
	taken := make(map[string]bool)
	for _, admin := range admins {
		if value := admin.Get(ctx, lock).Val(); value != "" {
			taken[value] = true
		}
	}
	const long = redlockTTL / 12
	for since := time.Now(); time.Since(since) < long; time.Sleep(long / 20) {
		for _, admin := range admins {
			if !taken[admin.Get(ctx, lock).Val()] {
				continue
			}
			since = time.Now()
			if err := admin.Del(ctx, lock).Err(); err != nil {
				t.Error(err)
				return
			}
		}
	}
}

// trouble is what a minority of servers may be in.
type trouble struct {
	name  string
	fault faultproxy.Fault
	begin func(t *testing.T, minority redistest.Independent) // may be nil
}

var troubles = []trouble{
	{name: "restarting", begin: restartAgainAndAgain},
	{name: "black-holed", fault: faultproxy.BlackHole()},
	{name: "dead", begin: func(_ *testing.T, minority redistest.Independent) {
		for _, server := range minority {
			server.Kill()
		}
	}},
	{
		name: "paused",
		begin: func(t *testing.T, minority redistest.Independent) { // they accept connections, and do not answer
			for _, server := range minority {
				if err := server.Pause(); err != nil {
					t.Fatal(err)
				}
			}
		},
	},
}

// redlockTTL is that of the leases: each step is three or five requests, and a race detector watches them all.
const redlockTTL = 3 * time.Second

// restartAgainAndAgain restarts one server after the other, without their data, until the test ends: as it has to be
// done, after a TTL in which what they knew has expired.
func restartAgainAndAgain(t *testing.T, minority redistest.Independent) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(redlockTTL / 2):
			}
			server := minority[i%len(minority)]
			server.Kill()
			time.Sleep(redlockTTL)
			if err := server.Restart(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
}

// TestConformance runs the suite with all servers up, where it cuts off all of three or just a majority of five, and
// with a minority in trouble. One after the other: each of them is enough for a machine; and the first one, normally,
// for a run of all tests. With a server that restarts all the time, a rule may fail once in a few runs, where the
// suite breaks the connections to another one at the same moment: then the majority that granted a lock is not there
// to take it back.
func TestConformance(t *testing.T) {
	t.Run("3 servers", func(t *testing.T) {
		conformance.Run(t, redlockHarness(t, redistest.NewIndependent(t, 3), 0, faultproxy.Fault{}))
	})
	t.Run("5 servers", func(t *testing.T) {
		wires.Long(t)
		conformance.Run(t, redlockHarness(t, redistest.NewIndependent(t, 5), 2, faultproxy.Fault{}))
	})
	for _, n := range []int{3, 5} {
		for _, trouble := range troubles {
			t.Run(fmt.Sprintf("%d of %d %s", n/2, n, trouble.name), func(t *testing.T) {
				wires.Thorough(t)
				servers := redistest.NewIndependent(t, n)
				if trouble.begin != nil {
					trouble.begin(t, servers[:n/2])
				}
				conformance.Run(t, redlockHarness(t, servers, n/2, trouble.fault))
			})
		}
	}
}
