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

	// The contexts of the calls of the backend that acquire and release the lease: they are part of it to save two
	// allocations, and each is used once, since a client may hold on to the context of a call (for its metrics, say).
	acquiring, releasing callCtx

	// The rest is guarded by core.mu.
	reason   error         // why it ended; nil while held, and while it is being acquired
	done     chan struct{} // made on demand, closed with reason set
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

// GrantOf returns what the backend granted. It is for packages of backends that offer more than a Locker can, such as a
// condition for the store's own transactions.
func GrantOf(l *Lease) Grant { return l.grant }

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
	_ = l.expire()
	l.core.mu.Lock()
	defer l.core.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.reason != nil {
			close(l.done)
		}
	}
	return l.done
}

// Err returns nil while the lease is held, ErrLost with its reason once it is lost, and ErrUnlocked once it is
// unlocked. It compares the clock with the deadline itself, so a process that was stopped and continues reads
// ErrLost at once, before any timer of it has run.
func (l *Lease) Err() error {
	if reason := l.expire(); reason != nil {
		return l.core.fail(opLease, l.Key(), reason)
	}
	return nil
}

// expire ends the lease as lost if its deadline has passed, and returns why it has ended, if it has.
func (l *Lease) expire() error {
	l.core.mu.Lock()
	var e ending
	if l.reason == nil && time.Until(l.deadline) <= 0 {
		e = l.endLocked(l.expiredLocked())
	}
	reason := l.reason
	l.core.mu.Unlock()
	e.announce()
	return reason
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
	c.mu.Lock()
	left := time.Until(l.deadline)
	reason, e := l.reason, ending{}
	switch {
	case reason != nil:
	case left <= 0:
		reason = l.expiredLocked()
		e = l.endLocked(reason)
	default:
		c.calls.Add(1) // not closed, or the lease would have ended: Close waits for this release
		defer c.calls.Done()
		e = l.endLocked(ErrUnlocked)
	}
	c.mu.Unlock()
	e.announce()
	if reason != nil {
		return c.fail(opUnlock, l.Key(), reason)
	}
	return l.release(left)
}

// release frees the key of a lease that was ended as unlocked, with so much of its validity left.
func (l *Lease) release(left time.Duration) error {
	c := l.core
	if idle := l.idle; idle != nil { // written before the lease ended, by endLocked
		// A renewal that is under way must not land after the release. It is bounded by its own ctx; one whose
		// client ignores that is not waited for beyond the validity.
		bound := time.NewTimer(left)
		defer bound.Stop()
		select {
		case <-idle:
		case <-bound.C:
		}
		left = time.Until(l.deadline)
	}
	if err := c.release(l.grant, l.deadline, left, &l.releasing, longestPause); err != nil {
		return c.fail(opUnlock, l.Key(), err)
	}
	return nil
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
	case l.reason != nil:
		return l.reason // taken away again before it began
	case time.Until(deadline) <= 0:
		return &noAnswer{after: time.Since(g.Sent)}
	}
	l.grant, l.deadline = g, deadline
	c.schedule.add(c, l)
	return nil
}

// lose ends l because the store took the lock away.
func (l *Lease) lose(cause error) {
	c := l.core
	c.mu.Lock()
	var e ending
	if l.reason == nil {
		e = l.endLocked(lost(cause))
	}
	c.mu.Unlock()
	e.announce()
}

// ending is what is left to do when a lease has ended and core.mu is free again.
type ending struct {
	lease    *Lease
	contexts []*leaseCtx
}

// announce ends the contexts of the lease.
func (e ending) announce() {
	for _, c := range e.contexts {
		c.cancel(e.lease.Err())
	}
}

func announce(ends []ending) {
	for _, e := range ends {
		e.announce()
	}
}

// endLocked ends l for the given reason. The caller holds core.mu, and calls announce of the result when it does not.
func (l *Lease) endLocked(reason error) ending {
	l.reason = reason
	if l.done != nil {
		close(l.done)
	}
	if l.renewing > 0 {
		l.idle = make(chan struct{})
	}
	l.core.schedule.remove(l)
	e := ending{l, l.ended}
	l.ended = nil
	return e
}

// lost is ErrLost with its cause.
func lost(cause error) error {
	switch {
	case cause == nil:
		return ErrLost
	case errors.Is(cause, ErrLost):
		return cause
	}
	return fmt.Errorf("%w: %w", ErrLost, cause)
}

// expiredLocked is the reason of a lease whose deadline has passed: why was it not renewed?
func (l *Lease) expiredLocked() error {
	switch {
	case l.failure != nil:
		return lost(fmt.Errorf("not renewed in time: %w", l.failure))
	case l.noRenew:
		return lost(errNotRenewed)
	case l.renewing > 0:
		return lost(errUnanswered)
	}
	return lost(errPaused)
}

var (
	errNotRenewed = errors.New("its TTL has passed, and it is not renewed")
	errUnanswered = errors.New("not renewed in time: the store did not answer")
	errPaused     = errors.New("not renewed in time: this process was paused, or is overloaded")
)

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
	_ = l.expire()
	c := l.core
	c.mu.Lock()
	held := l.reason == nil
	if held {
		l.ended = append(l.ended, lc)
	}
	c.mu.Unlock()
	if !held {
		cancelCause(l.Err())
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
	if reason := c.lease.expire(); reason != nil {
		c.cancel(c.lease.Err()) // the lease has just ended: whoever ended it is about to do this
	}
	return c.Context.Err()
}
