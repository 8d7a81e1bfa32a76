package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// Close says which keys it could not unlock, and why.
func TestErrorsOfClose(t *testing.T) {
	f := &fake{release: func(context.Context, locker.Grant) error { return errFault }}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, locker.TTL(time.Second))
		mustLock(t, l, "k")
		err := l.Close()
		var e *locker.Error
		if !errors.Is(err, locker.ErrUnavailable) || !errors.As(err, &e) || e.Key != "k" {
			t.Errorf("Close: %v (%T); want an *Error for key k of class ErrUnavailable", err, err)
		}
	})
}

// A Ping whose ctx has ended because something was locked elsewhere has not succeeded.
func TestPingWithACauseThatIsLocked(t *testing.T) {
	inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(fmt.Errorf("other: %w", locker.ErrLocked))
		if err := l.Ping(ctx); err == nil {
			t.Error("Ping with an ended ctx, store never asked: nil")
		}
	})
}

// A Wait that a bound of its own has ended says what it knows.
func TestWaitWithABoundOfItsOwn(t *testing.T) {
	w := waiting{
		new(fake),
		locker.Features{Queue: true},
		func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			return locker.Grant{}, fmt.Errorf("connecting to 10.0.0.1: %w", context.DeadlineExceeded)
		},
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(w)
		_, err := l.Lock(t.Context(), "k")
		if !errors.Is(err, locker.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "connecting to 10.0.0.1") {
			t.Errorf("Lock: %v; want ErrUnavailable with what the Wait said", err)
		}
		_ = l.Close()
	})
}

// The bound of a release is not the end of a context that anybody knows.
func TestUnlockWithoutAnAnswer(t *testing.T) {
	f := &fake{release: func(ctx context.Context, _ locker.Grant) error { return hang(ctx) }}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(heeding{f}, locker.TTL(time.Second))
		err := mustLock(t, l, "k").Unlock()
		if !errors.Is(err, locker.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Unlock: %v; ErrUnavailable %v, DeadlineExceeded %v", err, errors.Is(err, locker.ErrUnavailable),
				errors.Is(err, context.DeadlineExceeded))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err = locker.Lead(ctx, l, "k", func(ctx context.Context, _ *locker.Lease) error { <-ctx.Done(); return nil })
		var e *locker.Error
		if !errors.As(err, &e) || e.Op != "unlock" {
			t.Errorf("Lead: %v (%T); want it joined with the Unlock that failed", err, err)
		}
		_ = l.Close()
	})
}

// What does not pass by itself is the reason of an Unlock that fails, also when the last attempts have no answer.
func TestReasonOfAFailedUnlock(t *testing.T) {
	denied := fmt.Errorf("%w: the password was changed", locker.ErrDenied)
	for name, failures := range map[string][]error{
		"denied at first": {denied, nil},
		"denied later":    {nil, denied, nil},
	} {
		f := new(fake)
		f.release = func(ctx context.Context, _ locker.Grant) error {
			_, _, n := f.calls()
			if err := failures[min(n, len(failures))-1]; err != nil {
				return err
			}
			return hang(ctx)
		}
		synctest.Test(t, func(t *testing.T) {
			l := locker.New(heeding{f}, locker.TTL(10*time.Second))
			err := mustLock(t, l, "k").Unlock()
			if _, _, n := f.calls(); n <= len(failures) || !errors.Is(err, locker.ErrDenied) {
				t.Errorf("%s: Unlock, after %d attempts: %v; want ErrDenied", name, n, err)
			}
			_ = l.Close()
		})
	}
}

// A lease that is lost for want of an answer says so, in whatever way the answer did not come.
func TestClassOfALoss(t *testing.T) {
	for name, renew := range map[string]func(context.Context, []locker.Grant, func(int, locker.Renewal)){
		"hangs": func(ctx context.Context, _ []locker.Grant, _ func(int, locker.Renewal)) { time.Sleep(time.Minute) },
		"heeds": func(ctx context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
			done(0, locker.Renewal{Err: hang(ctx)})
		},
		"unclass": func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
			done(0, locker.Renewal{Err: errFault})
		},
	} {
		f := &fake{renewal: renew}
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			lease := mustLock(t, l, "k")
			<-lease.Done()
			if err := lease.Err(); !errors.Is(err, locker.ErrLost) ||
				!errors.Is(err, locker.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v; want ErrLost, with what was wrong", name, err)
			}
		})
	}
}

// Lead tells of an Unlock that fails after a term, and returns it if ctx ends then.
func TestLeadTellsOfUnlocksThatFail(t *testing.T) {
	f := &fake{release: func(context.Context, locker.Grant) error { return locker.Final(locker.ErrDenied) }}
	var retries atomic.Int32
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, locker.TTL(time.Second),
			locker.Observe(&locker.Observer{Retry: func(locker.RetryInfo) { retries.Add(1) }}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n := 0
		err := locker.Lead(ctx, l, "k", func(context.Context, *locker.Lease) error { n++; return nil })
		if !errors.Is(err, locker.ErrDenied) || int(retries.Load()) < n-1 || n < 2 {
			t.Errorf("Lead: %v; %d terms, told of %d failures", err, n, retries.Load())
		}
		_ = l.Close()
	})
}

// Whatever the cause of a context, and however the backend returns it, a call that it ends matches both, and is undone.
func TestEndsOfContexts(t *testing.T) {
	causes := []error{
		nil, errFault, locker.ErrLocked, locker.ErrLost, locker.ErrUnavailable, locker.ErrDenied, locker.ErrClosed,
		fmt.Errorf("x: %w", locker.NotAcquired(errFault)),
	}
	for _, heeds := range []bool{false, true} {
		for _, queue := range []bool{false, true} {
			for _, cause := range causes {
				for hi, how := range []func(context.Context) error{hang, func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }, func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("w: %w", context.Cause(ctx)) }} {
					synctest.Test(t, func(t *testing.T) {
						f := new(fake)
						f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) { return locker.Grant{}, how(ctx) }
						w := waiting{f, locker.Features{HeedsContext: heeds, Queue: queue}, f.Acquire}
						l := locker.New(w, locker.TTL(time.Minute))
						for _, op := range []lockFunc{l.Lock, l.TryLock} {
							ctx, cancel := context.WithCancelCause(t.Context())
							time.AfterFunc(time.Second, func() { cancel(cause) })
							start := time.Now()
							_, err := op(ctx, "k")
							if !errors.Is(err, context.Canceled) || cause != nil && !errors.Is(err, cause) ||
								time.Since(start) != time.Second {
								t.Errorf("heeds %v queue %v cause %v: %v after %v", heeds, queue, cause, err, time.Since(start))
							}
						}
						time.Sleep(2 * time.Second)
						f.mu.Lock()
						if len(f.released) < 2 {
							t.Errorf("how %d heeds %v queue %v cause %v: released %d of 2", hi, heeds, queue, cause, len(f.released))
						}
						f.mu.Unlock()
						_ = l.Close()
					})
				}
			}
		}
	}
}
