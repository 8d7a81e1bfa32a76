package locker

import (
	"context"
	"log/slog"
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
	freed    bool          // of a lease that was revoked: the store was told that the key is not used any more
	told     chan struct{} // made at the end, closed when done is and the contexts have ended
	deadline time.Time

	answers  int    // while acquiring: how often the store has answered that the key is held
	waitsFor string // by whom the last time, if that is known

	// For the schedule.
	index     int           // in the heap, or unscheduled
	next      time.Time     // when the schedule has to look at the lease; once it has ended, when that was
	ttl       time.Duration // as the store said last
	confirmed time.Time     // from when that counts
	failure   error         // of the renewals since the last that succeeded: failedLocked
	failures  int           // how many have failed since the last one that did not
	renewing  int           // renewals under way; more than one if some call outlived its ctx
	idle      chan struct{} // closed when renewing becomes 0; made by Unlock
}

// Key returns the key as it was passed to Lock, without the Locker's prefix.
func (l *Lease) Key() string { return l.grant.Key }

// Token returns the fencing token: greater than the token of every earlier holder of this key, whatever became of it,
// and the same for the life of the lease. Pass it along with each write, and let the resource refuse a token smaller
// than the greatest it has seen: then not even a holder that was paused for an hour and does not know yet that it has
// lost the lock can do damage.
func (l *Lease) Token() uint64 { return l.grant.Token }

// Mode returns as what the lock is held: ModeExclusive unless the option Shared or Slots was given.
func (l *Lease) Mode() Mode { return l.grant.Mode }

// Slot returns which of the slots of the option Slots is held: 0 to n-1, and no other holder has it. It is 0 without the
// option.
func (l *Lease) Slot() int { return l.grant.Slot }

// GrantOf returns what the backend granted. It is for packages of backends that offer more than a Locker can, such as a
// condition for the store's own transactions.
func GrantOf(l *Lease) Grant { return l.grant }

// LogValue implements slog.LogValuer: the key, the token and the name of the store.
func (l *Lease) LogValue() slog.Value {
	return slog.GroupValue(slog.String("key", l.Key()), slog.Uint64("token", l.Token()),
		slog.String("store", l.client.name))
}

// Deadline returns until when the lease is valid unless it is renewed; it moves as renewals succeed, and stays
// once the lease has ended. It is computed from the TTL that the store granted, and carries a monotonic clock
// reading.
func (l *Lease) Deadline() time.Time {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return l.deadline
}

// Done returns a channel that is closed when the lease is lost or unlocked; Err then says which. As with a
// context.Context, any number of goroutines can wait for it.
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
// It takes no ctx, like the Commit of a transaction: work that was cancelled must be unlocked too. It is bounded by
// what is left of the lease's validity, and tries again until then when the store does not answer. If that fails it
// returns the store's error, and the key frees itself when its TTL has run out.
//
// It returns ErrLost if the lease was lost before, with the reason, and ErrUnlocked if it was already unlocked;
// in both cases nothing is changed in the store. But if the lease was revoked, its key has been kept from others since:
// Unlock, which returns ErrLost with ErrRevoked, says that it is not used any more, and so frees it.
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
	reason, e, reserved := l.reason, ending{}, false
	switch {
	case reason != nil:
		reserved = !c.closed && !l.freed && isRevoked(reason)
		if reserved { // the store keeps the key for it until then
			l.freed = true
			c.calls.Add(1)
			defer c.calls.Done()
		}
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
	if reserved {
		g := l.grant
		g.MinHold = 0
		_ = l.free(g, left) // it is lost in any case, and the key is free after its TTL
	}
	if reason != nil {
		return reason
	}
	return l.release(left)
}

// release frees the key of a lease that was ended as unlocked, with so much of its validity left.
func (l *Lease) release(left time.Duration) error {
	err := l.free(l.grant, left)
	if l.seen != nil {
		var failure error
		if err != nil {
			failure = l.client.fail(opUnlock, l.Key(), err)
		}
		l.client.tellLeaseDone(l, l.doneInfo(failure))
	}
	return err
}

// free has the store free the key of a lease that has ended.
func (l *Lease) free(g Grant, left time.Duration) error {
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
	return l.client.release(g, l.deadline, left, &l.releasing)
}

// begin makes l a held lease under g, unless it is too late for that.
func (l *Lease) begin(ctx context.Context, g Grant) error {
	c := l.client
	if ctx.Err() != nil { // not with mu locked: ctx may be that of another lease of the same Client
		return endOf(ctx) // granted after the caller gave up: as if it had not been
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := g.Sent.Add(validFor(g.TTL))
	switch {
	case c.closed:
		return ErrClosed
	case l.reason != nil:
		return l.reason // taken away again before it began
	case time.Until(deadline) <= 0:
		return &noAnswer{after: time.Since(g.Sent)}
	}
	if g.MinHold > 0 {
		g.MinHold += time.Since(g.Sent) // which counts from Sent, and that may be long before the lock was granted
	}
	l.grant, l.deadline, l.ttl, l.confirmed = g, deadline, g.TTL, g.Sent
	if l.seen != nil {
		l.seen.begun = time.Now()
	}
	c.schedule.add(c, l)
	return nil
}
