package conformance

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// ttlRules are about for how long a lock lasts that nobody renews: as long as its own TTL says.
var ttlRules = []rule{
	{
		name: "TTLGranularity", body: ttlGranularity, expires: true, relaxes: renewsItself,
		did: "Locks are taken with NoRenew and TTLs that are no whole milliseconds or seconds, and waited for by another " +
			"Locker; others with TTLs that nobody can keep.",
		text: "A TTL that the store cannot keep is refused, or the one granted is reported by Deadline: it is never " +
			"silently another.",
		hint: "Either Acquire refuses such a TTL with an error that wraps locker.ErrInvalidOption, or it returns the TTL " +
			"that the store keeps in Grant.TTL.",
	},
	{
		name: "TTLRange", body: ttlRange, expires: true, relaxes: renewsItself, lasts: 2 * watched, since: "v0.1.0",
		did: "Locks are taken with NoRenew and TTLs from 20 ms to 30 days, with TryLock and Lock, and while another Locker " +
			"unlocks; with Harness.Backend, they are also renewed. Another Locker tries the keys, and waits for those that " +
			"end soon: in fake time, within a day.",
		text: "A TTL from MinTTL to MaxTTL is refused, or kept as it is, or the one granted is reported by Deadline, however a " +
			"lock was taken.",
		hint: "How many bits does the store, or its client, have for a TTL, and in which unit? Milliseconds need more than 32 " +
			"for 30 days. Refuse what it cannot keep with an error that wraps locker.ErrInvalidOption, and put what it makes of a " +
			"TTL into Grant.TTL. Held.Remaining, if there is one, is what is left.",
	},
	{
		name: "WaitedForExpires", body: waitedForExpires, expires: true, relaxes: renewsItself, since: "v0.1.0",
		did: "Lockers wait for keys whose holders unlock, or are closed, or whose leases end, and get them with NoRenew, and TTLs " +
			"other than those of the holders before; rivals wait behind them, or come later.",
		text: "A lock that was waited for lasts for the TTL of its own request from when it was granted.",
		hint: "What grants a lock to the next in line sets its expiry to the Request.TTL of that one from then on: not from when it " +
			"joined the line, and not to what is left of the lease before. Those who wait on have to be woken at the end of that.",
	},
}

func ttlGranularity(c *check) {
	for _, ttl := range []time.Duration{
		c.ttl + 1, c.ttl + 999*time.Nanosecond, c.ttl + 1500*time.Microsecond, c.ttl + 333333333, c.ttl + 10*time.Millisecond,
	} {
		c.do(func() {
			key := c.key()
			a, b := c.open(), c.open()
			start := time.Now()
			lease, err := a.TryLock(c.within(10*c.ttl), key, locker.TTL(ttl), locker.NoRenew())
			if err != nil {
				if !errors.Is(err, locker.ErrInvalidOption) {
					c.errorf("TryLock with TTL(%v): %v; want a lease, or ErrInvalidOption", ttl, err)
				}
				return
			}
			deadline := lease.Deadline()
			next := c.takeOver(b, key)
			at := time.Now()
			if at.Before(deadline) {
				c.wrongf("with TTL(%v), a rival had the lock %v before the Deadline", ttl, deadline.Sub(at))
			}
			if wait := at.Sub(start); wait > deadline.Sub(start)+ttl/50+c.soon() {
				c.errorf("with TTL(%v) and a Deadline after %v, a rival had the lock only after %v", ttl,
					deadline.Sub(start), wait)
			}
			c.unlock(next)
		})
	}
	l := c.open()
	for _, ttl := range []time.Duration{0, -1, 1, time.Microsecond, 500 * time.Microsecond, 1 << 62} {
		lease, err := l.TryLock(c.within(c.ttl), c.key(), locker.TTL(ttl))
		if err == nil {
			_ = lease.Unlock()
		}
		if !errors.Is(err, locker.ErrInvalidOption) {
			c.errorf("TryLock with TTL(%v): %v; want ErrInvalidOption", ttl, err)
		}
	}
}

// lateBy is by how much longer than its TTL a lock may last.
func (c *check) lateBy(ttl time.Duration) time.Duration {
	return min(ttl/50, c.ttl) + c.soon() + c.ttl/4
}

// untilFree returns a context for a rival who waits until a time, when the key should be free, and a while longer.
func (c *check) untilFree(end time.Time) context.Context {
	return c.within(max(time.Until(end), 0) + 15*c.ttl)
}

// unrenewed is a lease that nobody renews.
type unrenewed struct {
	lease   *locker.Lease
	granted time.Time // or a little later
	ttl     time.Duration
	how     string // it was taken
}

// lastsItsTTL checks that a rival, who has called Lock, gets the key when the TTL has passed, and not before.
func (c *check) lastsItsTTL(u *unrenewed, rival *wait) {
	deadline := u.lease.Deadline()
	<-rival.done
	if rival.err != nil {
		c.errorf("a lock %s with TTL(%v), which nobody renews: not free after %v: %v", u.how, u.ttl,
			rival.at.Sub(u.granted), rival.err)
		return
	}
	if early := deadline.Sub(rival.at); early > 0 {
		c.wrongf("a lock %s with TTL(%v): a rival had it %v before the Deadline", u.how, u.ttl, early)
	}
	c.took(rival.at.Sub(u.granted), u.ttl+c.lateBy(u.ttl),
		"until a rival had a lock %s with TTL(%v), which nobody renews,", u.how, u.ttl)
	c.unlock(rival.lease)
}

// awaits starts a rival for a lease.
func (c *check) awaits(u *unrenewed, rival locker.Locker) *wait {
	return c.start(c.untilFree(u.granted.Add(u.ttl)), rival, u.lease.Key())
}

// watched is for how long TTLs are watched in fake time. To watch all of them to their end would take a backend that
// does something every moment too much time of the other kind.
const watched = 25 * time.Hour

// shortTTLs are over at once: a millisecond is much of them.
var shortTTLs = []time.Duration{
	locker.MinTTL, 25 * time.Millisecond, 29900 * time.Microsecond, 49 * time.Millisecond, 99 * time.Millisecond,
}

// longTTLs returns TTLs that are a little more than what a careless store takes for the longest. If it counts with 32
// bits, it makes of them what is left over, or less than nothing.
func longTTLs(harness time.Duration) (all []time.Duration) {
	for _, limit := range []time.Duration{
		1 << 31, 1 << 32, 30 * time.Second, time.Minute, time.Hour, 24 * time.Hour, 7 * 24 * time.Hour,
		1 << 31 * time.Microsecond, 1 << 32 * time.Microsecond, 1 << 31 * time.Millisecond,
	} {
		all = append(all, limit+harness/10)
	}
	return append(all, locker.MaxTTL)
}

// accepted calls lock with a TTL, or with the next whole second if it is refused, and returns that which was not: 0 if
// there is none, or if a short one was over before the answer came.
func (c *check) accepted(ttl time.Duration, lock func(ttl time.Duration) error) time.Duration {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		err := lock(ttl)
		switch {
		case err == nil:
			return ttl
		case errors.Is(err, locker.ErrInvalidOption):
			whole := ttl.Truncate(time.Second) + time.Second
			if ttl%time.Second == 0 || ttl < time.Second || whole > locker.MaxTTL {
				return 0
			}
			ttl = whole
		case attempt == attempts:
			if ttl > c.ttl/4 {
				c.record(1, "a free key, with TTL(%v): %v; want a lock, or ErrInvalidOption", ttl, err)
			}
			return 0
		}
	}
}

func ttlRange(c *check) {
	before, taker, rival := c.open(), c.open(), c.open()
	ways := []struct {
		how  string
		lock func(key string, opts ...locker.CallOption) (*locker.Lease, error)
	}{
		{"taken with TryLock", func(key string, opts ...locker.CallOption) (*locker.Lease, error) {
			return taker.TryLock(c.within(10*c.ttl), key, opts...)
		}},
		{"taken with Lock", func(key string, opts ...locker.CallOption) (*locker.Lease, error) {
			return taker.Lock(c.within(10*c.ttl), key, opts...)
		}},
		{"that was waited for", func(key string, opts ...locker.CallOption) (*locker.Lease, error) {
			first := c.tryLock(before, key)
			w := c.start(c.within(10*c.ttl), taker, key, opts...)
			c.settle()
			c.unlock(first)
			return c.result(w)
		}},
	}
	var b locker.Backend
	var rivalOfB locker.Locker
	if c.has(needsBackend, "the same of a renewal") {
		b = c.h.Backend(c.t)
		rivalOfB = c.rivalOf(b)
	}
	for _, ttl := range slices.Concat(shortTTLs, longTTLs(c.ttl)) {
		for _, way := range ways {
			c.do(func() {
				u := unrenewed{how: way.how}
				u.ttl = c.accepted(ttl, func(ttl time.Duration) (err error) {
					u.lease, err = way.lock(c.key(), locker.TTL(ttl), locker.NoRenew())
					u.granted = time.Now()
					return err
				})
				if u.ttl > 0 {
					c.keepsTTL(&u, rival)
				}
			})
		}
		if b != nil {
			c.do(func() { c.renewsFor(b, ttl, rivalOfB) })
		}
	}
}

// keepsTTL checks that a lease has its TTL. It does not wait for the end of those that last for long.
func (c *check) keepsTTL(u *unrenewed, rival locker.Locker) {
	deadline := u.lease.Deadline()
	if told := deadline.Sub(u.granted); told > u.ttl { // the store has granted more
		u.ttl = told * 100 / 99
	}
	c.refusedOrOver(u, rival)
	left := time.Until(deadline)
	if left > 2*c.ttl {
		time.Sleep(c.almost(left))
		c.refusedOrOver(u, rival)
		if left > affordable(0, watched) {
			_ = u.lease.Unlock()
			return
		}
		time.Sleep(time.Until(u.granted.Add(u.ttl)))
	}
	c.lastsItsTTL(u, c.awaits(u, rival))
}

// almost returns for how long to wait when so much is left, and a rival is not to get in yet.
func (c *check) almost(left time.Duration) time.Duration {
	return affordable(c.ttl*6/5, min(left-c.ttl/10, watched))
}

// refusedOrOver checks that a rival is refused the key, unless the lease is over.
func (c *check) refusedOrOver(u *unrenewed, rival locker.Locker) {
	deadline := u.lease.Deadline()
	next, err := rival.TryLock(c.within(10*c.ttl), u.lease.Key())
	left := time.Until(deadline)
	if err == nil {
		if left > 0 {
			c.wrongf("a lock %s with TTL(%v): a rival had it %v before the Deadline", u.how, u.ttl, left)
		}
		_ = next.Unlock()
		return
	}
	c.remaining(err, u.ttl, left, u.how)
}

// remaining checks what a rival was told of how much is left of a TTL, of which the holder trusts so much.
func (c *check) remaining(err error, ttl, left time.Duration, how string) {
	const certain = 20 * time.Second // from here on, it does not matter how it is rounded
	var held *locker.Held
	if !errors.As(err, &held) || held.Remaining <= 0 || ttl < certain {
		return
	}
	if d := held.Remaining; d > ttl+ttl/50+time.Second || d < left-ttl/50 {
		c.errorf("a lock %s with TTL(%v): Held.Remaining is %v, with %v left until the Deadline", how, ttl, d, left)
	}
}

// renewsFor checks that a renewal with a TTL makes a lock last for that.
func (c *check) renewsFor(b locker.Backend, ttl time.Duration, rival locker.Locker) {
	var k *kept
	if c.accepted(ttl, func(ttl time.Duration) (err error) { k, err = c.tryKeep(b, ttl); return err }) == 0 {
		return
	}
	time.Sleep(min(k.grant.TTL/4, c.ttl/10))
	if until, _ := k.state(); time.Until(until) <= 0 {
		return
	}
	c.renewKept(b, []*kept{k}, 1)
	until, over := k.state()
	if over || k.renewed == 0 {
		return
	}
	left := time.Until(until)
	toItsEnd := left <= affordable(2*c.ttl, watched)
	if toItsEnd {
		c.tellsExpired(b, k)
	}
	if left <= 2*c.ttl {
		c.lastsForItsTTL(k, rival)
		return
	}
	time.Sleep(c.almost(left))
	next, err := rival.TryLock(c.within(10*c.ttl), k.grant.Key)
	left = time.Until(until)
	if err == nil {
		if left > 0 {
			c.wrongf("a lock that was renewed for a TTL of %v: a rival had it %v before the end of that", k.grant.TTL,
				left)
		}
		_ = next.Unlock()
		return
	}
	c.remaining(err, k.ttl, left, "that was renewed")
	if toItsEnd {
		time.Sleep(time.Until(k.answered.Add(k.ttl + c.lateByRenewals(k.ttl) - c.soon())))
		c.lastsForItsTTL(k, rival)
		return
	}
	_ = b.Release(c.within(c.ttl), k.grant)
}

// handoff is how a lock gets from one holder to the next.
type handoff struct {
	before, ttl time.Duration // of the leases
	by          string
}

const (
	byUnlock = "that was waited for until an Unlock"
	byClose  = "that was waited for until another Locker was closed"
	byExpiry = "that was waited for until the lease of another holder ended"
)

func waitedForExpires(c *check) {
	shared, then, rival := c.open(), c.open(), c.open()
	handoffs := affordable(
		[]handoff{{3, 1, byUnlock}, {1, 2, byUnlock}, {2, 1, byClose}, {1, 2, byExpiry}, {1, 1, byExpiry}},
		[]handoff{
			{
				3, 1, byUnlock,
			}, {20, 1, byUnlock}, {1, 1, byUnlock}, {1, 20, byUnlock}, {20, 1, byClose}, {1, 20, byClose},
			{1, 20, byExpiry}, {1, 1, byExpiry}, {10, 2, byExpiry},
		},
	)
	for _, of := range handoffs {
		of.before, of.ttl = of.before*c.ttl, of.ttl*c.ttl
		for _, inLine := range []bool{false, true} {
			first := shared
			if of.by == byClose {
				first = c.open()
			}
			c.do(func() { c.handsOver(of, first, then, rival, inLine) })
		}
	}
}

// handsOver has a lock go from one Locker to the next, who does not renew it, and then to a rival: who has been in line
// for all that time, or comes when the next has it.
func (c *check) handsOver(of handoff, first, then, rival locker.Locker, inLine bool) {
	key, how := c.key(), of.by
	opts := []locker.CallOption{locker.TTL(of.before)}
	if of.by == byExpiry {
		opts = append(opts, locker.NoRenew())
	}
	before := c.tryLock(first, key, opts...)
	longest := of.before + of.ttl + 15*c.ttl
	waiter := c.start(c.within(longest), then, key, locker.TTL(of.ttl), locker.NoRenew())
	var last *wait
	if inLine {
		c.settle()
		last = c.startBehind(waiter, c.within(longest), rival, key)
		how += ", with others behind"
	}
	if of.by != byExpiry {
		time.Sleep(c.ttl * 7 / 10)
	}
	switch of.by {
	case byUnlock:
		c.unlock(before)
	case byClose:
		_ = first.Close()
	}
	<-waiter.done
	if waiter.err != nil {
		c.errorf("a lock %s, which had TTL(%v): %v", how, of.before, waiter.err)
		return
	}
	u := &unrenewed{waiter.lease, waiter.at, of.ttl, how}
	if valid := u.lease.Deadline().Sub(u.granted); valid < of.ttl/2 {
		c.errorf("a lock %s with TTL(%v): it is valid for %v when Lock returns", how, of.ttl, valid)
	}
	if last == nil {
		last = c.awaits(u, rival)
	}
	c.lastsItsTTL(u, last)
}

// startBehind is start for somebody who is not to be served before another, whatever the order of the line is.
func (c *check) startBehind(other *wait, ctx context.Context, l locker.Locker, key string) *wait {
	w := &wait{done: make(chan struct{})}
	c.do(func() {
		defer close(w.done)
		for {
			w.lease, w.err = l.Lock(ctx, key)
			w.at = time.Now()
			if w.err != nil || isClosed(other.done) {
				return
			}
			c.unlock(w.lease)
			time.Sleep(c.ttl / 10) // now it is the other's turn, also if that one polls
		}
	})
	return w
}
