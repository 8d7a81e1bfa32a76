package conformance

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// remembered comes back to keys after a while in which nobody wanted them, and many others were locked.
func remembered(c *check) {
	const before = 3 // grants: what is forgotten begins at less than that
	a, b, closing := c.open(), c.open(), c.open()
	var keys []string
	var seen []*tokens
	first := func() string { // returns a key that has been locked
		key, ts := c.key(), &tokens{c: c}
		for range before {
			lease := c.tryLock(a, key)
			ts.next(lease, "Unlock")
			c.unlock(lease)
		}
		keys, seen = append(keys, key), append(seen, ts)
		return key
	}
	first()
	key := first()
	seen[1].next(c.abandon(key), "Unlock")
	key = first()
	lease := c.tryLock(closing, key)
	seen[2].next(lease, "Unlock")
	if err := closing.Close(); err != nil {
		c.errorf("Close: %v", err)
	}
	start := time.Now()
	again := func(after string) {
		for i, key := range keys {
			lease := c.takeOver(b, key)
			seen[i].next(lease, after)
			c.unlock(lease)
		}
	}
	c.manyKeys(a, b)
	again("many other keys were locked")
	// What is forgotten after a while may be so after any time: here are some seconds, and more where they cost
	// nothing.
	idle := 2*c.ttl + c.ttl/2
	if inFakeTime() {
		idle = 20 * c.ttl
	}
	time.Sleep(idle - time.Since(start))
	again("a time in which nobody had locked it")
}

// manyKeys locks and unlocks very many keys: as many as it can in half a TTL.
func (c *check) manyKeys(ls ...locker.Locker) {
	const most = 2500
	start := time.Now()
	ctx := c.within(10 * c.ttl)
	var locked atomic.Int64
	c.all(requestsAtATime, func(i int) {
		l := ls[i%len(ls)]
		for locked.Add(1) < most && time.Since(start) < c.ttl/2 {
			if lease, err := l.TryLock(ctx, c.key()); err == nil {
				_ = lease.Unlock()
			}
		}
	})
}

// neverWraps locks keys as often as it can.
func neverWraps(c *check) {
	// A count of 8 bits is full after 256 grants of one key, and one of 16 bits after so many that it takes too long on
	// a real store: there, several keys at a time are locked for a TTL, as they may have one count together.
	const least, most, keys = 300, 1<<16 + 300, 8
	start := time.Now()
	enough := func(n int) bool {
		passed := time.Since(start)
		return n > most || passed > c.ttl && n > least || passed > 2*c.ttl
	}
	atATime := keys
	if inFakeTime() {
		atATime = 1
	}
	grant := c.grants()
	c.all(atATime, func(int) {
		key := c.key()
		var last uint64
		failures := 0
		for n := 0; !enough(n); n++ {
			token, err := grant(key)
			switch {
			case err != nil:
				if failures++; failures == 10 {
					c.errorf("a key that is free cannot be locked after %d times: %v", n, err)
					return
				}
				time.Sleep(c.ttl / 100)
				continue
			case token <= last:
				c.wrongf("at the %dth time, the token was %d; the holder before had %d", n+1, token, last)
				return
			}
			last = token
		}
	})
}

// grants returns a function that locks a key, unlocks it, and returns the token: of the backend, where Harness.Backend
// gives one, as that takes less time.
func (c *check) grants() func(key string) (uint64, error) {
	ctx := c.within(20 * c.ttl)
	if !needsBackend.provided(c.h) {
		l := c.open()
		return func(key string) (uint64, error) {
			lease, err := l.TryLock(ctx, key)
			if err != nil {
				return 0, err
			}
			return lease.Token(), lease.Unlock()
		}
	}
	b := c.h.Backend(c.t)
	return func(key string) (uint64, error) {
		r := c.request()()
		r.Key = key
		g, err := b.Acquire(ctx, r)
		if err != nil {
			return 0, errors.Join(err, b.Release(ctx, locker.Grant{Request: r}))
		}
		g.Request = r
		return g.Token, b.Release(ctx, g)
	}
}

// followsName locks one name under different prefixes.
func followsName(c *check) {
	name := c.key() + "/abc"
	ts := &tokens{c: c}
	var ls []locker.Locker
	var keys []string
	for cut := 1; cut <= 4; cut++ {
		at := len(name) - cut
		ls, keys = append(ls, c.open(locker.Prefix(name[:at]))), append(keys, name[at:])
	}
	for i := range 12 {
		at := i % len(ls)
		lease := c.tryLock(ls[at], keys[at])
		ts.next(lease, "Unlock, under another prefix of the same name,")
		c.unlock(lease)
	}
}

// clockErrors are by how much clocks are wrong.
func (c *check) clockErrors() []time.Duration {
	return []time.Duration{-24 * time.Hour, -c.ttl * 2, c.ttl * 2, 24 * time.Hour}
}

// tokensOfWrongClocks has clients with wrong clocks and one whose clock is right lock a key by turns.
func tokensOfWrongClocks(c *check) {
	right, wrong := c.open(), c.open()
	for _, d := range c.clockErrors() {
		key := c.key()
		ts := &tokens{c: c}
		for i := range 6 {
			l, whose := right, "a client whose clock was right"
			undo := func() {}
			if i%2 == 1 {
				undo = c.h.Skew(c.t, d) // of wrong, which was opened last
				l, whose = wrong, "a client whose clock was wrong by "+d.String()
			}
			lease := c.tryLock(l, key)
			ts.next(lease, "the Unlock of the other one, in "+whose+",")
			c.unlock(lease)
			undo()
		}
	}
}

// leasesOfWrongClocks has clients with wrong clocks hold leases, and compete for them.
func leasesOfWrongClocks(c *check) {
	right := c.open()
	for _, d := range c.clockErrors() {
		held, short, theirs := c.key(), c.key(), c.key()
		lasting := c.tryLock(right, theirs)
		wrong := c.open()
		undo := c.h.Skew(c.t, d)
		c.do(func() {
			defer undo()
			lease := c.tryLock(wrong, held)
			ending, granted := c.tryLock(wrong, short, c.notRenewed()...), time.Now()
			c.heldDespiteClock(right, lease, d, "holder's")
			c.heldDespiteClock(wrong, lasting, d, "rival's")
			if c.h.Features.RenewsItself == "" {
				next := c.takeOver(right, short)
				c.took(time.Since(granted), c.ttl+c.soon(),
					"to get a key whose holder, with a clock that was wrong by %v, had a lease of %v,", d, c.ttl)
				if ending.Err() == nil {
					c.wrongf("a key was locked that was held by a client whose clock was wrong by %v", d)
				}
				c.unlock(next)
			}
			c.heldDespiteClock(right, lease, d, "holder's")
			c.heldDespiteClock(wrong, lasting, d, "rival's")
			c.unlock(lease)
			c.unlock(lasting)
		})
	}
}

// heldDespiteClock checks that l cannot lock what somebody has, with a clock that is wrong.
func (c *check) heldDespiteClock(l locker.Locker, lease *locker.Lease, d time.Duration, whose string) {
	rival, err := l.TryLock(c.within(10*c.ttl), lease.Key())
	switch {
	case err == nil && lease.Err() == nil:
		c.wrongf("TryLock of a key that was held succeeded: the %s clock was wrong by %v", whose, d)
		_ = rival.Unlock()
	case err == nil:
		c.errorf("a lease was lost, and the %s clock was wrong by %v: %v", whose, d, lease.Err())
		_ = rival.Unlock()
	case !errors.Is(err, locker.ErrLocked) && !errors.Is(err, context.DeadlineExceeded):
		c.errorf("TryLock of a key that was held, where the %s clock was wrong by %v: %v; want ErrLocked", whose, d, err)
	}
}
