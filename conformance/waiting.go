package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var waitingRules = []rule{
	{
		name: "WakesOnRelease", body: wakesOnRelease,
		did:  "A Locker waits in Lock for a key that another one holds, and that one unlocks; seven times.",
		text: "A waiter has the lock within 50 ms of the holder's Unlock (or what Features.WakeWithin says).",
		hint: "Without locker.Queue, Lock calls Acquire every 40 ms at most: a store that takes longer to answer needs " +
			"Features.WakeWithin. With it, Wait must be told of the release.",
	},
	{
		name: "WakesOnExpiry", body: wakesOnExpiry,
		did: "A Locker takes a lock with NoRenew and never unlocks it, as if its process had died; another waits for it " +
			"in Lock.",
		text: "When a holder vanishes, a waiter gets the lock when its TTL has passed, not before, and not much after.",
		hint: hintExpiry,
	},
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
		did: "1,000 goroutines over 4 Lockers call Lock of one key, each with a ctx that ends at a random moment, and " +
			"unlock at once what they get.",
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
		name: "WaitDoesNotBoundHold", body: waitDoesNotBoundHold,
		did: "The ctx that was given to Lock is cancelled as soon as Lock has returned; one and a half TTLs later another " +
			"Locker tries the key.",
		text: "The ctx given to Lock bounds the wait only: the lease lives on when it ends.",
		hint: "What a lease lives by (a session, a transaction, a keep-alive) must not be made with the ctx of Acquire or " +
			"Wait, which ends with the call. Does Renew renew? See lease/OutlivesTTL.",
	},
	{
		name: "FIFO", body: fifo, relaxes: unordered,
		did: "Nine Locks over three Lockers come one after the other for a key that is held; its holder unlocks, and each " +
			"of them soon after; meanwhile a tenth caller uses TryLock all the time.",
		text: "Waiters are served in order of arrival, across Lockers, and TryLock never overtakes them.",
		hint: "Implement locker.Queue, and state Features.Queue, if your store has a line or can keep one. (A Wait that " +
			"the method Features does not state is never called; what is stated without a Wait, locker.New refuses.) If it " +
			"has none: conformance.Features{Unordered: \"the reason\"}.",
	},
	{
		name: "HungStore", body: hungStore, needs: needsCut,
		did:  "Lock and TryLock are called, with a deadline, while the store does not answer.",
		text: "ctx is honoured while the store does not answer.",
		hint: hintCtx,
	},
	{
		name: "LostReply", body: lostReply, needs: needsCut,
		did:  "TryLock and Lock are called while requests reach the store and answers are lost; then the connection heals.",
		text: "An acquire whose answer got lost leaves no orphan behind and does not lock its caller out.",
		hint: hintOrphan,
	},
	{
		name: "RidesOut", body: ridesOut, needs: needsCut, since: "v0.1.0",
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
	if m := median(took); m > c.h.Features.WakeWithin {
		c.errorf("the waiter had the lock %v after Unlock began (median of %v); want within %v", m, took, c.h.Features.WakeWithin)
	}
}

func wakesOnExpiry(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	start := time.Now()
	lease := c.lock(a, key, locker.NoRenew()) // and never unlocked: as if its process had died
	granted := time.Now()
	w := c.start(c.within(10*c.ttl), b, key)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose holder vanished, and which should be free after its TTL of %v: nothing after %v: %v",
			c.ttl, w.at.Sub(granted), err)
	}
	defer c.unlock(next)
	if early := start.Add(c.ttl - c.ttl/100 - 2*time.Millisecond).Sub(w.at); early > 0 {
		c.errorf("the waiter got the lock %v before the TTL of the vanished holder had passed", early)
	}
	if late := w.at.Sub(granted.Add(c.ttl)); late > c.soon() {
		c.errorf("the waiter got the lock %v after the TTL of the vanished holder had passed; want at most %v", late, c.soon())
	}
	if lease.Err() == nil {
		c.errorf("the vanished holder's lease is still not done")
	}
}

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
	if m := median(took); m > canceledBound {
		c.errorf("Lock returned %v after its ctx was cancelled (median of %v)", m, took)
	}
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
		if w.at.Before(deadline) {
			c.errorf("Lock gave up %v before its ctx ended", deadline.Sub(w.at))
		}
	}
	if m := median(late); m > canceledBound {
		c.errorf("Lock returned %v after the deadline of its ctx (median of %v)", m, late)
	}
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
			c.errorf("a free key was locked although ctx had ended")
			_ = lease.Unlock()
		} else if !errors.Is(err, cause) {
			c.errorf("with a ctx that has ended: %v; want the cause it ended with", err)
		} else if !errors.Is(err, context.Canceled) {
			c.errorf("with a ctx that has ended with a cause: %v, which is not context.Canceled as well", err)
		}
		if took := time.Since(start); took > c.soon() {
			c.errorf("it took %v to see that ctx has ended", took)
		}
	}
	heal()
	c.freeWithin(other, key, c.soon(), "after calls with a ctx that had ended")
}

func cancelStorm(c *check) {
	const lockers, waiters = 4, 1000
	key := c.key()
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	observer := c.open()
	// A thousand waiters may be more than the store can serve in half a TTL. Where nobody was served there were no handoffs, and
	// so the storm has to last longer.
	for longest := c.ttl / 2; ; longest *= 2 {
		granted := c.storm(ls, key, waiters, longest)
		// An orphan would hold the key, or block the line, for a TTL or longer.
		c.freeWithin(observer, key, c.soon(), "after the last of the waiters had returned")
		if granted > 0 {
			return
		}
		if longest > c.ttl {
			c.errorf("none of %d waiters was served before its ctx ended, with %v of time and nobody holding on to the lock", waiters, longest)
			return
		}
	}
}

// storm has waiters wait for a key for random times, the longest of which is given, and returns how many of them got it.
func (c *check) storm(ls []locker.Locker, key string, waiters int, longest time.Duration) int64 {
	first := c.lock(ls[0], key)
	var granted atomic.Int64
	c.do(func() {
		c.settle()
		c.unlock(first)
	})
	c.all(waiters, func(i int) {
		ctx, cancel := context.WithTimeout(c.ctx, rand.N(longest))
		defer cancel()
		lease, err := ls[i%len(ls)].Lock(ctx, key)
		switch {
		case err == nil:
			granted.Add(1)
			c.unlock(lease)
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
	if took := second.at.Sub(released); took > c.soon() {
		c.errorf("the waiter behind the cancelled one had the lock %v after Unlock", took)
	}
	c.unlock(next)
}

func waitDoesNotBoundHold(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	ctx, cancel := context.WithCancel(c.ctx)
	lease, err := a.Lock(ctx, key)
	cancel()
	if err != nil {
		c.fatalf("Lock: %v", err)
	}
	select {
	case <-lease.Done():
		c.errorf("the lease ended with the ctx that was given to Lock: %v", lease.Err())
		return
	case <-time.After(c.ttl + c.ttl/2):
	}
	c.refused(b, lease, "although the holder's lease was not unlocked")
	c.unlock(lease)
}

func fifo(c *check) {
	const lockers, waiters = 3, 9
	key := c.key()
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	lease := c.lock(ls[0], key)
	for _, l := range ls {
		c.refused(l, lease, "of a key that is held")
		c.unlock(c.lock(l, c.key())) // and now it has all that it needs
	}
	var mu sync.Mutex
	var served []int
	waits := make([]*wait, waiters)
	for i := range waits {
		waits[i] = c.start(c.within(20*c.ttl), ls[i%lockers], key)
		time.Sleep(c.ttl / 10) // until it is in line: nothing tells when it is
	}
	overtaken := make(chan struct{})
	stop := make(chan struct{})
	c.do(func() { // somebody who tries to get in between
		defer close(overtaken)
		intruder := c.open()
		for {
			lease, err := intruder.TryLock(c.within(10*c.ttl), key)
			if err == nil {
				mu.Lock()
				n := len(served)
				mu.Unlock()
				if n < waiters-1 { // the last one may just be about to say that it was served
					c.errorf("TryLock got in with %d of %d waiters in line not yet served", waiters-n, waiters)
				}
				c.unlock(lease)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(c.ttl / 1000):
			}
		}
	})
	c.unlock(lease)
	for i, w := range waits {
		c.do(func() {
			lease, err := c.result(w)
			if err != nil {
				c.errorf("Lock of waiter %d: %v", i, err)
				return
			}
			mu.Lock()
			served = append(served, i)
			mu.Unlock()
			time.Sleep(c.ttl / 200)
			c.unlock(lease)
		})
	}
	for _, w := range waits {
		_, _ = c.result(w)
	}
	close(stop)
	<-overtaken
	mu.Lock()
	defer mu.Unlock()
	if !slices.IsSorted(served) {
		c.errorf("the waiters were served in the order %v", served)
	}
}

func hungStore(c *check) {
	for _, f := range []Fault{Hang, BlackHole} {
		func() {
			key := c.key()
			l := c.open()
			c.unlock(c.lock(l, c.key())) // there are connections
			defer c.cut(f)()
			for _, lock := range []func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){l.Lock, l.TryLock} {
				deadline := time.Now().Add(c.ttl / 5)
				ctx, cancel := context.WithDeadline(c.ctx, deadline)
				lease, err := lock(ctx, key)
				cancel()
				if err == nil {
					c.errorf("locked a key although the store does not answer (%v)", f)
					_ = lease.Unlock()
				} else if !errors.Is(err, context.DeadlineExceeded) {
					c.errorf("while the store does not answer (%v): %v; want context.DeadlineExceeded", f, err)
				}
				if late := time.Since(deadline); late > canceledBound {
					c.errorf("while the store did not answer (%v), the call returned %v after the deadline of its ctx", f, late)
				}
			}
		}()
	}
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
	again, err := l.Lock(c.within(5*c.ttl), key)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		// One connection may still be to be found broken.
		again, err = l.Lock(c.within(5*c.ttl), key)
	}
	if err != nil {
		c.errorf("%v after the connection healed, the caller whose acquires went unanswered is locked out: %v", time.Since(start), err)
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
	// That the store has answered cannot be seen from outside. On a machine that is busy it may take longer than one waits
	// for it here, so that Lock fails, and rightly: the next attempt gives it more time.
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
	if took := time.Since(start); took > 6*c.ttl {
		c.errorf("a Lock that had never had an answer took %v to fail; want a few TTLs at most", took)
	}
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
		c.errorf("a Lock whose Locker had been cut off got the key while another held it")
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

// cut severs the Locker that was opened last, and returns what heals it, once.
func (c *check) cut(f Fault) (heal func()) { return sync.OnceFunc(c.h.Cut(c.t, f)) }

// mentions reports whether the text of err contains s.
func mentions(err error, s string) bool { return err != nil && strings.Contains(err.Error(), s) }
