package locker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// try makes one attempt to acquire l.
func (c *Client) try(ctx context.Context, l *Lease) error {
	r := l.grant.Request
	sent := time.Now()
	until := sent.Add(validFor(r.TTL)) // an answer that comes later is of no use to anybody
	var g Grant
	var err error
	if c.features.HeedsContext {
		call := l.acquireCall()
		call.Context, call.until, call.life = ctx, until, c.life
		g, err = c.backend.Acquire(call, r)
		call.stop()
	} else {
		// The attempt is detached from the caller's ctx: cut short, its outcome would be unknown.
		call, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
		g, err = c.supervised(ctx, call, cancel, r, c.backend.Acquire)
	}
	return c.settle(ctx, l, sent, g, err)
}

// wait acquires l in the store's own line, or else by polling. Once the store has answered that the key is held, it
// rides out failures that may pass.
func (c *Client) wait(ctx context.Context, l *Lease) error {
	attempt := c.queueUp
	if c.queue == nil {
		attempt = c.poll
	}
	var last error // that was ridden out
	answered := 0  // how often the store had answered then
	for failures := 1; ; failures++ {
		err := attempt(ctx, l)
		if err == nil {
			return nil
		}
		_, answers := l.waitedFor()
		switch {
		case last != nil && ctx.Err() != nil:
			return &riddenOut{err, last}
		case answers == 0 || !passes(err):
			return err
		case answers > answered:
			failures = 1 // it has worked since the failure before
		}
		last, answered = classified(err), answers
		pause := outagePause(failures)
		info := l.retryInfo(failures, last)
		info.Pause = pause
		c.tellRetry(info)
		if err := c.sleep(ctx, pause); err != nil {
			return &riddenOut{err, last}
		}
		// What is left of the attempt before is undone meanwhile, so this is somebody else to the store.
		c.renewOwner(l)
	}
}

const (
	firstOutagePause   = 50 * time.Millisecond
	longestOutagePause = 2 * time.Second
)

// outagePause returns how long to wait after so many failures in a row: a random time, so that those whom one outage
// has met do not come back together, of a range that grows to longestOutagePause.
func outagePause(failures int) time.Duration {
	most := min(firstOutagePause<<min(failures-1, 10), longestOutagePause)
	return most/10 + rand.N(most*9/10)
}

// sleep waits for d, or returns why that was cut short.
func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	case <-c.life.Done():
		return ErrClosed
	}
}

// renewOwner makes l that of another owner, before anything is asked for it.
func (c *Client) renewOwner(l *Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.grant.Owner, l.reason = newOwner(), nil
}

// queueUp acquires l in the store's own line.
func (c *Client) queueUp(ctx context.Context, l *Lease) error {
	r := l.grant.Request
	var g Grant
	var err error
	if c.features.HeedsContext {
		call := l.acquireCall()
		call.Context, call.life = ctx, c.life
		g, err = c.queue.Wait(call, r)
		call.stop()
	} else {
		call := &callCtx{Context: ctx, life: c.life}
		g, err = c.supervised(ctx, call, call.stop, r, c.queue.Wait)
	}
	if err == nil && g.Sent.IsZero() {
		c.cleanup.add(c, r, g)
		return fmt.Errorf("%w: %s.Wait did not set Grant.Sent: the validity of the lease is unknown", ErrUnfit, c.name)
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
func (c *Client) poll(ctx context.Context, l *Lease) error {
	const first, longest = 2 * time.Millisecond, 40 * time.Millisecond
	for delay := first; ; delay = min(2*delay, longest) {
		err := c.try(ctx, l)
		if !errors.Is(err, ErrLocked) {
			return err
		}
		next := jittered(delay)
		var held *Held
		if errors.As(err, &held) && held.Remaining > 0 {
			next = min(next, held.Remaining+time.Millisecond)
		}
		l.setWaitsFor(l.grant.Owner, holderOf(err))
		if err := c.sleep(ctx, next); err != nil {
			return err
		}
	}
}

// jittered returns a duration of d less up to half of it.
func jittered(d time.Duration) time.Duration {
	return d - rand.N(d/2+1)
}

// settle turns the outcome of an acquire into a lease that is held, or into an error with nothing held.
func (c *Client) settle(ctx context.Context, l *Lease, sent time.Time, g Grant, err error) error {
	r := l.grant.Request
	err = unmasked(ctx, err)
	if err != nil {
		if outcomeUnknown(err) {
			c.cleanup.add(c, r, Grant{})
		}
		if errors.Is(err, ErrLocked) {
			return err
		}
		if end := ended(ctx); end != nil {
			return end
		}
		switch {
		case c.life.Err() != nil:
			return ErrClosed
		case isContextEnd(err) && !sent.IsZero():
			return &noAnswer{after: time.Since(sent)} // the bound of the call: no ctx of the caller's has ended
		case isContextEnd(err):
			return fmt.Errorf("%w: %s", ErrUnavailable, err.Error()) // not wrapped, for the same reason
		case errors.Is(err, ErrLost):
			return &notHeld{err}
		}
		return err
	}
	if g.Token == 0 {
		c.cleanup.add(c, r, g)
		return fmt.Errorf("%w: %s granted the lock without a fencing token", ErrUnfit, c.name)
	}
	if r.Mode == ModeSlots && (g.Slot < 0 || g.Slot >= r.Slots) {
		c.cleanup.add(c, r, g)
		return fmt.Errorf("%w: %s granted slot %d of %d", ErrUnfit, c.name, g.Slot, r.Slots)
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
		c.cleanup.add(c, r, g)
		return err
	}
	return nil
}

func isContextEnd(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// ended returns the error of a call whose ctx has ended, nil if it has not. A client that turns the deadline of ctx
// into one of its connection may notice it before the timer of ctx has fired, which is late on a busy machine. Only ctx
// itself knows the cause of its end.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(deadline) <= 0 {
		const latest = time.Second // a context of somebody's own making may never tell
		select {
		case <-ctx.Done():
		case <-time.After(latest):
			return context.DeadlineExceeded
		}
	}
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	return nil
}

func (l *Lease) setWaitsFor(owner Owner, holder string) {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	if l.grant.Owner == owner {
		l.answers++
		l.waitsFor = holder
	}
}

// waitedFor returns how often the store has answered that the key is held, and by whom it was the last time.
func (l *Lease) waitedFor() (holder string, answers int) {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return l.waitsFor, l.answers
}

// goesOn is Request.ReportRetry.
func (l *Lease) goesOn(owner Owner, failure error) {
	const streak = 3 * longestOutagePause // failures that are further apart are of two outages
	c := l.client
	c.mu.Lock()
	o := l.seen
	if l.grant.Owner != owner || o == nil {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	if now.Sub(o.retried) > streak {
		o.retries = 0
	}
	o.retries++
	o.retried = now
	info := l.retryInfo(o.retries, classified(failure))
	c.mu.Unlock()
	c.news.add(func() { c.tellRetry(info) })
}

// retryInfo describes the nth failure in a row of a Lock that goes on waiting.
func (l *Lease) retryInfo(n int, failure error) RetryInfo {
	r := l.grant.Request
	return RetryInfo{Op: opLock, Key: r.Key, Store: l.client.name, Mode: r.Mode, Attempt: n, Err: failure}
}
