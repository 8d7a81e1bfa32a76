package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// A part of a batch that hangs costs the others nothing: neither their leases, nor time when they are unlocked.
func TestHungPartOfARenewal(t *testing.T) {
	f := new(fake)
	f.renewal = func(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		for i, g := range gs {
			if g.Key != "hung" {
				done(i, locker.Renewal{})
			}
		}
		<-ctx.Done()
		for i, g := range gs {
			if g.Key == "hung" {
				done(i, locker.Renewal{Err: ctx.Err()})
			}
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		hung, healthy, other := mustLock(t, l, "hung"), mustLock(t, l, "healthy"), mustLock(t, l, "other")
		time.Sleep(time.Second / 2) // in the middle of a renewal
		start := time.Now()
		if err := other.Unlock(); err != nil || time.Since(start) != 0 {
			t.Errorf("Unlock of a lease that was renewed: %v after %v, want at once", err, time.Since(start))
		}
		<-hung.Done()
		time.Sleep(10 * time.Second)
		if err := healthy.Err(); err != nil {
			t.Errorf("the lease beside the one that hangs: %v", err)
		}
		if err := hung.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the one that hangs: %v; want ErrLost with its reason", err)
		}
	})
}

// Results may come in any order, twice, or not at all.
func TestResultsOfARenewal(t *testing.T) {
	f := new(fake)
	f.renewal = func(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		order := rand.Perm(len(gs))
		for _, i := range order {
			switch gs[i].Key {
			case "silent":
			case "lost":
				done(i, locker.Renewal{Err: locker.ErrLost})
			case "twice":
				done(i, locker.Renewal{})
				done(i, locker.Renewal{Err: locker.ErrLost})
			default:
				done(i, locker.Renewal{})
			}
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		silent, lost, twice := mustLock(t, l, "silent"), mustLock(t, l, "lost"), mustLock(t, l, "twice")
		var others []*locker.Lease
		for i := range 20 {
			others = append(others, mustLock(t, l, fmt.Sprint(i)))
		}
		time.Sleep(10 * time.Second)
		if err := silent.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrUnavailable) {
			t.Errorf("the lease whose renewals have no result: %v; want ErrLost, since the store was unavailable", err)
		}
		if held := time.Until(silent.Deadline()); held < -10*time.Second+validity(time.Second) {
			t.Errorf("it ended %v ago", -held)
		}
		if err := lost.Err(); !errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrUnavailable) {
			t.Errorf("the lease that is lost: %v; want ErrLost", err)
		}
		for _, lease := range append(others, twice) {
			if err := lease.Err(); err != nil {
				t.Errorf("%q: %v", lease.Key(), err)
			}
		}
	})
}

// What the backend does to the grants that it is passed changes nothing.
func TestGrantsOfARenewalAreItsOwn(t *testing.T) {
	f := new(fake)
	f.renewal = func(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		for i := range gs {
			gs[i] = locker.Grant{}
			done(i, locker.Renewal{})
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		want := locker.GrantOf(lease)
		time.Sleep(5 * time.Second)
		if got := locker.GrantOf(lease); got != want || lease.Err() != nil {
			t.Errorf("the grant became %+v; want %+v; Err: %v", got, want, lease.Err())
		}
	})
}

// A store may say that it has renewed a lease for less than was asked for: what it said last counts.
func TestRenewedForLess(t *testing.T) {
	f := new(fake)
	ttl := 4 * time.Second
	f.renewal = func(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		for i := range gs {
			done(i, locker.Renewal{TTL: ttl})
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k", locker.TTL(12*time.Second))
		time.Sleep(4 * time.Second)
		if left := time.Until(lease.Deadline()); left > validity(ttl) || left < validity(ttl)-time.Second {
			t.Errorf("renewed for %v, the lease is valid for %v; want %v, less what has passed since", ttl, left, validity(ttl))
		}
		time.Sleep(20 * time.Second)
		if err := lease.Err(); err != nil {
			t.Errorf("though it was renewed often enough: %v", err)
		}
	})
}

// A failure that does not pass by itself is the reason of the loss, whatever comes of the attempts after it.
func TestReasonOfALoss(t *testing.T) {
	denied := fmt.Errorf("%w: the password was changed", locker.ErrDenied)
	passing := fmt.Errorf("%w: it did not answer in time", locker.ErrUnavailable)
	for name, test := range map[string]struct {
		failures []error // of the renewals, the last for all the others; nil for one that succeeds
		want     error
	}{
		"denied, then unavailable":         {[]error{passing, denied, passing}, denied},
		"unavailable, then denied":         {[]error{passing, denied}, denied},
		"unavailable, then for no class":   {[]error{passing, errFault}, errFault},
		"denied, renewed, and unavailable": {[]error{denied, nil, passing}, passing},
	} {
		t.Run(name, func(t *testing.T) {
			f := new(fake)
			f.renew = func(context.Context, []locker.Grant) []error {
				_, n, _ := f.calls()
				return []error{test.failures[min(n, len(test.failures))-1]}
			}
			inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
				lease := mustLock(t, l, "k")
				<-lease.Done()
				if _, n, _ := f.calls(); n <= len(test.failures) {
					t.Errorf("lost after %d renewals; want some after those of the table", n)
				}
				if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, test.want) {
					t.Errorf("lost: %v; want %v", err, test.want)
				}
			})
		})
	}
}

// An answer that was overtaken by that of a later renewal changes nothing.
func TestOvertakenRenewal(t *testing.T) {
	f := new(fake)
	f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		if _, n, _ := f.calls(); n == 1 {
			time.Sleep(time.Second / 2) // and outlives its ctx
		}
		done(0, locker.Renewal{})
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		var last time.Time
		for range 200 {
			time.Sleep(10 * time.Millisecond)
			if lease.Deadline().Before(last) {
				t.Fatalf("the deadline went back by %v", last.Sub(lease.Deadline()))
			}
			last = lease.Deadline()
		}
	})
}

// Short leases are renewed apart from long ones: they have less time, and the long ones more.
func TestRenewalsOfDifferentTTLs(t *testing.T) {
	f := new(fake)
	f.renewal = func(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		shortest := slices.MinFunc(gs, func(a, b locker.Grant) int { return int(a.TTL - b.TTL) }).TTL
		longest := slices.MaxFunc(gs, func(a, b locker.Grant) int { return int(a.TTL - b.TTL) }).TTL
		if longest > 2*shortest {
			t.Errorf("leases of %v and %v are renewed by one call", shortest, longest)
		}
		if len(gs) > 1000 {
			t.Errorf("%d leases are renewed by one call", len(gs))
		}
		deadline, _ := ctx.Deadline()
		if left := time.Until(deadline); left != shortest/3 {
			t.Errorf("a renewal of leases of %v has %v; want a third", shortest, left)
		}
		time.Sleep(time.Duration(len(gs)) * 100 * time.Microsecond) // the store is slow
		for i := range gs {
			done(i, locker.Renewal{})
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		var leases []*locker.Lease
		for i := range 10_000 {
			leases = append(leases, mustLock(t, l, fmt.Sprint("long", i), locker.TTL(10*time.Second)))
		}
		for i := range 5 {
			leases = append(leases, mustLock(t, l, fmt.Sprint("short", i), locker.TTL(100*time.Millisecond)))
		}
		time.Sleep(22 * time.Second)
		start := time.Now()
		for i := range 1000 {
			_ = leases[i*10].Unlock() // some of which are being renewed
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("1,000 Unlocks took %v", took)
		}
		lost := 0
		for i, lease := range leases {
			if lease.Err() != nil && (i >= 10_000 || i%10 != 0) {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d leases were lost", lost)
		}
	})
}

// No renewal of a lease is sent after its Unlock has returned, also if it was due with a thousand others.
func TestUnlockedWhileItsRenewalIsDue(t *testing.T) {
	f := new(fake)
	unlocked := make(map[string]time.Time)
	f.renewal = func(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		f.mu.Lock()
		for _, g := range gs {
			if at, ok := unlocked[g.Key]; ok && time.Since(at) >= 0 {
				t.Errorf("%q is renewed %v after it was unlocked", g.Key, time.Since(at))
			}
		}
		f.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		for i := range gs {
			done(i, locker.Renewal{})
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		var leases []*locker.Lease
		for i := range 5000 {
			leases = append(leases, mustLock(t, l, fmt.Sprint(i)))
		}
		for range 1500 {
			time.Sleep(time.Millisecond)
			i := rand.N(len(leases))
			lease := leases[i]
			leases = slices.Delete(leases, i, i+1)
			if err := lease.Unlock(); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			unlocked[lease.Key()] = time.Now()
			f.mu.Unlock()
		}
		synctest.Wait()
		for _, lease := range leases {
			if err := lease.Err(); err != nil {
				t.Fatalf("%q: %v", lease.Key(), err)
			}
		}
	})
}

// A store that refuses every renewal is asked again at intervals that have to do with the TTL: fewer than a hundred
// times until the lease ends.
func TestFailingRenewalsArePaced(t *testing.T) {
	for _, ttl := range []time.Duration{100 * time.Millisecond, 10 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{renew: func(_ context.Context, gs []locker.Grant) []error {
				return slices.Repeat([]error{errFault}, len(gs))
			}}
			l := locker.New(f, locker.TTL(ttl))
			lease, err := l.TryLock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			<-lease.Done()
			if n := len(f.renewals); n < 3 || n > 100 {
				t.Errorf("TTL %v: %d renewals; want 3 to 100", ttl, n)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
