package server

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// TestToldOfAKeptKey: when a key is given back that is kept from others for a while, the first in line is told, to
// learn when it is going to be free. What it knew was the end of the lease.
func TestToldOfAKeptKey(t *testing.T) {
	b := testBackend(t)
	for _, mode := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		g := mustAcquire(t, b, inMode(t, 1, mode, 1))
		next := inMode(t, 2, locker.ModeExclusive, 0)
		calls := b.Client.Subscribe(t.Context(), scripts.DefaultChannelPrefix+b.Line.Process)
		defer func() { _ = calls.Close() }()
		if _, err := calls.Receive(t.Context()); err != nil { // that it is subscribed
			t.Fatal(err)
		}
		waiter, _ := mustJoin(t, b, next)
		g.Keep = time.Minute
		mustRelease(t, b, g)
		told, err := calls.ReceiveTimeout(t.Context(), 10*time.Second)
		if m, ok := told.(*redis.Message); !ok || m.Payload != next.Owner.String() {
			t.Errorf("%v: told: %v, %v; want %v", mode, told, err, next.Owner)
		}
		if refused, err := b.Try(t.Context(), waiter); err != nil || refused == nil || refused.Remaining < time.Second {
			t.Errorf("%v: %+v, %v; want a refusal until the key is free", mode, refused, err)
		}
		mustLeave(t, b, waiter)
		b.Client.Del(t.Context(), waiter.Names.Lock, waiter.Names.Holders, waiter.Names.Slots)
	}
}
