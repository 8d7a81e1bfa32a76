package conformance

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

var leaseRules = slices.Concat(holdRules, cutOffRules, renewalRules, ttlRules)

// holdRules are about what the holder of a lease is told of it.
var holdRules = []rule{
	{
		name: "OutlivesTTL", body: outlivesTTL,
		did: "A lease is held for three TTLs (in fake time for thirty), while one other Locker tries the key, and another waits " +
			"for it.",
		text: "A lease is renewed for as long as its holder lives, beyond its TTL.",
		hint: "Renew sets the expiry of each grant to Grant.TTL from now, and calls done with the index of each: " +
			"Renewal.Err is nil where it did.",
	},
	{
		name: "NoRenew", body: noRenew, expires: true, relaxes: renewsItself,
		did:  "A lease with NoRenew is left alone until it ends; then another Locker tries the key.",
		text: "A lease with NoRenew ends by itself when its TTL has passed, and not before.",
		hint: hintExpiry,
	},
	{
		name: "ErrSaysLost", body: errSaysLost, expires: true,
		did:  "A lease with NoRenew ends with its TTL; its Err and contexts are looked at before and after.",
		text: "Err is nil while the lease is held, and ErrLost once it is lost; contexts made of it end with that cause.",
		hint: hintNew,
	},
	{
		name: "CleanUnlockIsNotLoss", body: cleanUnlockIsNotLoss,
		did:  "A lease is unlocked; its Done, Err and contexts are looked at, at once and a TTL later.",
		text: "After Unlock, Done is closed and Err is ErrUnlocked, never ErrLost.",
		hint: "Release returns nil if Grant.Owner held the key: ErrLost says that it did not.",
	},
	{
		name: "WallClockIndependent", body: wallClockIndependent,
		did:  "The Deadline of a lease is looked at after Lock and after a renewal.",
		text: "Deadlines are kept by the monotonic clock.",
		hint: "Grant.Sent comes from time.Now() in this process: not from the store, not parsed, not through Round or " +
			"UTC, which strip the monotonic reading.",
	},
}

func outlivesTTL(c *check) {
	key := c.key()
	a, b, d := c.open(), c.open(), c.open()
	lease := c.tryLock(a, key)
	lasts := affordable(3*c.ttl, 30*c.ttl)
	waiter := c.start(c.within(lasts+10*c.ttl), d, key)
	first := lease.Deadline()
	for start := time.Now(); time.Since(start) < lasts; {
		select {
		case <-lease.Done():
			c.errorf("the lease ended %v after it began, with the holder alive: %v", time.Since(start), lease.Err())
			return
		case <-time.After(c.ttl / 5):
		}
		c.refused(b, lease, "although the holder lives")
		if left := time.Until(lease.Deadline()); left > c.ttl {
			c.wrongf("Deadline is %v ahead, with a TTL of %v", left, c.ttl)
		}
	}
	if isClosed(waiter.done) && waiter.err == nil && lease.Err() == nil {
		c.wrongf("another Locker, which waited for it, got the lock although the holder lives")
	}
	if !lease.Deadline().After(first.Add(c.ttl)) {
		c.errorf("after %v Deadline has moved by %v only", lasts, lease.Deadline().Sub(first))
	}
	c.unlock(lease)
	next, err := c.result(waiter)
	if err != nil {
		c.fatalf("Lock, which had waited until the holder unlocked: %v", err)
	}
	c.unlock(next)
	c.freeWithin(b, key, c.soon(), "after Unlock")
}

func noRenew(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	start := time.Now()
	lease := c.tryLock(a, key, locker.NoRenew())
	deadline := lease.Deadline()
	if deadline.Before(start.Add(c.ttl / 2)) {
		c.errorf("Deadline is %v after the lease began, with a TTL of %v", deadline.Sub(start), c.ttl)
	}
	c.refused(b, lease, "right after it was locked")
	c.closedWithin(lease, 2*c.ttl, "although nothing renews the lease")
	ended := time.Now()
	if ended.Before(deadline) {
		c.errorf("the lease ended %v before its Deadline", deadline.Sub(ended))
	}
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		c.errorf("Err of a lease that ran out: %v; want ErrLost", err)
	}
	if !lease.Deadline().Equal(deadline) {
		c.errorf("the Deadline of a lease with NoRenew moved by %v", lease.Deadline().Sub(deadline))
	}
	c.freeWithin(b, key, c.soon(), "after a lease that nothing renews ran out")
}

func errSaysLost(c *check) {
	lease := c.abandon(c.key())
	ctx, cancel := lease.Context(c.ctx)
	defer cancel()
	if err := lease.Err(); err != nil {
		c.errorf("Err of a lease that is held: %v", err)
	}
	if err := ctx.Err(); err != nil {
		c.errorf("the context of a lease that is held has ended: %v", err)
	}
	c.closedWithin(lease, 2*c.ttl, "although nothing renews the lease")
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrUnlocked) {
		c.errorf("Err of a lease that ran out: %v; want ErrLost", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(c.soon()):
		c.errorf("the context of the lost lease has not ended")
	}
	late, cancelLate := lease.Context(c.ctx)
	defer cancelLate()
	for _, ctx := range []interface {
		Err() error
		Value(any) any
	}{ctx, late} {
		if ctx.Err() == nil {
			c.errorf("the context of the lost lease has no error")
		}
	}
	if cause := contextCause(late); !errors.Is(cause, locker.ErrLost) {
		c.errorf("the cause of a context made of a lost lease: %v; want ErrLost", cause)
	}
	if cause := contextCause(ctx); !errors.Is(cause, locker.ErrLost) {
		c.errorf("the cause of the context of a lost lease: %v; want ErrLost", cause)
	}
}

func cleanUnlockIsNotLoss(c *check) {
	lease := c.tryLock(c.open(), c.key())
	ctx, cancel := lease.Context(c.ctx)
	defer cancel()
	done := lease.Done()
	c.unlock(lease)
	if !isClosed(done) {
		c.errorf("Done is not closed after Unlock")
	}
	if !isClosed(lease.Done()) {
		c.errorf("Done, asked for after Unlock, is not closed")
	}
	check := func(when string) {
		if err := lease.Err(); !errors.Is(err, locker.ErrUnlocked) || errors.Is(err, locker.ErrLost) {
			c.errorf("Err %s: %v; want ErrUnlocked", when, err)
		}
	}
	check("after Unlock")
	if cause := contextCause(ctx); !errors.Is(cause, locker.ErrUnlocked) {
		c.errorf("the cause of the context of an unlocked lease: %v; want ErrUnlocked", cause)
	}
	time.Sleep(c.ttl + c.ttl/10)
	check("a TTL after Unlock")
}

func wallClockIndependent(c *check) {
	if !strings.Contains(time.Now().String(), " m=") {
		c.leaves(notProvable, "Harness.Wrap runs the tests in the fake time of testing/synctest, which has one clock only")
		return
	}
	lease := c.tryLock(c.open(), c.key())
	for _, when := range []string{"after Lock", "after a renewal"} {
		if d := lease.Deadline(); !strings.Contains(d.String(), " m=") {
			c.errorf("Deadline %s is %v, without a monotonic clock reading: a step of the wall clock would move it", when, d)
		}
		time.Sleep(c.ttl / 2)
	}
	c.unlock(lease)
}
