package memlock_test

import (
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/memlock"
)

func Benchmark(b *testing.B) {
	memory := memlock.New()
	conformance.Bench(b, conformance.Harness{
		OpenB: func(_ *testing.B, opts ...locker.Option) locker.Locker { return memory.Peer(opts...) },
	})
}
