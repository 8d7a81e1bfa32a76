package locker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// events records what an Observer is told, as text.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf(format, args...))
}

// take returns what was recorded since the last call.
func (e *events) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.all
	e.all = nil
	return all
}

type spanKey struct{}

func (e *events) observer() *locker.Observer {
	return &locker.Observer{
		LockStart: func(ctx context.Context, i locker.LockStartInfo) context.Context {
			e.add("start %s %s %s", i.Op, i.Key, i.Store)
			return context.WithValue(ctx, spanKey{}, i.Key)
		},
		LockDone: func(ctx context.Context, i locker.LockDoneInfo) {
			e.add("done %s %s %s: waited %v, queued %v behind %q, token %v, err %v, span %v",
				i.Op, i.Key, i.Store, i.Waited, i.Queued, i.Behind, i.Token > 0, i.Err, ctx.Value(spanKey{}))
		},
		LeaseDone: func(i locker.LeaseDoneInfo) {
			e.add("lease %s %s: held %v, token %v, err %v", i.Key, i.Store, i.Held, i.Token > 0, i.Err)
		},
		Renewed: func(i locker.RenewedInfo) {
			if i.TTL != time.Second || i.Token == 0 || i.Slack > time.Second || i.Slack <= 0 {
				e.add("renewed: %+v", i)
			}
			e.add("renewed %s %s: %d failures, err %v", i.Key, i.Store, i.Failures, i.Err)
		},
	}
}

func (e *events) expect(t *testing.T, when string, want ...string) {
	t.Helper()
	if got := e.take(); !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", when, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestObserver(t *testing.T) {
	e := new(events)
	f := new(fake)
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		var seen any
		f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			seen = ctx.Value(spanKey{})
			time.Sleep(100 * time.Millisecond)
			return f.grant(r), nil
		}
		lease := mustLock(t, l, "k")
		if seen != "k" {
			t.Errorf("the context of LockStart has not reached the backend: %v", seen)
		}
		e.expect(
			t,
			"TryLock",
			"start trylock k fake",
			`done trylock k fake: waited 100ms, queued false behind "", token true, err <nil>, span k`,
		)
		time.Sleep(400 * time.Millisecond)
		synctest.Wait()
		e.expect(t, "a renewal", "renewed k fake: 0 failures, err <nil>")
		f.release = func(context.Context, locker.Grant) error { time.Sleep(100 * time.Millisecond); return nil }
		_ = lease.Unlock()
		e.expect(t, "Unlock", "lease k fake: held 500ms, token true, err <nil>")
		_ = lease.Unlock()
		_ = lease.Err()
		e.expect(t, "a second Unlock")

		f.release = func(context.Context, locker.Grant) error { return locker.Final(errFault) }
		lease = mustLock(t, l, "k")
		e.take()
		_ = lease.Unlock()
		e.expect(
			t,
			"an Unlock that fails",
			`lease k fake: held 0s, token true, err locker: unlock "k" (fake): the store has a fault`,
		)

		lease = mustLock(t, l, "k")
		e.take()
		f.renew = func(context.Context, []locker.Grant) []error { return []error{errFault} }
		<-lease.Done()
		synctest.Wait()
		told := e.take()
		for i, event := range told[:len(told)-1] {
			if want := fmt.Sprintf("renewed k fake: %d failures, err the store has a fault", i+1); event != want {
				t.Errorf("got  %s\nwant %s", event, want)
			}
		}
		want := `lease k fake: held 888ms, token true, err locker: lease "k" (fake): lease lost: not renewed in time: the store has a fault`
		if len(told) < 4 || told[len(told)-1] != want {
			t.Errorf("told %v\nwant several renewals and at last %s", told, want)
		}

		lease = mustLock(t, l, "k")
		e.take()
		f.acquired[len(f.acquired)-1].ReportLost(errFault)
		synctest.Wait()
		e.expect(
			t,
			"a loss that the backend reports",
			`lease k fake: held 0s, token true, err locker: lease "k" (fake): lease lost: the store has a fault`,
		)
		_ = lease.Unlock()
		e.expect(t, "Unlock after a loss")

		f.acquire = func(context.Context, locker.Request) (locker.Grant, error) {
			return locker.Grant{}, &locker.Held{Holder: "worker 7"}
		}
		_, _ = l.TryLock(t.Context(), "k")
		e.expect(
			t,
			"a refusal",
			"start trylock k fake",
			`done trylock k fake: waited 0s, queued false behind "worker 7", token false, err locker: trylock "k" (fake): locked [held by worker 7], span k`,
		)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, _ = l.Lock(ctx, "k")
		cancel()
		e.expect(
			t,
			"a wait that ends",
			"start lock k fake",
			`done lock k fake: waited 1s, queued true behind "worker 7", token false, err locker: lock "k" (fake): context deadline exceeded [held by worker 7], span k`,
		)
		_, _ = l.Lock(t.Context(), "")
		e.expect(
			t,
			"a key that is not valid",
			"start lock  fake",
			`done lock  fake: waited 0s, queued false behind "", token false, err locker: lock (fake): invalid key: 0 bytes long, must be 1 to 1024, span `,
		)

		f.acquire, f.release, f.renew = nil, nil, nil
		mustLock(t, l, "held")
		e.take()
		_ = l.Close()
		e.expect(t, "Close", "lease held fake: held 0s, token true, err <nil>")
	}, locker.Observe(e.observer()))
}

// Several Observers are told, in order; each gets the context of the one before; and a nil function or context is none.
func TestSeveralObservers(t *testing.T) {
	var order []string
	start := func(name string, ctx func(context.Context) context.Context) *locker.Observer {
		return &locker.Observer{
			LockStart: func(c context.Context, _ locker.LockStartInfo) context.Context {
				order = append(order, fmt.Sprint(name, " ", c.Value(spanKey{})))
				return ctx(c)
			},
			LockDone: func(c context.Context, _ locker.LockDoneInfo) {
				order = append(order, fmt.Sprint(name, " ", c.Value(spanKey{})))
			},
		}
	}
	l := locker.New(
		new(fake),
		locker.Observe(new(locker.Observer)),
		locker.Observe(
			start("a", func(c context.Context) context.Context { return context.WithValue(c, spanKey{}, 1) }),
		),
		locker.Observe(start("b", func(context.Context) context.Context { return nil })),
		locker.Observe(start("c", func(context.Context) context.Context { // no child of what it got
			return context.WithValue(context.Background(), spanKey{}, 2)
		})),
	)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	mustLock(t, l, "k")
	if want := []string{"a <nil>", "b 1", "c 1", "a 2", "b 2", "c 2"}; !slices.Equal(order, want) {
		t.Errorf("told %v; want %v", order, want)
	}
	cancel()
	if _, err := l.TryLock(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("an Observer has taken the end of its ctx from a TryLock: %v", err)
	}
}

// What Log writes: a line per streak of failures at the level of a warning, and the loss as an error.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		logger := slog.New(
			slog.NewTextHandler(
				&out,
				&slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey || a.Key == "token" || a.Key == "slack" || a.Key == "pause" {
						return slog.Attr{}
					}
					return a
				}},
			),
		)
		expect := func(when, want string) {
			t.Helper()
			synctest.Wait()
			if got := out.String(); got != want {
				t.Errorf("%s:\n got %q\nwant %q", when, got, want)
			}
			out.Reset()
		}
		l := memlock.New(locker.TTL(time.Second), locker.Log(logger))
		lease, err := l.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		_ = lease.Unlock()
		_, _ = l.TryLock(t.Context(), "")
		expect("all is well", "")

		lease, _ = l.Lock(t.Context(), "k")
		heal := l.Cut()
		<-lease.Done()
		expect("an outage", `level=WARN msg="renewal failed" key=k store=memory error="severed by Cut"
level=ERROR msg="lease lost" key=k store=memory held=988ms error="lease lost: not renewed in time: severed by Cut"
`)
		heal()
		var leases []*locker.Lease
		for i := range 3 {
			lease, _ = l.Lock(t.Context(), fmt.Sprint(i))
			leases = append(leases, lease)
		}
		heal = l.Cut()
		for _, lease := range leases {
			_ = lease.Unlock()
		}
		if n := strings.Count(out.String(), "level=WARN msg=\"unlock failed; the key is free after its TTL\""); n != 1 {
			t.Errorf("three unlocks that fail: %d warnings:\n%s", n, out.String())
		}
		out.Reset()
		heal()
		_ = l.Close()

		var debug bytes.Buffer
		d := slog.New(slog.NewJSONHandler(&debug, &slog.HandlerOptions{Level: slog.LevelDebug}))
		l = memlock.New(locker.TTL(time.Second), locker.Log(d))
		lease, _ = l.Lock(t.Context(), "k")
		_, err = l.TryLock(t.Context(), "k")
		time.Sleep(time.Second)
		_ = lease.Unlock()
		d.Info("by hand", "lease", lease, "error", err)
		for _, want := range []string{`"msg":"locked"`, `"msg":"trylock failed"`, `"msg":"renewed"`, `"msg":"unlocked"`,
			`"lease":{"key":"k","token":`, `"error":{"op":"trylock","key":"k","store":"memory","reason":"locked"}`} {
			if !strings.Contains(debug.String(), want) {
				t.Errorf("no %s in\n%s", want, debug.String())
			}
		}
		_ = l.Close()
	})
}

func TestFromContext(t *testing.T) {
	l := memlock.New()
	defer l.Close()
	lease := mustLock(t, l.Client, "k")
	ctx, cancel := lease.Context(context.WithValue(t.Context(), spanKey{}, "value"))
	defer cancel()
	child, cancelChild := context.WithTimeout(ctx, time.Hour)
	defer cancelChild()
	if locker.FromContext(child) != lease || child.Value(spanKey{}) != "value" {
		t.Error("FromContext in a context that was made of that of a lease")
	}
	if got := locker.FromContext(t.Context()); got != nil {
		t.Errorf("FromContext of a context without a lease: %v", got)
	}
}

// What Observers cost, compared with none.
func BenchmarkObserver(b *testing.B) {
	o := &locker.Observer{
		LockStart: func(ctx context.Context, _ locker.LockStartInfo) context.Context { return ctx },
		LockDone:  func(context.Context, locker.LockDoneInfo) {},
		LeaseDone: func(locker.LeaseDoneInfo) {},
		Renewed:   func(locker.RenewedInfo) {},
	}
	for name, l := range map[string]*memlock.Locker{"none": memlock.New(), "one": memlock.New(locker.Observe(o))} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				lease, err := l.Lock(b.Context(), "k")
				if err != nil {
					b.Fatal(err)
				}
				_ = lease.Unlock()
			}
		})
	}
}

func TestNoObserverNoAllocation(t *testing.T) {
	l := memlock.New()
	defer l.Close()
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		lease, err := l.Lock(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		_ = lease.Unlock()
	}); n > 1 { // the lease itself
		t.Errorf("%v allocations for Lock and Unlock; want one", n)
	}
}
