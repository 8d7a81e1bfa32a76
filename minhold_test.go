package locker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// keeping is a fake that states MinHold.
type keeping struct{ *fake }

func (keeping) Features() locker.Features { return locker.Features{MinHold: true} }

// TestMinHold: what is released is to be kept for what is left of MinHold then, by the moment of the grant; but not if
// the lock was revoked, nor if nobody has used it.
func TestMinHold(t *testing.T) {
	const least = 3 * time.Second
	f := new(fake)
	lock := func(t *testing.T, l *locker.Client, after time.Duration) *locker.Lease {
		lease := mustLock(t, l, "k", locker.MinHold(least))
		time.Sleep(after)
		return lease
	}
	last := func(t *testing.T, want time.Duration, when string) {
		t.Helper()
		f.mu.Lock()
		defer f.mu.Unlock()
		if g := f.released[len(f.released)-1]; g.Keep != want {
			t.Errorf("%s: to be kept for %v; want %v", when, g.Keep, want)
		}
	}
	inFakeTimeOn(t, keeping{f}, func(t *testing.T, l *locker.Client) {
		for _, after := range []time.Duration{0, time.Second, 2500 * time.Millisecond} {
			if err := lock(t, l, after).Unlock(); err != nil {
				t.Error(err)
			}
			last(t, least-after, "an Unlock after "+after.String())
		}
		_ = lock(t, l, 4*time.Second).Unlock()
		last(t, 0, "an Unlock after more than MinHold")
		_ = mustLock(t, l, "k").Unlock()
		last(t, 0, "without the option")

		f.release = func(_ context.Context, g locker.Grant) error {
			if g.Keep == least {
				time.Sleep(time.Second / 10)
				return errFault
			}
			return nil
		}
		_ = lock(t, l, 0).Unlock()
		f.release = nil
		if g := f.released[len(f.released)-1]; g.Keep > least-time.Second/10 || g.Keep < least-time.Second/5 {
			t.Errorf("the second attempt: to be kept for %v", g.Keep)
		}

		lease := lock(t, l, 0)
		f.acquired[len(f.acquired)-1].ReportLost(&locker.Revocation{})
		_ = lease.Unlock()
		last(t, 0, "revoked")

		f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			return f.grant(r), errFault // the outcome is unknown
		}
		_, _, released := f.calls()
		if _, err := l.TryLock(t.Context(), "k", locker.MinHold(least)); !errors.Is(err, errFault) {
			t.Errorf("TryLock: %v", err)
		}
		f.acquire = nil
		time.Sleep(time.Second)
		if _, _, now := f.calls(); now == released {
			t.Fatal("what may be held was not released")
		}
		last(t, 0, "nobody has used it")
	})
}

func TestMinHoldRefused(t *testing.T) {
	l := locker.New(new(fake))
	_, err := l.TryLock(t.Context(), "k", locker.MinHold(time.Second))
	wantError(t, err, "trylock", "k", errors.ErrUnsupported)
	for _, d := range []time.Duration{-1, 0, locker.MaxTTL + 1} {
		_, err := locker.New(keeping{new(fake)}).TryLock(t.Context(), "k", locker.MinHold(d))
		wantError(t, err, "trylock", "k", locker.ErrInvalidOption)
	}
}
