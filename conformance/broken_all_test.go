package conformance

import (
	"context"
	"testing"

	"github.com/lockerkit/locker"
)

// allDefects are broken in locks for several keys at once.
var allDefects = []defect{
	{
		name:    "keys are locked in the caller's order",
		lockAll: lockingAll{dedupes: true, undoes: true}.lock,
		caught:  []string{"all/NoDeadlock"},
		fine:    []string{"all/TwiceCountsOnce", "all/PartialFailureLeavesNothing", "all/CancelledLeavesNothing"},
	},
	{
		name:    "a key that is there twice is locked twice",
		lockAll: lockingAll{undoes: true}.lock,
		caught:  []string{"all/TwiceCountsOnce"},
		fine:    []string{"all/PartialFailureLeavesNothing", "all/CancelledLeavesNothing"},
	},
	{
		name:    "what was locked stays locked when another key cannot be had",
		lockAll: lockingAll{dedupes: true}.lock,
		caught:  []string{"all/PartialFailureLeavesNothing", "all/CancelledLeavesNothing"},
		fine:    []string{"all/TwiceCountsOnce"},
	},
	{
		name:    "a renewal is always told to have succeeded",
		backend: func(_ *testing.T, c *client) locker.Backend { return neverLost{queued{c}} },
		caught:  []string{"all/LossOfOneEndsAll"},
		fine:    []string{"all/NoDeadlock", "all/CancelledLeavesNothing", "exclusion/OneHolder"},
	},
}

// lockingAll locks several keys in the order in which they are named.
type lockingAll struct {
	dedupes bool
	undoes  bool // when one cannot be locked
}

func (a lockingAll) lock(ctx context.Context, l locker.Locker, keys []string) (locker.Leases, error) {
	leases := make(locker.Leases, len(keys))
	of := make(map[string]*locker.Lease)
	for i, key := range keys {
		lease := of[key]
		if lease == nil || !a.dedupes {
			var err error
			if lease, err = l.Lock(ctx, key); err != nil {
				if a.undoes {
					_ = leases[:i].Unlock()
				}
				return nil, err
			}
		}
		of[key], leases[i] = lease, lease
	}
	return leases, nil
}

// neverLost has each renewal succeed.
type neverLost struct{ queued }

func (b neverLost) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) { done(i, locker.Renewal{}) })
}
