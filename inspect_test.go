package locker_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// seeing is a fake that can be inspected, and whose locks can be taken away.
type seeing struct {
	*fake
	inspect  func(ctx context.Context, name string) (locker.LockInfo, error)
	list     []string // names
	listErr  error
	takeAway func(ctx context.Context, name string, r *locker.Revocation) error
}

func (s *seeing) Features() locker.Features { return locker.Features{Inspect: true, Revoke: true} }

func (s *seeing) Inspect(ctx context.Context, name string) (locker.LockInfo, error) {
	return s.inspect(ctx, name)
}

func (s *seeing) List(_ context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		for _, name := range s.list {
			if strings.HasPrefix(name, prefix) && !yield(locker.LockInfo{Key: name}, nil) {
				return
			}
		}
		if s.listErr != nil && yield(locker.LockInfo{}, s.listErr) {
			panic("asked for more after an error")
		}
	}
}

func (s *seeing) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	return s.takeAway(ctx, name, r)
}

func (s *seeing) Break(ctx context.Context, name string, r *locker.Revocation, others bool) error {
	if !others {
		return &locker.OthersError{Others: 2}
	}
	return s.takeAway(ctx, name, r)
}

// wantError checks that err is an *Error of an operation and a key, around each of some others.
func wantError(t *testing.T, err error, op, key string, is ...error) {
	t.Helper()
	var e *locker.Error
	if !errors.As(err, &e) || e.Op != op || e.Key != key {
		t.Errorf("%v; want an *Error of %s %q", err, op, key)
	}
	for _, target := range is {
		if !errors.Is(err, target) {
			t.Errorf("%v; want %v", err, target)
		}
	}
}

func TestInspect(t *testing.T) {
	s := &seeing{fake: new(fake)}
	want := locker.LockInfo{Holders: []locker.HolderInfo{{Name: "a", Token: 7}}, Waiting: 3}
	var asked string
	s.inspect = func(_ context.Context, name string) (locker.LockInfo, error) {
		asked = name
		return want, nil
	}
	l := locker.New(s, locker.Prefix("p:"))
	info, err := l.Inspect(t.Context(), "k")
	if err != nil || asked != "p:k" || info.Key != "k" || info.Waiting != 3 || info.Holders[0] != want.Holders[0] {
		t.Errorf("asked for %q: %+v, %v", asked, info, err)
	}
	s.inspect = func(context.Context, string) (locker.LockInfo, error) { return want, errFault }
	info, err = l.Inspect(t.Context(), "k")
	wantError(t, err, "inspect", "k", errFault, locker.ErrUnavailable)
	if info.Waiting != 0 {
		t.Errorf("beside an error: %+v", info)
	}
}

// TestInspectIsBounded has a store that does not answer: the caller's ctx bounds the call, and the TTL does.
func TestInspectIsBounded(t *testing.T) {
	s := &seeing{fake: new(fake)}
	s.inspect = func(ctx context.Context, _ string) (locker.LockInfo, error) { return locker.LockInfo{}, hang(ctx) }
	s.takeAway = func(ctx context.Context, _ string, _ *locker.Revocation) error { return hang(ctx) }
	l := locker.New(s, locker.TTL(100*time.Millisecond))
	_, err := l.Inspect(t.Context(), "k")
	wantError(t, err, "inspect", "k", locker.ErrUnavailable)
	wantError(t, l.Revoke(t.Context(), "k", "why"), "revoke", "k", locker.ErrUnavailable)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errFault)
	defer cancel()
	_, err = l.Inspect(ctx, "k")
	wantError(t, err, "inspect", "k", context.DeadlineExceeded, errFault)
	wantError(t, l.Break(ctx, "k", locker.AlsoOthers()), "break", "k", context.DeadlineExceeded, errFault)
}

// TestInspectRefused has what is refused before the store is asked.
func TestInspectRefused(t *testing.T) {
	s := &seeing{fake: new(fake)} // whose functions would panic
	l := locker.New(s)
	list := func(ctx context.Context, l *locker.Client) (err error) {
		for _, err = range l.List(ctx, "p") {
			break
		}
		return err
	}
	_, err := l.Inspect(t.Context(), "")
	wantError(t, err, "inspect", "", locker.ErrInvalidKey)
	wantError(t, l.Revoke(t.Context(), "", "why"), "revoke", "", locker.ErrInvalidKey)
	long := strings.Repeat("x", locker.MaxReasonLen+1)
	wantError(t, l.Revoke(t.Context(), "k", long), "revoke", "k", locker.ErrInvalidOption)
	wantError(t, l.Break(t.Context(), "k", locker.Reason(long)), "break", "k", locker.ErrInvalidOption)
	wantError(t, l.Break(t.Context(), "k", nil), "break", "k", locker.ErrInvalidOption)
	err = l.Break(t.Context(), "k")
	wantError(t, err, "break", "k", errors.ErrUnsupported)
	if others := (*locker.OthersError)(nil); !errors.As(err, &others) || others.Others != 2 {
		t.Errorf("%v; want an *OthersError of 2", err)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errFault)
	_, err = l.Inspect(ended, "k")
	wantError(t, err, "inspect", "k", context.Canceled, errFault)
	wantError(t, list(ended, l), "list", "p", context.Canceled, errFault)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = l.Inspect(t.Context(), "k")
	wantError(t, err, "inspect", "k", locker.ErrClosed)
	wantError(t, list(t.Context(), l), "list", "p", locker.ErrClosed)
	wantError(t, l.Revoke(t.Context(), "k", "why"), "revoke", "k", locker.ErrClosed)

	older := locker.New(new(fake))
	_, err = older.Inspect(t.Context(), "k")
	wantError(t, err, "inspect", "k", errors.ErrUnsupported)
	wantError(t, list(t.Context(), older), "list", "p", errors.ErrUnsupported)
	wantError(t, older.Revoke(t.Context(), "k", "why"), "revoke", "k", errors.ErrUnsupported)
	wantError(t, older.Break(t.Context(), "k"), "break", "k", errors.ErrUnsupported)

	for _, f := range []locker.Features{{Inspect: true}, {Revoke: true}} {
		claims := locker.New(claiming{new(fake), f})
		_, err = claims.TryLock(t.Context(), "k")
		wantError(t, err, "trylock", "k", locker.ErrInvalidOption)
	}
}

// claiming states what it has no methods for.
type claiming struct {
	locker.Backend
	features locker.Features
}

func (c claiming) Features() locker.Features { return c.features }

func TestList(t *testing.T) {
	s := &seeing{fake: new(fake), list: []string{"p:a", "other", "p:b/1", "p:b/2"}}
	l := locker.New(s, locker.Prefix("p:"))
	list := func(prefix string) (keys []string, err error) {
		for info, e := range l.List(t.Context(), prefix) {
			if err = e; err == nil {
				keys = append(keys, info.Key)
			}
		}
		return keys, err
	}
	for prefix, want := range map[string]string{"": "a b/1 b/2", "b": "b/1 b/2", "c": ""} {
		if keys, err := list(prefix); err != nil || strings.Join(keys, " ") != want {
			t.Errorf("under %q: %q, %v; want %q", prefix, keys, err, want)
		}
	}
	s.listErr = errFault
	keys, err := list("b")
	wantError(t, err, "list", "b", errFault, locker.ErrUnavailable)
	if len(keys) != 2 {
		t.Errorf("before the error: %q", keys)
	}
	for range l.List(t.Context(), "") { // whoever has seen enough asks for no more
		break
	}
	if err := l.Close(); err != nil { // and is not waited for
		t.Error(err)
	}
}

// TestRevoke has a holder told by the store, and by a renewal: Unlock then frees the key, once, and says ErrLost.
func TestRevoke(t *testing.T) {
	for _, told := range []string{"by the store", "by a renewal"} {
		f := new(fake)
		r := &locker.Revocation{By: "ops", Reason: "stuck"}
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			lease := mustLock(t, l, "k")
			ctx, cancel := lease.Context(t.Context())
			defer cancel()
			if told == "by the store" {
				f.acquired[0].ReportLost(r)
			} else {
				f.renew = func(_ context.Context, gs []locker.Grant) []error {
					return []error{errors.Join(locker.ErrLost, r)}
				}
				<-lease.Done()
			}
			<-ctx.Done()
			errs := map[string]error{"Err": lease.Err(), "the cause": context.Cause(ctx), "Unlock": lease.Unlock()}
			for what, err := range errs {
				var got *locker.Revocation
				if !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrRevoked) || errors.Is(err,
					locker.ErrBroken) ||
					!errors.As(err, &got) || *got != *r || !strings.Contains(err.Error(), "revoked by ops: stuck") {
					t.Errorf("told %s: %s: %v", told, what, err)
				}
			}
			_ = lease.Unlock()
			if _, _, released := f.calls(); released != 1 {
				t.Errorf("told %s: released %d times; want once", told, released)
			}
		})
	}
}

// TestBroken has a holder whose lock was broken: the key is not his any more, and nothing is released.
func TestBroken(t *testing.T) {
	f := new(fake)
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		f.acquired[0].ReportLost(&locker.Revocation{Broken: true})
		if err := lease.Unlock(); !errors.Is(err, locker.ErrBroken) || errors.Is(err, locker.ErrRevoked) {
			t.Errorf("Unlock: %v; want ErrBroken", err)
		}
		if _, _, released := f.calls(); released != 0 {
			t.Errorf("released %d times", released)
		}
	})
}

// TestRevokedUnlocksLate has a holder unlock when its lease has ended, or the Client is closed: the store is not asked.
func TestRevokedUnlocksLate(t *testing.T) {
	f := new(fake)
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		one, two := mustLock(t, l, "one"), mustLock(t, l, "two")
		for _, r := range f.acquired {
			r.ReportLost(&locker.Revocation{})
		}
		time.Sleep(time.Second)
		if err := one.Unlock(); !errors.Is(err, locker.ErrRevoked) {
			t.Errorf("Unlock: %v; want ErrRevoked", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := two.Unlock(); !errors.Is(err, locker.ErrRevoked) {
			t.Errorf("Unlock: %v; want ErrRevoked", err)
		}
		if _, _, released := f.calls(); released != 0 {
			t.Errorf("released %d times", released)
		}
	})
}

// TestRevocationIsLogged has both sides say who did it and why.
func TestRevocationIsLogged(t *testing.T) {
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	memory := memlock.New()
	ops := memory.Peer(locker.Holder("ops"), locker.Log(logger))
	lease := mustLock(t, memory, "k")
	if err := ops.Revoke(t.Context(), "k", "stuck"); err != nil {
		t.Fatal(err)
	}
	_ = lease.Unlock()
	mustLock(t, memory, "k")
	if err := ops.Break(t.Context(), "k", locker.Reason("dead")); err != nil {
		t.Fatal(err)
	}
	wantError(t, ops.Revoke(t.Context(), "free", "why not"), "revoke", "free", locker.ErrNotHeld)
	for _, want := range []string{
		`msg="lock revoked" key=k store=memory by=ops reason=stuck`,
		`msg="lock broken" key=k store=memory by=ops reason=dead`,
		`msg="revoke failed" key=free store=memory by=ops reason="why not" error="nobody holds it"`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, log.String())
		}
	}
}
