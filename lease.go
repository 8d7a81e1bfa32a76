package locker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
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
	client  *Client
	noRenew bool
	grant   Grant // immutable once begun

	// The contexts of the calls of the backend that acquire and release the lease: they are part of it to save two
	// allocations, and each is used once, since a client may hold on to the context of a call (for its metrics, say).
	acquiring, releasing callCtx

	seen *observation // nil if no Observer is to be told

	// The rest is guarded by Client.mu.
	reason   error         // why it ended; nil while held, and while it is being acquired
	done     chan struct{} // made on demand, closed soon after reason is set
	contexts []*leaseCtx   // to be cancelled on the end
	told     chan struct{} // made at the end, closed when done is and the contexts have ended
	deadline time.Time

	answers  int    // while acquiring: how often the store has answered that the key is held
	waitsFor string // by whom the last time, if that is known

	// For the schedule.
	index     int           // in the heap, or unscheduled
	next      time.Time     // when the schedule has to look at the lease
	ttl       time.Duration // as the store said last
	confirmed time.Time     // from when that counts
	failure   error         // of the last renewal, if it failed
	failures  int           // how many have failed since the last one that did not
	renewing  int           // renewals under way; more than one if some call outlived its ctx
	idle      chan struct{} // closed when renewing becomes 0; made by Unlock
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

// LogValue implements slog.LogValuer: the key, the token and the name of the store.
func (l *Lease) LogValue() slog.Value {
	return slog.GroupValue(slog.String("key", l.Key()), slog.Uint64("token", l.Token()), slog.String("store", l.client.name))
}

// Deadline returns until when the lease is valid unless it is renewed; it moves as renewals succeed, and stays
// once the lease has ended. It is computed from the TTL that the store granted, and carries a monotonic clock
// reading.
func (l *Lease) Deadline() time.Time {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return l.deadline
}

// Done returns a channel that is closed when the lease is lost or unlocked; Err then says which. Like that of a
// context.Context, it can be waited for by any number of goroutines.
func (l *Lease) Done() <-chan struct{} {
	_ = l.expire()
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	switch {
	case l.reason != nil:
		return closed // l.done is about to be
	case l.done == nil:
		l.done = make(chan struct{})
	}
	return l.done
}

// closed is the Done of leases that have ended.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Err returns nil while the lease is held, ErrLost with its reason once it is lost, and ErrUnlocked once it is
// unlocked. It compares the clock with the deadline itself, so a process that was stopped and continues reads
// ErrLost at once, before any timer of it has run.
func (l *Lease) Err() error {
	if l.expire() != nil {
		return l.err()
	}
	return nil
}

// err returns why the lease has ended, which it has.
func (l *Lease) err() error { return l.client.fail(opLease, l.Key(), l.reason) }

// expire ends the lease as lost if its deadline has passed, and returns why it has ended, if it has.
func (l *Lease) expire() error {
	l.client.mu.Lock()
	var e ending
	if l.reason == nil && time.Until(l.deadline) <= 0 {
		e = l.expireLocked()
	}
	reason := l.reason
	l.client.mu.Unlock()
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
	if err := l.unlock(); err != nil {
		return l.client.fail(opUnlock, l.Key(), err)
	}
	return nil
}

func (l *Lease) unlock() error {
	c := l.client
	c.mu.Lock()
	left := time.Until(l.deadline)
	reason, e := l.reason, ending{}
	switch {
	case reason != nil:
	case left <= 0:
		e = l.expireLocked()
		reason = l.reason
	default:
		c.calls.Add(1) // not closed, or the lease would have ended: Close waits for this release
		defer c.calls.Done()
		e = l.endLocked(ErrUnlocked)
	}
	c.mu.Unlock()
	e.announce()
	if reason != nil {
		return reason
	}
	return l.release(left)
}

// release frees the key of a lease that was ended as unlocked, with so much of its validity left.
func (l *Lease) release(left time.Duration) error {
	c := l.client
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
	err := c.release(l.grant, l.deadline, left, &l.releasing)
	if l.seen != nil {
		var failure error
		if err != nil {
			failure = c.fail(opUnlock, l.Key(), err)
		}
		c.tellLeaseDone(l, l.doneInfo(failure))
	}
	return err
}

// begin makes l a held lease under g, unless it is too late for that.
func (l *Lease) begin(ctx context.Context, g Grant) error {
	c := l.client
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := g.Sent.Add(validFor(g.TTL))
	switch {
	case ctx.Err() != nil:
		return endOf(ctx) // granted after the caller gave up: as if it had not been
	case c.closed:
		return ErrClosed
	case l.reason != nil:
		return l.reason // taken away again before it began
	case time.Until(deadline) <= 0:
		return &noAnswer{after: time.Since(g.Sent)}
	}
	l.grant, l.deadline, l.ttl, l.confirmed = g, deadline, g.TTL, g.Sent
	if l.seen != nil {
		l.seen.begun = time.Now()
	}
	c.schedule.add(c, l)
	return nil
}

// lose ends l because the store took the lock away from its owner. When it returns, the holder has been told.
func (l *Lease) lose(owner Owner, cause error) {
	c := l.client
	c.mu.Lock()
	var e ending
	var told chan struct{}
	switch {
	case l.grant.Owner != owner: // of an earlier attempt, which nobody waits for
	case l.reason != nil:
		told = l.told // somebody else is about to tell
	case l.index == unscheduled: // it has not begun
		l.reason = &notHeld{fmt.Errorf("granted, and taken away again: %w", cause)}
	default:
		e = l.endLocked(lost(cause))
	}
	c.mu.Unlock()
	e.announce()
	if told != nil {
		<-told
	}
}

// ending is what is left to do when a lease has ended and Client.mu is free again.
type ending struct {
	lease    *Lease
	done     chan struct{} // to be closed, if it is not nil
	contexts []*leaseCtx   // to be cancelled
	told     chan struct{} // to be closed after that, if it is not nil
	expired  bool          // by itself: the backend wants to know
}

// watched reports whether somebody waits for the news.
func (e ending) watched() bool { return e.told != nil }

// announce tells those who wait for the end of the lease, and then the backend and the Observers.
func (e ending) announce() {
	switch {
	case e.lease == nil:
	case e.expired, e.lease.seen != nil:
		announce([]ending{e})
	case e.watched():
		e.tell()
	}
}

// tell closes Done and ends the contexts.
func (e ending) tell() {
	if e.done != nil {
		close(e.done)
	}
	if len(e.contexts) > 0 {
		cause := e.lease.err()
		for _, c := range e.contexts {
			c.cancel(cause)
		}
	}
	close(e.told)
}

// tellAll tells those who wait, in the order of the deadlines and on all processors. 100,000 leases that end together take some
// 30 ms on two, which is within what leases with a TTL of three seconds end early.
func tellAll(ends []ending) {
	slices.SortFunc(ends, func(a, b ending) int {
		if a.watched() != b.watched() {
			if a.watched() {
				return -1
			}
			return 1
		}
		return a.lease.deadline.Compare(b.lease.deadline)
	})
	watched := len(ends)
	for watched > 0 && !ends[watched-1].watched() {
		watched--
	}
	const together = 64
	var next atomic.Int64
	tell := func() {
		for from := int(next.Add(together)) - together; from < watched; from = int(next.Add(together)) - together {
			for _, e := range ends[from:min(from+together, watched)] {
				e.tell()
			}
		}
	}
	var others sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0)-1, watched/together) {
		others.Go(tell)
	}
	tell()
	others.Wait()
}

// announce tells those who wait for the end of leases, and then the backend and the Observers.
func announce(ends []ending) {
	if len(ends) == 0 {
		return
	}
	tellAll(ends)
	c := ends[0].lease.client
	c.noteExpired(ends)
	c.observeLosses(ends)
}

// endLocked ends l for the given reason. The caller holds Client.mu, and calls announce of the result when it does not.
func (l *Lease) endLocked(reason error) ending {
	l.reason = reason
	if l.renewing > 0 {
		l.idle = make(chan struct{})
	}
	l.client.schedule.remove(l)
	if l.done != nil || len(l.contexts) > 0 {
		l.told = make(chan struct{})
	}
	e := ending{lease: l, done: l.done, contexts: l.contexts, told: l.told}
	l.contexts = nil
	return e
}

// expireLocked is endLocked for a lease whose deadline has passed.
func (l *Lease) expireLocked() ending {
	e := l.endLocked(l.expiredLocked())
	e.expired = l.client.expirer != nil
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
		return &expiry{l.failure}
	case l.noRenew:
		return errNotRenewed
	case l.renewing > 0:
		return errUnanswered
	}
	return errPaused
}

var (
	errNotRenewed = lost(errors.New("its TTL has passed, and it is not renewed"))
	errUnanswered = lost(fmt.Errorf("not renewed in time: %w", &noAnswer{}))
	errPaused     = lost(errors.New("not renewed in time: this process was paused, or is overloaded"))
)

// expiry is the reason of a lease whose renewals have failed until its deadline. Its text is made when somebody reads it: many
// leases may end together.
type expiry struct{ failure error }

func (e *expiry) Error() string {
	return fmt.Sprintf("%v: not renewed in time: %v", ErrLost, e.failure)
}
func (e *expiry) Unwrap() []error { return []error{ErrLost, e.failure} }

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
	info := RetryInfo{Op: opLock, Key: l.grant.Key, Store: c.name, Attempt: o.retries, Err: classified(failure)}
	c.mu.Unlock()
	c.news.add(func() { c.tellRetry(info) })
}

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

// FromContext returns the lease that ctx ends with: that of Lease.Context, or of the function that Do or Lead has called. It
// returns nil if there is none.
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
