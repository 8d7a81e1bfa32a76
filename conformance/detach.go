package conformance

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

const hintAdopt = "Adopt compares the owner that the store has with Grant.Owner, and sets it to Request.Owner, in " +
	"one step. The expiry is then Request.TTL from now; token and slot stay."

var detachRules = []rule{
	{
		name: "MovesToAnother", body: movesToAnother, since: "v0.1.0",
		did: "A lease is detached, in each mode that the backend offers by two, and adopted by another Locker, which " +
			"holds it for three TTLs. A third one tries the key all the time.",
		text: "A lease that is adopted goes on with its token and slot, is renewed, and is the new holder's alone; " +
			"nobody gets the key in between.",
		hint: hintAdopt,
	},
	{
		name: "OnlyOnce", body: adoptedOnce, since: "v0.1.0",
		did: "Eight Lockers adopt copies of one ticket at the same time; and others when it was unlocked, and " +
			"locked again.",
		text: "Of those who have a copy of a ticket, one gets the lease. The others are told ErrNotHeld.",
		hint: hintAdopt,
	},
	{
		name: "EndsByTTL", body: detachedEnds, since: "v0.1.0", expires: true,
		did: "A lease is detached, and its Locker closed. Nobody adopts it in time.",
		text: "A lease that nobody adopts ends with its TTL, not before, and not much after, and cannot be " +
			"adopted then.",
		hint: hintAdopt,
	},
}

// detachable returns another Locker whose leases can be detached, or nil: then the backend does not offer it.
func (c *check) detachable() locker.Locker {
	l := c.open()
	lease := c.tryLock(l, c.key())
	if _, err := lease.Detach(); errors.Is(err, errors.ErrUnsupported) {
		c.unlock(lease)
		c.leaves(notOffered, "the backend does not state that leases can be detached (locker.Features)")
		return nil
	}
	return l
}

// detach detaches a lease.
func (c *check) detach(lease *locker.Lease) locker.Ticket {
	ticket, err := lease.Detach()
	if err != nil {
		c.fatalf("Detach of a lease that is held: %v; want a ticket", err)
	}
	if err := lease.Err(); !errors.Is(err, locker.ErrUnlocked) {
		c.errorf("Err of a lease that was detached: %v; want ErrUnlocked", err)
	}
	return ticket
}

// adopt adopts a lease that nobody else has.
func (c *check) adopt(l locker.Locker, ticket locker.Ticket) *locker.Lease {
	lease, err := locker.Adopt(c.within(10*c.ttl), l, ticket)
	if err != nil {
		c.fatalf("Adopt: %v; want a lease", err)
	}
	return lease
}

// cannotAdopt checks that a ticket is of no use any more.
func (c *check) cannotAdopt(l locker.Locker, ticket locker.Ticket, when string) {
	if lease, err := locker.Adopt(c.within(10*c.ttl), l, ticket); err == nil {
		c.record(1, "Adopt of a ticket %s: it succeeded; want ErrNotHeld", when)
		_ = lease.Unlock()
	} else if !errors.Is(err, locker.ErrNotHeld) {
		c.record(1, "Adopt of a ticket %s: %v; want ErrNotHeld", when, err)
	}
}

func movesToAnother(c *check) {
	if c.detachable() == nil {
		return
	}
	third, next := c.open(), c.open()
	c.inEachMode(func(key string, holders []*locker.Lease) {
		old := holders[0]
		ticket := c.detach(old)
		c.refused(third, old, "of a key whose lease was detached")
		lease := c.adopt(next, ticket)
		if lease.Key() != key || lease.Token() != old.Token() || lease.Mode() != old.Mode() ||
			lease.Slot() != old.Slot() {
			c.errorf("adopted: %q, token %d, %v, slot %d; want %q, token %d, %v, slot %d", lease.Key(), lease.Token(),
				lease.Mode(), lease.Slot(), key, old.Token(), old.Mode(), old.Slot())
		}
		if err := old.Unlock(); !errors.Is(err, locker.ErrUnlocked) {
			c.errorf("Unlock of a lease that was detached: %v; want ErrUnlocked", err)
		}
		for start := time.Now(); time.Since(start) < 3*c.ttl; time.Sleep(c.ttl / 10) {
			c.refused(third, lease, "of a key whose lease was adopted")
		}
		if err := lease.Err(); err != nil {
			c.errorf("the lease that was adopted is lost: %v", err)
		}
		c.unlock(lease)
		for _, other := range holders[1:] {
			c.refused(third, other, "of a key that another still holds")
			c.unlock(other)
		}
		c.freeWithin(third, key, c.soon(), "after all have unlocked")
	})
}

func adoptedOnce(c *check) {
	const copies = 8
	l := c.detachable()
	if l == nil {
		return
	}
	key := c.key()
	ls := make([]locker.Locker, copies)
	for i := range ls {
		ls[i] = c.open()
	}
	ticket := c.detach(c.lock(l, key))
	var adopted atomic.Pointer[locker.Lease]
	c.all(copies, func(i int) {
		lease, err := locker.Adopt(c.within(10*c.ttl), ls[i], ticket)
		switch {
		case err == nil && !adopted.CompareAndSwap(nil, lease):
			c.wrongf("two have adopted the same ticket")
		case err != nil && !errors.Is(err, locker.ErrNotHeld):
			c.errorf("Adopt of a ticket that others have, too: %v; want a lease or ErrNotHeld", err)
		}
	})
	lease := adopted.Load()
	if lease == nil {
		c.fatalf("nobody of %d could adopt a ticket", copies)
	}
	c.cannotAdopt(l, ticket, "that was adopted")
	c.unlock(lease)
	c.cannotAdopt(l, ticket, "of a lease that was unlocked since")
	again := c.lock(ls[0], key)
	c.cannotAdopt(l, ticket, "of a key that somebody else has locked since")
	if err := again.Err(); err != nil {
		c.errorf("the lease of who has locked the key since is lost: %v", err)
	}
	c.unlock(again)
}

func detachedEnds(c *check) {
	if c.detachable() == nil {
		return
	}
	key := c.key()
	other, l := c.open(), c.open()
	start := time.Now() // the store counts from later on, and the answer may come later still
	lease := c.lock(l, key)
	ticket := c.detach(lease)
	if err := l.Close(); err != nil {
		c.errorf("Close of a Locker whose lease was detached: %v", err)
	}
	w := c.start(c.within(20*c.ttl), other, key)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose lease was detached, and not adopted: %v; want a lease", err)
	}
	c.passed(w, c.ttl, start, "a Lock that waits for a key whose lease was detached, and not adopted")
	c.cannotAdopt(other, ticket, "of a lease that has ended")
	c.unlock(next)
}
