package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// cancelRules are about waits that end before their turn comes.
var cancelRules = []rule{
	{
		name: "Cancelled", body: cancelled,
		did:  "The ctx of a Lock that waits is cancelled with a cause, five times; then the holder unlocks.",
		text: "A Lock whose ctx is cancelled returns within 100 ms; its error matches ctx.Err and the cause of the ctx.",
		hint: hintCtx,
	},
	{
		name: "DeadlineExceeded", body: deadlineExceeded,
		did:  "The ctx of a Lock that waits reaches its deadline, five times; then the holder unlocks.",
		text: "A Lock whose ctx reaches its deadline returns within 100 ms with context.DeadlineExceeded.",
		hint: hintCtx,
	},
	{
		name: "AlreadyCancelled", body: alreadyCancelled,
		did: "Lock and TryLock of a free key are called with a ctx that has ended; with Harness.Cut, of a Locker whose " +
			"store hangs.",
		text: "Lock and TryLock with a ctx that has ended return an error that matches ctx.Err and its cause, and ask the " +
			"store nothing.",
		hint: hintNew,
	},
	{
		name: "CancelStorm", body: cancelStorm, serial: true,
		did: "1,000 goroutines (fewer when it is tried again) over 4 Lockers call Lock of one key, each with a ctx that ends at a " +
			"random moment, and unlock at once what they get.",
		text: "However many waiters are cancelled at whatever moments among handoffs, the key is free a round trip later.",
		hint: hintOrphan,
	},
	{
		name: "CancelledWaiterDoesNotBlockQueue", body: cancelledWaiterDoesNotBlockQueue,
		did:  "Two Locks wait for a key; the first of them is cancelled; then the holder unlocks.",
		text: "A waiter that was cancelled does not delay those behind it.",
		hint: hintOrphan,
	},
	{
		name: "CancelledWhenServed", body: cancelledWhenServed, since: "v0.1.0",
		did: "A Lock waits for a key behind another, or behind six, with twenty times the TTL. Their ctx ends when the holder " +
			"unlocks: just after it, just before, at the same time, a moment later; by cancel, by a deadline, or by Close. What " +
			"they are granted all the same, they unlock.",
		text: "A Lock whose ctx ends at the moment of the grant returns the lease, or leaves nothing behind: the next in line " +
			"has the key soon.",
		hint: hintGrantAtEnd,
	},
	{
		name: "CancelledOnExpiry", body: cancelledOnExpiry, expires: true, since: "v0.1.0",
		did: "A Lock waits for a key behind one to four others, with twenty times the TTL. Their ctx ends when the holder's lease " +
			"does, which is not renewed.",
		text: "A Lock whose ctx ends when the holder's lease expires returns the lease, or leaves nothing behind: the next in " +
			"line has the key soon.",
		hint: hintGrantAtEnd,
	},
	{
		name: "HungStore", body: hungStore, needs: needsCut,
		did:  "Lock and TryLock are called, with a deadline, five times each while the store does not answer.",
		text: "ctx is honoured while the store does not answer.",
		hint: hintCtx,
	},
}

const hintGrantAtEnd = "When ctx ends, Wait may find that its owner has been granted the key, or called to take it. It then " +
	"returns that grant; or it gives it up and lets the next one have its turn, in one atomic step with leaving the line; or it " +
	"returns an error without NotAcquired, for which New calls Release with Token 0, and that does the same."

// canceledBound is how long a Lock may take to return when its ctx ends.
const canceledBound = 100 * time.Millisecond

func cancelled(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	lease := c.lock(a, key, locker.Holder("the holder"))
	cause := errors.New("conformance: the cause of the cancellation")
	var took []time.Duration
	for range 5 {
		ctx, cancel := context.WithCancelCause(c.ctx)
		w := c.start(ctx, b, key)
		c.settle()
		at := time.Now()
		cancel(cause)
		_, err := c.result(w)
		took = append(took, w.at.Sub(at))
		switch {
		case !errors.Is(err, cause):
			c.errorf("Lock returned %v; want the cause that its ctx was cancelled with", err)
		case !errors.Is(err, context.Canceled):
			c.errorf("the error of a wait that was cancelled with a cause is not context.Canceled as well: %v", err)
		case errors.Is(err, locker.ErrLocked):
			c.errorf("the error of a wait that was cancelled is ErrLocked: %v", err)
		}
	}
	c.tookMedian(took, canceledBound, "from the cancellation of ctx until Lock returned")
	c.unlock(lease)
	c.freeWithin(b, key, c.soon(), "after all waiters were cancelled and the holder unlocked")
}

func deadlineExceeded(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	lease := c.lock(a, key)
	var late []time.Duration
	for range 5 {
		deadline := time.Now().Add(c.ttl / 10)
		ctx, cancel := context.WithDeadline(c.ctx, deadline)
		w := c.start(ctx, b, key)
		_, err := c.result(w)
		cancel()
		late = append(late, w.at.Sub(deadline))
		if !errors.Is(err, context.DeadlineExceeded) {
			c.errorf("Lock returned %v; want context.DeadlineExceeded", err)
		}
		switch early := deadline.Sub(w.at); {
		case early <= 0:
		case errors.Is(err, locker.ErrUnavailable): // it may say so without an answer yet: is the machine busy?
			c.errorf("Lock gave up %v before its ctx ended: %v", early, err)
		default:
			c.wrongf("Lock gave up %v before its ctx ended", early)
		}
	}
	c.tookMedian(late, canceledBound, "from the deadline of ctx until Lock returned")
	c.unlock(lease)
	c.freeWithin(b, key, c.soon(), "after all waiters gave up and the holder unlocked")
}

func alreadyCancelled(c *check) {
	key := c.key()
	l, other := c.open(), c.open()
	heal := func() {}
	if c.has(needsCut, "that the store is not asked") {
		l, other = other, l
		heal = c.cut(Hang) // severs l, the last opened: whoever asks the store now, waits
	}
	cause := errors.New("conformance: the cause of the cancellation")
	ctx, cancel := context.WithCancelCause(c.ctx)
	cancel(cause)
	for _, lock := range []func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){l.Lock, l.TryLock} {
		start := time.Now()
		lease, err := lock(ctx, key)
		if err == nil {
			c.wrongf("a free key was locked although ctx had ended")
			_ = lease.Unlock()
		} else if !errors.Is(err, cause) {
			c.errorf("with a ctx that has ended: %v; want the cause it ended with", err)
		} else if !errors.Is(err, context.Canceled) {
			c.errorf("with a ctx that has ended with a cause: %v, which is not context.Canceled as well", err)
		}
		c.took(time.Since(start), c.soon(), "to see that ctx has ended")
	}
	heal()
	c.freeWithin(other, key, c.soon(), "after calls with a ctx that had ended")
}

func cancelStorm(c *check) {
	const lockers = 4
	// The storm is the first to make a machine busy: when it is tried again, it is weaker, so that it can be judged.
	waiters := max(100, 1000>>(c.attempt-1))
	key := c.key()
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	observer := c.open()
	// A thousand waiters may be more than the store can serve in half a TTL. Where nobody was served there were no
	// handoffs, and so the storm has to last longer.
	for longest := c.ttl / 2; ; longest *= 2 {
		granted := c.storm(ls, key, waiters, longest)
		// An orphan would hold the key, or block the line, for a TTL or longer.
		c.freeWithin(observer, key, c.soon(), "after the last of the waiters had returned")
		if granted > 0 {
			return
		}
		if longest > c.ttl {
			c.errorf(
				"none of %d waiters was served before its ctx ended, with %v of time and nobody holding on to the lock",
				waiters, longest)
			return
		}
	}
}

// storm has waiters wait for a key for random times, the longest of which is given, and returns how many of them got
// it.
func (c *check) storm(ls []locker.Locker, key string, waiters int, longest time.Duration) int64 {
	first := c.lock(ls[0], key)
	var granted atomic.Int64
	// With a thousand others at work an Unlock may come too late, when the lease has ended. Then the key is free, too.
	unlock := func(lease *locker.Lease) {
		if err := lease.Unlock(); err != nil && !errors.Is(err, locker.ErrLost) {
			c.errorf("Unlock: %v; want nil, or ErrLost", err)
		}
	}
	c.do(func() {
		c.settle()
		unlock(first)
	})
	c.all(waiters, func(i int) {
		ctx, cancel := context.WithTimeout(c.ctx, rand.N(longest))
		defer cancel()
		lease, err := ls[i%len(ls)].Lock(ctx, key)
		switch {
		case err == nil:
			granted.Add(1)
			unlock(lease)
		case errors.Is(err, locker.ErrUnavailable): // a store that is overwhelmed may say so
		case !errors.Is(err, context.DeadlineExceeded):
			c.errorf("Lock: %v; want context.DeadlineExceeded", err)
		}
	})
	return granted.Load()
}

func cancelledWaiterDoesNotBlockQueue(c *check) {
	key := c.key()
	a, b, d := c.open(), c.open(), c.open()
	lease := c.lock(a, key)
	ctx, cancel := context.WithCancel(c.ctx)
	first := c.start(ctx, b, key)
	c.settle()
	second := c.start(c.within(10*c.ttl), d, key)
	c.settle()
	cancel()
	if _, err := c.result(first); !errors.Is(err, context.Canceled) {
		c.errorf("Lock: %v; want context.Canceled", err)
	}
	released := time.Now()
	c.unlock(lease)
	next, err := c.result(second)
	if err != nil {
		c.fatalf("Lock behind a waiter that was cancelled: %v", err)
	}
	c.took(second.at.Sub(released), c.soon(), "from Unlock until the waiter behind the cancelled one had the lock")
	c.unlock(next)
}

// race is between the end of a wait and its turn.
type race struct {
	how            string // the waiters give up
	waiters        int
	waiter, behind locker.Locker
	holder         locker.Locker                       // nil for a lease that expires:
	lease          *locker.Lease                       // which is this
	deadline       time.Time                           // of the waiter's ctx, if it has one; the key becomes free then
	closes         bool                                // the waiter gives up by Close
	run            func(c *check, free, giveUp func()) // makes the holder free the key and the waiter give up
}

// race reports whether who is behind the waiter has got the key soon.
func (c *check) race(r race) (passed bool) {
	lease := r.lease
	if lease == nil {
		lease = c.lock(r.holder, c.key())
	}
	key := lease.Key()
	ctx, giveUp := context.WithCancel(c.ctx)
	free := func() { c.unlock(lease) }
	if !r.deadline.IsZero() {
		ctx, giveUp = context.WithDeadline(c.ctx, r.deadline)
		free = func() {
			time.Sleep(time.Until(r.deadline))
			c.unlock(lease)
		}
	}
	defer giveUp()
	first := make([]*wait, r.waiters)
	for i := range first {
		first[i] = c.start(ctx, r.waiter, key, locker.TTL(20*c.ttl)) // an orphan does not expire meanwhile
	}
	c.settle()
	second := c.start(c.within(5*c.ttl), r.behind, key)
	c.settle()
	if r.closes {
		r.run(c, free, func() { _ = r.waiter.Close() })
	} else {
		r.run(c, free, giveUp)
	}
	for _, w := range first {
		granted, err := c.result(w)
		switch {
		case err == nil:
			if err := granted.Unlock(); err != nil && !r.closes {
				c.errorf("a waiter gave up %s: its Lock returned a lease, and Unlock of that %v; want nil", r.how, err)
			}
		case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, locker.ErrClosed):
			c.errorf("a waiter gave up %s: its Lock returned %v; want a lease, or why it ended", r.how, err)
		}
	}
	ended := time.Now()
	if r.deadline.After(ended) {
		ended = r.deadline
	}
	next, err := c.result(second)
	took := second.at.Sub(ended)
	if err != nil {
		c.nothing(took, c.soon(), "a waiter had given up %s, and its Lock had returned: %v later the next in line has "+
			"nothing: %v", r.how, took, err)
		return false
	}
	c.took(took, c.soon(),
		"from when a waiter had given up %s, and its Lock had returned, until the next in line got the lock", r.how)
	c.unlock(next)
	return took <= c.soon()
}

// races runs races, those of one lane one after the other.
func (c *check) races(lanes [][]race) {
	c.all(len(lanes), func(i int) {
		for _, r := range lanes[i] {
			if !c.race(r) {
				return // the next ones would take as long
			}
		}
	})
}

// endings are the ways in which a wait may end when its turn comes. after is a random time, about as long as a turn
// takes.
var endings = []struct {
	how string
	run func(c *check, free, giveUp func(), after time.Duration)
}{
	{"just after Unlock", func(_ *check, free, giveUp func(), _ time.Duration) { free(); giveUp() }},
	{"just before Unlock", func(_ *check, free, giveUp func(), _ time.Duration) { giveUp(); free() }},
	{"at the moment of Unlock", func(c *check, free, giveUp func(), _ time.Duration) {
		both := []func(){free, giveUp}
		c.all(len(both), func(i int) { both[i]() })
	}},
	{"during Unlock, or soon after", func(c *check, free, giveUp func(), after time.Duration) {
		both := []func(){free, func() { time.Sleep(after); giveUp() }}
		c.all(len(both), func(i int) { both[i]() })
	}},
}

// turn returns how long it takes from Unlock until the next in line has the lock.
func (c *check) turn(holder, waiter locker.Locker) time.Duration {
	took := make([]time.Duration, 5)
	c.all(len(took), func(i int) {
		key := c.key()
		lease := c.lock(holder, key)
		w := c.start(c.within(10*c.ttl), waiter, key)
		c.settle()
		released := time.Now()
		c.unlock(lease)
		if next, err := c.result(w); err == nil {
			took[i] = w.at.Sub(released)
			c.unlock(next)
		}
	})
	return median(took)
}

func cancelledWhenServed(c *check) {
	const rounds, crowd, closing = 8, 6, 3
	ls := c.openAll(3+closing, 2)
	holder, waiter, other := ls[0], ls[1], ls[2]
	most := 2*c.turn(holder, waiter) + c.ttl/1000
	var lanes [][]race
	for _, behind := range []locker.Locker{other, waiter} {
		for _, e := range endings {
			var lane []race
			for i := range rounds * c.attempt {
				waiters := 1
				if i%2 == 0 {
					waiters = crowd // some of them will not have noticed yet when they are granted the key
				}
				after := time.Duration(c.draw(int(most)))
				lane = append(lane, race{
					how: e.how, waiters: waiters, holder: holder, waiter: waiter, behind: behind,
					run: func(c *check, free, giveUp func()) { e.run(c, free, giveUp, after) },
				})
			}
			lanes = append(lanes, lane)
		}
		lanes = append(lanes, []race{{
			how: "by its deadline, at the moment of Unlock", waiters: 1, holder: holder, waiter: waiter, behind: behind,
			deadline: time.Now().Add(c.ttl / 2),
			run:      func(_ *check, free, _ func()) { free() },
		}})
	}
	for i, l := range ls[3:] {
		e := endings[i]
		lanes = append(lanes, []race{{
			how: "by Close, " + e.how, waiters: crowd, holder: holder, waiter: l, behind: other, closes: true,
			run: func(c *check, free, giveUp func()) { e.run(c, free, giveUp, 0) },
		}})
	}
	c.races(lanes)
}

func cancelledOnExpiry(c *check) {
	const keys, crowd = 12, 6
	ls := c.openAll(2, 2)
	waiter, other := ls[0], ls[1]
	vanishes := c.open()
	lanes := make([][]race, keys)
	for i := range lanes {
		// Half of them at the very moment, by the clock of this machine.
		deadline := time.Now().Add(c.ttl)
		if i%2 == 1 {
			deadline = deadline.Add(time.Duration(c.draw(int(c.ttl/50))) - c.ttl/100)
		}
		lanes[i] = []race{{
			how: "by its deadline, when the holder's lease expires", waiters: 1 + i%crowd, waiter: waiter,
			behind: []locker.Locker{other, waiter}[i/(keys/2)], lease: c.tryLock(vanishes, c.key(), c.notRenewed()...),
			deadline: deadline, run: func(*check, func(), func()) {},
		}}
	}
	if c.h.Features.RenewsItself != "" {
		c.cut(BlackHole)
	}
	c.races(lanes)
}

func hungStore(c *check) {
	const samples = 5
	for _, f := range []Fault{Hang, BlackHole} {
		l := c.open()
		c.unlock(c.lock(l, c.key())) // there are connections
		heal := c.cut(f)
		for name, lock := range map[string]func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){
			"Lock": l.Lock, "TryLock": l.TryLock,
		} {
			late := make([]time.Duration, samples)
			c.all(samples, func(i int) {
				deadline := time.Now().Add(c.ttl/10 + time.Duration(i)*c.ttl/50)
				ctx, cancel := context.WithDeadline(c.ctx, deadline)
				defer cancel()
				lease, err := lock(ctx, c.key())
				late[i] = time.Since(deadline)
				if err == nil {
					c.errorf("%s of a key succeeded although the store does not answer (%v)", name, f)
					_ = lease.Unlock()
				} else if !errors.Is(err, context.DeadlineExceeded) {
					c.errorf("%s while the store does not answer (%v): %v; want context.DeadlineExceeded", name, f, err)
				}
			})
			c.tookMedian(late, canceledBound,
				"from the deadline of ctx, while the store did not answer (%v), until %s returned", f, name)
			c.took(slices.Max(late), c.ttl,
				"from the deadline of ctx, while the store did not answer (%v), until %s returned", f, name)
		}
		heal()
	}
}
