package otellocker_test

import (
	"context"
	"fmt"
	"log"
	"slices"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/otellocker"
)

func ExampleNew() {
	reader := metric.NewManualReader() // in a program, the exporter's: that of Prometheus, or of OTLP
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	l := memlock.New(locker.Observe(otellocker.New(otellocker.WithMeterProvider(provider))))
	defer l.Close()

	lease, err := l.Lock(context.Background(), "orders/42")
	if err != nil {
		log.Fatal(err)
	}
	defer lease.Unlock()

	var data metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &data); err != nil {
		log.Fatal(err)
	}
	var names []string
	for _, m := range data.ScopeMetrics[0].Metrics {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Println(name)
	}
	// Output:
	// locker.acquire.duration
	// locker.leases
	// locker.leases.lost
	// locker.release.errors
	// locker.retries
	// locker.waiters
}
