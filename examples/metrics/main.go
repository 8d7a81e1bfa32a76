// Command metrics is a worker whose locks can be watched: it leads or waits to lead, takes locks for orders meanwhile,
// and serves what package otellocker counts to Prometheus.
//
//	go run .                                                                # one worker, in memory
//	go run . -store redis://localhost:6379/0 -http localhost:9464           # one of a fleet: start several
//
// The metrics are at http://localhost:9464/metrics. docs/observability of the repository has a dashboard and alerts for
// them. To see them move, stop a worker with kill -STOP for longer than its TTL, and the Redis server for a while.
//
// It is a module of its own because it needs the OpenTelemetry SDK and the client library of Prometheus.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9/logging"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/otellocker"
	"github.com/lockerkit/locker/redislock"
)

func main() {
	store := flag.String("store", "memory", "a redis:// `URL`, or memory")
	address := flag.String("http", "localhost:9464", "where to serve /metrics")
	ttl := flag.Duration("ttl", locker.DefaultTTL, "of leases")
	flag.Parse()
	logging.Disable() // what go-redis would print for each attempt is in the metrics, and once in our log
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", *address)
	if err == nil {
		err = run(ctx, *store, *ttl, listener, slog.Default())
	}
	if err != nil {
		log.Fatal("metrics: ", err)
	}
}

// observed returns an Observer that counts what becomes of locks, and what serves the counts to Prometheus.
func observed() (*locker.Observer, http.Handler, error) {
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, nil, err
	}
	provider := metric.NewMeterProvider(metric.WithReader(exporter))
	observer := otellocker.New(otellocker.WithMeterProvider(provider))
	return observer, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

// run works until ctx ends.
func run(ctx context.Context, store string, ttl time.Duration, listener net.Listener, logger *slog.Logger) (err error) {
	observer, handler, err := observed()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }() // until Close
	defer func() { err = errors.Join(err, server.Close()) }()

	host, _ := os.Hostname()
	l, err := open(ctx, store, locker.Observe(observer), locker.Log(logger), locker.TTL(ttl),
		locker.Holder(fmt.Sprintf("%s-%d", host, os.Getpid())))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var workers sync.WaitGroup
	defer workers.Wait()
	for range 3 {
		workers.Go(func() { processOrders(ctx, l) })
	}
	err = locker.Lead(ctx, l, "queue", func(ctx context.Context, _ *locker.Lease) error {
		<-ctx.Done() // here, a leader works
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func open(ctx context.Context, store string, opts ...locker.Option) (locker.Locker, error) {
	if store == "memory" {
		return memlock.New(opts...), nil
	}
	return redislock.Open(ctx, store, opts...)
}

// processOrders locks an order, works on it, and goes on with the next, until ctx ends. What fails is in the metrics
// and in the log.
func processOrders(ctx context.Context, l locker.Locker) {
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		_ = locker.Do(wait, l, fmt.Sprintf("orders/%d", rand.N(5)), func(ctx context.Context) error {
			return sleep(ctx, time.Millisecond+rand.N(200*time.Millisecond))
		})
		cancel()
		_ = sleep(ctx, rand.N(400*time.Millisecond))
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
