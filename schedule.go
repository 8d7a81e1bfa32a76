package locker

import (
	"container/heap"
	"slices"
	"time"
)

// schedule says when each held lease needs attention: to be renewed, or to be declared lost. One timer serves all
// leases of a Client, so a Client that holds ten thousand has no more goroutines than one that holds none: the
// timer's function runs on a goroutine that exists only while there is something to do.
//
// It is part of Client, and guarded by Client.mu.
type schedule struct {
	leases  leaseHeap   // every held lease, the one to look at first in front
	timer   *time.Timer // nil until the first lease
	armed   time.Time   // when timer fires; zero if it does not
	expired []Grant     // leases that have ended by themselves, of which the backend has not been told
}

// unscheduled is the index of a Lease outside the heap.
const unscheduled = -1

// renewalInterval is the time between two renewals: three attempts fit into a TTL.
func renewalInterval(ttl time.Duration) time.Duration { return ttl / 3 }

// attemptBound is how long one attempt to renew or to release may take. It leaves time for others, however long the
// TTL: a hung connection may be the only thing that is wrong.
func attemptBound(ttl time.Duration) time.Duration { return min(renewalInterval(ttl), 10*time.Second) }

// slack is how much early a renewal may be sent for the sake of going along with others.
func slack(ttl time.Duration) time.Duration { return renewalInterval(ttl) / 10 }

func (s *schedule) add(c *Client, l *Lease) {
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

// few is how many leases to remove one by one at most: for more it costs less to look at all once.
func (s *schedule) few() int { return 64 + len(s.leases)/64 }

// removeAll removes many leases, all of which are scheduled.
func (s *schedule) removeAll(gone []*Lease) {
	for _, l := range gone {
		l.index = unscheduled
	}
	s.leases = slices.DeleteFunc(s.leases, func(l *Lease) bool { return l.index == unscheduled })
	for i, l := range s.leases {
		l.index = i
	}
	heap.Init(&s.leases)
}

// stop disarms the schedule for good; Client.closed keeps it so.
func (s *schedule) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

// arm makes the timer fire in time for the first lease.
func (s *schedule) arm(c *Client) {
	if len(s.leases) > 0 {
		s.armAt(c, s.leases[0].next)
	}
}

// armAt makes the timer fire at the given time, or before.
func (s *schedule) armAt(c *Client, next time.Time) {
	if c.closed || !s.armed.IsZero() && !next.Before(s.armed) {
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
// jitter, from 0 to 1, spreads the Clients of a fleet; leases that were renewed together get the same, to stay
// together.
func (l *Lease) plan(sent time.Time, jitter float64) {
	l.next = l.deadline
	if !l.noRenew {
		early := time.Duration(jitter * float64(slack(l.ttl)))
		l.next = earlier(sent.Add(renewalInterval(l.ttl)-early), l.deadline)
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
func (c *Client) attend() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.armed = time.Time{}
	ends, due := c.dueLocked(time.Now())
	c.calls.Add(1)
	c.arm(c)
	c.mu.Unlock()
	defer c.calls.Done()
	announce(ends)
	c.tellExpired()
	c.renew(due)
}

// mostDue is how many leases are taken from the schedule at a time to be renewed: it takes a microsecond for each, with
// the mutex held, and leases whose deadline passes meanwhile have to wait for it.
const mostDue = 2 * mostTogether

// dueLocked ends the leases whose deadline has passed, and returns those that are to be renewed, in the order of
// urgency.
func (c *Client) dueLocked(now time.Time) (ends []ending, due []*Lease) {
	few := c.few()
	for len(c.leases) > 0 && len(due) < mostDue {
		l := c.leases[0]
		if !now.Before(l.deadline) {
			if len(ends) == few {
				ends = c.endAllLocked(now, ends)
			} else {
				ends = append(ends, l.expireLocked())
			}
			continue
		}
		early := slack(l.ttl)
		if l.next.Equal(l.deadline) {
			early = 0 // what is due is its end
		}
		if now.Before(l.next.Add(-early)) {
			break
		}
		due = append(due, l)
		// Should the answer not come, there is to be another attempt, or the end.
		l.next = earlier(now.Add(renewalInterval(l.ttl)+early), l.deadline)
		heap.Fix(&c.leases, 0)
	}
	return ends, due
}

// endAllLocked ends all leases whose deadline has passed, in one go.
func (c *Client) endAllLocked(now time.Time, ends []ending) []ending {
	var over []*Lease
	for _, l := range c.leases {
		if !now.Before(l.deadline) {
			over = append(over, l)
		}
	}
	c.schedule.removeAll(over)
	for _, l := range over {
		ends = append(ends, l.expireLocked())
	}
	return ends
}

// noteExpired has the backend told of those leases that have ended by themselves, of which their holders know.
func (c *Client) noteExpired(ends []ending) {
	if c.expirer == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range ends {
		if e.expired {
			c.schedule.expired = append(c.schedule.expired, e.lease.grant)
			c.calls.Done()
		}
	}
	if len(c.schedule.expired) > 0 {
		c.armAt(c, time.Now())
	}
}

// tellExpired has the backend told of what noteExpired has noted.
func (c *Client) tellExpired() {
	c.mu.Lock()
	expired := c.schedule.expired
	c.schedule.expired = nil
	c.mu.Unlock()
	if len(expired) > 0 {
		c.expirer.Expired(expired)
	}
}

// holds reports whether a lease of this Client has the key. With a great many leases it may miss one that comes or goes
// at the same time.
func (c *Client) holds(key string) bool {
	const together = 4096 // looked at with the mutex held
	for from := 0; ; from += together {
		c.mu.Lock()
		leases := c.leases[min(from, len(c.leases)):min(from+together, len(c.leases))]
		for _, l := range leases {
			if l.grant.Key == key {
				c.mu.Unlock()
				return true
			}
		}
		c.mu.Unlock()
		if len(leases) < together {
			return false
		}
	}
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
