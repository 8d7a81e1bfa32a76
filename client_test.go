package locker_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
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
		opts     []locker.CallOption
		mode     locker.Mode
		slots    int
		want     error
	}{
		{locker.Features{}, []locker.CallOption{locker.Shared()}, 0, 0, errors.ErrUnsupported},
		{locker.Features{Shared: true}, []locker.CallOption{locker.Slots(3)}, 0, 0, errors.ErrUnsupported},
		{locker.Features{Slots: true}, []locker.CallOption{locker.Shared()}, 0, 0, errors.ErrUnsupported},
		{locker.Features{Shared: true}, []locker.CallOption{locker.Shared()}, locker.ModeShared, 0, nil},
		{locker.Features{Slots: true}, []locker.CallOption{locker.Slots(3)}, locker.ModeSlots, 3, nil},
		{locker.Features{}, nil, locker.ModeExclusive, 0, nil},
		{
			locker.Features{Shared: true, Slots: true}, []locker.CallOption{locker.Slots(3), locker.Shared()},
			locker.ModeShared, 0, nil, // the last one counts
		},
		{locker.Features{Slots: true}, []locker.CallOption{locker.Slots(0)}, 0, 0, locker.ErrInvalidOption},
		{
			locker.Features{Slots: true}, []locker.CallOption{locker.Slots(locker.MaxSlots + 1)}, 0, 0,
			locker.ErrInvalidOption,
		},
	} {
		before, _, _ := f.calls()
		l := locker.New(stating{f, test.features})
		lease, err := l.TryLock(t.Context(), "k", test.opts...)
		if !errors.Is(err, test.want) {
			t.Errorf("mode %d of a backend with %+v: %v; want %v", test.mode, test.features, err, test.want)
		}
		if err == nil && lease.Mode() != test.mode {
			t.Errorf("the lease has mode %d; want %d", lease.Mode(), test.mode)
		}
		asked, _, _ := f.calls()
		if asked > before != (test.want == nil) {
			t.Errorf("mode %d of a backend with %+v: the backend was asked %d times", test.mode, test.features,
				asked-before)
		}
		if r := f.acquired[max(asked, 1)-1:]; test.want == nil && (r[0].Mode != test.mode || r[0].Slots != test.slots) {
			t.Errorf("the backend was asked for mode %d with %d slots; want %d, %d", r[0].Mode, r[0].Slots, test.mode,
				test.slots)
		}
		_ = l.Close()
	}
}

// TestSlotThatThereIsNot has a backend grant a slot that was not asked for.
func TestSlotThatThereIsNot(t *testing.T) {
	for _, slot := range []int{-1, 3} {
		f := new(fake)
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
			g := f.grant(r)
			g.Slot = slot
			return g, nil
		}
		l := locker.New(stating{f, locker.Features{Slots: true}})
		if _, err := l.TryLock(t.Context(), "k", locker.Slots(3)); !errors.Is(err, locker.ErrUnfit) {
			t.Errorf("slot %d of 3: %v; want ErrUnfit", slot, err)
		}
		_ = l.Close()
		if _, _, releases := f.calls(); releases != 1 {
			t.Errorf("it was released %d times", releases)
		}
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
		if err := l.Ping(context.Background()); !errors.Is(err, locker.ErrUnavailable) ||
			time.Since(start) > time.Second {
			t.Errorf("Ping of a store that hangs: %v after %v; want ErrUnavailable within the TTL", err,
				time.Since(start))
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
			f := &fake{
				acquire: func(ctx context.Context, _ locker.Request) (locker.Grant, error) { return locker.Grant{}, hang(ctx) },
			}
			b := locker.Backend(stating{f, locker.Features{HeedsContext: heeds}})
			if queue {
				b = waiting{f, locker.Features{HeedsContext: heeds, Queue: true}, f.acquire}
			}
			synctest.Test(t, func(t *testing.T) {
				l := locker.New(b, locker.TTL(time.Second))
				locks := map[string]lockFunc{"Lock": l.Lock, "TryLock": l.TryLock}
				for name, lock := range locks {
					for _, before := range []bool{false, true} {
						ctx, cancel := context.WithCancelCause(t.Context())
						if before {
							cancel(cause)
						} else {
							time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
						}
						_, err := lock(ctx, "k")
						if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) ||
							errors.Is(err, locker.ErrUnavailable) {
							t.Errorf("heeds %v, queue %v: %s: %v; want context.Canceled with its cause", heeds, queue,
								name, err)
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
		f := &fake{
			acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, test.err },
		}
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

// Errors say which call of which key has failed, whatever it failed for.
func TestErrorsNameTheCall(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	refusing := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) {
		return locker.Grant{}, locker.NotAcquired(locker.ErrDenied)
	}}
	closed := locker.New(new(fake))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		l   *locker.Client
		ctx context.Context
		opt locker.CallOption
	}{
		"an invalid option":         {locker.New(new(fake)), t.Context(), locker.TTL(-1)},
		"a context that has ended":  {locker.New(new(fake)), ended, locker.NoRenew()},
		"a Locker that was closed":  {closed, t.Context(), locker.NoRenew()},
		"a store that does not let": {locker.New(refusing), t.Context(), locker.NoRenew()},
	} {
		for op, lock := range map[string]lockFunc{
			"lock": test.l.Lock, "trylock": test.l.TryLock,
		} {
			_, err := lock(test.ctx, "orders/42", test.opt)
			var e *locker.Error
			if !errors.As(err, &e) || e.Op != op || e.Key != "orders/42" {
				t.Errorf("%s of %s: %#v; want an Error of that", op, what, err)
			}
		}
	}
}

// A backend finds in its ctx what the caller has put there, such as the span of a trace, also in a context of its own.
func TestValuesOfTheContext(t *testing.T) {
	type span struct{}
	seen := make(map[string]any)
	w := waiting{
		&fake{acquire: func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			seen["Acquire"] = ctx.Value(span{})
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			seen["Acquire, of its own"] = own.Value(span{})
			return locker.Grant{Request: r, Token: 1}, nil
		}},
		locker.Features{Queue: true},
		func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			seen["Wait"] = ctx.Value(span{})
			_ = ctx.Done()
			seen["Wait, later"] = ctx.Value(span{})
			return locker.Grant{Request: r, Token: 2, Sent: time.Now()}, nil
		},
	}
	for _, heeds := range []bool{false, true} {
		clear(seen)
		w.features.HeedsContext = heeds
		l := locker.New(w)
		ctx := context.WithValue(t.Context(), span{}, "a trace")
		if _, err := l.TryLock(ctx, "a"); err != nil {
			t.Error(err)
		}
		if _, err := l.Lock(ctx, "b"); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, where := range []string{"Acquire", "Acquire, of its own", "Wait", "Wait, later"} {
			if seen[where] != "a trace" {
				t.Errorf("HeedsContext %v: %s sees %v", heeds, where, seen[where])
			}
		}
	}
}

// ReportRetry is for Observers: without one it does nothing, and for an attempt that is over it does not, either.
func TestReportRetryWithoutObserver(t *testing.T) {
	for _, observed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var first locker.Request
			wait := func(_ context.Context, r locker.Request) (locker.Grant, error) {
				r.ReportRetry(errFault)
				if first.Key == "" { // the next attempt is another owner's
					first = r
					r.ReportHolder("h")
					return locker.Grant{}, errFault
				}
				first.ReportRetry(errFault)
				return locker.Grant{Request: r, Token: 1, Sent: time.Now()}, nil
			}
			w := waiting{new(fake), locker.Features{Queue: true}, wait}
			var retries atomic.Int64
			var opts []locker.Option
			if observed {
				opts = append(opts, locker.Observe(&locker.Observer{Retry: func(locker.RetryInfo) { retries.Add(1) }}))
			}
			l := locker.New(w, opts...)
			if _, err := l.Lock(t.Context(), "k"); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			synctest.Wait()                                  // Observers are told on a goroutine of their own
			if got := retries.Load(); observed && got != 3 { // one of each attempt, and that of locker.New between them
				t.Errorf("%d retries were told; want 3", got)
			}
		})
	}
}
