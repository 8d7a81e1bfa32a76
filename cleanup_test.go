package locker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// goroutines returns how many goroutines a Client has started and not ended.
func goroutines() (n int) {
	buf := make([]byte, 8<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "created by sync.(*WaitGroup).Go") && strings.Contains(stack, "locker.(*Client)") {
			n++
		}
	}
	return n
}

// A store that hangs never makes the goroutines grow with the number of calls, whatever the client does about a ctx,
// and however long the TTL. When it answers again, what is left behind is released.
func TestHungStoreCostsBoundedGoroutines(t *testing.T) {
	for _, heeds := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const calls = 2 * locker.MostUnanswered
			answers := make(chan struct{}) // closed when the store answers again
			f := new(fake)
			stuck := func(ctx context.Context) error {
				if heeds {
					select {
					case <-answers:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				<-answers
				return nil
			}
			f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) {
				if err := stuck(ctx); err != nil {
					return locker.Grant{}, err
				}
				return f.grant(r), nil
			}
			f.release = func(ctx context.Context, _ locker.Grant) error { return stuck(ctx) }
			l := locker.New(stating{f, locker.Features{HeedsContext: heeds}}, locker.TTL(time.Hour))
			for i := range calls {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				_, err := l.TryLock(ctx, fmt.Sprint(i))
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, locker.ErrUnavailable) ||
					errors.Is(err, locker.ErrLocked) {
					t.Fatalf("TryLock of a store that hangs: %v", err)
				}
			}
			time.Sleep(5 * time.Second)
			most := locker.Cleaners
			if !heeds {
				most += locker.MostUnanswered
			}
			if n := goroutines(); n == 0 || n > most {
				t.Errorf("heeds %v: %d goroutines after %d calls; want at most %d", heeds, n, calls, most)
			}
			close(answers)
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := goroutines(); n > 0 {
				t.Errorf("heeds %v: %d goroutines although the store answers", heeds, n)
			}
			if n := f.unreleased(); n > 0 {
				t.Errorf("heeds %v: nothing was released of %d owners", heeds, n)
			}
			lease, err := l.TryLock(t.Context(), "afterwards")
			if err != nil {
				t.Fatalf("heeds %v: after the outage: %v", heeds, err)
			}
			_ = lease.Unlock()
			_ = l.Close()
		})
	}
}

// The same for Unlock: each call of a client that ignores its ctx would be one more goroutine.
func TestHungStoreCostsBoundedGoroutinesOfUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan struct{})
		f := &fake{release: func(context.Context, locker.Grant) error { <-answers; return nil }}
		l := locker.New(f, locker.TTL(time.Second))
		for i := range 2 * locker.MostUnanswered {
			go func() {
				if lease, err := l.TryLock(t.Context(), fmt.Sprint(i)); err == nil {
					_ = lease.Unlock()
				} else if !errors.Is(err, locker.ErrUnavailable) {
					t.Error(err)
				}
			}()
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Second)
		if _, _, n := f.calls(); n > locker.MostUnanswered+1 {
			t.Errorf("%d releases are without an answer; want at most %d", n, locker.MostUnanswered)
		}
		close(answers)
		time.Sleep(time.Second)
		if err := mustLock(t, l, "afterwards").Unlock(); err != nil {
			t.Errorf("after the outage: %v", err)
		}
		_ = l.Close()
	})
}

// Close makes one last attempt for what is to be cleaned up, and does not wait until the next is due.
func TestCloseCleansUp(t *testing.T) {
	f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, errFault }}
	var reachable atomic.Bool
	f.release = func(context.Context, locker.Grant) error {
		if reachable.Load() {
			return nil
		}
		return errFault
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, locker.TTL(time.Hour))
		for i := range 100 {
			_, _ = l.TryLock(t.Context(), fmt.Sprint(i))
		}
		time.Sleep(time.Minute)
		_, _, before := f.calls()
		reachable.Store(true)
		start := time.Now()
		if err := l.Close(); err != nil || time.Since(start) > 0 {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		if _, _, n := f.calls(); n-before != 100 {
			t.Errorf("%d of 100 were released by Close", n-before)
		}
	})
}
