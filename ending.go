package locker

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// lose ends leases because the store took their locks away from their owners. When it returns, the holders have been
// told. All requests have leases of this Client.
func (c *Client) lose(rs []Request, cause error) {
	var gone []*Lease
	var told []chan struct{}
	c.mu.Lock()
	for _, r := range rs {
		switch l := r.lease; {
		case l.grant.Owner != r.Owner: // of an earlier attempt, which nobody waits for
		case l.reason != nil:
			told = append(told, l.told) // somebody else is about to tell
		case l.index == unscheduled: // it has not begun
			l.reason = &notHeld{fmt.Errorf("granted, and taken away again: %w", cause)}
		default:
			gone = append(gone, l)
		}
	}
	if len(gone) > c.few() {
		c.schedule.removeAll(gone)
	}
	reason := lost(cause)
	ends := make([]ending, len(gone))
	for i, l := range gone {
		ends[i] = l.endLocked(reason)
	}
	c.mu.Unlock()
	if len(ends) == 1 {
		ends[0].announce()
	} else {
		announce(ends)
	}
	for _, t := range told {
		if t != nil {
			<-t
		}
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

// tellAll tells those who wait, in the order of the deadlines and on all processors. 100,000 leases that end together
// take some 30 ms on two, which is within what leases with a TTL of three seconds end early.
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
	l.next = time.Now()
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
	if l.seen != nil {
		l.seen.expired = true
	}
	if l.client.expirer != nil {
		e.expired = true
		l.client.calls.Add(1) // until noteExpired: Close waits, to tell the backend before it closes it
	}
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

// expiry is the reason of a lease whose renewals have failed until its deadline. Its text is made when somebody reads
// it: many leases may end together.
type expiry struct{ failure error }

func (e *expiry) Error() string {
	return fmt.Sprintf("%v: not renewed in time: %v", ErrLost, e.failure)
}
func (e *expiry) Unwrap() []error { return []error{ErrLost, e.failure} }
