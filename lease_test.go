package locker_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// Close closes the Done of the leases, and ends their contexts.
func TestCloseClosesDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(new(fake))
		lease := mustLock(t, l, "k")
		done := lease.Done()
		ctx, cancel := lease.Context(t.Context())
		defer cancel()
		_ = l.Close()
		select {
		case <-done:
		default:
			t.Error("Done open after Close")
		}
		if !errors.Is(context.Cause(ctx), locker.ErrUnlocked) {
			t.Error(context.Cause(ctx))
		}
	})
}

// A renewal whose answer comes at the deadline comes too late.
func TestRenewalAtTheDeadline(t *testing.T) {
	f := new(fake)
	var held atomic.Pointer[locker.Lease]
	f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		lease := held.Load()
		time.Sleep(time.Until(lease.Deadline())) // exactly then, before any timer is looked at
		done(0, locker.Renewal{})
		if lease.Err() == nil {
			t.Error("renewed at its deadline")
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		held.Store(mustLock(t, l, "k"))
		time.Sleep(2 * time.Second)
	})
}

// Each attempt to release has a context that has not ended.
func TestEachReleaseHasAContextOfItsOwn(t *testing.T) {
	f := new(fake)
	f.release = func(ctx context.Context, _ locker.Grant) error {
		if _, _, n := f.calls(); n == 1 {
			return errFault
		}
		return ctx.Err()
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(heeding{f}, locker.TTL(time.Second))
		if err := mustLock(t, l, "k").Unlock(); err != nil {
			t.Error(err)
		}
		_ = l.Close()
	})
}

// Unlock at the deadline finds the lease lost.
func TestUnlockAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		start := time.Now()
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) { return f.grant(r), nil }
		l := locker.New(f, locker.TTL(time.Second), locker.NoRenew())
		lease := mustLock(t, l, "k")
		time.Sleep(time.Until(lease.Deadline()))
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		_ = l.Close()
	})
}

// A renewal cannot have been sent later than now.
func TestRenewalSentInTheFuture(t *testing.T) {
	f := new(fake)
	f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		done(0, locker.Renewal{Sent: time.Now().Add(time.Hour)})
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		time.Sleep(500 * time.Millisecond)
		if left := time.Until(lease.Deadline()); left > time.Second {
			t.Error(left)
		}
	})
}

// A backend need not return the request.
func TestRequestIsFilledIn(t *testing.T) {
	f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{Token: 1}, nil }}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if lease := mustLock(t, l, "k"); lease.Key() != "k" {
			t.Errorf("%q", lease.Key())
		}
	})
}

// A holder may leave before its lease ends.
func TestPollDoesNotTrustRemaining(t *testing.T) {
	f := new(fake)
	refuse(f, 5, &locker.Held{Remaining: time.Hour})
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		start := time.Now()
		_, err := l.Lock(t.Context(), "k")
		if err != nil || time.Since(start) > time.Second {
			t.Errorf("%v %v", err, time.Since(start))
		}
	})
}

// A lock that is taken away as it is granted is waited for again.
func TestLossBeforeTheGrantIsRiddenOut(t *testing.T) {
	first := true
	w := waiting{new(fake), locker.Features{Queue: true}, nil}
	w.wait = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		g := w.grant(r)
		g.Sent = time.Now()
		r.ReportHolder("")
		if first {
			first = false
			r.ReportLost(errFault)
		}
		return g, nil
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(w, locker.TTL(time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := l.Lock(ctx, "k"); err != nil {
			t.Error(err)
		}
		_ = l.Close()
	})
}

// Done looks at the clock, as Err does: from the deadline on it is closed, whether a timer has run or not.
func TestDoneLooksAtTheClock(t *testing.T) {
	for range 50 {
		inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) {
			lease := mustLock(t, l, "k", locker.NoRenew())
			time.Sleep(time.Until(lease.Deadline()))
			select {
			case <-lease.Done():
			default:
				t.Error("Done is open at the deadline")
			}
		})
	}
}

// A Lock whose grant is taken away at once has held nothing, whatever the backend calls that.
func TestTakenAwayIsNotLost(t *testing.T) {
	f := new(fake)
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		r.ReportLost(errors.Join(locker.ErrLost, errFault))
		return f.grant(r), nil
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		_, err := l.TryLock(t.Context(), "k")
		if errors.Is(err, locker.ErrLost) || !errors.Is(err, errFault) || !errors.Is(err, locker.ErrUnavailable) {
			t.Errorf("TryLock: %v; want ErrUnavailable with the reason", err)
		}
	})
	f.acquire = func(context.Context, locker.Request) (locker.Grant, error) {
		return locker.Grant{}, errors.Join(locker.ErrLost, errFault)
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if _, err := l.TryLock(t.Context(), "k"); errors.Is(err, locker.ErrLost) || !errors.Is(err, errFault) {
			t.Errorf("TryLock: %v; want the reason, and not ErrLost", err)
		}
	})
}

// When many leases end together, the others are renewed as before.
func TestOthersLiveOnWhenManyEnd(t *testing.T) {
	inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) {
		var held []*locker.Lease
		for i := range 2000 {
			if i%10 == 0 {
				ttl := time.Duration(500+i) * time.Millisecond
				held = append(held, mustLock(t, l, fmt.Sprint("held", i), locker.TTL(ttl)))
			}
			mustLock(t, l, fmt.Sprint("ends", i), locker.NoRenew())
		}
		time.Sleep(time.Minute)
		for _, lease := range held {
			if err := lease.Err(); err != nil {
				t.Fatalf("%q: %v", lease.Key(), err)
			}
		}
	})
}

// A renewal that hangs, and ignores its ctx, is followed by another one in time.
func TestSecondAttemptBesideOneThatHangs(t *testing.T) {
	f := new(fake)
	f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		if _, n, _ := f.calls(); n == 1 {
			time.Sleep(time.Minute)
		}
		done(0, locker.Renewal{})
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		time.Sleep(5 * time.Second)
		if err := lease.Err(); err != nil {
			t.Error(err)
		}
	})
}

// When ReportLost returns, the contexts of the lease have ended, also if another goroutine is about to end them.
func TestReportLostWaitsForContexts(t *testing.T) {
	f := new(fake)
	l := locker.New(f, locker.TTL(time.Second), locker.NoRenew())
	defer l.Close()
	lease := mustLock(t, l, "k")
	first, cancel := lease.Context(t.Context())
	defer cancel()
	for range 20_000 { // so that it takes a while to end
		_, cancel := context.WithCancel(first)
		defer cancel()
	}
	second, cancel := lease.Context(t.Context()) // which comes after it
	defer cancel()
	time.Sleep(time.Until(lease.Deadline()) + 100*time.Microsecond) // the timer of the Client is at it
	f.acquired[0].ReportLost(errFault)
	select {
	case <-second.Done():
	default:
		t.Error("ReportLost has returned before a context of the lease has ended")
	}
}

// In a log, a lease is its key, its token and its store.
func TestLeaseInALog(t *testing.T) {
	l := locker.New(new(fake))
	defer l.Close() //nolint:errcheck // nothing can go wrong there
	lease, err := l.TryLock(t.Context(), "orders/42")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := lease.LogValue().String(), "[key=orders/42 token=1 store=fake]"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
}
