package conformance

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var exclusionRules = []rule{
	{
		name: "TryLockHeld", body: tryLockHeld, serial: true, // first of all
		did: "One Locker holds a key, and another calls TryLock; then the first one unlocks, and the other tries " +
			"again.",
		text: "TryLock of a key that is held returns ErrLocked at once, and leaves the holder alone.",
		hint: "Acquire returns a *locker.Held, or ErrLocked, when the store says that there is another owner. It " +
			"waits for nobody, and changes nothing. (If nothing excludes anything: do the Lockers of Harness.Open " +
			"reach the same store?)",
	},
	{
		name: "OneHolder", body: oneHolder,
		did:  "12 goroutines over 3 Lockers lock and unlock one key, 12 times each.",
		text: "Two leases of a key are never held at once.",
		hint: hintAtomic,
	},
	{
		name: "Counter", body: counter,
		did:  "12 goroutines over 3 Lockers read and write a number under the lock, 10 times each.",
		text: "A counter that is read and written under the lock, and not protected otherwise, loses nothing.",
		hint: hintAtomic,
	},
	{
		name: "NotReentrant", body: notReentrant,
		did:  "A Locker locks a key that it holds itself, with TryLock and with Lock.",
		text: "A key that is held cannot be locked again, not even by the same Locker or goroutine.",
		hint: "Decide by Request.Owner, which is another for each Lock: not by the process, the connection or " +
			"Request.Holder.",
	},
	{
		name: "Relock", body: relock,
		did:  "A Locker locks a key and unlocks it, a hundred times.",
		text: "A key that was unlocked can be locked again, a hundred times in a row.",
		hint: "When Release returns nil the key is free: it waits for the store's answer, and leaves nothing of the " +
			"lease behind.",
	},
}

func oneHolder(c *check) {
	const lockers, goroutines, rounds = 3, 4, 12
	key := c.key()
	var current atomic.Pointer[locker.Lease]
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	c.all(lockers*goroutines, func(i int) {
		for range rounds {
			lease := c.lock(ls[i%lockers], key)
			if before := current.Swap(lease); before != nil && before.Err() == nil {
				c.wrongf("Lock returned a lease (token %d) while another (token %d) was held", lease.Token(), before.Token())
			}
			if i%2 == 0 {
				time.Sleep(c.ttl / 1000) // so that the others meet a key that is held
			}
			c.unlock(lease)
		}
	})
}

func counter(c *check) {
	const lockers, goroutines, rounds = 3, 4, 10
	key := c.key()
	var n atomic.Int64 // atomic only for the race detector: the increment is not
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	c.all(lockers*goroutines, func(i int) {
		for range rounds {
			lease := c.lock(ls[i%lockers], key)
			read := n.Load()
			time.Sleep(c.ttl / 2000)
			n.Store(read + 1)
			c.unlock(lease)
		}
	})
	if got, want := n.Load(), int64(lockers*goroutines*rounds); got != want {
		c.errorf("the counter is %d after %d increments", got, want)
	}
}

func tryLockHeld(c *check) {
	key := c.key()
	holder, other := c.open(), c.open()
	lease := c.lock(holder, key)
	var took []time.Duration
	for range 5 {
		start := time.Now()
		c.refused(other, lease, "of a key that another Locker holds")
		took = append(took, time.Since(start))
	}
	c.tookMedian(took, c.soon(), "TryLock of a key that is held")
	if err := lease.Err(); err != nil {
		c.errorf("the holder's lease ended: %v", err)
	}
	c.unlock(lease)
	c.freeWithin(other, key, c.soon(), "after Unlock")
}

func notReentrant(c *check) {
	key := c.key()
	l := c.open()
	lease := c.lock(l, key)
	c.refused(l, lease, "of a key that the same Locker holds")
	again, err := l.Lock(c.within(c.ttl/4), key)
	switch {
	case err == nil:
		if lease.Err() == nil {
			c.wrongf("Lock of a key that the same Locker and goroutine holds succeeded")
		}
		_ = again.Unlock()
	case !errors.Is(err, context.DeadlineExceeded):
		c.errorf("Lock of a key that the same Locker holds: %v; want it to wait until its ctx ends", err)
	}
	if err := lease.Err(); err != nil {
		c.errorf("the holder's lease ended: %v", err)
	}
	c.unlock(lease)
	c.freeWithin(l, key, c.soon(), "after Unlock")
}

func relock(c *check) {
	key := c.key()
	l := c.open()
	for range 100 {
		c.unlock(c.tryLock(l, key))
	}
}
