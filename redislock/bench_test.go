package redislock_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
)

func Benchmark(b *testing.B) {
	server := redistest.New(b, redistest.Options{})
	conformance.Bench(b, conformance.Harness{
		OpenB: func(_ *testing.B, opts ...locker.Option) locker.Locker {
			rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 64})
			return wires.Closing(redislock.New(rdb, opts...), func() { _ = rdb.Close() })
		},
	})
}
