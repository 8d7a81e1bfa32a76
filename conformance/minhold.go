package conformance

import (
	"errors"
	"time"

	"github.com/lockerkit/locker"
)

const hintKeep = "If Grant.Keep is not zero, Release ends the holder's lease, but sets the expiry of the record to " +
	"so much from now instead of deleting it. Nobody is its owner any more."

var minHoldRules = []rule{
	{
		name: "KeepsTheKey", body: keepsTheKey, since: "v0.1.0", mode: locker.MinHold(time.Millisecond), expires: true,
		did: "A key is locked with MinHold, in each mode that the backend offers by two, for longer than a TTL, " +
			"and for less. It is unlocked a little later. Another Locker tries it, and waits for it.",
		text: "Nobody else gets a key before MinHold has passed since it was granted, and then the next in line " +
			"does, at once.",
		hint: hintKeep,
	},
	{
		name: "NoLonger", body: keptNoLonger, since: "v0.1.0", mode: locker.MinHold(time.Millisecond),
		did:  "A key is locked with MinHold, and unlocked when that has passed.",
		text: "A key that was held for longer than MinHold is free when it is unlocked.",
		hint: hintKeep,
	},
	{
		name: "OwnerIsDone", body: keptOwnerIsDone, since: "v0.1.0",
		mode: locker.MinHold(time.Millisecond), expires: true,
		did: "A key is locked with MinHold, and unlocked at once. Its lease is unlocked again, its Locker tries " +
			"to lock it again, and is closed.",
		text: "Who has unlocked is not the holder any more, although the key is taken: it does not get it back " +
			"before others can.",
		hint: hintKeep,
	},
}

func keepsTheKey(c *check) {
	l := c.open()
	waiting := c.open()
	for _, d := range []time.Duration{3 * c.ttl / 5, 3 * c.ttl / 2} {
		start := time.Now()
		c.inEachMode(func(key string, holders []*locker.Lease) {
			granted := time.Now()
			w := c.waits(c.within(20*c.ttl), waiting, key)
			c.unlockEach(holders...)
			for time.Since(start) < d*9/10 {
				if lease, err := l.TryLock(c.within(10*c.ttl), key); err == nil {
					c.wrongf("TryLock %v after a key was locked with MinHold(%v): it succeeded", time.Since(start), d)
					c.unlock(lease)
				}
				time.Sleep(d / 20)
			}
			next, err := c.result(w)
			if err != nil {
				c.fatalf("Lock of a key that was unlocked, and is kept for MinHold: %v; want a lease", err)
			}
			if early := d - w.at.Sub(start); early > d/100 {
				c.wrongf("a Lock got the key %v before MinHold(%v) had passed", early, d)
			}
			c.took(w.at.Sub(granted), d+c.soon(), "a Lock to get a key that is kept for MinHold(%v)", d)
			c.unlock(next)
			start = time.Now()
		}, locker.MinHold(d))
	}
}

func keptNoLonger(c *check) {
	l := c.open()
	key := c.key()
	lease, err := l.TryLock(c.within(10*c.ttl), key, locker.MinHold(c.ttl/2))
	if err != nil {
		c.fatalf("TryLock of a key that is free: %v; want a lease", err)
	}
	w := c.waits(c.within(20*c.ttl), c.open(), key)
	time.Sleep(c.ttl)
	start := time.Now()
	c.unlock(lease)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key that was held for longer than MinHold, and unlocked: %v; want a lease", err)
	}
	c.took(w.at.Sub(start), c.ttl/4, "the next in line to get a key that was held for longer than MinHold")
	c.unlock(next)
}

func keptOwnerIsDone(c *check) {
	l := c.open()
	key := c.key()
	start := time.Now()
	// When the Locker is gone, the store alone counts, and some only in what the harness has for its TTL.
	least := 2 * c.ttl
	lease := c.tryLock(l, key, locker.MinHold(least))
	c.unlock(lease)
	if err := lease.Unlock(); !errors.Is(err, locker.ErrUnlocked) {
		c.errorf("a second Unlock: %v; want ErrUnlocked", err)
	}
	if !isClosed(lease.Done()) {
		c.errorf("Done is not closed when a key was unlocked that is kept for MinHold")
	}
	c.refused(l, lease, "of a key that is kept for MinHold, by the one who had it")
	if err := l.Close(); err != nil {
		c.errorf("Close of the Locker that had a key which is kept for MinHold: %v", err)
	}
	other := c.open()
	for time.Since(start) < least*9/10 {
		c.refused(other, lease, "of a key that is kept for MinHold, whose Locker is closed")
		time.Sleep(c.ttl / 10)
	}
	c.freeWithin(other, key, c.ttl, "after MinHold")
}
