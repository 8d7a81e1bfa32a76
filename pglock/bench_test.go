package pglock_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

func Benchmark(b *testing.B) {
	server := pgtest.New(b, pgtest.Options{Settings: map[string]string{"fsync": "on"}})
	conformance.Bench(b, conformance.Harness{
		OpenB: func(b *testing.B, opts ...locker.Option) locker.Locker {
			pool, err := pgxpool.New(b.Context(), server.URL())
			if err != nil {
				b.Fatal(err)
			}
			return wires.Closing(pglock.New(pool, opts...), pool.Close)
		},
	})
}
