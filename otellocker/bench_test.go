package otellocker_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/otellocker"
)

// Benchmark is what Observers cost, by Lock and Unlock in memory, each goroutine with a key of its own.
func Benchmark(b *testing.B) {
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	noMeters, noTracers := otellocker.WithMeterProvider(noMeter), otellocker.WithTracerProvider(noTracer)
	empty := &locker.Observer{
		LockStart: func(ctx context.Context, _ locker.LockStartInfo) context.Context { return ctx },
		LockDone:  func(context.Context, locker.LockDoneInfo) {},
		LeaseDone: func(locker.LeaseDoneInfo) {},
		Renewed:   func(locker.RenewedInfo) {},
		Retry:     func(locker.RetryInfo) {},
	}
	for _, goroutines := range []int{1, 64} {
		for _, observed := range []struct {
			by   string
			opts []locker.Option
		}{
			{"none", nil},
			{"empty functions", []locker.Option{locker.Observe(empty)}},
			{"otellocker, no providers", []locker.Option{locker.Observe(otellocker.New(noMeters, noTracers))}},
			{"otellocker, metrics", []locker.Option{
				locker.Observe(otellocker.New(otellocker.WithMeterProvider(meters), noTracers)),
			}},
			{"otellocker, metrics and spans", []locker.Option{
				locker.Observe(otellocker.New(otellocker.WithMeterProvider(meters),
					otellocker.WithTracerProvider(sdktrace.NewTracerProvider()))),
			}},
		} {
			b.Run(fmt.Sprintf("%s/%d", observed.by, goroutines), func(b *testing.B) {
				l := memlock.New(observed.opts...)
				defer l.Close()
				b.ReportAllocs()
				b.ResetTimer()
				together(b, l, goroutines)
			})
		}
	}
}

// together locks and unlocks b.N times, by so many goroutines.
func together(b *testing.B, l locker.Locker, goroutines int) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			key := strconv.Itoa(i)
			for left.Add(-1) >= 0 {
				lease, err := l.Lock(context.Background(), key)
				if err != nil {
					b.Error(err)
					return
				}
				_ = lease.Unlock()
			}
		})
	}
	wg.Wait()
}
