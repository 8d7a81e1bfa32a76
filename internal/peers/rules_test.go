package peers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

const (
	long  = time.Minute // a TTL that does not end during a test
	short = time.Second // one that does; node-distributed-lock has no shorter one
)

// clocks is by how much a server's idea of a moment may differ from ours: it counts in milliseconds, from when it began
// to work.
const clocks = 10 * time.Millisecond

func TestOneServer(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			testRules(t, oneServer, k)
		})
	}
}

// testRules checks all rules between ours and a kind of peer, each on a key of its own.
func testRules(t *testing.T, open func(*testing.T) *site, k kind) {
	rules := map[string]func(*testing.T, *site, peer){
		"TheyUnlock":        theyUnlock,
		"TheyExpire":        theyExpire,
		"WeUnlock":          weUnlock,
		"WeExpire":          weExpire,
		"TheyLeaveOursBe":   theyLeaveOursBe,
		"WeLeaveTheirsBe":   weLeaveTheirsBe,
		"RenewalsKeepOurs":  renewalsKeepOurs,
		"ExtensionsAreSeen": extensionsAreSeen,
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			rule(t, s, k.open(t, s))
		})
	}
}

// theyUnlock: what they hold, we are refused and wait for, and get when they have unlocked it.
func theyUnlock(t *testing.T, s *site, p peer) {
	l := s.locker(t)
	h := must(p.lock(t.Context(), t.Name(), long))(t)
	refused(t, l)
	got := begin(t, func(ctx context.Context) (*locker.Lease, error) { return l.Lock(ctx, t.Name()) })
	got.stays(t, "we got what they hold")
	if err := h.unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := got.await(t).Unlock(); err != nil {
		t.Error(err)
	}
}

// theyExpire: what they hold and leave to expire, we get then and not before; and it is not theirs to free or extend
// any more.
func theyExpire(t *testing.T, s *site, p peer) {
	l := s.locker(t, locker.TTL(long))
	start := time.Now()
	h := must(p.lock(t.Context(), t.Name(), short))(t)
	lease := begin(t, func(ctx context.Context) (*locker.Lease, error) { return l.Lock(ctx, t.Name()) }).await(t)
	if d := time.Since(start); d < short-clocks {
		t.Errorf("we got it %v after they had asked for %v", d, short)
	}
	s.untouched(t, t.Name(), "their release of what had expired", func() {
		if err := h.unlock(t.Context()); !errors.Is(err, errNotHeld) {
			t.Errorf("it says: %v", err)
		}
	})
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// weUnlock: what we hold, they are refused and wait for, and get when we have unlocked it.
func weUnlock(t *testing.T, s *site, p peer) {
	lease := must(s.locker(t).Lock(t.Context(), t.Name()))(t)
	if _, err := p.tryLock(t.Context(), t.Name(), long); !errors.Is(err, errHeld) {
		t.Fatalf("they try what we hold: %v", err)
	}
	got := begin(t, func(ctx context.Context) (hold, error) { return p.lock(ctx, t.Name(), long) })
	got.stays(t, "they got what we hold")
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := got.await(t).unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// weExpire: what we leave to expire, they get then and not before; we know by then, and do not free it.
func weExpire(t *testing.T, s *site, p peer) {
	start := time.Now()
	lease := must(s.locker(t).Lock(t.Context(), t.Name(), locker.TTL(short), locker.NoRenew()))(t)
	h := begin(t, func(ctx context.Context) (hold, error) { return p.lock(ctx, t.Name(), long) }).await(t)
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("they have it, and our lease says: %v", err)
	}
	if d := time.Since(start); d < short-clocks {
		t.Errorf("they got it %v after we had asked for %v", d, short)
	}
	s.untouched(t, t.Name(), "our Unlock of what had expired", func() {
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("it says: %v", err)
		}
	})
	if err := h.unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// theyLeaveOursBe: who still believes that the lock is theirs neither extends nor frees ours.
func theyLeaveOursBe(t *testing.T, s *site, p peer) {
	h := must(p.lock(t.Context(), t.Name(), long))(t)
	s.wipe(t, t.Name())
	lease := must(s.locker(t, locker.TTL(2*patience)).TryLock(t.Context(), t.Name()))(t)
	s.untouched(t, t.Name(), "their extension of ours", func() {
		if err := h.extend(t.Context(), 2*long); !errors.Is(err, errNotHeld) {
			t.Errorf("it says: %v", err)
		}
	})
	s.untouched(t, t.Name(), "their release of ours", func() {
		if err := h.unlock(t.Context()); !errors.Is(err, errNotHeld) {
			t.Errorf("it says: %v", err)
		}
	})
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// weLeaveTheirsBe: as we renew, we learn that the lock is theirs, and neither renew nor free it.
func weLeaveTheirsBe(t *testing.T, s *site, p peer) {
	l := s.locker(t, locker.TTL(2*short))
	renewed, kept := must(
		l.Lock(t.Context(), t.Name()),
	)(
		t,
	), must(
		l.Lock(t.Context(), t.Name()+"2", locker.NoRenew(), locker.TTL(long)),
	)(
		t,
	)
	for _, lease := range []*locker.Lease{renewed, kept} {
		s.wipe(t, lease.Key())
		h := must(p.lock(t.Context(), lease.Key(), long))(t)
		s.untouched(t, lease.Key(), "what we do to theirs", func() {
			if lease == renewed {
				select {
				case <-lease.Done():
				case <-time.After(patience):
					t.Error("our lease does not end")
				}
			}
			if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock of what is theirs: %v", err)
			}
		})
		if err := h.extend(t.Context(), long); err != nil {
			t.Error(err)
		}
		if err := h.unlock(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// renewalsKeepOurs: who waits for what we renew waits for longer than our TTL.
func renewalsKeepOurs(t *testing.T, s *site, p peer) {
	start := time.Now()
	lease := must(s.locker(t).Lock(t.Context(), t.Name(), locker.TTL(3*short)))(t)
	first := lease.Deadline()
	got := begin(t, func(ctx context.Context) (hold, error) { return p.lock(ctx, t.Name(), long) })
	ended := time.NewTimer(time.Until(first.Add(short / 2)))
	defer ended.Stop()
	select {
	case r := <-got:
		t.Fatalf("they got what we renew after %v (%v)", time.Since(start), r.err)
	case <-lease.Done():
		t.Fatal(lease.Err())
	case <-ended.C:
	}
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := got.await(t).unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// extensionsAreSeen: they can extend what they hold while we wait for it.
func extensionsAreSeen(t *testing.T, s *site, p peer) {
	l := s.locker(t)
	h := must(p.lock(t.Context(), t.Name(), 4*short))(t)
	got := begin(t, func(ctx context.Context) (*locker.Lease, error) { return l.Lock(ctx, t.Name()) })
	if err := h.extend(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	if d := s.longest(t, t.Name()); d <= 4*short {
		t.Errorf("extended by %v, it has %v left", long, d)
	}
	refused(t, l)
	got.stays(t, "we got what they have extended")
	if err := h.unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := got.await(t).Unlock(); err != nil {
		t.Error(err)
	}
}

// refused checks that the key is taken.
func refused(t *testing.T, l locker.Locker) {
	t.Helper()
	if _, err := l.TryLock(t.Context(), t.Name()); !errors.Is(err, locker.ErrLocked) {
		t.Fatalf("TryLock of what they hold = %v", err)
	}
}

// must is for calls that have to succeed.
func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

type result[T any] struct {
	v   T
	err error
}

// pending is a call that is under way.
type pending[T any] chan result[T]

func begin[T any](t *testing.T, f func(context.Context) (T, error)) pending[T] {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	c := make(pending[T], 1)
	go func() {
		v, err := f(ctx)
		c <- result[T]{v, err}
	}()
	return c
}

// stays checks that the call does not return for a moment.
func (c pending[T]) stays(t *testing.T, complaint string) {
	t.Helper()
	select {
	case r := <-c:
		t.Fatalf("%s (%v)", complaint, r.err)
	case <-time.After(10 * retry):
	}
}

func (c pending[T]) await(t *testing.T) T {
	t.Helper()
	r := <-c
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}
