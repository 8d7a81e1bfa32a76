package otellocker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/otellocker"
)

// newTracer returns a recorder, and the options that have an Observer write to it.
func newTracer() (*tracetest.SpanRecorder, *sdktrace.TracerProvider, locker.Option) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	o := otellocker.New(otellocker.WithTracerProvider(provider), otellocker.WithMeterProvider(noMeter))
	return recorder, provider, locker.Observe(o)
}

// describe is a span in a line.
func describe(s sdktrace.ReadOnlySpan) string {
	status := ""
	if s.Status() != (sdktrace.Status{}) {
		status = fmt.Sprintf(" %v: %s", s.Status().Code, s.Status().Description)
	}
	return fmt.Sprintf("%s %v %v %s%s", s.Name(), s.SpanKind(), s.EndTime().Sub(s.StartTime()),
		text(attribute.NewSet(s.Attributes()...)), status)
}

// There is one span for each Lock and TryLock, a child of the caller's, and none for a renewal.
func TestSpans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorder, provider, observe := newTracer()
		memory := memlock.New()
		l := memory.Peer(locker.TTL(time.Second), observe)
		ctx, parent := provider.Tracer("test").Start(t.Context(), "caller")
		expect := func(when string, want ...string) {
			t.Helper()
			var got []string
			for _, s := range recorder.Ended() {
				got = append(got, describe(s))
				if s.Parent().SpanID() != parent.SpanContext().SpanID() {
					t.Errorf("%s: %s is no child of the caller's", when, s.Name())
				}
			}
			recorder.Reset()
			if !slices.Equal(got, want) {
				t.Errorf("%s:\n got %s\nwant %s", when, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
			}
		}
		lease, err := l.Lock(ctx, "secret")
		if err != nil {
			t.Fatal(err)
		}
		expect("Lock", fmt.Sprintf("locker.lock client 0s {mode=exclusive queued=false store=memory token=%d}",
			lease.Token()))
		time.Sleep(10 * time.Second)
		_ = lease.Unlock()
		expect("renewals and Unlock")

		rival := must(t, memory, "secret", locker.Holder("worker 7"))
		_, _ = l.TryLock(ctx, "secret", locker.Shared())
		expect("TryLock of a key that is held",
			"locker.trylock client 0s {error.type=locked behind=worker 7 mode=shared queued=false store=memory}")
		late, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, _ = l.Lock(late, "secret", locker.Slots(2))
		expect("Lock that times out",
			"locker.lock client 1s {error.type=timeout behind=worker 7 mode=slots queued=true store=memory}")
		stopped, stop := context.WithCancel(ctx)
		time.AfterFunc(2*time.Second, stop)
		_, _ = l.Lock(stopped, "secret")
		expect("Lock that is cancelled",
			"locker.lock client 2s {error.type=canceled behind=worker 7 mode=exclusive queued=true store=memory}")
		time.AfterFunc(3*time.Second, func() { _ = rival.Unlock() })
		if lease, err = l.Lock(ctx, "secret"); err != nil {
			t.Fatal(err)
		}
		expect("Lock that waits", fmt.Sprintf("locker.lock client 3s {behind=worker 7 mode=exclusive queued=true "+
			"store=memory token=%d}", lease.Token()))

		heal := l.Cut()
		<-lease.Done()
		expect("a loss")
		_, _ = l.TryLock(ctx, "secret")
		expect("an outage",
			"locker.trylock client 0s {error.type=unavailable mode=exclusive queued=false store=memory} "+
				"Error: severed by Cut")
		heal()
		time.Sleep(time.Second)
		leases, err := locker.LockAll(ctx, l, []string{"b", "a"})
		if err != nil {
			t.Fatal(err)
		}
		expect("LockAll",
			fmt.Sprintf("locker.lock client 0s {mode=exclusive queued=false store=memory token=%d}", leases[1].Token()),
			fmt.Sprintf("locker.lock client 0s {mode=exclusive queued=false store=memory token=%d}", leases[0].Token()))
		_ = l.Close()
	})
}

// refusing is a backend that opens a span for each call, as clients of stores do, and fails.
type refusing struct {
	locker.Backend
	tracer trace.Tracer
}

func (refusing) String() string { return "refusing" }
func (r refusing) Acquire(ctx context.Context, _ locker.Request) (locker.Grant, error) {
	_, span := r.tracer.Start(ctx, "SET")
	span.End()
	return locker.Grant{}, locker.NotAcquired(fmt.Errorf("NOPERM: %w", locker.ErrDenied))
}
func (refusing) Close() error { return nil }

// Spans of the store's client are children of that of the wait. Two Observers end a span each, and the status of a
// failure says nothing of the key.
func TestSpansOfTheStore(t *testing.T) {
	recorder, provider, observe := newTracer()
	other, _, observeToo := newTracer()
	l := locker.New(refusing{tracer: provider.Tracer("store")}, observe, observeToo)
	defer l.Close()
	if _, err := l.Lock(t.Context(), "secret"); !errors.Is(err, locker.ErrDenied) {
		t.Fatal(err)
	}
	ours, theirs := recorder.Ended(), other.Ended()
	if len(ours) != 2 || len(theirs) != 1 {
		t.Fatalf("%d and %d spans have ended; want that of the store and one of each Observer", len(ours), len(theirs))
	}
	store, first, second := ours[0], ours[1], theirs[0]
	if store.Parent().SpanID() != second.SpanContext().SpanID() ||
		second.Parent().SpanID() != first.SpanContext().SpanID() {
		t.Errorf("the store's span is a child of %v, and that of %v; want the second Observer's, and the first's",
			store.Parent().SpanID(), second.Parent().SpanID())
	}
	for _, span := range []sdktrace.ReadOnlySpan{first, second} {
		got := describe(span)
		want := " {error.type=denied mode=exclusive queued=false store=refusing} Error: NOPERM: denied by the store"
		if !strings.HasSuffix(got, want) || strings.Contains(got, "secret") {
			t.Errorf("got  %s\nwant ... %s", got, want)
		}
	}
}

// globals sets the global providers, which can be done once in a process.
var globals = sync.OnceValues(func() (*sdkmetric.ManualReader, *tracetest.SpanRecorder) {
	reader := sdkmetric.NewManualReader()
	recorder, provider, _ := newTracer()
	otel.SetMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	otel.SetTracerProvider(provider)
	return reader, recorder
})

// Without options, the global providers are used, also when they are set after New.
func TestGlobalProviders(t *testing.T) {
	o := otellocker.New()
	reader, recorder := globals()
	recorder.Reset()
	m := &meter{t: t, reader: reader}
	l := memlock.New(locker.Observe(o))
	defer l.Close()
	must(t, l, "k")
	if n := m.values()["locker.leases{mode=exclusive store=memory}"]; n != 1 {
		t.Errorf("locker.leases is %v", n)
	}
	if n := len(recorder.Ended()); n != 1 {
		t.Errorf("%d spans", n)
	}
}
