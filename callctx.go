package locker

import (
	"context"
	"sync/atomic"
	"time"
)

// callCtx is the context of a call of the backend that is made on behalf of another context. It ends with that one,
// and also at a given time, and when the Client is closed, where these are given. It costs next to nothing until
// somebody asks about its end. stop must be called when the call has returned.
type callCtx struct {
	context.Context
	until time.Time       // may be zero
	life  context.Context // of the Client; may be nil
	real  atomic.Pointer[realCtx]
}

// realCtx does what a context has to do, once that is needed.
type realCtx struct {
	context.Context
	cancel context.CancelFunc
}

// endedCall is the real context of every call that has returned without having needed one. Whoever has kept the context
// of such a call finds it ended, and leaves nothing registered with its parents.
var endedCall = func() *realCtx {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return &realCtx{ctx, cancel}
}()

// derive returns the real context.
func (c *callCtx) derive() context.Context {
	if r := c.real.Load(); r != nil {
		return r
	}
	r := new(realCtx)
	ctx := c.Context
	if !c.until.IsZero() {
		ctx, r.cancel = context.WithDeadline(ctx, c.until)
	}
	if c.life != nil {
		timed := r.cancel
		lasting, cancel := context.WithCancelCause(ctx)
		unwatch := context.AfterFunc(c.life, func() { cancel(ErrClosed) })
		ctx, r.cancel = lasting, func() {
			unwatch()
			cancel(nil)
			if timed != nil {
				timed()
			}
		}
	}
	r.Context = ctx
	if !c.real.CompareAndSwap(nil, r) { // somebody else was first
		r.cancel()
	}
	return c.real.Load()
}

// stop ends the context.
func (c *callCtx) stop() {
	if !c.real.CompareAndSwap(nil, endedCall) {
		c.real.Load().cancel()
	}
}

// Done implements context.Context.
func (c *callCtx) Done() <-chan struct{} { return c.derive().Done() }

// Err implements context.Context.
func (c *callCtx) Err() error {
	r := c.real.Load()
	switch {
	case r != nil:
		return r.Err()
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
	if r := c.real.Load(); r != nil {
		return r.Value(key)
	}
	return c.Context.Value(key)
}

// Deadline implements context.Context.
func (c *callCtx) Deadline() (time.Time, bool) {
	deadline, ok := c.Context.Deadline()
	if !c.until.IsZero() && (!ok || c.until.Before(deadline)) {
		return c.until, true
	}
	return deadline, ok
}
