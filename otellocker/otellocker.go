// Package otellocker makes a locker.Observer that reports to OpenTelemetry: metrics of what the locks do, and a span
// for each wait.
//
//	l, err := redislock.Open(ctx, url, locker.Observe(otellocker.New()))
//
// The metrics, for the dashboard and the alerts in docs/observability of the repository:
//
//	locker.acquire.duration  histogram, s        how long Lock and TryLock took
//	locker.waiters           up-down counter     calls of Lock that have not returned
//	locker.leases            up-down counter     leases that are held
//	locker.hold.duration     histogram, s        for how long leases were held, each counted at its end
//	locker.leases.lost       counter             leases that were lost: worth an alert, unless they were revoked
//	locker.release.errors    counter             leases that were unlocked without telling the store: free after the TTL
//	locker.renewal.slack     histogram, 1        what was left of a lease at the answer to a renewal, as part of the TTL
//	locker.retries           counter             failures that a Lock that waits, or a Lead, has ridden out
//
// All have the attributes locker.store ("redis", "postgres", "etcd", "memory" ...) and locker.mode ("exclusive",
// "shared" or "slots"). There is none for the key, since programs have any number of them: see WithKey. What has failed
// has error.type, and nothing else has:
//
//	canceled, timeout           the caller's context has ended
//	locked                      TryLock: somebody else has the key
//	unavailable, denied, unfit  the store has failed, as the errors of package locker say
//	expired                     a lease was not renewed, and the store has not failed: a process that paused, or NoRenew
//	lost                        a lease: the store says that somebody else has the key, or that it is free
//	revoked, broken             a lease: somebody has taken the lock away, by Client.Revoke or Client.Break
//	closed, invalid_key, invalid_option, unsupported
//
// The counters are there, with zeros, from the first Lock in a mode on: an alert sees the first loss as an increase.
// (Before that, New does not know which stores and modes there will be.) A histogram is there when it has a value.
//
// The span has the name "locker.lock", "locker.trylock" or "locker.adopt", and the kind CLIENT. It ends when the call
// returns. Spans of the store's client are its children. It has the attributes of the metrics, and locker.token,
// locker.queued (it has waited) and locker.behind (the name of who held the key). That somebody else has the key, and
// the end of the caller's own context, do not make it an error. Renewals have no spans.
//
// An Observer of New may be given to several Clients.
package otellocker

import (
	"context"
	"errors"
	"strings"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/lockerkit/locker"
)

// scope is the name of the instrumentation scope.
const scope = "github.com/lockerkit/locker/otellocker"

// The names of the attributes.
const (
	storeKey = attribute.Key("locker.store")
	modeKey  = attribute.Key("locker.mode")
	keyKey   = attribute.Key("locker.key")
	errorKey = attribute.Key("error.type")

	// Of spans only.
	tokenKey  = attribute.Key("locker.token")
	queuedKey = attribute.Key("locker.queued")
	behindKey = attribute.Key("locker.behind")
)

// Option configures New.
type Option interface{ apply(*observer) }

type option func(*observer)

func (o option) apply(c *observer) { o(c) }

// WithMeterProvider has p make the instruments, instead of the global MeterProvider.
func WithMeterProvider(p metric.MeterProvider) Option {
	return option(func(o *observer) { o.meters = p })
}

// WithTracerProvider has p make the spans, instead of the global TracerProvider.
func WithTracerProvider(p trace.TracerProvider) Option {
	return option(func(o *observer) { o.tracers = p })
}

// WithKey adds the attribute locker.key, with what label returns for a key; "" means no attribute. label must return
// few different values, and always the same for a key: each is a time series of its own, for ever, in this process and
// in whatever stores them. Where keys are few, it can return them as they are; "orders" for "orders/42" is often right.
func WithKey(label func(key string) string) Option {
	return option(func(o *observer) { o.label = label })
}

// New returns an Observer for the option locker.Observe. Without options, it uses the global providers, which may be
// set later.
func New(opts ...Option) *locker.Observer {
	o := &observer{
		meters:  otel.GetMeterProvider(),
		tracers: otel.GetTracerProvider(),
		label:   func(string) string { return "" },
		all:     make(map[labels]*set),
	}
	for _, opt := range opts {
		opt.apply(o)
	}
	o.tracer = o.tracers.Tracer(scope)
	o.instruments = newInstruments(o.meters.Meter(scope))
	return &locker.Observer{
		LockStart: o.lockStart, LockDone: o.lockDone, LeaseDone: o.leaseDone, Renewed: o.renewed, Retry: o.retry,
	}
}

// observer is what New makes.
type observer struct {
	meters  metric.MeterProvider
	tracers trace.TracerProvider
	label   func(string) string

	tracer trace.Tracer
	instruments

	mu  sync.RWMutex
	all map[labels]*set
}

// labels are the values of the attributes.
type labels struct {
	store   string
	mode    locker.Mode
	key     string
	failure string // error.type
}

// set is the attributes as they are passed on, made once: they would be most of the cost.
type set struct {
	add    []metric.AddOption
	record []metric.RecordOption
	span   []trace.SpanStartOption
}

// set returns the attributes of what has happened to a key.
func (o *observer) set(store string, mode locker.Mode, key, failure string) *set {
	l := labels{store, mode, o.label(key), failure}
	o.mu.RLock()
	s := o.all[l]
	o.mu.RUnlock()
	if s == nil {
		s = o.newSet(l)
	}
	return s
}

func (o *observer) newSet(l labels) *set {
	attributes := []attribute.KeyValue{storeKey.String(l.store), modeKey.String(l.mode.String())}
	if l.key != "" {
		valid := strings.ToValidUTF8(l.key, "\uFFFD") // keys are bytes, values are not
		attributes = append(attributes, keyKey.String(valid))
	}
	if l.failure != "" {
		attributes = append(attributes, errorKey.String(l.failure))
	}
	option := metric.WithAttributeSet(attribute.NewSet(attributes...))
	s := &set{
		add:    []metric.AddOption{option},
		record: []metric.RecordOption{option},
		span:   []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...)},
	}
	o.mu.Lock()
	o.all[l] = s
	o.mu.Unlock()
	if l.failure == "" {
		o.zero(l, s)
	}
	return s
}

// zero makes the series in which an increase is to be seen.
func (o *observer) zero(l labels, s *set) {
	ctx := context.Background()
	o.leases.Add(ctx, 0, s.add...)
	o.waiters.Add(ctx, 0, s.add...)
	for _, l.failure = range []string{typeUnavailable, typeDenied, typeUnfit} {
		failed := o.newSet(l).add
		o.lost.Add(ctx, 0, failed...)
		o.releaseErrors.Add(ctx, 0, failed...)
		o.retries.Add(ctx, 0, failed...)
	}
	for _, l.failure = range []string{typeExpired, typeLost, typeRevoked, typeBroken} {
		o.lost.Add(ctx, 0, o.newSet(l).add...)
	}
}

func (o *observer) lockStart(ctx context.Context, i locker.LockStartInfo) context.Context {
	s := o.set(i.Store, i.Mode, i.Key, "")
	if i.Op == opLock {
		o.waiters.Add(ctx, 1, s.add...)
	}
	ctx, span := o.tracer.Start(ctx, "locker."+i.Op, s.span...)
	return context.WithValue(ctx, o, span) // under a key of its own: other Observers have spans, too
}

// opLock is the Op of a Lock, which waits.
const opLock = "lock"

func (o *observer) lockDone(ctx context.Context, i locker.LockDoneInfo) {
	s := o.set(i.Store, i.Mode, i.Key, "")
	if i.Op == opLock {
		o.waiters.Add(ctx, -1, s.add...)
	}
	if i.Err == nil {
		o.leases.Add(ctx, 1, s.add...)
	} else {
		s = o.set(i.Store, i.Mode, i.Key, errorType(i.Err))
	}
	o.acquire.Record(ctx, i.Waited.Seconds(), s.record...)
	if span, ok := ctx.Value(o).(trace.Span); ok {
		finish(span, i)
	}
}

// finish ends the span of a Lock or TryLock.
func finish(span trace.Span, i locker.LockDoneInfo) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(queuedKey.Bool(i.Queued))
	if i.Behind != "" {
		span.SetAttributes(behindKey.String(i.Behind))
	}
	if i.Err == nil {
		span.SetAttributes(tokenKey.Int64(int64(i.Token))) //nolint:gosec // a store counts no further
		return
	}
	failure := errorType(i.Err)
	span.SetAttributes(errorKey.String(failure))
	switch failure {
	case typeLocked, typeCanceled, typeTimeout:
		return
	}
	err := i.Err
	var e *locker.Error
	if errors.As(err, &e) {
		err = e.Err // without the key
	}
	span.SetStatus(codes.Error, err.Error())
}

func (o *observer) leaseDone(i locker.LeaseDoneInfo) {
	ctx := context.Background()
	s := o.set(i.Store, i.Mode, i.Key, "")
	o.leases.Add(ctx, -1, s.add...)
	switch failure := storeErrorType(i.Err); {
	case i.Err == nil:
	case !errors.Is(i.Err, locker.ErrLost):
		s = o.set(i.Store, i.Mode, i.Key, failure)
		o.releaseErrors.Add(ctx, 1, s.add...)
	default:
		if failure == typeLost && i.Expired {
			failure = typeExpired
		}
		s = o.set(i.Store, i.Mode, i.Key, failure)
		o.lost.Add(ctx, 1, s.add...)
	}
	o.hold.Record(ctx, i.Held.Seconds(), s.record...)
}

func (o *observer) renewed(i locker.RenewedInfo) {
	s := o.set(i.Store, i.Mode, i.Key, storeErrorType(i.Err))
	o.slack.Record(context.Background(), i.Slack.Seconds()/i.TTL.Seconds(), s.record...)
}

func (o *observer) retry(i locker.RetryInfo) {
	o.retries.Add(context.Background(), 1, o.set(i.Store, i.Mode, i.Key, storeErrorType(i.Err)).add...)
}
