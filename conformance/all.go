package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/lockerkit/locker"
)

var allRules = []rule{
	{
		name: "NoDeadlock", body: noDeadlock, since: "v0.1.0",
		did: "12 goroutines over 3 Lockers lock two or three of four keys by LockAll, each in an order of its own, " +
			"5 times.",
		text: "Those who lock the same keys together never wait for one another in a circle, and exclude one another.",
		hint: hintAll + " A Lock that waits must not keep its Locker from renewing what it holds.",
	},
	{
		name: "TwiceCountsOnce", body: twiceCountsOnce, since: "v0.1.0",
		did:  "LockAll is called with a key that is there twice.",
		text: "A key that is named twice is locked once, and free when it was unlocked once.",
		hint: hintAll,
	},
	{
		name: "PartialFailureLeavesNothing", body: partialFailureLeavesNothing, since: "v0.1.0",
		did:  "TryLockAll is called for keys of which the last, the first or the second is held.",
		text: "When one of the keys cannot be locked, nothing of the others stays locked.",
		hint: hintAll + " When Release returns nil the key is free.",
	},
	{
		name: "CancelledLeavesNothing", body: cancelledAllLeavesNothing, since: "v0.1.0",
		did:  "LockAll waits for the last of three keys until its ctx ends.",
		text: "A LockAll whose ctx ends leaves none of its keys locked, and is in no line.",
		hint: hintAll + " " + hintOrphan,
	},
	{
		name: "LossOfOneEndsAll", body: lossOfOneEndsAll, since: "v0.1.0", needs: needsBreak,
		did:  "Three keys are locked together, and one of them is taken away: the first, the second, the third.",
		text: "The context of leases that were locked together ends when one of them is lost, for that reason.",
		hint: "A backend learns of a loss by Renew, which returns locker.ErrLost for a key that is gone or somebody " +
			"else's, or otherwise, and calls Request.ReportLost.",
	},
}

const hintAll = "locker.LockAll sees to this for every backend that keeps the other rules."

// lockTogether is locker.LockAll, unless a test of the suite has another one.
func (c *check) lockTogether(ctx context.Context, l locker.Locker, keys ...string) (locker.Leases, error) {
	if c.h.lockAll != nil {
		return c.h.lockAll(ctx, l, keys)
	}
	return locker.LockAll(ctx, l, keys)
}

func (c *check) keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = c.key()
	}
	return keys
}

func noDeadlock(c *check) {
	const lockers, goroutines, rounds = 3, 4, 5
	keys := c.keys(4)
	inside := make(map[string]*census)
	for _, key := range keys {
		inside[key] = new(census)
	}
	orders := make([][]string, lockers*goroutines*rounds)
	for i := range orders {
		order := append([]string(nil), keys...)
		c.shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		orders[i] = order[:2+c.draw(2)]
	}
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	c.all(lockers*goroutines, func(i int) {
		for round := range rounds {
			leases, err := c.lockTogether(c.within(20*c.ttl), ls[i%lockers], orders[i*rounds+round]...)
			if err != nil {
				c.fatalf("LockAll of keys that others lock for a moment: %v; want leases", err)
			}
			for _, lease := range leases {
				if held := inside[lease.Key()].enter(lease); len(held) > 1 {
					c.wrongf("%d hold a key that is locked with others", len(held))
				}
			}
			time.Sleep(c.ttl / 1000)
			for _, lease := range leases {
				inside[lease.Key()].leave(lease)
			}
			if err := leases.Unlock(); err != nil {
				c.errorf("Unlock of leases that are held: %v", err)
			}
		}
	})
}

func twiceCountsOnce(c *check) {
	keys := c.keys(2)
	l, other := c.open(), c.open()
	leases, err := c.lockTogether(c.within(10*c.ttl), l, keys[1], keys[0], keys[1])
	if err != nil {
		c.fatalf("LockAll of free keys, one of which is there twice: %v; want leases", err)
	}
	if len(leases) != 3 || leases[0] != leases[2] || leases[0].Key() != keys[1] || leases[1].Key() != keys[0] {
		c.errorf("LockAll returned other leases than one for each key, in the order of the keys: %v", leases)
	}
	for _, lease := range leases {
		c.refused(other, lease, "of a key that is locked with another")
	}
	if err := leases.Unlock(); err != nil {
		c.errorf("Unlock of leases that are held, one of which is there twice: %v; want nil", err)
	}
	for _, key := range keys {
		c.freeWithin(other, key, c.soon(), "after Unlock")
	}
}

func partialFailureLeavesNothing(c *check) {
	l, other := c.open(), c.open()
	for i := range 3 {
		keys := c.keys(3)
		held := c.lock(other, keys[i])
		leases, err := locker.TryLockAll(c.within(10*c.ttl), l, keys)
		if c.h.lockAll != nil {
			leases, err = c.h.lockAll(c.within(c.ttl/4), l, keys)
		}
		if err == nil {
			c.wrongf("TryLockAll of keys of which one is held: it succeeded; want ErrLocked")
			_ = leases.Unlock()
		} else if c.h.lockAll == nil && !errors.Is(err, locker.ErrLocked) {
			c.errorf("TryLockAll of keys of which one is held: %v; want ErrLocked", err)
		}
		for j, key := range keys {
			if i != j {
				c.freeWithin(other, key, c.soon(), "after TryLockAll of it and others has failed")
			}
		}
		c.unlock(held)
	}
}

func cancelledAllLeavesNothing(c *check) {
	l, other := c.open(), c.open()
	keys := c.keys(3)
	for _, key := range keys {
		held := c.lock(other, key)
		ctx, cancel := context.WithCancel(c.within(10 * c.ttl))
		done := make(chan error, 1)
		c.do(func() {
			leases, err := c.lockTogether(ctx, l, keys...)
			if err == nil {
				_ = leases.Unlock()
			}
			done <- err
		})
		c.settle()
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				c.errorf("LockAll whose ctx was cancelled while it waited: %v; want context.Canceled", err)
			}
		case <-time.After(10 * c.ttl):
			c.fatalf("LockAll had not returned %v after its ctx was cancelled", 10*c.ttl)
		}
		c.unlock(held)
		for _, key := range keys {
			c.freeWithin(other, key, c.soon(), "after a LockAll of it was cancelled")
		}
	}
}

func lossOfOneEndsAll(c *check) {
	l := c.open()
	for i := range 3 {
		keys := c.keys(3)
		leases, err := c.lockTogether(c.within(10*c.ttl), l, keys...)
		if err != nil {
			c.fatalf("LockAll of free keys: %v; want leases", err)
		}
		ctx, cancel := leases.Context(c.ctx)
		c.h.Break(c.t, keys[i])
		select {
		case <-ctx.Done():
		case <-time.After(2 * c.ttl):
			c.errorf("the context of three leases has not ended %v after one of the keys was taken away", 2*c.ttl)
		}
		if cause := context.Cause(ctx); ctx.Err() != nil && !errors.Is(cause, locker.ErrLost) {
			c.errorf("the cause of the context's end is %v; want ErrLost", cause)
		}
		cancel()
		_ = leases.Unlock()
		for _, key := range keys {
			c.freeWithin(l, key, c.ttl+c.soon(), "after Unlock")
		}
	}
}
