package memlock_test

import (
	"testing"
	"testing/synctest"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/memlock"
)

func TestConformance(t *testing.T) {
	memory := memlock.New()
	conformance.Run(t, conformance.Harness{
		Open:    func(_ *testing.T, opts ...locker.Option) locker.Locker { return memory.Peer(opts...) },
		Backend: func(*testing.T) locker.Backend { return memory.Backend() },
		Break:   func(t *testing.T, key string) { _ = memory.Peer().Break(t.Context(), key) },
		Wrap:    synctest.Test,
		Features: conformance.Features{
			ForgetsTokens: "memory does not outlive its process, and neither do its users",
		},
	})
}
