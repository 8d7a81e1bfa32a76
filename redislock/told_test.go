package redislock_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

// TestToldBeforeFirstRenewal has locks be taken away that have been held for a moment only. Their holders are told long
// before they renew, which some never do.
func TestToldBeforeFirstRenewal(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	by := client(t, rdb)
	ways := map[string]func(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease{
		"Lock": mustLock,
		"in line": func(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
			before := mustLock(t, by, key)
			waiter := locktest.Started(func() *locker.Lease { return mustLock(t, l, key, opts...) })
			eventually(t, "it waits", func() bool { return inLine(t, rdb, key) == 1 })
			mustUnlock(t, before)
			return waiter.Get(t)
		},
		"adopted": func(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
			ticket, err := mustLock(t, by, key, opts...).Detach()
			if err != nil {
				t.Fatal(err)
			}
			lease, err := locker.Adopt(t.Context(), l, ticket)
			if err != nil {
				t.Fatal(err)
			}
			return lease
		},
	}
	n := 0
	for how, get := range ways {
		for mode, opts := range map[string][]locker.CallOption{
			"exclusive": nil, "NoRenew": {locker.NoRenew()}, "shared": {locker.Shared()}, "a slot": {locker.Slots(2)},
		} {
			for what, takeAway := range map[string]func(key string) error{
				"Revoke": func(key string) error { return by.Revoke(t.Context(), key, "why") },
				"Break":  func(key string) error { return by.Break(t.Context(), key) },
			} {
				n++
				key := strconv.Itoa(n)
				t.Run(strings.Join([]string{how, mode, what}, ", "), func(t *testing.T) {
					t.Parallel()
					holder := redis.NewClient(&redis.Options{Addr: server.Addr(), ClientName: key})
					t.Cleanup(func() { _ = holder.Close() })
					lease := get(t, client(t, holder, locker.TTL(ttl)), key, opts...)
					eventuallyWithin(t, ttl/6, "it listens", func() bool { return subscriptions(t, rdb, key) > 0 })
					if err := takeAway(key); err != nil {
						t.Fatal(err)
					}
					if !locktest.Within(ttl/6, func() bool { return lease.Err() != nil }) {
						t.Fatal("the holder has not been told")
					}
					var r *locker.Revocation
					if err := lease.Err(); !errors.As(err, &r) || r.Broken != (what == "Break") {
						t.Errorf("%v; want the reason", err)
					}
					_ = lease.Unlock()
				})
			}
		}
	}
}
