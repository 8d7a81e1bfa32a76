package conformance

import (
	"context"
	"errors"
	"time"

	"github.com/lockerkit/locker"
)

var waitingRules = []rule{
	{
		name: "WakesOnExpiry", body: wakesOnExpiry, expires: true, serial: true, // first of those that have to do with expiry
		did: "A Locker takes a lock with NoRenew and never unlocks it, as if its process had died; another waits for it " +
			"in Lock.",
		text: "When a holder vanishes, a waiter gets the lock when its TTL has passed, not before, and not much after.",
		hint: hintExpiry,
	},
	{
		name: "WakesOnRelease", body: wakesOnRelease,
		did:  "A Locker waits in Lock for a key that another one holds, and that one unlocks; seven times.",
		text: "A waiter has the lock within 50 ms of the holder's Unlock (or what Features.WakeWithin says).",
		hint: "Without locker.Queue, Lock calls Acquire every 40 ms at most: a store that takes longer to answer needs " +
			"Features.WakeWithin. With it, Wait must be told of the release.",
	},
	{
		name: "WaitDoesNotBoundHold", body: waitDoesNotBoundHold,
		did: "The ctx that was given to Lock, which did not have to wait, or had to, is cancelled as soon as Lock has returned; " +
			"one and a half TTLs later another Locker tries the key.",
		text: "The ctx given to Lock bounds the wait only: the lease lives on when it ends.",
		hint: "What a lease lives by (a session, a transaction, a keep-alive) must not be made with the ctx of Acquire or " +
			"Wait, which ends with the call. Does Renew renew? See lease/OutlivesTTL.",
	},
	{
		name: "LostReply", body: lostReply, needs: needsCut,
		did:  "TryLock and Lock are called while requests reach the store and answers are lost; then the connection heals.",
		text: "An acquire whose answer got lost leaves no orphan behind and does not lock its caller out.",
		hint: hintOrphan,
	},
	{
		name: "RidesOut", body: ridesOut, needs: needsCut, expires: true, since: "v0.1.0",
		did: "A Locker that waits in Lock is cut off for longer than a TTL: connections are refused. Then the holder " +
			"unlocks. Another Locker is cut off before Lock is called.",
		text: "A Lock that the store has told to wait goes on waiting through a failure, and gets the lock. One that has " +
			"had no answer fails with ErrUnavailable within a few TTLs.",
		hint: "Wait calls Request.ReportHolder as soon as the store has said that the key is held. When the connection " +
			"breaks, it returns what its client says, without ErrDenied or ErrUnfit: New then calls it again. Or it keeps " +
			"its place in line: it connects again by itself, and calls Request.ReportRetry.",
	},
	{
		name: "OwnKey", body: ownKey, since: "v0.1.0",
		did: "A Locker calls Lock of a key that it holds itself, with and without a name for the holder, until the ctx " +
			"ends.",
		text: "A Lock that has waited for its own Locker says so: Error.Holder is the holder's name, or locker.ThisLocker.",
		hint: "Wait calls Request.ReportHolder with the name that the holder gave, not with that of the one who waits, or " +
			"with \"\" if the store does not know it. So does locker.Held, without locker.Queue.",
	},
}

// wakeWithin is Features.WakeWithin where that is zero.
const wakeWithin = 50 * time.Millisecond

func wakesOnRelease(c *check) {
	a, b := c.open(), c.open()
	var took []time.Duration
	for range 7 {
		key := c.key()
		lease := c.lock(a, key)
		w := c.start(c.within(10*c.ttl), b, key)
		c.settle()
		time.Sleep(time.Duration(c.draw(100)) * c.ttl / 400) // or it might be in step with who polls
		released := time.Now()
		c.unlock(lease)
		next, err := c.result(w)
		if err != nil {
			c.fatalf("Lock while the holder unlocked: %v", err)
		}
		took = append(took, w.at.Sub(released))
		c.unlock(next)
	}
	if within := c.h.Features.WakeWithin; within > wakeWithin {
		c.leaves(inPart, "relaxed: within %v, not %v (Features.WakeWithin)", within, wakeWithin)
	}
	c.tookMedian(took, c.h.Features.WakeWithin, "from the beginning of Unlock until the waiter had the lock")
}

func wakesOnExpiry(c *check) {
	key := c.key()
	b := c.open()
	start := time.Now()
	lease := c.abandon(key)
	granted := time.Now()
	w := c.start(c.within(10*c.ttl), b, key)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose holder vanished, and which should be free after its TTL of %v: nothing after %v: %v",
			c.ttl, w.at.Sub(granted), err)
	}
	defer c.unlock(next)
	if early := start.Add(c.ttl - c.ttl/100 - 2*time.Millisecond).Sub(w.at); early > 0 {
		c.wrongf("the waiter got the lock %v before the TTL of the vanished holder had passed", early)
	}
	c.took(w.at.Sub(granted.Add(c.ttl)), c.soon(),
		"from the end of the vanished holder's TTL until the waiter had the lock")
	if lease.Err() == nil {
		c.wrongf("the vanished holder's lease is still not done")
	}
}

func waitDoesNotBoundHold(c *check) {
	a, b := c.open(), c.open()
	c.all(2, func(i int) {
		key := c.key()
		if i == 1 { // the same for a Lock that has to wait
			held := c.lock(b, key)
			c.do(func() {
				c.settle()
				c.unlock(held)
			})
		}
		ctx, cancel := context.WithCancel(c.within(10 * c.ttl))
		lease, err := a.Lock(ctx, key)
		cancel()
		if err != nil {
			c.errorf("Lock: %v", err)
			return
		}
		select {
		case <-lease.Done():
			c.errorf("the lease ended with the ctx that was given to Lock: %v", lease.Err())
			return
		case <-time.After(c.ttl + c.ttl/2):
		}
		c.refused(b, lease, "although the holder's lease was not unlocked")
		c.unlock(lease)
	})
}

func lostReply(c *check) {
	key := c.key()
	observer := c.open()
	held := c.key()
	lasting := c.tryLock(observer, held, locker.Holder("who holds on"))
	l := c.open()
	c.unlock(c.lock(l, c.key())) // there are connections
	heal := c.cut(DropReplies)
	defer heal()
	// With a TTL so long that the key cannot become free by expiring.
	ttl := locker.TTL(20 * c.ttl)
	lease, err := l.TryLock(c.within(c.ttl/4), key, ttl)
	if err == nil {
		c.errorf("TryLock succeeded although no answer can have come")
		_ = lease.Unlock()
		return
	}
	if errors.Is(err, locker.ErrLocked) || errors.Is(err, locker.ErrLost) {
		c.errorf("TryLock without an answer: %v", err)
	}
	_, err = l.TryLock(c.within(c.ttl/4), held)
	if err == nil || errors.Is(err, locker.ErrLost) {
		c.errorf("TryLock of a key that is held, without an answer: %v", err)
	}
	_, err = l.Lock(c.within(c.ttl/4), key, ttl)
	if !errors.Is(err, context.DeadlineExceeded) && (err == nil || errors.Is(err, locker.ErrLocked)) {
		c.errorf("Lock without an answer: %v", err)
	}
	heal()
	start := time.Now()
	ctx := c.within(5 * c.ttl)
	again, err := l.Lock(ctx, key)
	for errors.Is(err, locker.ErrUnavailable) && ctx.Err() == nil { // some connections are still to be found broken
		time.Sleep(c.ttl / 50)
		again, err = l.Lock(ctx, key)
	}
	if err != nil {
		c.errorf("%v after the connection healed, the caller whose acquires went unanswered is locked out: %v",
			time.Since(start), err)
		return
	}
	c.unlock(again)
	c.freeWithin(observer, key, 5*c.ttl, "after acquires whose answers were lost")
	time.Sleep(c.ttl / 4) // for the clean-up of the one that had been refused
	if err := lasting.Err(); err != nil {
		c.errorf("the lease of another holder ended, whom an acquire had met whose answer was lost: %v", err)
	}
	c.refused(observer, lasting, "although its holder, whom an acquire without an answer had met, lives")
	c.unlock(lasting)
}

func ridesOut(c *check) {
	// That the store has answered cannot be seen from outside. On a machine that is busy it may take longer than one
	// waits for it here, so that Lock fails, and rightly: the next attempt gives it more time.
	var err error
	for _, answered := range []time.Duration{c.ttl / 5, c.ttl, 4 * c.ttl} {
		if err = c.rideOut(answered); err == nil {
			break
		}
	}
	if err != nil {
		c.errorf("Lock, which had waited for a while when its Locker was cut off, returned %v; want it to go on waiting", err)
	}

	l := c.open()
	c.unlock(c.lock(l, c.key())) // there are connections
	defer c.cut(Refuse)()
	start := time.Now()
	lease, err := l.Lock(c.within(10*c.ttl), c.key())
	if err == nil {
		c.errorf("locked a key although the store refuses connections")
		_ = lease.Unlock()
	} else if !errors.Is(err, locker.ErrUnavailable) {
		c.errorf("Lock of a Locker that was cut off before: %v; want ErrUnavailable", err)
	}
	c.took(time.Since(start), 6*c.ttl, "a Lock that had never had an answer")
}

// rideOut cuts off a Locker that has waited for a while. It returns the error with which Lock gave up meanwhile.
func (c *check) rideOut(answered time.Duration) error {
	key := c.key()
	holder, waiter := c.open(), c.open()
	lease := c.tryLock(holder, key, locker.TTL(20*c.ttl)) // that it lives is not what this is about
	c.unlock(c.lock(waiter, c.key()))                     // there are connections
	ctx := c.within(10*time.Second + 20*c.ttl)
	w := c.start(ctx, waiter, key)
	time.Sleep(answered)
	heal := c.cut(Refuse)
	select {
	case <-w.done:
	case <-time.After(c.ttl + c.ttl/2):
	}
	heal()
	c.settle()
	gaveUp := isClosed(w.done)
	released := time.Now()
	c.unlock(lease)
	<-w.done // New pauses for up to two seconds before it asks again
	switch {
	case gaveUp && w.err == nil:
		if lease.Err() == nil {
			c.wrongf("a Lock whose Locker had been cut off got the key while another held it")
		}
		_ = w.lease.Unlock()
	case gaveUp:
		return w.err
	case w.err != nil:
		c.errorf("Lock, which was cut off for %v while it waited: nothing %v after its holder unlocked: %v",
			c.ttl+c.ttl/2, w.at.Sub(released), w.err)
	default:
		c.unlock(w.lease)
	}
	return nil
}

func ownKey(c *check) {
	for _, holder := range []string{"conformance-holder", ""} {
		c.do(func() {
			key := c.key()
			l := c.open()
			lease := c.tryLock(l, key, locker.Holder(holder), locker.TTL(20*c.ttl))
			_, err := l.Lock(c.within(2*c.ttl), key, locker.Holder("conformance-waiter"))
			var e *locker.Error
			switch {
			case !errors.Is(err, context.DeadlineExceeded):
				c.errorf("Lock of a key that the same Locker holds: %v; want context.DeadlineExceeded", err)
			case !errors.As(err, &e) || e.Holder != locker.ThisLocker && (e.Holder != holder || holder == ""):
				c.errorf("Lock of a key that the same Locker holds, as %q: %v; Error.Holder should be that, or %q",
					holder, err, locker.ThisLocker)
			}
			c.unlock(lease)
		})
	}
}
