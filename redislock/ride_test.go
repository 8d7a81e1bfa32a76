package redislock_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
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
		eventually(t, 10*time.Second, "the waiter is in line", func() bool {
			before = places(t, servers)
			return !slices.ContainsFunc(before, func(line []string) bool { return len(line) != i+1 })
		})
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
	eventually(t, 20*time.Second, "all are at their old places", func() bool {
		return slices.EqualFunc(places(t, servers), before, slices.Equal)
	})
	mustUnlock(t, lease)
	waits.Wait()
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
			eventually(t, 20*time.Second, "every waiter has told that it rides out a failure", ridden)
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
			eventually(t, 20*time.Second, "every waiter has told that it rides out a failure", func() bool {
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
	var servers independent
	for range 3 {
		servers = append(servers, redistest.New(t, persistent))
	}
	rdbs := servers.dialEach(t)
	waitersKeepPlaces(t, rdbs,
		func(opts ...locker.Option) locker.Locker { return openRedlock(t, servers.addresses(), opts...) },
		func(ridden func() bool) {
			servers[0].Kill()
			servers[1].Kill()
			eventually(t, 20*time.Second, "every waiter has told that it rides out a failure", ridden)
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

// TestPasswordRotated changes the password and breaks all connections: waiters are told, and a lease that is lost says
// why.
func TestPasswordRotated(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	rules, _, _, _ := documentedACL(t)
	setUser(t, admin, rules)
	user := func() *redis.Client {
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "app", Password: "pw"})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	holder, waiter := open(t, user(), locker.TTL(3*time.Second)), open(t, user())
	lease := mustLock(t, holder, "k")
	waits := make(chan error, 1)
	go func() {
		_, err := waiter.Lock(t.Context(), "k")
		waits <- err
	}()
	eventually(t, 10*time.Second, "the waiter is in line", func() bool { return inLine(t, admin, "k") == 1 })
	if err := admin.Do(t.Context(), "acl", "setuser", "app", "resetpass", ">new").Err(); err != nil {
		t.Fatal(err)
	}
	if err := admin.Do(t.Context(), "client", "kill", "user", "app").Err(); err != nil {
		t.Fatal(err)
	}
	err := <-waits
	checkClass(t, "the waiter", err, locker.ErrDenied)
	if !errors.Is(err, redislock.ErrAuth) {
		t.Errorf("the waiter: %v; want ErrAuth", err)
	}
	<-lease.Done()
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !strings.Contains(err.Error(), "authentication") {
		t.Errorf("the lease: %v; want ErrLost, because of the authentication", err)
	}
}
