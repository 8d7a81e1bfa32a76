package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// TestLateFirstAttempt has the first attempt to acquire arrive when the second one was answered, and all is over.
func TestLateFirstAttempt(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, l, other locker.Locker){
		"unlocked": func(t *testing.T, l, _ locker.Locker) { mustUnlock(t, mustLock(t, l, "k")) },
		"refused": func(t *testing.T, l, other locker.Locker) {
			held := mustLock(t, other, "k")
			if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrLocked) {
				t.Errorf("TryLock: %v; want ErrLocked", err)
			}
			mustUnlock(t, held)
		},
		"cancelled in line": func(t *testing.T, l, other locker.Locker) {
			held := mustLock(t, other, "k")
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			if _, err := l.Lock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lock: %v; want DeadlineExceeded", err)
			}
			mustUnlock(t, held)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.New(t, redistest.Options{})
			rdb, proxy := wired(t, server)
			admin := dial(t, server.Addr())
			l, other := open(t, rdb), open(t, admin)
			locktest.Warm(l, 5) // the server is near: commands go out on connections of their own
			redistest.HoldBack(proxy)
			test(t, l, other)
			dropped := proxy.Dropped()
			proxy.Heal() // what was held back arrives
			eventuallyWithin(t, 5*time.Second, "the late request has been executed", func() bool {
				return strings.Contains(admin.Info(context.Background(), "commandstats").Val(), "evalsha") &&
					proxy.Dropped() == dropped
			})
			time.Sleep(200 * time.Millisecond) // it has arrived, or else the test proves less
			if value := admin.Get(t.Context(), redislock.DefaultPrefix+"k").Val(); value != "" {
				t.Errorf("nobody holds the key, and it is locked by %q for %v", value,
					admin.PTTL(t.Context(), redislock.DefaultPrefix+"k").Val())
			}
			lease, err := other.TryLock(t.Context(), "k")
			if err != nil {
				t.Fatalf("TryLock of a key that nobody holds: %v", err)
			}
			mustUnlock(t, lease)
		})
	}
}

// TestFailedWaiterLeavesTheLine fails a waiter with an error after which nothing is locked. It is in line all the same.
func TestFailedWaiterLeavesTheLine(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	l, other := open(t, dial(t, server.Addr())), open(t, admin)
	ctx := t.Context()
	locktest.Tries(t, func() error {
		key := locktest.Unique("k")
		held := mustLock(t, other, key)
		failed := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
		eventually(t, "the waiter is in line", func() bool { return inLine(t, admin, key) == 1 })
		name := redislock.DefaultPrefix + key
		if _, err := admin.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Del(ctx, name)
			p.HSet(ctx, name, "somebody's", "data")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := failed.Get(t); !errors.Is(err, redislock.ErrWrongType) { // at its next poll
			t.Errorf("Lock: %v; want ErrWrongType", err)
		}
		admin.Del(ctx, name)
		left := locktest.Within(time.Second, func() bool { return inLine(t, admin, key) == 0 })
		_ = held.Unlock()
		if !left {
			return errors.New("the waiter was in line a second after it had failed")
		}
		return nil
	})
}

// TestLineWithAStranger has somebody in line who was never heard of, as when part of the line was evicted.
func TestLineWithAStranger(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := open(t, rdb)
	stranger := redis.Z{Score: 1, Member: strings.Repeat("a", 32) + ":" + strings.Repeat("b", 32)}
	if err := rdb.ZAdd(t.Context(), "{"+redislock.DefaultPrefix+"k}:locker:queue:", stranger).Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	lease, err := l.Lock(ctx, "k")
	if err != nil {
		t.Fatalf("Lock behind a stranger: %v", err)
	}
	mustUnlock(t, lease)
}

// TestWaitInTheLastMillisecond waits for leases that are just about to end.
func TestWaitInTheLastMillisecond(t *testing.T) {
	l := open(t, dial(t, redistest.Address(t)), locker.TTL(20*time.Millisecond), locker.NoRenew())
	lock := func() *locker.Lease {
		for start := time.Now(); time.Since(start) < locktest.Patience; {
			lease, err := l.Lock(t.Context(), t.Name())
			if errors.Is(err, locker.ErrUnavailable) {
				continue // on a machine that is busy, an answer may take longer than such a lease is valid
			}
			if err != nil {
				t.Fatal(err)
			}
			return lease
		}
		t.Fatal("all answers took longer than a lease is valid")
		return nil
	}
	locktest.Tries(t, func() error {
		slow := 0
		for i := range 200 {
			_ = lock()
			time.Sleep(time.Duration(19000+i*5) * time.Microsecond)
			start := time.Now()
			_ = lock().Unlock()
			if time.Since(start) > 500*time.Millisecond {
				slow++
			}
		}
		if slow > 2 { // a machine that is busy may be slow once
			return fmt.Errorf("%d of 200 waits for the last millisecond of a lease took more than half a second", slow)
		}
		return nil
	})
}

// TestCancelledWhileAskingWhy has a server that hangs up on scripts and leaves PING, by which the reason is asked,
// unanswered.
func TestCancelledWhileAskingWhy(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb, proxy := wired(t, server)
	sends := func(what string) func([]byte) bool {
		return func(sent []byte) bool { return strings.Contains(string(sent), what) }
	}
	proxy.SetWhere(sends("evalsha"), faultproxy.Refuse())
	proxy.SetWhere(sends("ping"), faultproxy.BlackHole())
	l := open(t, rdb)
	locktest.Tries(t, func() error {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		start := time.Now()
		_, err := l.Lock(ctx, "k")
		if took := time.Since(start); took > 1500*time.Millisecond { // the bound of a request is two seconds
			return fmt.Errorf("cancelled after 500ms, Lock returned after %v: %w", took, err)
		}
		return nil
	})
}

// TestLateRevocation has the first request to take a lock away arrive when the second one was answered, or when all
// were given up, and somebody else has the lock.
func TestLateRevocation(t *testing.T) {
	revoke := func(ctx context.Context, l *locker.Client) error { return l.Revoke(ctx, "k", "why") }
	breaks := func(ctx context.Context, l *locker.Client) error { return l.Break(ctx, "k") }
	for name, test := range map[string]struct {
		takeAway func(ctx context.Context, l *locker.Client) error
		givenUp  bool
	}{
		"revoke": {revoke, false}, "break": {breaks, false},
		"revoke, given up": {revoke, true}, "break, given up": {breaks, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.New(t, redistest.Options{})
			rdb, proxy := wired(t, server)
			admin := dial(t, server.Addr())
			l, other := client(t, rdb), client(t, admin, locker.TTL(time.Minute))
			held := mustLock(t, other, "k")
			locktest.Warm(l, 5)
			if test.givenUp { // so is every request that takes away
				proxy.SetWhere(func(sent []byte) bool { return strings.Contains(string(sent), "}:locker:note:") },
					faultproxy.Fault{ToServer: faultproxy.Flow{Mode: faultproxy.Hold}})
			} else {
				redistest.HoldBack(proxy)
			}
			if err := test.takeAway(t.Context(), l); (err != nil) != test.givenUp {
				t.Fatalf("its requests are held back: %v", err)
			}
			eventuallyWithin(t, 10*time.Second, "the server knows that it is over", func() bool {
				return len(admin.Keys(context.Background(), "*:tombstone:*").Val()) > 0
			})
			_ = held.Unlock()
			next := mustLock(t, other, "k")
			value := admin.Get(t.Context(), redislock.DefaultPrefix+"k").Val()
			before := callsOf(t, admin, "evalsha")
			proxy.Heal()
			eventuallyWithin(t, 10*time.Second, "the late request has been executed",
				func() bool { return callsOf(t, admin, "evalsha") > before })
			if now := admin.Get(t.Context(), redislock.DefaultPrefix+"k").Val(); now != value || value == "" {
				t.Errorf("who has the lock by now: %q; after a late request about who had it before: %q", value, now)
			}
			mustUnlock(t, next)
		})
	}
}
