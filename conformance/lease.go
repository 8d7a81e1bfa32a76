package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

var leaseRules = []rule{
	{
		name: "OutlivesTTL", body: outlivesTTL,
		did:  "A lease is held for three TTLs, while another Locker tries the key.",
		text: "A lease is renewed for as long as its holder lives, beyond its TTL.",
		hint: "Renew sets the expiry of each grant to Grant.TTL from now, and calls done with the index of each: " +
			"Renewal.Err is nil where it did.",
	},
	{
		name: "ExpiresWhenAbandoned", body: expiresWhenAbandoned,
		did: "A holder is cut off from the store (without Harness.Cut: it has a lease with NoRenew, and never unlocks); " +
			"another Locker tries the key until it is free.",
		text: "The key of a holder that is cut off is free when its TTL has passed.",
		hint: hintExpiry,
	},
	{
		name: "NoRenew", body: noRenew,
		did:  "A lease with NoRenew is left alone until it ends; then another Locker tries the key.",
		text: "A lease with NoRenew ends by itself when its TTL has passed, and not before.",
		hint: hintExpiry,
	},
	{
		name: "DoneBeforeRival", body: doneBeforeRival, needs: needsCut,
		did: "A holder is cut off from the store at a random moment, in each of the four ways of Fault, while a rival " +
			"waits in Lock.",
		text: "Of a holder that is cut off, Done is closed before any rival's Lock returns, every time.",
		hint: "The store must keep a lock for the whole TTL since it granted or renewed it, by its own clock. Grant.Sent " +
			"is a moment before the request was sent. A backend that learns of a loss otherwise calls Request.ReportLost " +
			"before anybody else can have the key.",
	},
	{
		name: "ErrSaysLost", body: errSaysLost,
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
		name: "RidesOutOneFailedRenewal", body: ridesOutOneFailedRenewal, needs: needsCut,
		did:  "A holder is cut off for a quarter of its TTL, while a renewal is due, in each of the four ways of Fault.",
		text: "A lease survives a renewal that fails, if the store can be reached again before its validity is over.",
		hint: "Renew returns ErrLost only if the store said that the owner does not hold the key; with any other error " +
			"New tries again, so connections have to be made anew. If locks end with their connection: " +
			"Features{ConnectionBound: \"the reason\"}.",
	},
	{
		name: "RenewedSeparately", body: renewedSeparately, since: "v0.1.0",
		did: "A Locker holds 10 leases of the TTL and 50 of four times the TTL, for three TTLs. With Harness.Backend: of " +
			"four grants the second is released; then Renew is called for all of them.",
		text: "Renew reports each grant once, at its own index, as soon as its result is known. No lease is lost for the " +
			"sake of others.",
		hint: "Renew asks for all grants in one round trip, or for several at a time, and calls done(i, ...) for gs[i] as " +
			"its answer comes, and for each one before it returns. It does not wait for another call of Renew, and does not " +
			"write into gs.",
	},
	{
		name: "NeverResurrects", body: neverResurrects, needs: needsBreak,
		did:  "Harness.Break takes a lock away from its holder; once the key stays free, and once another Locker takes it.",
		text: "A renewal that finds the key gone or taken reports the loss, and does not bring the lock back.",
		hint: "Renew changes a record only if it is there and has the owner of the grant, in one atomic step, and returns " +
			"ErrLost if not. (Does Harness.Break take away what Request.Name() names in your store?)",
	},
	{
		name: "TTLGranularity", body: ttlGranularity,
		did: "Locks are taken with NoRenew and TTLs that are no whole milliseconds or seconds, and waited for by another " +
			"Locker; others with TTLs that nobody can keep.",
		text: "A TTL that the store cannot keep is refused, or the one granted is reported by Deadline: it is never " +
			"silently another.",
		hint: "Either Acquire refuses such a TTL with an error that wraps locker.ErrInvalidOption, or it returns the TTL " +
			"that the store keeps in Grant.TTL. If " + firstOfExpiry + " fails too, mend that first.",
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
	a, b := c.open(), c.open()
	lease := c.tryLock(a, key)
	first := lease.Deadline()
	for start := time.Now(); time.Since(start) < 3*c.ttl; {
		select {
		case <-lease.Done():
			c.errorf("the lease ended %v after it began, with the holder alive: %v", time.Since(start), lease.Err())
			return
		case <-time.After(c.ttl / 5):
		}
		c.refused(b, lease, "although the holder lives")
		if left := time.Until(lease.Deadline()); left > c.ttl {
			c.errorf("Deadline is %v ahead, with a TTL of %v", left, c.ttl)
		}
	}
	if !lease.Deadline().After(first.Add(c.ttl)) {
		c.errorf("after three TTLs Deadline has moved by %v only", lease.Deadline().Sub(first))
	}
	c.unlock(lease)
	c.freeWithin(b, key, c.soon(), "after Unlock")
}

func expiresWhenAbandoned(c *check) {
	key := c.key()
	b, a := c.open(), c.open()
	var lease *locker.Lease
	when := "after its holder was cut off"
	if c.h.Cut != nil {
		lease = c.tryLock(a, key)
		defer c.cut(BlackHole)()
	} else {
		lease = c.tryLock(a, key, locker.NoRenew())
		when = "after a holder took it that does not renew"
	}
	c.freeWithin(b, key, c.ttl+c.soon(), when)
	if lease.Err() == nil {
		c.errorf("the holder still has its lease")
	}

	if !c.has(needsCut, "the same for a holder that is really cut off") {
		return
	}
	// The same with one that is cut off in the middle of an acquire, after the store's first answer was lost: if there
	// is anything left to ask of the store then, such as to set the TTL, it is not asked for any more.
	key = c.key()
	a = c.open()
	c.unlock(c.lock(a, c.key())) // there are connections
	heal := c.cut(DropReplies)
	defer heal()
	acquiring := c.start(c.within(10*c.ttl), a, key)
	c.settle()
	defer c.cut(BlackHole)()
	c.freeWithin(b, key, c.ttl+c.soon(), "after somebody was cut off while acquiring it")
	if _, err := c.result(acquiring); err == nil {
		c.errorf("Lock succeeded although no answer can have come")
	}
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

// doneBeforeRival makes Harness.Trials trials for each fault, several at a time.
func doneBeforeRival(c *check) {
	const atATime = 20
	for _, f := range faults {
		var mu sync.Mutex
		var margins []time.Duration
		for done := 0; done < c.h.Trials; done += atATime {
			n := min(atATime, c.h.Trials-done)
			trials := make([]func() (time.Duration, bool), n)
			for i := range trials {
				trials[i] = c.rivalTrial(f)
			}
			c.all(n, func(i int) {
				if margin, ok := trials[i](); ok {
					mu.Lock()
					defer mu.Unlock()
					margins = append(margins, margin)
				}
			})
		}
		if len(margins) > 0 {
			slices.Sort(margins)
			at := func(q int) time.Duration { return margins[(len(margins)-1)*q/100].Round(10 * time.Microsecond) }
			c.t.Logf("%v: Done closed before the rival's Lock returned in %d trials, with a margin of min %v, p10 %v, median %v, p90 %v, max %v",
				f, len(margins), at(0), at(10), at(50), at(90), at(100))
		}
	}
}

// rivalTrial opens a holder, which it will cut off at a random moment, and a rival. The trial returns the time
// from the closing of the holder's Done to the return of the rival's Lock, as a goroutine that waits for Done saw it.
func (c *check) rivalTrial(f Fault) func() (time.Duration, bool) {
	key := c.key()
	rival := c.open()
	holder := c.open()
	lease := c.tryLock(holder, key)
	done := lease.Done()
	closed := make(chan time.Time, 1)
	c.do(func() {
		<-done
		closed <- time.Now()
	})
	// Cut is bound to the Locker opened last, so the connection is severed here and now; that other trials begin
	// at other times is what makes the moment random, with respect to renewals.
	time.Sleep(rand.N(c.ttl / 20))
	heal := c.cut(f)
	return func() (time.Duration, bool) {
		defer func() { // now, as there may be more trials than connections to be had
			heal()
			_ = rival.Close()
			_ = holder.Close()
		}()
		// Renewals that reach the store although their answers get lost make the rival wait longer.
		next, err := rival.Lock(c.within(6*c.ttl), key)
		wasClosed := isClosed(done)
		at := time.Now()
		if err != nil {
			c.errorf("%v: the rival's Lock: %v", f, err)
			_ = lease.Unlock()
			return 0, false
		}
		defer c.unlock(next)
		if !wasClosed {
			c.errorf("%v: the rival's Lock returned while the Done of the holder was not closed", f)
			heal()
			_ = lease.Unlock() // or who waits for Done might do so for ever
			return 0, false
		}
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			c.errorf("%v: Err of the holder that was cut off: %v; want ErrLost", f, err)
		}
		return at.Sub(<-closed), true
	}
}

func errSaysLost(c *check) {
	lease := c.tryLock(c.open(), c.key(), locker.NoRenew())
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

func ridesOutOneFailedRenewal(c *check) {
	bound := connectionBound.reason(c.h.Features)
	if bound != "" {
		c.leaves(inPart, "relaxed for all faults but %v: %s (Features.%s)", Hang, bound, connectionBound.name)
	}
	for _, f := range faults {
		key := c.key()
		other := c.open()
		l := c.open()
		lease := c.tryLock(l, key)
		time.Sleep(c.ttl / 5)
		heal := c.cut(f)
		time.Sleep(c.ttl / 4) // the first renewal is sent, and fails
		heal()
		if bound != "" && f != Hang {
			c.lostBeforeRival(lease, other, f)
			continue
		}
		select {
		case <-lease.Done():
			c.errorf("%v: the lease was lost although the store was out of reach for a quarter of the TTL only: %v", f, lease.Err())
			continue
		case <-time.After(c.ttl + c.ttl/2):
		}
		c.refused(other, lease, fmt.Sprintf("although the holder rode out a failed renewal (%v)", f))
		c.unlock(lease)
	}
}

// lostBeforeRival checks that a rival gets the lock only after the end of the lease.
func (c *check) lostBeforeRival(lease *locker.Lease, rival locker.Locker, f Fault) {
	done := lease.Done()
	next, err := rival.Lock(c.within(6*c.ttl), lease.Key())
	switch {
	case err != nil:
		c.errorf("%v: Lock of a key whose holder's connection broke: %v", f, err)
		return
	case !isClosed(done):
		c.errorf("%v: a rival had the lock while the Done of the holder was not closed", f)
	case !errors.Is(lease.Err(), locker.ErrLost):
		c.errorf("%v: Err of the holder whose connection broke: %v; want ErrLost", f, lease.Err())
	}
	c.unlock(next)
}

func renewedSeparately(c *check) {
	const short, long = 10, 50
	l := c.open()
	leases := make([]*locker.Lease, long+short)
	acquire := func(from, to int, ttl time.Duration) {
		c.all(to-from, func(i int) { leases[from+i] = c.tryLock(l, c.key(), locker.TTL(ttl)) })
	}
	acquire(0, long, 4*c.ttl)
	acquire(long, long+short, c.ttl)
	time.Sleep(3 * c.ttl)
	for i, lease := range leases {
		switch {
		case lease == nil: // tryLock has said why
		case lease.Err() != nil && i >= long:
			c.errorf("a lease of the TTL %v was lost, beside many of another: %v", c.ttl, lease.Err())
		case lease.Err() != nil:
			c.errorf("one of many leases of the TTL %v was lost: %v", 4*c.ttl, lease.Err())
		}
	}
	c.all(len(leases), func(i int) {
		if leases[i] != nil && leases[i].Err() == nil {
			c.unlock(leases[i])
		}
	})

	if !c.has(needsBackend, "that Renew reports each grant at its own index") {
		return
	}
	b := c.h.Backend(c.t)
	const grants, released = 4, 1 // not in the middle: a list the wrong way round is to be noticed
	gs := make([]locker.Grant, grants)
	requests := make([]func() locker.Request, grants)
	for i := range gs {
		requests[i] = c.request()
		gs[i] = c.acquires(b, requests[i](), "of a free key")
	}
	if err := b.Release(c.within(c.ttl), gs[released]); err != nil {
		c.errorf("Release by the owner: %v", err)
	}
	passed := slices.Clone(gs)
	results := c.renewAll(b, passed)
	for i, of := range results {
		var want error
		if i == released {
			want = locker.ErrLost
		}
		switch {
		case len(of) != 1:
			c.errorf("Renew of %d grants reported %d results of the grant with index %d before it returned; want one",
				grants, len(of), i)
		case !errors.Is(of[0].Err, want):
			c.errorf("Renew of %d grants, of which that with index %d was released, reported %v for index %d; want %v",
				grants, released, of[0].Err, i, want)
		}
		if g := passed[i]; g.Request != gs[i].Request || g.Token != gs[i].Token || !g.Sent.Equal(gs[i].Sent) {
			c.errorf("Renew has changed the slice of grants that it was given, which is New's")
		}
		if i == released {
			c.acquires(b, requests[i](), "of a key that was released, and renewed by its former owner")
		} else {
			c.refuses(b, requests[i](), "after the owner renewed")
		}
	}
}

// renewAll returns what Renew has reported of each grant by the time that it returned.
func (c *check) renewAll(b locker.Backend, gs []locker.Grant) [][]locker.Renewal {
	var mu sync.Mutex
	results := make([][]locker.Renewal, len(gs))
	b.Renew(c.within(c.ttl), gs, func(i int, r locker.Renewal) {
		mu.Lock()
		defer mu.Unlock()
		if i < 0 || i >= len(results) {
			c.errorf("Renew of %d grants reported a result for index %d", len(results), i)
			return
		}
		results[i] = append(results[i], r)
	})
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(results)
}

func neverResurrects(c *check) {
	c.all(2, func(i int) {
		key := c.key()
		a, b := c.open(), c.open()
		lease := c.tryLock(a, key)
		c.h.Break(c.t, key)
		var next *locker.Lease
		if i == 1 { // taken, not just gone
			next = c.lock(b, key)
		}
		c.closedWithin(lease, c.ttl*3/4, "after the lock was taken away in the store, time enough for two renewals")
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			c.errorf("Err after the lock was taken away in the store: %v; want ErrLost", err)
		}
		if i == 0 {
			c.freeWithin(b, key, c.ttl/4, "after the lock was taken away in the store")
			return
		}
		select {
		case <-next.Done():
			c.errorf("the next holder's lease ended: %v", next.Err())
		case <-time.After(c.ttl):
			c.unlock(next)
			c.freeWithin(a, key, c.ttl/4, "after the next holder unlocked")
		}
	})
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
			granted := time.Now()
			if err != nil {
				if !errors.Is(err, locker.ErrInvalidOption) {
					c.errorf("TryLock with TTL(%v): %v; want a lease, or ErrInvalidOption", ttl, err)
				}
				return
			}
			deadline := lease.Deadline()
			if deadline.After(granted.Add(ttl)) {
				c.errorf("with TTL(%v), Deadline is %v ahead", ttl, time.Until(deadline))
			}
			next := c.takeOver(b, key)
			at := time.Now()
			if at.Before(deadline) {
				c.errorf("with TTL(%v), a rival had the lock %v before the Deadline", ttl, deadline.Sub(at))
			}
			if wait := at.Sub(start); wait > deadline.Sub(start)+ttl/50+c.soon() {
				c.errorf("with TTL(%v) and a Deadline after %v, a rival had the lock only after %v", ttl, deadline.Sub(start), wait)
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
