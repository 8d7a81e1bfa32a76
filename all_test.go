package locker_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// isFree reports whether a key can be had.
func isFree(t *testing.T, l locker.Locker, key string) bool {
	t.Helper()
	lease, err := l.TryLock(t.Context(), key)
	if errors.Is(err, locker.ErrLocked) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
	return true
}

func TestLockAll(t *testing.T) {
	l := memlock.New()
	keys := []string{"c", "a", "c", "b"}
	leases, err := locker.LockAll(t.Context(), l, keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, lease := range leases {
		if lease.Key() != keys[i] || lease.Token() == 0 {
			t.Errorf("lease %d is of key %q with token %d; want one of %q", i, lease.Key(), lease.Token(), keys[i])
		}
		if isFree(t, l, keys[i]) {
			t.Errorf("%q is free", keys[i])
		}
	}
	if leases[0] != leases[2] {
		t.Error("a key that was named twice has two leases")
	}
	if _, err := locker.TryLockAll(t.Context(), l, []string{"d", "b"}); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLockAll: %v; want ErrLocked", err)
	}
	if !isFree(t, l, "d") {
		t.Error("TryLockAll has left a key locked")
	}
	if err := leases.Err(); err != nil {
		t.Error(err)
	}
	if err := leases.Unlock(); err != nil {
		t.Error(err)
	}
	if err := leases.Err(); !errors.Is(err, locker.ErrUnlocked) {
		t.Errorf("Err after Unlock: %v; want ErrUnlocked", err)
	}
	for _, key := range keys {
		if !isFree(t, l, key) {
			t.Errorf("%q is still locked", key)
		}
	}
}

// TestLockAllInAnyOrder has many lock the same keys, each in an order of its own. None waits for ever.
func TestLockAllInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New()
		defer l.Close()
		keys := []string{"a", "b", "c", "d"}
		inside := make(map[string]int)
		var mu sync.Mutex
		enter := func(keys []string, n int) {
			mu.Lock()
			defer mu.Unlock()
			for _, key := range keys {
				if inside[key] += n; inside[key] > 1 {
					t.Errorf("%d hold %q", inside[key], key)
				}
			}
		}
		var all sync.WaitGroup
		for range 20 {
			peer := l.Peer()
			defer peer.Close()
			all.Go(func() {
				for range 20 {
					mine := make([]string, 2+rand.N(len(keys)-1))
					for i, at := range rand.Perm(len(keys))[:len(mine)] {
						mine[i] = keys[at]
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
					err := locker.DoAll(ctx, peer, mine, func(context.Context, locker.Leases) error {
						enter(mine, 1)
						time.Sleep(time.Millisecond)
						enter(mine, -1)
						return nil
					})
					cancel()
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
	})
}

// TestLockAllFails has the last key not be had: nothing of the others stays locked.
func TestLockAllFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.Holder("me"))
		defer l.Close()
		held, err := l.Lock(t.Context(), "z")
		if err != nil {
			t.Fatal(err)
		}
		cause := errors.New("no more patience")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
		defer cancel()
		_, err = locker.LockAll(ctx, l, []string{"z", "a", "b"})
		var e *locker.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cause) || !errors.As(err, &e) || e.Key != "z" ||
			e.Holder != "me" {
			t.Errorf("LockAll: %v; want the end of ctx with its cause, the key and the holder", err)
		}
		for _, key := range []string{"a", "b"} {
			if !isFree(t, l, key) {
				t.Errorf("%q is locked", key)
			}
		}
		_ = held.Unlock()
	})
}

// TestLockAllRefuses refuses what no store has to be asked for.
func TestLockAllRefuses(t *testing.T) {
	f := new(fake)
	l := locker.New(f)
	for name, keys := range map[string][]string{
		"no keys": nil, "an empty key": {"a", ""}, "a long key": {"a", strings.Repeat("k", locker.MaxKeyLen+1)},
	} {
		var e *locker.Error
		if _, err := locker.LockAll(t.Context(), l, keys); !errors.Is(err, locker.ErrInvalidKey) ||
			!errors.As(err, &e) ||
			e.Op != "lock" {
			t.Errorf("LockAll of %s: %v; want ErrInvalidKey", name, err)
		}
		if _, err := locker.TryLockAll(t.Context(), l, keys); !errors.Is(err, locker.ErrInvalidKey) {
			t.Errorf("TryLockAll of %s: %v; want ErrInvalidKey", name, err)
		}
	}
	if acquires, _, _ := f.calls(); acquires > 0 {
		t.Errorf("the store was asked %d times", acquires)
	}
}

// TestLockAllBeginsAnew takes the first key away while the second is waited for.
func TestLockAllBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New()
		defer l.Close()
		held, err := l.Lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan locker.Leases)
		go func() {
			leases, err := locker.LockAll(t.Context(), l, []string{"a", "b"})
			if err != nil {
				t.Error(err)
			}
			done <- leases
		}()
		synctest.Wait()
		if l.Break(t.Context(), "a") != nil {
			t.Fatal("the first key is not held while the second is waited for")
		}
		synctest.Wait()
		if isFree(t, l, "a") {
			t.Error("it does not wait any more")
		}
		_ = held.Unlock()
		leases := <-done
		if err := leases.Err(); err != nil {
			t.Error(err)
		}
		if err := leases.Unlock(); err != nil {
			t.Error(err)
		}
	})
}

// TestTryLockAllTooSlow has the first lease end before the last key is locked.
func TestTryLockAllTooSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		l := locker.New(f, locker.NoRenew())
		defer l.Close()
		_, err := locker.TryLockAll(t.Context(), slow{l}, []string{"a", "b"}, locker.TTL(time.Second))
		if errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrUnavailable) {
			t.Errorf("TryLockAll: %v; want ErrUnavailable, as nothing was held", err)
		}
	})
}

// slow is a Locker whose TryLock of "b" takes until leases have ended.
type slow struct{ locker.Locker }

func (s slow) TryLock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	lease, err := s.Locker.TryLock(ctx, key, opts...)
	if key == "b" {
		time.Sleep(time.Minute)
	}
	return lease, err
}

// TestLossOfOneOfAll takes one of several keys away: the context of all ends, for that reason.
func TestLossOfOneOfAll(t *testing.T) {
	for _, key := range []string{"a", "b", "c"} {
		l := memlock.New()
		err := locker.DoAll(t.Context(), l, []string{"b", "a", "c"}, func(ctx context.Context, leases locker.Leases) error {
			if locker.FromContext(ctx) != leases[0] {
				t.Error("FromContext is not the first lease")
			}
			if ctx.Err() != nil || context.Cause(ctx) != nil {
				t.Errorf("before: %v", ctx.Err())
			}
			_ = l.Break(t.Context(), key)
			<-ctx.Done()
			var e *locker.Error
			if cause := context.Cause(ctx); !errors.Is(cause, locker.ErrBroken) || !errors.As(cause, &e) ||
				e.Key != key {
				t.Errorf("the cause is %v; want ErrBroken of %q", cause, key)
			}
			if err := leases.Err(); !errors.Is(err, locker.ErrLost) || !errors.As(err, &e) || e.Key != key {
				t.Errorf("Err: %v; want ErrLost of %q", err, key)
			}
			return ctx.Err()
		})
		if !errors.Is(err, locker.ErrLost) || !errors.Is(err, context.Canceled) {
			t.Errorf("DoAll: %v; want ErrLost, and what the function returned", err)
		}
		for _, key := range []string{"a", "b", "c"} {
			if !isFree(t, l, key) {
				t.Errorf("%q is locked", key)
			}
		}
	}
}

// TestContextOfAllReadsTheClock has a lease end by the clock that is not the first, before any timer has run.
func TestContextOfAllReadsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		l := locker.New(f, locker.NoRenew())
		defer l.Close()
		one, err := l.TryLock(t.Context(), "a", locker.TTL(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		two, err := l.TryLock(t.Context(), "b", locker.TTL(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := locker.Leases{one, two}.Context(t.Context())
		defer cancel()
		if err := ctx.Err(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // this goroutine goes on at the same moment as the timers of the leases
		if err := ctx.Err(); err == nil {
			t.Error("the deadline of the second lease has passed, and the context has not ended")
		}
	})
}

// TestDoAllPanics has the function panic, or a Locker.
func TestDoAllPanics(t *testing.T) {
	l := memlock.New()
	for name, call := range map[string]func(){
		"the function": func() {
			_ = locker.DoAll(t.Context(), l, []string{"a", "b"}, func(context.Context, locker.Leases) error { panic("f") })
		},
		"the Locker": func() { _, _ = locker.LockAll(t.Context(), panics{l}, []string{"a", "b"}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
		if !isFree(t, l, "a") || !isFree(t, l, "b") {
			t.Errorf("%s has panicked, and a key is locked", name)
		}
	}
}

// panics is a Locker whose Lock of "b" panics.
type panics struct{ locker.Locker }

func (p panics) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if key == "b" {
		panic("Lock")
	}
	return p.Locker.Lock(ctx, key, opts...)
}
