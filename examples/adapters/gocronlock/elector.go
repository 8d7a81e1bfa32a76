package gocronlock

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/lockerkit/locker"
)

// ErrNotLeader is what gocron gets from the Elector of a scheduler that has never been the leader.
var ErrNotLeader = errors.New("not the leader")

// Elector is a gocron.Elector: only the leader runs jobs, whatever the clocks of the others say. Call Campaign in a
// goroutine.
type Elector struct{ lease atomic.Pointer[locker.Lease] }

// Campaign makes this process the leader whenever nobody else is, until ctx ends. It then unlocks, so shut down the
// scheduler, which waits for its jobs (up to WithStopTimeout), first.
func (e *Elector) Campaign(ctx context.Context, l locker.Locker, key string) error {
	return locker.Lead(ctx, l, key, func(ctx context.Context, lease *locker.Lease) error {
		e.lease.Store(lease)
		<-ctx.Done()
		return nil
	})
}

// IsLeader implements gocron.Elector. It does not ask the store: a lease knows by itself when it is over.
func (e *Elector) IsLeader(context.Context) error {
	if lease := e.lease.Load(); lease != nil {
		return lease.Err()
	}
	return ErrNotLeader
}

// Lease is for jobs, which run only if there is one: for its fencing token, and for its Context, which ends on loss.
func (e *Elector) Lease() *locker.Lease { return e.lease.Load() }
