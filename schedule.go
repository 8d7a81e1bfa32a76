package locker

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// schedule says when each held lease needs attention: to be renewed, or to be declared lost. One timer serves all
// leases of a Locker, so a Locker that holds ten thousand has no more goroutines than one that holds none: the
// timer's function runs on a goroutine that exists only while there is something to do.
//
// It is part of core, and guarded by core.mu.
type schedule struct {
	leases leaseHeap   // every held lease, the one to look at first in front
	timer  *time.Timer // nil until the first lease
	armed  time.Time   // when timer fires; zero if it does not
}

// unscheduled is the index of a Lease outside the heap.
const unscheduled = -1

// renewalInterval is the time between two renewals, and the bound of one attempt: three attempts fit into a TTL.
func renewalInterval(ttl time.Duration) time.Duration { return ttl / 3 }

// slack is how much early a renewal may be sent for the sake of going along with others.
func slack(ttl time.Duration) time.Duration { return renewalInterval(ttl) / 10 }

func (s *schedule) add(c *core, l *Lease) {
	l.plan(l.grant.Sent, float64(l.grant.Owner[0])/256) // the owner is as random as anything
	heap.Push(&s.leases, l)
	s.arm(c)
}

func (s *schedule) remove(l *Lease) {
	if l.index != unscheduled {
		heap.Remove(&s.leases, l.index)
	}
	// The timer is left as it is: to fire once for nothing is cheaper than to be set anew at each Unlock.
}

// stop disarms the schedule for good; core.closed keeps it so.
func (s *schedule) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

// arm makes the timer fire in time for the first lease.
func (s *schedule) arm(c *core) {
	if len(s.leases) == 0 || c.closed {
		return
	}
	next := s.leases[0].next
	if !s.armed.IsZero() && !next.Before(s.armed) {
		return
	}
	s.armed = next
	if s.timer == nil {
		s.timer = time.AfterFunc(time.Until(next), c.attend)
	} else {
		s.timer.Reset(time.Until(next))
	}
}

// plan sets when l is looked at next, after a request that the store confirmed and that was sent at the given time.
// jitter, from 0 to 1, spreads the Lockers of a fleet; leases that were renewed together get the same, to stay together.
func (l *Lease) plan(sent time.Time, jitter float64) {
	l.next = l.deadline
	if !l.noRenew {
		early := time.Duration(jitter * float64(slack(l.grant.TTL)))
		l.next = earlier(sent.Add(renewalInterval(l.grant.TTL)-early), l.deadline)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// attend is the timer's function: it ends the leases whose deadline has passed, and renews those that are due.
// It never waits for a renewal to end a lease: a deadline that passes meanwhile fires the timer again.
func (c *core) attend() {
	var ends []ending
	var due []*Lease
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	now := time.Now()
	c.armed = time.Time{}
	for len(c.leases) > 0 {
		l := c.leases[0]
		if !now.Before(l.deadline) {
			ends = append(ends, l.endLocked(l.expiredLocked()))
			continue
		}
		early := slack(l.grant.TTL)
		if l.next.Equal(l.deadline) {
			early = 0 // what is due is its end
		}
		if now.Before(l.next.Add(-early)) {
			break
		}
		l.renewing++
		due = append(due, l)
		// Should the answer not come, there is to be another attempt, or the end.
		l.next = earlier(now.Add(renewalInterval(l.grant.TTL)+early), l.deadline)
		heap.Fix(&c.leases, 0)
	}
	if len(due) > 0 {
		c.calls.Add(1)
	}
	c.arm(c)
	c.mu.Unlock()
	announce(ends)
	if len(due) > 0 {
		defer c.calls.Done()
		c.renew(due)
	}
}

// renew renews the leases together and applies the answers.
func (c *core) renew(due []*Lease) {
	sent := time.Now()
	bound := due[0].grant.TTL
	grants := make([]Grant, len(due))
	for i, l := range due {
		grants[i] = l.grant
		grants[i].Sent = sent
		bound = min(bound, renewalInterval(l.grant.TTL))
	}
	// The lease is ended by its own timer if this takes longer than the validity; the bound is shorter, so that a
	// hung connection, or a lost answer, leaves time for a second attempt.
	ctx, cancel := context.WithDeadline(context.Background(), sent.Add(bound))
	errs := c.backend.Renew(ctx, grants)
	cancel()
	if len(errs) != len(grants) {
		err := fmt.Errorf("%s.Renew returned %d results for %d grants", c.name, len(errs), len(grants))
		errs = slices.Repeat([]error{err}, len(grants))
	}

	c.mu.Lock()
	var ends []ending
	now := time.Now()
	jitter := rand.Float64()
	for i, l := range due {
		from := sent
		if s := grants[i].Sent; !s.IsZero() && s.Before(sent) {
			from = s
		}
		if e := l.renewedLocked(from, now, jitter, errs[i]); e.lease != nil {
			ends = append(ends, e)
		}
	}
	c.arm(c)
	c.mu.Unlock()
	announce(ends)
}

// renewedLocked applies the answer to a renewal that counts from the given time.
func (l *Lease) renewedLocked(sent, now time.Time, jitter float64, err error) ending {
	l.renewing--
	if l.renewing == 0 && l.idle != nil {
		close(l.idle)
	}
	switch {
	case l.reason != nil: // ended meanwhile
		return ending{}
	case errors.Is(err, ErrLost):
		return l.endLocked(lost(err))
	case !now.Before(l.deadline): // too late, whatever the answer
		if err != nil {
			l.failure = err
		}
		return l.endLocked(l.expiredLocked())
	case err != nil:
		l.failure = err
		retry := jittered(max(2*slack(l.grant.TTL), time.Millisecond))
		l.next = earlier(now.Add(retry), l.deadline)
	default:
		l.failure = nil
		if d := sent.Add(validFor(l.grant.TTL)); d.After(l.deadline) {
			l.deadline = d
		}
		l.plan(sent, jitter)
	}
	heap.Fix(&l.core.leases, l.index)
	return ending{}
}

// leaseHeap is a heap.Interface ordered by Lease.next.
type leaseHeap []*Lease

func (h leaseHeap) Len() int           { return len(h) }
func (h leaseHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h leaseHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *leaseHeap) Push(x any) {
	l := x.(*Lease)
	l.index = len(*h)
	*h = append(*h, l)
}

// Pop implements heap.Interface.
func (h *leaseHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.index = unscheduled
	return l
}
