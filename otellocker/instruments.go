package otellocker

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
)

// instruments are what is measured with.
type instruments struct {
	acquire, hold, slack         metric.Float64Histogram
	leases, waiters              metric.Int64UpDownCounter
	lost, releaseErrors, retries metric.Int64Counter
}

// The boundaries of the buckets. An uncontended lock takes a round trip; one that is waited for, as long as its holder
// works. A leader holds its lease for days. Slack is normally about two thirds.
var (
	acquireBounds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	holdBounds    = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600}
	slackBounds   = []float64{.05, .1, .2, .3, .4, .5, .6, .7, .8, .9}
)

func newInstruments(m metric.Meter) instruments {
	return instruments{
		acquire: made(m.Float64Histogram("locker.acquire.duration",
			metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(acquireBounds...),
			metric.WithDescription("How long Lock and TryLock took."))),
		hold: made(m.Float64Histogram("locker.hold.duration",
			metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(holdBounds...),
			metric.WithDescription("For how long leases were held that have ended."))),
		slack: made(m.Float64Histogram("locker.renewal.slack",
			metric.WithUnit("1"), metric.WithExplicitBucketBoundaries(slackBounds...),
			metric.WithDescription("What was left of a lease at the answer to its renewal, as part of the TTL."))),
		leases: made(m.Int64UpDownCounter("locker.leases",
			metric.WithUnit("{lease}"), metric.WithDescription("Leases that are held."))),
		waiters: made(m.Int64UpDownCounter("locker.waiters",
			metric.WithUnit("{waiter}"), metric.WithDescription("Calls of Lock that have not returned."))),
		lost: made(m.Int64Counter("locker.leases.lost",
			metric.WithUnit("{lease}"), metric.WithDescription("Leases that were lost."))),
		releaseErrors: made(m.Int64Counter("locker.release.errors",
			metric.WithUnit("{lease}"),
			metric.WithDescription("Leases that were unlocked, while the store could not be told."))),
		retries: made(m.Int64Counter("locker.retries",
			metric.WithUnit("{retry}"),
			metric.WithDescription("Failures that a Lock that waits, or a Lead, has ridden out."))),
	}
}

// made returns an instrument. That it is not as it should be is for who set the provider up, and no reason not to lock.
func made[T any](instrument T, err error) T {
	if err != nil {
		otel.Handle(err)
	}
	return instrument
}
