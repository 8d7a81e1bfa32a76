package conformance_test

import (
	"testing"
	"testing/synctest"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/memlock"
)

// The test of a backend in memory, in fake time. One with a server also gives Cut, Restart and Backend.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T)
		memory := memlock.New()
		conformance.Run(t, conformance.Harness{
			Open: func(_ *testing.T, opts ...locker.Option) locker.Locker { return memory.Peer(opts...) },
			Wrap: synctest.Test,
			Features: conformance.Features{
				ForgetsTokens: "memory does not outlive its process",
			},
		})
	}
}

// The benchmarks of the same backend: go test -run '^$' -bench . -count 10 > new.txt, and benchstat old.txt new.txt.
func ExampleBench() {
	_ = func(b *testing.B) { // func Benchmark(b *testing.B)
		memory := memlock.New()
		conformance.Bench(b, conformance.Harness{
			OpenB: func(_ *testing.B, opts ...locker.Option) locker.Locker { return memory.Peer(opts...) },
		})
	}
}
