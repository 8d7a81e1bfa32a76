package locker

import "context"

// Context returns a copy of parent that is cancelled when the lease ends, with Err as its cause. Call cancel when
// the work is done, as with context.WithCancel; it does not unlock. Like Lease.Err, the Err of the context
// compares the clock with the lease's deadline.
func (l *Lease) Context(parent context.Context) (ctx context.Context, cancel context.CancelFunc) {
	inner, cancelCause := context.WithCancelCause(parent)
	lc := &leaseCtx{Context: inner, lease: l, cancel: cancelCause}
	_ = l.expire()
	c := l.client
	c.mu.Lock()
	held := l.reason == nil
	if held {
		lc.index = len(l.contexts)
		l.contexts = append(l.contexts, lc)
	}
	c.mu.Unlock()
	if !held {
		cancelCause(l.Err())
		return lc, func() {}
	}
	return lc, func() {
		c.mu.Lock()
		if last := len(l.contexts) - 1; lc.index <= last && l.contexts[lc.index] == lc {
			moved := l.contexts[last]
			l.contexts[lc.index], l.contexts[last] = moved, nil
			moved.index = lc.index
			l.contexts = l.contexts[:last]
		}
		c.mu.Unlock()
		cancelCause(context.Canceled)
	}
}

// FromContext returns the lease that ctx ends with: one of Lease.Context, or of the function that Do or Lead has
// called. It returns nil if there is none.
func FromContext(ctx context.Context) *Lease {
	l, _ := ctx.Value(leaseKey{}).(*Lease)
	return l
}

// leaseKey is the key of the lease in a leaseCtx.
type leaseKey struct{}

// leaseCtx is a context that ends with its lease.
type leaseCtx struct {
	context.Context
	lease  *Lease
	cancel context.CancelCauseFunc
	index  int // in Lease.contexts; guarded by Client.mu
}

// Value implements context.Context.
func (c *leaseCtx) Value(key any) any {
	if key == (leaseKey{}) {
		return c.lease
	}
	return c.Context.Value(key)
}

// Err implements context.Context.
func (c *leaseCtx) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if reason := c.lease.expire(); reason != nil {
		c.cancel(c.lease.Err()) // the lease has just ended: whoever ended it is about to do this
	}
	return c.Context.Err()
}
