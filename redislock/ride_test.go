package redislock_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
)

// persistent is for servers that keep their data, whatever happens to them.
var persistent = redistest.Options{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}}

// waitersKeepPlaces has several Lockers wait for the key k, one after the other, while it is held, and does something
// to the servers meanwhile. Afterwards they must be in line as before, and all be served. That it is in this order, who
// is late for a turn apart, is what TestLine is about.
func waitersKeepPlaces(t *testing.T, servers []*redis.Client, open func(opts ...locker.Option) locker.Locker,
	outage func(ridden func() bool),
) {
	t.Helper()
	const waiters = 4
	var retries [waiters]atomic.Int32
	holder := open(locker.TTL(time.Minute))
	lease := mustLock(t, holder, "k")
	var waits sync.WaitGroup
	var before [][]string
	for i := range waiters {
		l := open(locker.TTL(time.Minute), locker.Observe(&locker.Observer{
			Retry: func(info locker.RetryInfo) {
				retries[i].Add(1)
				if !errors.Is(info.Err, locker.ErrUnavailable) || info.Op != "lock" {
					t.Errorf("%+v", info)
				}
			},
		}))
		waits.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			next, err := l.Lock(ctx, "k")
			if err != nil {
				t.Errorf("waiter %d: %v", i, err)
				return
			}
			mustUnlock(t, next)
		})
		awaitWaiters(t, servers, i+1)
		before = places(t, servers)
	}
	outage(func() bool { // each has noticed, and goes on
		for i := range retries {
			if retries[i].Load() == 0 {
				return false
			}
		}
		return true
	})
	// If it took longer than they are taken for alive, they have to come back, to their old places.
	eventuallyWithin(t, 20*time.Second, "all are at their old places", func() bool {
		return slices.EqualFunc(places(t, servers), before, slices.Equal)
	})
	mustUnlock(t, lease)
	waits.Wait()
}

// awaitWaiters waits until the waiters of so many Lockers for the key k are in line on each of the servers, and know
// that: who has not been answered is not in line as far as he knows, and what goes wrong then ends his Lock. They
// listen then.
func awaitWaiters(t *testing.T, servers []*redis.Client, n int) {
	t.Helper()
	eventually(t, "the waiters are in line", func() bool {
		return !slices.ContainsFunc(servers, func(rdb *redis.Client) bool {
			return inLine(t, rdb, "k") != n || listening(t, rdb, "k") < n
		})
	})
}

// places returns who is in the line of the key k on each of the servers, in order.
func places(t *testing.T, servers []*redis.Client) [][]string {
	var all [][]string
	for _, rdb := range servers {
		all = append(all, membersInLine(t, rdb, "k"))
	}
	return all
}

func TestWaitersRideOutARestart(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, persistent)
	admin := dial(t, server.Addr())
	waitersKeepPlaces(t, []*redis.Client{admin},
		func(opts ...locker.Option) locker.Locker { return open(t, dial(t, server.Addr()), opts...) },
		func(ridden func() bool) {
			server.Kill()
			eventuallyWithin(t, 20*time.Second, "every waiter has told that it rides out a failure", ridden)
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
		})
}

func TestWaitersRideOutARefusal(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	var proxies []*faultproxy.Proxy
	waitersKeepPlaces(t, []*redis.Client{admin},
		func(opts ...locker.Option) locker.Locker {
			rdb, proxy := wired(t, server)
			proxies = append(proxies, proxy)
			return open(t, rdb, opts...)
		},
		func(ridden func() bool) {
			for _, proxy := range proxies {
				proxy.Set(faultproxy.Refuse())
			}
			begun := time.Now()
			eventuallyWithin(t, 20*time.Second, "every waiter has told that it rides out a failure", func() bool {
				return ridden() && time.Since(begun) > 2*time.Second
			})
			for _, proxy := range proxies {
				proxy.Heal()
			}
		})
}

// TestRedlockWaitersRideOut restarts a majority of the servers, with their data.
func TestRedlockWaitersRideOut(t *testing.T) {
	t.Parallel()
	var servers redistest.Independent
	for range 3 {
		servers = append(servers, redistest.New(t, persistent))
	}
	rdbs := servers.DialEach(t)
	waitersKeepPlaces(t, rdbs,
		func(opts ...locker.Option) locker.Locker { return openRedlock(t, servers.Addresses(), opts...) },
		func(ridden func() bool) {
			servers[0].Kill()
			servers[1].Kill()
			eventuallyWithin(t, 20*time.Second, "every waiter has told that it rides out a failure", ridden)
			for _, server := range servers[:2] {
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			}
		})
}

// TestWaitBeginsWithAFailure has a server that cannot be reached when Lock begins: that is not ridden out.
func TestWaitBeginsWithAFailure(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	server.Kill()
	_, err := open(t, dial(t, server.Addr())).Lock(t.Context(), "k") // a ctx without an end
	checkClass(t, "Lock", err, locker.ErrUnavailable)
}
