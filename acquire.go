package locker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// try makes one attempt to acquire l.
func (c *core) try(ctx context.Context, l *Lease) error {
	r := l.grant.Request
	sent := time.Now()
	until := sent.Add(validFor(r.TTL)) // an answer that comes later is of no use to anybody
	var g Grant
	var err error
	if c.heeds {
		call := l.acquireCall()
		call.Context, call.until = ctx, until
		g, err = c.backend.Acquire(call, r)
		call.stop()
	} else {
		// The attempt is detached from the caller's ctx: cut short, its outcome would be unknown.
		call, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
		g, err = c.supervised(ctx, call, cancel, r, c.backend.Acquire)
	}
	return c.settle(ctx, l, sent, g, err)
}

// wait acquires l in the store's own line, or else by polling.
func (c *core) wait(ctx context.Context, l *Lease) error {
	if c.queue == nil {
		return c.poll(ctx, l)
	}
	r := l.grant.Request
	var g Grant
	var err error
	if c.heeds {
		call := l.acquireCall()
		call.Context, call.life = ctx, c.life
		g, err = c.queue.Wait(call, r)
		call.stop()
	} else {
		call := &callCtx{Context: ctx, life: c.life}
		g, err = c.supervised(ctx, call, call.stop, r, c.queue.Wait)
	}
	if err == nil && g.Sent.IsZero() {
		c.undo(r, g, nil)
		return fmt.Errorf("%s.Wait did not set Grant.Sent: the validity of the lease is unknown", c.name)
	}
	return c.settle(ctx, l, g.Sent, g, err)
}

// acquireCall returns a context for a call that acquires l.
func (l *Lease) acquireCall() *callCtx {
	if l.acquiring.Context == nil {
		return &l.acquiring
	}
	return new(callCtx) // not the first attempt
}

// poll acquires l by trying again and again: after a pause that grows with each refusal, is jittered so that
// waiters spread out, and is no longer than the holder's lease can still last.
func (c *core) poll(ctx context.Context, l *Lease) error {
	const first, longest = 2 * time.Millisecond, 40 * time.Millisecond
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for delay := first; ; delay = min(2*delay, longest) {
		err := c.try(ctx, l)
		if !errors.Is(err, ErrLocked) {
			return err
		}
		next := jittered(delay)
		var held *Held
		if errors.As(err, &held) {
			l.setWaitsFor(held.Holder)
			if held.Remaining > 0 {
				next = min(next, held.Remaining+time.Millisecond)
			}
		}
		pause.Reset(next)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.life.Done():
			return ErrClosed
		}
	}
}

// jittered returns a duration of d less up to half of it.
func jittered(d time.Duration) time.Duration {
	return d - rand.N(d/2+1)
}

// abandonedPatience is how long a call whose caller has left may still take.
const abandonedPatience = time.Second

// supervised calls op on a goroutine of its own and returns its result, or why the caller no longer waits for it:
// clients do not all heed a ctx (go-redis by default ignores it in socket I/O). What a call that nobody waits
// for any more was granted is given back when it returns. done, which ends callCtx, is called when op has returned, and
// when it has not a while after the caller has left: to wait for an answer that got lost would keep an orphan.
func (c *core) supervised(ctx, callCtx context.Context, done func(), r Request,
	op func(context.Context, Request) (Grant, error),
) (Grant, error) {
	type outcome struct {
		grant Grant
		err   error
	}
	answer := make(chan outcome)
	left := make(chan struct{})
	c.calls.Go(func() {
		defer done() // not before the answer is taken: it ends callCtx
		g, err := op(callCtx, r)
		select {
		case answer <- outcome{g, err}:
		case <-left:
			c.undo(r, g, unmasked(callCtx, err))
		}
	})
	select {
	case o := <-answer:
		return o.grant, o.err
	case <-ctx.Done():
	case <-c.life.Done():
	case <-callCtx.Done():
	}
	close(left)
	time.AfterFunc(abandonedPatience, done)
	switch {
	case ctx.Err() != nil:
		return Grant{}, NotAcquired(context.Cause(ctx))
	case c.life.Err() != nil:
		return Grant{}, NotAcquired(ErrClosed)
	}
	return Grant{}, NotAcquired(&noAnswer{after: validFor(r.TTL)})
}

// settle turns the outcome of an acquire into a lease that is held, or into an error with nothing held.
func (c *core) settle(ctx context.Context, l *Lease, sent time.Time, g Grant, err error) error {
	r := l.grant.Request
	err = unmasked(ctx, err)
	if err != nil {
		if outcomeUnknown(err) {
			c.undoLater(r, g, err)
		}
		if errors.Is(err, ErrLocked) {
			return err
		}
		if cause := ended(ctx); cause != nil {
			return cause
		}
		switch {
		case c.life.Err() != nil:
			return ErrClosed
		case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
			return &noAnswer{after: time.Since(sent)} // the bound of the call: no ctx of the caller's has ended
		}
		return err
	}
	if g.Token == 0 {
		c.undoLater(r, g, nil)
		return fmt.Errorf("%s granted the lock without a fencing token", c.name)
	}
	ttl := g.TTL
	if ttl <= 0 {
		ttl = r.TTL
	}
	g.Request, g.TTL = r, ttl
	if g.Sent.IsZero() {
		g.Sent = sent
	}
	if err := l.begin(ctx, g); err != nil {
		c.undoLater(r, g, nil)
		return err
	}
	return nil
}

// ended returns the cause of ctx if it has ended. A client that turns the deadline of ctx into one of its connection may
// notice it before the timer of ctx has fired.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(deadline) <= 0 {
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond): // a context of somebody's own making
			return context.DeadlineExceeded
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// undoLater calls undo in the background.
func (c *core) undoLater(r Request, g Grant, err error) {
	c.calls.Go(func() { c.undo(r, g, err) })
}

// undo gives back what an acquire left behind that ended with g and err and that nobody wants. It runs detached
// from every caller, and gives up after one TTL, as what it then could not reach has expired, or when the Locker is
// closed and the store does not answer.
func (c *core) undo(r Request, g Grant, err error) {
	if err != nil {
		if !outcomeUnknown(err) {
			return
		}
		g = Grant{}
	}
	g.Request = r
	// With a long TTL it does not hurry: in an outage, there is one of these for every acquire that failed.
	longest := min(max(r.TTL/30, longestPause), 10*time.Second)
	_ = c.release(g, time.Now().Add(r.TTL), r.TTL, new(callCtx), longest) // there is nobody to tell
}

// longestPause is the longest pause between two attempts to release what somebody waits for.
const longestPause = 250 * time.Millisecond

// release frees g in the store, trying again after errors until the given time, when the lock ends by itself and which
// is so much ahead. ErrLost means that the lock was gone before the first attempt. call is room for the context of that;
// the pauses between the attempts grow up to longest.
func (c *core) release(g Grant, until time.Time, left time.Duration, call *callCtx, longest time.Duration) error {
	const first = 5 * time.Millisecond
	var failure error
	for delay := first; ; delay = min(2*delay, longest) {
		err := c.releaseOnce(g, until, left, call)
		if err == nil || errors.Is(err, ErrLost) && failure != nil {
			return nil // gone since a release whose answer we did not get: that release did it
		}
		if errors.Is(err, ErrLost) {
			return err
		}
		if failure != nil && errors.Is(err, errTooLate) {
			return failure // the pause took longer than it should have; this one says why it failed
		}
		failure, call = err, new(callCtx)
		pause := jittered(delay)
		if time.Until(until) <= pause {
			return failure
		}
		select {
		case <-time.After(pause):
			left = time.Until(until)
		case <-c.life.Done():
			// Close does not wait for a store that does not answer.
			if err := c.releaseOnce(g, until, time.Until(until), call); err != nil && !errors.Is(err, ErrLost) {
				return failure
			}
			return nil
		}
	}
}

// releaseOnce is one bounded attempt. It leaves time for another one, since a hung connection may be the only
// thing that is wrong.
func (c *core) releaseOnce(g Grant, until time.Time, left time.Duration, call *callCtx) error {
	if left <= 0 {
		return errTooLate
	}
	if bound := renewalInterval(g.TTL); left > bound {
		left, until = bound, until.Add(bound-left)
	}
	if c.heeds {
		call.Context, call.until = context.Background(), until
		defer call.stop()
		return c.backend.Release(call, g)
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	answer := make(chan error, 1)
	c.calls.Go(func() { answer <- c.backend.Release(ctx, g) })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return &noAnswer{after: left}
	}
}
