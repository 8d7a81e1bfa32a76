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
}

// derive returns the real context.
func (c *callCtx) derive() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.derived != nil {
		return c.derived
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
	if c.cancel != nil {
		c.cancel()
	}
}

// Done implements context.Context.
func (c *callCtx) Done() <-chan struct{} { return c.derive().Done() }

// Err implements context.Context.
func (c *callCtx) Err() error { return c.derive().Err() }

// Value implements context.Context. It goes through the derived context so that its relatives find it.
func (c *callCtx) Value(key any) any { return c.derive().Value(key) }

// Deadline implements context.Context.
func (c *callCtx) Deadline() (time.Time, bool) {
	deadline, ok := c.Context.Deadline()
	if !c.until.IsZero() && (!ok || c.until.Before(deadline)) {
		return c.until, true
	}
	return deadline, ok
}
