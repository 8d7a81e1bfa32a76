package locker

import (
	"context"
	"sync"
	"time"
)

// callCtx is the context of a call of the backend that is made on behalf of another context. It ends with that one,
// and also at a given time, or, without that, when the Locker is closed. It costs next to nothing until somebody asks
// about its end. stop must be called when the call has returned.
type callCtx struct {
	context.Context
	until time.Time       // may be zero: then life counts
	life  context.Context // of the Locker

	mu      sync.Mutex
	derived context.Context // does what a context has to do; nil until it is needed
	cancel  context.CancelFunc
	stopped bool
}

// derive returns the real context.
func (c *callCtx) derive() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.derived != nil {
		return c.derived
	}
	if c.stopped { // somebody has kept it: nothing may be left registered with its parents
		ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context))
		cancel()
		c.derived = ctx
		return ctx
	}
	if c.until.IsZero() {
		ctx, cancel := context.WithCancelCause(c.Context)
		unwatch := context.AfterFunc(c.life, func() { cancel(ErrClosed) })
		c.derived, c.cancel = ctx, func() { unwatch(); cancel(nil) }
	} else {
		c.derived, c.cancel = context.WithDeadline(c.Context, c.until)
	}
	return c.derived
}

// stop frees what derive made.
func (c *callCtx) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.cancel != nil {
		c.cancel()
	}
}

// Done implements context.Context.
func (c *callCtx) Done() <-chan struct{} { return c.derive().Done() }

// Err implements context.Context.
func (c *callCtx) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.derived != nil:
		return c.derived.Err()
	case c.stopped:
		return context.Canceled
	case c.Context.Err() != nil:
		return c.Context.Err()
	case c.life != nil && c.life.Err() != nil:
		return context.Canceled
	case !c.until.IsZero() && time.Until(c.until) <= 0:
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context. By the time that package context looks for its own values, it has asked for Done.
func (c *callCtx) Value(key any) any {
	c.mu.Lock()
	ctx := c.derived
	c.mu.Unlock()
	if ctx == nil {
		ctx = c.Context
	}
	return ctx.Value(key)
}

// Deadline implements context.Context.
func (c *callCtx) Deadline() (time.Time, bool) {
	deadline, ok := c.Context.Deadline()
	if !c.until.IsZero() && (!ok || c.until.Before(deadline)) {
		return c.until, true
	}
	return deadline, ok
}
