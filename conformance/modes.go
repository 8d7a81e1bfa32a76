package conformance

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// The rules of the modes share what follows. A backend that does not state a mode is not asked for it.

const (
	hintModes = "Acquire and Wait decide by Request.Mode, in the same atomic step in which they look who holds the " +
		"key: readers (ModeShared) get in beside readers, up to Request.Slots holders (ModeSlots) beside one " +
		"another, and nobody else beside anybody."
	hintOneLine = "There is one line for all modes, in order of arrival. While somebody is in it, Acquire refuses " +
		"even whom the holders would admit, also if his process holds the key. When a holder has gone, or a waiter, " +
		"all at the head of the line get in who are admitted."
	hintEachItsOwn = "Each holder has an expiry of its own, by the store's clock. The record that says that the key " +
		"is shared lasts for as long as the last of them. Release and Renew are about Grant.Owner and nobody else."
)

// offers reports whether the backend has locks of a mode. If not, the rule is not asked of it.
func (c *check) offers(mode locker.CallOption) bool {
	lease, err := c.open().TryLock(c.within(10*c.ttl), c.key(), mode)
	if errors.Is(err, errors.ErrUnsupported) {
		c.leaves(notOffered, "the backend does not state that it has such locks (locker.Features)")
		return false
	}
	if err != nil {
		c.fatalf("TryLock of a key that is free: %v; want a lease", err)
	}
	c.unlock(lease)
	return true
}

// passed checks that a Lock has returned when a TTL had passed since a holder locked the key whom nobody renews: not
// before, and not much after.
func (c *check) passed(w *wait, ttl time.Duration, since time.Time, what string) {
	if waited := w.at.Sub(since); waited < ttl*95/100 {
		c.wrongf("%s: it got it %v after that had been locked for %v", what, waited, ttl)
	} else {
		c.took(waited, ttl+c.soon(), "%s", what)
	}
}

// noneIsLost ends the rule if a lease was lost: what others have got since then says nothing.
func (c *check) noneIsLost(leases ...*locker.Lease) {
	for _, lease := range leases {
		if err := lease.Err(); err != nil {
			c.record(1, "a lease that is renewed was lost: %v", err)
			runtime.Goexit()
		}
	}
}

// waits calls Lock on a goroutine of its own, and gives it the time to get into line.
func (c *check) waits(ctx context.Context, l locker.Locker, key string, opts ...locker.CallOption) *wait {
	w := c.start(ctx, l, key, opts...)
	c.settle()
	return w
}

// granted returns the lease of a Lock that was to be served by now.
func (c *check) granted(w *wait, since time.Time, what string) *locker.Lease {
	lease, err := c.result(w)
	if err != nil {
		c.fatalf("%s: %v; want a lease", what, err)
	}
	c.took(w.at.Sub(since), c.soon(), "%s", what)
	return lease
}

// stillWaits checks that a Lock has not returned.
func (c *check) stillWaits(w *wait, why string) {
	if isClosed(w.done) {
		c.record(1, "a Lock has returned (%v) %s; want it to wait", w.err, why)
	}
}

// increasing returns a rule's body: over and over, the key is locked without a mode, and then by three in one, of whom
// two at a time, on two Lockers. The tokens increase.
func increasing(mode locker.CallOption) func(*check) {
	return func(c *check) {
		key := c.key()
		one, other := c.open(), c.open()
		seen := &tokens{c: c}
		lock := func(l locker.Locker, opts ...locker.CallOption) *locker.Lease {
			lease := c.lock(l, key, opts...)
			seen.next(lease, "another grant")
			return lease
		}
		for range 4 {
			c.unlock(lock(one))
			first := lock(one, mode)
			second := lock(other, mode)
			c.unlock(first)
			third := lock(other, mode)
			c.unlockEach(second, third)
		}
	}
}

// unlockEach unlocks leases that are held.
func (c *check) unlockEach(leases ...*locker.Lease) {
	for _, lease := range leases {
		c.unlock(lease)
	}
}

// census is the leases of one key that are held at the same time.
type census struct {
	mu   sync.Mutex
	held []*locker.Lease
	most int // so far
}

// enter adds a lease to those that are held, and returns them all.
func (n *census) enter(lease *locker.Lease) []*locker.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = slices.DeleteFunc(n.held, func(l *locker.Lease) bool { return l.Err() != nil })
	n.held = append(n.held, lease)
	n.most = max(n.most, len(n.held))
	return slices.Clone(n.held)
}

func (n *census) leave(lease *locker.Lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = slices.DeleteFunc(n.held, func(l *locker.Lease) bool { return l == lease })
}
