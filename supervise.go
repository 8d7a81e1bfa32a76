package locker

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// abandonedPatience is how long a call whose caller has left may still take.
	abandonedPatience = time.Second

	// mostUnanswered is how many calls of a kind may outlast their use. Beyond that the store is not asked: it does not
	// answer, and each call would cost a goroutine for as long as that lasts.
	mostUnanswered = 1024
)

// unanswered counts calls of the backend that have not returned although nobody needs their answer any more.
type unanswered struct{ n atomic.Int32 }

// overwhelmed returns an error if they are too many.
func (u *unanswered) overwhelmed() error {
	if n := u.n.Load(); n >= mostUnanswered {
		return fmt.Errorf("%w: it has not answered %d earlier calls, and is not asked again before it does",
			ErrUnavailable, n)
	}
	return nil
}

// after counts a call if it takes longer than d, until it has returned, and calls late then.
func (u *unanswered) after(d time.Duration, late func()) (returned func()) {
	timer := time.AfterFunc(d, func() {
		u.n.Add(1)
		late()
	})
	return func() {
		if !timer.Stop() {
			u.n.Add(-1)
		}
	}
}

// supervised calls op on a goroutine of its own and returns its result, or why the caller no longer waits for it:
// clients do not all heed a ctx (go-redis by default ignores it in socket I/O). What a call that nobody waits
// for any more was granted is given back when it returns. done, which ends callCtx, is called when op has returned, and
// when it has not a while after the caller has left: to wait for an answer that got lost would keep an orphan.
func (c *Client) supervised(ctx, callCtx context.Context, done func(), r Request,
	op func(context.Context, Request) (Grant, error),
) (Grant, error) {
	if err := c.acquires.overwhelmed(); err != nil {
		done()
		return Grant{}, NotAcquired(err)
	}
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
			c.acquires.n.Add(-1)
			switch {
			case err == nil:
				c.cleanup.add(c, r, g)
			case outcomeUnknown(unmasked(callCtx, err)):
				c.cleanup.add(c, r, Grant{})
			}
		}
	})
	select {
	case o := <-answer:
		return o.grant, o.err
	case <-ctx.Done():
	case <-c.life.Done():
	case <-callCtx.Done():
	}
	c.acquires.n.Add(1)
	close(left)
	time.AfterFunc(abandonedPatience, done)
	switch {
	case ctx.Err() != nil:
		return Grant{}, NotAcquired(endOf(ctx))
	case c.life.Err() != nil:
		return Grant{}, NotAcquired(ErrClosed)
	}
	return Grant{}, NotAcquired(&noAnswer{after: validFor(r.TTL)})
}

// supervisedRelease is supervised for a Release. An attempt that nobody waits for any more may still be carried out.
func (c *Client) supervisedRelease(ctx context.Context, g Grant, after time.Duration) error {
	if err := c.releases.overwhelmed(); err != nil {
		return err
	}
	answer := make(chan error)
	left := make(chan struct{})
	c.calls.Go(func() {
		err := c.backend.Release(ctx, g)
		select {
		case answer <- err:
		case <-left:
			c.releases.n.Add(-1)
		}
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		c.releases.n.Add(1)
		close(left)
		return &noAnswer{after}
	}
}
