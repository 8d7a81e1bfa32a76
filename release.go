package locker

import (
	"context"
	"errors"
	"time"
)

// longestPause is the longest pause between two attempts to release what somebody waits for.
const longestPause = 250 * time.Millisecond

// release frees g in the store, trying again after errors until the given time, when the lock ends by itself and which
// is so much ahead. ErrLost means that the lock was gone before the first attempt. call is room for the context of
// that.
func (c *Client) release(g Grant, until time.Time, left time.Duration, call *callCtx) error {
	const first = 5 * time.Millisecond
	var failure error
	for delay := first; ; delay = min(2*delay, longestPause) {
		err := c.releaseOnce(g, until, left, call)
		if err == nil || errors.Is(err, ErrLost) && failure != nil {
			return nil // gone since a release whose answer we did not get: that release did it
		}
		if errors.Is(err, ErrLost) || isFinal(err) {
			return err
		}
		if failure != nil && errors.Is(err, errTooLate) {
			return failure // the pause took longer than it should have; this one says why it failed
		}
		failure, call = reason(failure, err), new(callCtx)
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
func (c *Client) releaseOnce(g Grant, until time.Time, left time.Duration, call *callCtx) error {
	if left <= 0 {
		return errTooLate
	}
	if g.MinHold > 0 {
		g.Keep = max(0, time.Until(g.Sent.Add(g.MinHold)))
	}
	if bound := attemptBound(g.TTL); left > bound {
		left, until = bound, until.Add(bound-left)
	}
	if c.features.HeedsContext {
		call.Context, call.until = context.Background(), until
		defer call.stop()
		err := c.backend.Release(call, g)
		if isContextEnd(err) {
			return &noAnswer{left} // nobody's context has ended but the one of this attempt
		}
		return err
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	return c.supervisedRelease(ctx, g, left)
}
