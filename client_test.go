package locker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// stating is a fake that states features.
type stating struct {
	*fake
	features locker.Features
}

func (s stating) Features() locker.Features { return s.features }

func TestClientsThatCannotWork(t *testing.T) {
	for name, l := range map[string]*locker.Client{
		"nil":                        locker.New(nil),
		"a nil pointer":              locker.New((*fake)(nil)),
		"a line without Wait":        locker.New(stating{new(fake), locker.Features{Queue: true}}),
		"an Expirer without Expired": locker.New(stating{new(fake), locker.Features{Expirer: true}}),
		"Observe(nil)":               locker.New(new(fake), locker.Observe(nil)),
		"Log(nil)":                   locker.New(new(fake), locker.Log(nil)),
		"a nil option":               locker.New(new(fake), nil),
	} {
		if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: Lock: %v; want ErrInvalidOption", name, err)
		}
		if err := l.Ping(t.Context()); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: Ping: %v; want ErrInvalidOption", name, err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
}

// What a backend does not state is refused before it is asked, so that an older one never takes a shared lock for an
// exclusive one.
func TestModesThatABackendDoesNotState(t *testing.T) {
	f := new(fake)
	for _, test := range []struct {
		features locker.Features
		mode     locker.Mode
		slots    int
		want     error
	}{
		{locker.Features{}, locker.ModeShared, 0, errors.ErrUnsupported},
		{locker.Features{Shared: true}, locker.ModeSlots, 3, errors.ErrUnsupported},
		{locker.Features{Slots: true}, locker.ModeShared, 0, errors.ErrUnsupported},
		{locker.Features{Shared: true}, locker.ModeShared, 0, nil},
		{locker.Features{Slots: true}, locker.ModeSlots, 3, nil},
		{locker.Features{}, locker.ModeExclusive, 0, nil},
	} {
		before, _, _ := f.calls()
		l := locker.New(stating{f, test.features})
		_, err := l.TryLock(t.Context(), "k", locker.InMode(test.mode, test.slots))
		if !errors.Is(err, test.want) {
			t.Errorf("mode %d of a backend with %+v: %v; want %v", test.mode, test.features, err, test.want)
		}
		asked, _, _ := f.calls()
		if asked > before != (test.want == nil) {
			t.Errorf("mode %d of a backend with %+v: the backend was asked %d times", test.mode, test.features, asked-before)
		}
		if r := f.acquired[max(asked, 1)-1:]; test.want == nil && (r[0].Mode != test.mode || r[0].Slots != test.slots) {
			t.Errorf("the backend was asked for mode %d with %d slots; want %d, %d", r[0].Mode, r[0].Slots, test.mode, test.slots)
		}
		_ = l.Close()
	}
}

func TestPing(t *testing.T) {
	denied := errors.Join(locker.ErrDenied, errFault)
	for name, test := range map[string]struct {
		acquire, release, want error
	}{
		"all is well":         {},
		"somebody else pings": {acquire: &locker.Held{}},
		"denied":              {acquire: denied, want: locker.ErrDenied},
		"out of reach":        {acquire: errFault, want: locker.ErrUnavailable},
		"cannot unlock":       {release: locker.Final(denied), want: locker.ErrDenied},
		"slower than the TTL": {release: locker.ErrLost},
	} {
		f := new(fake)
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
			if r.Name() != "p:"+locker.PingKey || !r.NoRenew {
				t.Errorf("Ping asks for %q", r.Name())
			}
			if test.acquire != nil {
				return locker.Grant{}, locker.NotAcquired(test.acquire)
			}
			return f.grant(r), nil
		}
		f.release = func(context.Context, locker.Grant) error { return test.release }
		o := &locker.Observer{LockDone: func(context.Context, locker.LockDoneInfo) { t.Error("Ping is observed") }}
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			err := l.Ping(t.Context())
			var e *locker.Error
			switch {
			case test.want == nil && err != nil:
				t.Errorf("%s: %v", name, err)
			case test.want != nil && (!errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "ping"):
				t.Errorf("%s: %v; want %v from a ping", name, err, test.want)
			}
			_, _, released := f.calls()
			if wanted := test.acquire == nil; wanted != (released > 0) {
				t.Errorf("%s: released %d times", name, released)
			}
		}, locker.Prefix("p:"), locker.Observe(o))
	}
}

func TestPingIsBounded(t *testing.T) {
	stuck := func(ctx context.Context, _ locker.Request) (locker.Grant, error) { return locker.Grant{}, hang(ctx) }
	inFakeTime(t, &fake{acquire: stuck}, func(t *testing.T, l *locker.Client) {
		start := time.Now()
		if err := l.Ping(context.Background()); !errors.Is(err, locker.ErrUnavailable) || time.Since(start) > time.Second {
			t.Errorf("Ping of a store that hangs: %v after %v; want ErrUnavailable within the TTL", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start = time.Now()
		if err := l.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Millisecond {
			t.Errorf("Ping with a deadline: %v after %v", err, time.Since(start))
		}
	})
}

// Whoever waits for a key that his own Locker holds is told so.
func TestWaitForOwnKey(t *testing.T) {
	for name, want := range map[string]string{"": locker.ThisLocker, "worker 7": "worker 7"} {
		f := new(fake)
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
			if n, _, _ := f.calls(); n > 1 {
				return locker.Grant{}, &locker.Held{Holder: name}
			}
			return f.grant(r), nil
		}
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			mustLock(t, l, "k")
			for key, want := range map[string]string{"k": want, "another": name} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				_, err := l.Lock(ctx, key)
				cancel()
				var e *locker.Error
				if !errors.As(err, &e) || e.Holder != want || !strings.Contains(err.Error(), want) {
					t.Errorf("Lock of %q: %v; want that it is held by %q", key, err, want)
				}
			}
		})
	}
}

// What a context ends matches what the context says in both of its ways.
func TestEndOfContextMatchesBoth(t *testing.T) {
	cause := errors.New("shutting down")
	for _, heeds := range []bool{false, true} {
		for _, queue := range []bool{false, true} {
			f := &fake{acquire: func(ctx context.Context, _ locker.Request) (locker.Grant, error) { return locker.Grant{}, hang(ctx) }}
			b := locker.Backend(stating{f, locker.Features{HeedsContext: heeds}})
			if queue {
				b = waiting{f, locker.Features{HeedsContext: heeds, Queue: true}, f.acquire}
			}
			synctest.Test(t, func(t *testing.T) {
				l := locker.New(b, locker.TTL(time.Second))
				locks := map[string]func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){"Lock": l.Lock, "TryLock": l.TryLock}
				for name, lock := range locks {
					for _, before := range []bool{false, true} {
						ctx, cancel := context.WithCancelCause(t.Context())
						if before {
							cancel(cause)
						} else {
							time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
						}
						_, err := lock(ctx, "k")
						if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || errors.Is(err, locker.ErrUnavailable) {
							t.Errorf("heeds %v, queue %v: %s: %v; want context.Canceled with its cause", heeds, queue, name, err)
						}
					}
				}
				_ = l.Close()
				time.Sleep(time.Hour)
			})
		}
	}
}

// waiting is a fake with a line.
type waiting struct {
	*fake
	features locker.Features
	wait     func(context.Context, locker.Request) (locker.Grant, error)
}

func (w waiting) Features() locker.Features { return w.features }
func (w waiting) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return w.wait(ctx, r)
}

// secondTime is f with a line that fails the first time, once the key was said to be held, and grants the lock the
// second time, after a call of before. It keeps the first request.
func secondTime(f *fake, first *locker.Request, before func(r locker.Request)) waiting {
	return waiting{f, locker.Features{Queue: true}, func(_ context.Context, r locker.Request) (locker.Grant, error) {
		if first.Owner == (locker.Owner{}) {
			*first = r
			r.ReportHolder("")
			return locker.Grant{}, errFault
		}
		before(r)
		g := f.grant(r)
		g.Sent = time.Now()
		return g, nil
	}}
}

func TestClasses(t *testing.T) {
	for _, test := range []struct{ err, class error }{
		{errFault, locker.ErrUnavailable},
		{errors.Join(errFault, locker.ErrDenied), locker.ErrDenied},
		{errors.Join(errFault, locker.ErrUnfit), locker.ErrUnfit},
		{locker.NotAcquired(errFault), locker.ErrUnavailable},
	} {
		f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, test.err }}
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			_, err := l.TryLock(t.Context(), "k")
			for _, class := range []error{locker.ErrUnavailable, locker.ErrDenied, locker.ErrUnfit} {
				if errors.Is(err, class) != (class == test.class) { //nolint:errorlint // which of them it is
					t.Errorf("%v is %v: %v", err, class, errors.Is(err, class))
				}
			}
			if !errors.Is(err, errFault) || strings.Contains(err.Error(), locker.ErrUnavailable.Error()) {
				t.Errorf("the error of the store became %v", err)
			}
		})
	}
}

// A release that another attempt cannot mend is not tried again.
func TestFinalRelease(t *testing.T) {
	f := &fake{release: func(context.Context, locker.Grant) error { return locker.Final(locker.ErrClosed) }}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		start := time.Now()
		if err := mustLock(t, l, "k").Unlock(); !errors.Is(err, locker.ErrClosed) || time.Since(start) != 0 {
			t.Errorf("Unlock: %v after %v; want ErrClosed at once", err, time.Since(start))
		}
		if _, _, released := f.calls(); released != 1 {
			t.Errorf("tried %d times", released)
		}
	})
}
