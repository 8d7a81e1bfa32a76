package memlock_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

func TestBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.Prefix("p:"))
		if err := l.Break(t.Context(), "k"); !errors.Is(err, locker.ErrNotHeld) {
			t.Errorf("Break of a lock that nobody holds: %v", err)
		}
		lease, err := l.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		done := lease.Done()
		doneFirst := make(chan bool, 1)
		go func() {
			next, err := l.Peer(locker.Prefix("p:")).Lock(context.Background(), "k")
			select {
			case <-done:
				doneFirst <- err == nil && next.Token() > lease.Token()
			default:
				doneFirst <- false
			}
		}()
		synctest.Wait()
		if err := l.Break(t.Context(), "k", locker.Reason("why not")); err != nil {
			t.Error(err)
		}
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrBroken) {
			t.Errorf("Err: %v; want ErrLost with ErrBroken", err)
		}
		if !<-doneFirst {
			t.Error("the next holder had the lock before Done was closed")
		}
	})
}

// TestCut has what lease/DoneBeforeRival has for stores on a network: of a holder that is severed, Done is closed
// before anybody else gets the lock.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := memlock.New(locker.TTL(time.Second))
		for i := range 20 {
			holder, rival, waiter := memory.Peer(locker.TTL(time.Second)), memory.Peer(), memory.Peer()
			lease, err := holder.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				_, err := waiter.Lock(ctx, "k")
				failed <- err
			}()
			synctest.Wait()
			time.Sleep(time.Duration(i) * 40 * time.Millisecond)
			heal, _ := holder.Cut(), waiter.Cut()
			time.Sleep(10 * time.Millisecond) // a waiter that is severed rides it out, until its ctx ends
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) || !errors.Is(err, memlock.ErrCut) {
				t.Errorf("a waiter that was severed: %v; want the end of its ctx, and ErrCut", err)
			}
			done, cut := lease.Done(), time.Now()
			next, err := rival.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-done:
			default:
				t.Error("the rival had the lock before Done was closed")
			}
			if waited := time.Since(cut); waited > time.Second {
				t.Errorf("the rival waited for %v", waited)
			}
			if _, err := holder.TryLock(t.Context(), "other"); !errors.Is(err, memlock.ErrCut) ||
				errors.Is(err, locker.ErrLocked) {
				t.Errorf("TryLock of a severed Locker: %v; want ErrCut", err)
			}
			heal()
			if err := next.Unlock(); err != nil {
				t.Error(err)
			}
			again, err := holder.Lock(t.Context(), "k")
			if err != nil {
				t.Fatalf("after heal: %v", err)
			}
			if err := again.Unlock(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A Locker that was cut off locks nothing, and is as good as new after that: it waits without asking again and again,
// and can be cut off once more.
func TestHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retries := 0
		memory := memlock.New()
		holder := memory.Peer()
		waiter := memory.Peer(locker.Observe(&locker.Observer{Retry: func(locker.RetryInfo) { retries++ }}))
		for range 3 {
			heal := waiter.Cut()
			if lease, err := waiter.Lock(t.Context(), "free"); !errors.Is(err, memlock.ErrCut) {
				t.Fatalf("Lock of a free key by a severed Locker: %v, %v; want ErrCut", lease, err)
			}
			heal()
			lease, err := holder.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan time.Time, 1)
			go func() {
				lease, err := waiter.Lock(t.Context(), "k")
				served <- time.Now()
				if err != nil {
					t.Error(err)
				} else if err := lease.Unlock(); err != nil {
					t.Error(err)
				}
			}()
			time.Sleep(time.Hour)
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
			if at := time.Now(); !at.Equal(<-served) || retries > 0 {
				t.Errorf("a waiter got the key %v after its release, with %d retries", time.Since(at), retries)
			}
		}
	})
}

// A grant and the end of the waiter's ctx may meet: the lock is never kept by nobody.
func TestCancelledWaitersLeaveTheLockFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Hour))
		for range 200 {
			lease, err := l.TryLock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			for range 3 {
				go func() {
					if lease, err := l.Lock(ctx, "k"); err == nil {
						_ = lease.Unlock()
					}
				}()
			}
			synctest.Wait()
			go cancel()
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
	})
}
