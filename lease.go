package locker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Lease is a lock that is held: until it is unlocked, or lost. All of its methods are safe for concurrent use,
// and none but Unlock waits for the store.
//
// A lease renews itself three times per TTL, in the background, until Unlock, until the Close of its Locker or
// until the process ends. A lease that the program forgets is renewed all the same: nothing is tied to the
// garbage collector.
//
// A lease is lost when its Deadline passes without a renewal that the store confirmed, or as soon as the store
// says that somebody else has the key or that it is gone. The deadline counts from when the last confirmed
// request was sent, not from when it was answered, and ends before the store lets the key go: the holder knows of
// its loss before a rival can hold the key. What no clock can prevent is that the process is paused between a
// check of Err and the write that follows it; for that there is Token.
//
// A machine that sleeps (suspend to disk or memory) stops the monotonic clock that deadlines are kept by on most
// systems. On waking it may take itself for the holder until the next renewal is refused: again, Token.
type Lease struct {
	core    *core
	noRenew bool
	grant   Grant // immutable once begun

	// The rest is guarded by core.mu.
	err      error         // nil while held, and while it is being acquired
	done     chan struct{} // made on demand, closed with err set
	ended    []*leaseCtx   // contexts to cancel on the end
	deadline time.Time
	waitsFor string // while acquiring: the name of the holder

	// For the schedule.
	index    int           // in the heap, or unscheduled
	next     time.Time     // when the schedule has to look at the lease
	failure  error         // of the last renewal, if it failed
	renewing int           // renewals under way; more than one if some call outlived its ctx
	idle     chan struct{} // closed when renewing becomes 0; made by Unlock
}

// Key returns the key as it was passed to Lock, without the Locker's prefix.
func (l *Lease) Key() string { return l.grant.Key }

// Token returns the fencing token: greater than that of every earlier holder of this key, whatever became of
// it, and the same for the life of the lease. Pass it along with each write, and let the resource refuse a
// token smaller than the greatest it has seen: then not even a holder that was paused for an hour and does not
// know yet that it has lost the lock can do damage.
func (l *Lease) Token() uint64 { return l.grant.Token }

// Deadline returns until when the lease is valid unless it is renewed; it moves as renewals succeed, and stays
// once the lease has ended. It is computed from the TTL that the store granted, and carries a monotonic clock
// reading.
func (l *Lease) Deadline() time.Time {
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	return l.deadline
}

// Done returns a channel that is closed when the lease is lost or unlocked; Err then says which. Like that of a
// context.Context, it can be waited for by any number of goroutines.
func (l *Lease) Done() <-chan struct{} {
	defer l.expire()
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.err != nil {
			close(l.done)
		}
	}
	return l.done
}

// Err returns nil while the lease is held, ErrLost with its reason once it is lost, and ErrUnlocked once it is
// unlocked. It compares the clock with the deadline itself, so a process that was stopped and continues reads
// ErrLost at once, before any timer of it has run.
func (l *Lease) Err() error {
	l.expire()
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	return l.err
}

// expire ends the lease as lost if its deadline has passed.
func (l *Lease) expire() {
	l.core.mu.Lock()
	var ended []*leaseCtx
	if l.err == nil && !time.Now().Before(l.deadline) {
		ended = l.endLocked(l.expiredLocked())
	}
	l.core.mu.Unlock()
	cancelAll(ended)
}

// Unlock ends the lease and frees the key in the store, so that the next waiter has it at once. Done is closed
// before the store is asked, and no renewal of the lease is sent once Unlock has returned.
//
// It takes no ctx, like the Commit of a transaction: work that was cancelled must be unlocked too. It is bounded
// by what is left of the lease's validity, and tries again until then when the store does not answer; if that
// fails it returns the store's error, and the key frees itself when its TTL has run out.
//
// It returns ErrLost if the lease was lost before, with the reason, and ErrUnlocked if it was already unlocked;
// in both cases nothing is changed in the store.
func (l *Lease) Unlock() error {
	c := l.core
	l.expire()
	c.mu.Lock()
	if err := l.err; err != nil {
		c.mu.Unlock()
		reason := error(ErrUnlocked)
		if errors.Is(err, ErrLost) {
			reason = err.(*Error).Err
		}
		return c.fail(opUnlock, l.Key(), reason)
	}
	// Not closed, or the lease would have ended. Close waits for this release.
	c.calls.Add(1)
	defer c.calls.Done()
	release := l.unlockLocked()
	c.mu.Unlock()
	return release()
}

// unlockLocked ends l as unlocked and returns what is left to do without the mutex, or nil if l has ended
// already. The caller holds core.mu.
func (l *Lease) unlockLocked() (release func() error) {
	if l.err != nil {
		return nil
	}
	ended := l.endLocked(l.core.fail(opLease, l.Key(), ErrUnlocked))
	deadline := l.deadline
	var idle chan struct{}
	if l.renewing > 0 {
		idle = make(chan struct{})
		l.idle = idle
	}
	return func() error {
		cancelAll(ended)
		if idle != nil {
			// A renewal that is under way must not land after the release. It is bounded by its own ctx; one whose
			// client ignores that is not waited for beyond the validity.
			bound := time.NewTimer(time.Until(deadline))
			defer bound.Stop()
			select {
			case <-idle:
			case <-bound.C:
			}
		}
		if err := l.core.release(l.grant, deadline); err != nil {
			return l.core.fail(opUnlock, l.Key(), err)
		}
		return nil
	}
}

// begin makes l a held lease under g, unless it is too late for that.
func (l *Lease) begin(ctx context.Context, g Grant) error {
	c := l.core
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := g.Sent.Add(validFor(g.TTL))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx) // granted after the caller gave up: as if it had not been
	case c.closed:
		return ErrClosed
	case !time.Now().Before(deadline):
		return &noAnswer{after: time.Since(g.Sent)}
	}
	l.grant, l.deadline = g, deadline
	if l.err == nil { // else the store took it away again meanwhile
		c.schedule.add(c, l)
	}
	return nil
}

// lose ends l because the store took the lock away.
func (l *Lease) lose(cause error) {
	c := l.core
	c.mu.Lock()
	var ended []*leaseCtx
	if l.err == nil {
		ended = l.endLocked(l.lostLocked(cause))
	}
	c.mu.Unlock()
	cancelAll(ended)
}

// endLocked ends l with err and returns the contexts that the caller has to cancel once it has released core.mu.
func (l *Lease) endLocked(err error) []*leaseCtx {
	l.err = err
	if l.done != nil {
		close(l.done)
	}
	l.core.schedule.remove(l)
	ended := l.ended
	l.ended = nil
	return ended
}

func (l *Lease) lostLocked(cause error) error {
	err := ErrLost
	if cause != nil && !errors.Is(cause, ErrLost) {
		err = fmt.Errorf("%w: %w", ErrLost, cause)
	} else if cause != nil {
		err = cause
	}
	return l.core.fail(opLease, l.Key(), err)
}

// expiredLocked is the error of a lease whose deadline has passed, with the reason why it was not renewed.
func (l *Lease) expiredLocked() error {
	switch {
	case l.failure != nil:
		return l.lostLocked(fmt.Errorf("not renewed in time: %w", l.failure))
	case l.noRenew:
		return l.lostLocked(errors.New("its TTL has passed, and it is not renewed"))
	case l.renewing > 0:
		return l.lostLocked(errors.New("not renewed in time: the store did not answer"))
	}
	return l.lostLocked(errors.New("not renewed in time: this process was paused, or overloaded"))
}

func (l *Lease) setWaitsFor(holder string) {
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	l.waitsFor = holder
}

func (l *Lease) waitedFor() string {
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	return l.waitsFor
}

// Context returns a copy of parent that is cancelled when the lease ends, with Err as its cause. Call cancel when
// the work is done, as with context.WithCancel; it does not unlock. Like Lease.Err, the Err of the context
// compares the clock with the lease's deadline.
func (l *Lease) Context(parent context.Context) (ctx context.Context, cancel context.CancelFunc) {
	inner, cancelCause := context.WithCancelCause(parent)
	lc := &leaseCtx{Context: inner, lease: l, cancel: cancelCause}
	l.expire()
	c := l.core
	c.mu.Lock()
	err := l.err
	if err == nil {
		l.ended = append(l.ended, lc)
	}
	c.mu.Unlock()
	if err != nil {
		cancelCause(err)
		return lc, func() {}
	}
	return lc, func() {
		c.mu.Lock()
		if i := slices.Index(l.ended, lc); i >= 0 {
			l.ended = slices.Delete(l.ended, i, i+1)
		}
		c.mu.Unlock()
		cancelCause(context.Canceled)
	}
}

// leaseCtx is a context that ends with its lease.
type leaseCtx struct {
	context.Context
	lease  *Lease
	cancel context.CancelCauseFunc
}

// Err implements context.Context.
func (c *leaseCtx) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	c.lease.expire() // cancels this context
	return c.Context.Err()
}

func cancelAll(ended []*leaseCtx) {
	for _, c := range ended {
		c.cancel(c.lease.Err())
	}
}
