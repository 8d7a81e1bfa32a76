package otellocker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/otellocker"
)

var (
	noTracer trace.TracerProvider = tracenoop.NewTracerProvider()
	noMeter                       = noop.NewMeterProvider()
)

// meter is what a test reads metrics from.
type meter struct {
	t      testing.TB
	reader *sdkmetric.ManualReader
	seen   map[string]float64 // by take
}

// newMeter returns it, and the options that have an Observer write to it.
func newMeter(t testing.TB, opts ...otellocker.Option) (*meter, locker.Option) {
	m := &meter{t, sdkmetric.NewManualReader(), make(map[string]float64)}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(m.reader))
	opts = append(opts, otellocker.WithMeterProvider(provider), otellocker.WithTracerProvider(noTracer))
	return m, locker.Observe(otellocker.New(opts...))
}

func (m *meter) collect() []metricdata.Metrics {
	m.t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(context.Background(), &all); err != nil {
		m.t.Fatal(err)
	}
	if len(all.ScopeMetrics) == 0 {
		return nil
	}
	scope := all.ScopeMetrics[0]
	if want := "github.com/lockerkit/locker/otellocker"; len(all.ScopeMetrics) != 1 || scope.Scope.Name != want {
		m.t.Fatalf("%d scopes, %q; want one, %q", len(all.ScopeMetrics), scope.Scope.Name, want)
	}
	return scope.Metrics
}

// values returns each value, by name and attributes. That of a histogram is how many it has, and .sum what they amount
// to.
func (m *meter) values() map[string]float64 {
	m.t.Helper()
	values := make(map[string]float64)
	for _, metric := range m.collect() {
		switch data := metric.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				values[metric.Name+text(p.Attributes)] = float64(p.Value)
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				values[metric.Name+text(p.Attributes)] = float64(p.Count)
				values[metric.Name+".sum"+text(p.Attributes)] = p.Sum
			}
		default:
			m.t.Fatalf("%s is a %T", metric.Name, data)
		}
	}
	return values
}

// text is the attributes, with shorter names.
func text(set attribute.Set) string {
	var all []string
	for _, a := range set.ToSlice() {
		all = append(all, strings.TrimPrefix(string(a.Key), "locker.")+"="+a.Value.String())
	}
	return "{" + strings.Join(all, " ") + "}"
}

// take checks what has changed since the last call. Of slack it is how many there are: when leases are renewed is
// random.
func (m *meter) take(when string, want ...string) {
	m.t.Helper()
	var changes []string
	now := m.values()
	for name, value := range now {
		if before := m.seen[name]; value != before && !strings.HasPrefix(name, "locker.renewal.slack.sum") {
			changes = append(changes, fmt.Sprintf("%s %+.4g", strings.TrimPrefix(name, "locker."), value-before))
		}
	}
	m.seen = now
	slices.Sort(changes)
	slices.Sort(want)
	if !slices.Equal(changes, want) {
		m.t.Errorf("%s:\n got %s\nwant %s", when, strings.Join(changes, "\n     "), strings.Join(want, "\n     "))
	}
}

func must(t *testing.T, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := l.Lock(t.Context(), key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// Each event is counted, in each mode, under the attributes of its store and mode.
func TestMetrics(t *testing.T) {
	for mode, opts := range map[string][]locker.CallOption{
		"exclusive": nil, "shared": {locker.Shared()}, "slots": {locker.Slots(2)},
	} {
		synctest.Test(t, func(t *testing.T) {
			m, observe := newMeter(t)
			memory := memlock.New()
			l := memory.Peer(locker.TTL(time.Second), observe)
			take := func(when string, want ...string) {
				t.Helper()
				synctest.Wait()
				for i, w := range want {
					w = strings.ReplaceAll(w, "{}", "{mode="+mode+" store=memory}")
					want[i] = strings.ReplaceAll(w, "{!", "{error.type=")
					if strings.Contains(w, "{!") {
						want[i] = strings.ReplaceAll(want[i], "}", " mode="+mode+" store=memory}")
					}
				}
				m.take(mode+", "+when, want...)
			}
			lease := must(t, l, "k", opts...)
			take("Lock", "acquire.duration{} +1", "leases{} +1")
			time.Sleep(700 * time.Millisecond)
			take("renewals", "renewal.slack{} +2")
			_ = lease.Unlock()
			take("Unlock", "hold.duration{} +1", "hold.duration.sum{} +0.7", "leases{} -1")

			rival := must(t, memory, "k")
			if _, err := l.TryLock(t.Context(), "k", opts...); !errors.Is(err, locker.ErrLocked) {
				t.Fatal(err)
			}
			take("TryLock of a key that is held", "acquire.duration{!locked} +1")
			waited := make(chan error)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			go func() { _, err := l.Lock(ctx, "k", opts...); waited <- err }()
			synctest.Wait()
			take("Lock of a key that is held", "waiters{} +1")
			<-waited
			take("Lock that times out", "waiters{} -1", "acquire.duration{!timeout} +1",
				"acquire.duration.sum{!timeout} +2")
			stopped, stop := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, stop)
			_, _ = l.Lock(stopped, "k", opts...)
			take("Lock that is cancelled", "acquire.duration{!canceled} +1", "acquire.duration.sum{!canceled} +1")
			time.AfterFunc(3*time.Second, func() { _ = rival.Unlock() })
			must(t, l, "k", opts...)
			take("Lock that waits", "acquire.duration{} +1", "acquire.duration.sum{} +3", "leases{} +1")

			_ = memory.Break(t.Context(), "k")
			take("a lock that is broken", "leases.lost{!broken} +1", "leases{} -1", "hold.duration{!broken} +1")
			lease = must(t, l, "k", opts...)
			_ = memory.Revoke(t.Context(), "k", "why")
			_ = lease.Unlock()
			take("a lock that is revoked", "acquire.duration{} +1", "leases.lost{!revoked} +1",
				"hold.duration{!revoked} +1")
			must(t, l, "k", append(opts, locker.NoRenew())...)
			time.Sleep(time.Second)
			take("a lease that is not renewed", "acquire.duration{} +1", "leases.lost{!expired} +1",
				"hold.duration{!expired} +1", "hold.duration.sum{!expired} +0.988")
			lease = must(t, l, "k", opts...)
			heal := l.Cut()
			<-lease.Done()
			synctest.Wait()
			now := m.values()
			if n := now["locker.renewal.slack{error.type=unavailable mode="+mode+" store=memory}"]; n < 2 {
				t.Errorf("%v renewals that have failed; want several", n)
			}
			m.seen["locker.renewal.slack{error.type=unavailable mode="+mode+" store=memory}"] =
				now["locker.renewal.slack{error.type=unavailable mode="+mode+" store=memory}"]
			take("an outage", "acquire.duration{} +1", "leases.lost{!unavailable} +1", "hold.duration{!unavailable} +1",
				"hold.duration.sum{!unavailable} +0.988")
			_, _ = l.Lock(t.Context(), "k", opts...)
			take("Lock in an outage", "acquire.duration{!unavailable} +1")
			heal()
			time.Sleep(time.Second) // until the store has let go of the lease that was lost

			lease = must(t, l, "k", append(opts, locker.TTL(10*time.Second))...)
			heal = l.Cut()
			_ = lease.Unlock()
			now = m.values()
			held := "locker.hold.duration.sum{error.type=unavailable mode=" + mode + " store=memory}"
			if more := now[held] - m.seen[held]; more < 1 || more > 10 {
				t.Errorf("the Unlock took %v s", more)
			}
			m.seen[held] = now[held]
			take("Unlock in an outage", "acquire.duration{} +1", "release.errors{!unavailable} +1",
				"hold.duration{!unavailable} +1")
			heal()

			rival = must(t, memory, "k2")
			time.AfterFunc(time.Second, func() {
				heal := l.Cut()
				time.Sleep(3 * time.Second)
				_ = rival.Unlock()
				heal()
			})
			lease = must(t, l, "k2", opts...)
			now = m.values()
			retries := "locker.retries{error.type=unavailable mode=" + mode + " store=memory}"
			if n := now[retries]; n < 3 {
				t.Errorf("%v retries", n)
			}
			_ = lease.Unlock()
			m.seen = m.values()

			leases, err := locker.LockAll(t.Context(), l, []string{"a", "b", "a"}, opts...)
			if err != nil {
				t.Fatal(err)
			}
			take("LockAll", "acquire.duration{} +2", "leases{} +2")
			_ = leases.Unlock()
			take("Unlock of all", "hold.duration{} +2", "leases{} -2")

			_, _ = l.Lock(t.Context(), "", opts...)
			take("a key that is not valid", "acquire.duration{!invalid_key} +1")
			_, _ = l.TryLock(t.Context(), "k", append(opts, locker.TTL(0))...)
			take("an option that is not valid", "acquire.duration{!invalid_option} +1")
			must(t, l, "k", opts...)
			_ = l.Close()
			_, _ = l.TryLock(t.Context(), "k", opts...)
			take("Close", "acquire.duration{} +1", "hold.duration{} +1", "acquire.duration{!closed} +1")
			for name, value := range m.values() {
				if (strings.HasPrefix(name, "locker.leases{") || strings.HasPrefix(name, "locker.waiters{")) &&
					value != 0 {
					t.Errorf("in the end, %s is %v", name, value)
				}
			}
		})
	}
}

// What each instrument is, whatever it measures.
func TestInstruments(t *testing.T) {
	var got []string
	synctest.Test(t, func(t *testing.T) {
		m, observe := newMeter(t)
		l := memlock.New(locker.TTL(time.Second), observe)
		must(t, l, "k")
		time.Sleep(time.Second) // renewals
		_ = l.Close()
		for _, metric := range m.collect() {
			kind := ""
			switch data := metric.Data.(type) {
			case metricdata.Sum[int64]:
				kind = "up-down counter"
				if data.IsMonotonic {
					kind = "counter"
				}
			case metricdata.Histogram[float64]:
				bounds := data.DataPoints[0].Bounds
				kind = fmt.Sprintf("histogram of %d buckets from %v to %v", len(bounds), bounds[0],
					bounds[len(bounds)-1])
			}
			if metric.Description == "" {
				t.Errorf("%s has no description", metric.Name)
			}
			got = append(got, metric.Name+" "+metric.Unit+" "+kind)
		}
	})
	slices.Sort(got)
	want := []string{
		"locker.acquire.duration s histogram of 18 buckets from 0.0005 to 1800",
		"locker.hold.duration s histogram of 16 buckets from 0.001 to 86400",
		"locker.leases {lease} up-down counter",
		"locker.leases.lost {lease} counter",
		"locker.release.errors {lease} counter",
		"locker.renewal.slack 1 histogram of 10 buckets from 0.05 to 0.9",
		"locker.retries {retry} counter",
		"locker.waiters {waiter} up-down counter",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

// From the first call in a mode on, the counters of everything that an alert is about are there, and zero.
func TestZeros(t *testing.T) {
	m, observe := newMeter(t, otellocker.WithKey(func(string) string { return "orders" }))
	memory := memlock.New()
	defer memory.Close()
	must(t, memory, "orders/42")
	l := memory.Peer(observe)
	if n := len(m.values()); n > 0 {
		t.Errorf("%d series before the first Lock", n)
	}
	_, _ = l.TryLock(t.Context(), "orders/42", locker.Shared()) // in vain
	values := m.values()
	var want []string
	for name, types := range map[string][]string{
		"leases":         {""},
		"waiters":        {""},
		"leases.lost":    {"unavailable", "denied", "unfit", "expired", "lost", "revoked", "broken"},
		"release.errors": {"unavailable", "denied", "unfit"},
		"retries":        {"unavailable", "denied", "unfit"},
	} {
		for _, failure := range types {
			if failure != "" {
				failure = "error.type=" + failure + " "
			}
			want = append(want, "locker."+name+"{"+failure+"key=orders mode=shared store=memory}")
		}
	}
	for _, name := range want {
		if value, ok := values[name]; !ok || value != 0 {
			t.Errorf("%s: there %v, %v; want 0", name, ok, value)
		}
	}
	if len(values) != len(want)+2 { // acquire.duration and its sum
		t.Errorf("%v; want those of %v", values, want)
	}
}

// The share of the TTL that is left when a renewal was answered: nearly two thirds, as long as the store answers at
// once.
func TestSlack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, observe := newMeter(t)
		l := memlock.New(locker.TTL(time.Minute), observe)
		must(t, l, "k")
		time.Sleep(time.Hour)
		_ = l.Close()
		values := m.values()
		n := values["locker.renewal.slack{mode=exclusive store=memory}"]
		average := values["locker.renewal.slack.sum{mode=exclusive store=memory}"] / n
		if n < 170 || average < .6 || average > .75 {
			t.Errorf("%v renewals in 60 TTLs, with a slack of %v", n, average)
		}
	})
}

// The key is an attribute only as WithKey has it.
func TestWithKey(t *testing.T) {
	m, observe := newMeter(t, otellocker.WithKey(func(key string) string {
		kind, _, _ := strings.Cut(key, "/")
		return strings.TrimPrefix(kind, "secret")
	}))
	l := memlock.New(observe)
	for _, key := range []string{"orders/1", "orders/2", "secret/3", "\xff/4"} {
		if err := must(t, l, key).Unlock(); err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Close()
	for name, want := range map[string]float64{
		"locker.hold.duration{key=orders mode=exclusive store=memory}": 2,
		"locker.hold.duration{mode=exclusive store=memory}":            1,
		"locker.leases{key=orders mode=exclusive store=memory}":        0,
		"locker.leases{key=\uFFFD mode=exclusive store=memory}":        0, // Prometheus would refuse the whole page
	} {
		if got, ok := m.values()[name]; !ok || got != want {
			t.Errorf("%s: there %v, %v; want %v", name, ok, got, want)
		}
	}
}

// The classes of errors, where memlock does not fail so: told by hand, as a Client tells them.
func TestErrorTypes(t *testing.T) {
	provider := func(m *meter) otellocker.Option {
		return otellocker.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(m.reader)))
	}
	lost := func(cause error) error {
		return &locker.Error{Op: "lease", Err: fmt.Errorf("%w: %w", locker.ErrLost, cause)}
	}
	for _, test := range []struct {
		err     error
		expired bool
		want    string
	}{
		{lost(locker.ErrDenied), false, "leases.lost{error.type=denied mode=exclusive store=s} +1"},
		{lost(locker.ErrUnfit), true, "leases.lost{error.type=unfit mode=exclusive store=s} +1"},
		{lost(errors.New("revoked by somebody")), false, "leases.lost{error.type=lost mode=exclusive store=s} +1"},
		{lost(context.DeadlineExceeded), true, "leases.lost{error.type=unavailable mode=exclusive store=s} +1"},
		{locker.ErrLost, true, "leases.lost{error.type=expired mode=exclusive store=s} +1"},
		{locker.ErrDenied, false, "release.errors{error.type=denied mode=exclusive store=s} +1"},
		{errors.New("of no class"), false, "release.errors{error.type=_OTHER mode=exclusive store=s} +1"},
	} {
		m := &meter{t: t, reader: sdkmetric.NewManualReader()}
		o := otellocker.New(provider(m), otellocker.WithTracerProvider(noTracer))
		o.LeaseDone(locker.LeaseDoneInfo{Store: "s", Err: test.err, Expired: test.expired})
		failure, _, _ := strings.Cut(test.want[strings.Index(test.want, "{"):], " +")
		m.take(fmt.Sprint(test.err), test.want, "leases{mode=exclusive store=s} -1", "hold.duration"+failure+" +1")
	}
	for want, err := range map[string]error{
		"unsupported": fmt.Errorf("no readers: %w", errors.ErrUnsupported),
		"unfit":       locker.ErrUnfit,
		"timeout":     errors.Join(context.DeadlineExceeded, locker.ErrUnavailable), // ridden out until then
		"canceled":    errors.Join(context.Canceled, locker.ErrLost),                // with a cause
	} {
		m := &meter{t: t, reader: sdkmetric.NewManualReader()}
		o := otellocker.New(provider(m), otellocker.WithTracerProvider(noTracer))
		o.LockDone(t.Context(), locker.LockDoneInfo{Op: "trylock", Store: "s", Err: err})
		m.take(want, "acquire.duration{error.type="+want+" mode=exclusive store=s} +1")
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{locker.ErrDenied, "denied"},
		{fmt.Errorf("no answer: %w", context.DeadlineExceeded), "unavailable"}, // the context of a call of the store
	} {
		m := &meter{t: t, reader: sdkmetric.NewManualReader()}
		o := otellocker.New(provider(m), otellocker.WithTracerProvider(noTracer))
		o.Retry(locker.RetryInfo{Op: "lead", Store: "s", Err: test.err})
		o.Renewed(locker.RenewedInfo{Store: "s", TTL: time.Second, Err: test.err})
		m.take(test.want, "retries{error.type="+test.want+" mode=exclusive store=s} +1",
			"renewal.slack{error.type="+test.want+" mode=exclusive store=s} +1")
	}
}
