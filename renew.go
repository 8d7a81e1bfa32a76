package locker

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"time"
)

// mostTogether is how many leases are renewed by one call of the backend. An Unlock waits for the renewal of its lease
// that is under way, so that there must not be too many before it.
const mostTogether = 1000

// renew renews leases that are due. Those whose TTLs differ widely go separately: the bound of a call is that of the
// shortest, and the short ones must not wait for the many.
func (c *Client) renew(due []*Lease) {
	if len(due) == 0 {
		return
	}
	groups := make(map[group][]*Lease, 1)
	c.mu.Lock()
	for _, l := range due {
		g := group{bits.Len64(uint64(l.ttl)), time.Until(l.deadline) < attemptBound(l.ttl)} //nolint:gosec // it is positive
		groups[g] = append(groups[g], l)
	}
	c.mu.Unlock()
	if len(groups) == 1 {
		c.renewGroup(due) // on this goroutine
		return
	}
	for _, group := range groups {
		c.calls.Go(func() { c.renewGroup(group) })
	}
}

// group is of leases that are renewed together.
type group struct {
	magnitude int  // of their TTLs
	late      bool // for the usual bound: there is not so much left of them
}

// renewGroup renews leases, a thousand at a time. It does not wait for long for some of them before it goes on with the
// next.
func (c *Client) renewGroup(leases []*Lease) {
	const longestPace = 5 * time.Millisecond
	calls := 1 + len(leases)/mostTogether
	pace := min(longestPace, renewalInterval(leases[0].grant.TTL)/time.Duration(4*calls))
	for len(leases) > mostTogether {
		together := leases[:mostTogether]
		leases = leases[mostTogether:]
		done := make(chan struct{})
		c.calls.Go(func() {
			defer close(done)
			c.renewTogether(together)
		})
		select {
		case <-done:
		case <-time.After(pace):
		}
	}
	c.renewTogether(leases)
}

// renewTogether renews leases by one call of the backend.
func (c *Client) renewTogether(leases []*Lease) {
	call := &renewals{client: c, jitter: rand.Float64()}
	grants := make([]Grant, 0, len(leases))
	bound := MaxTTL
	c.mu.Lock()
	for _, l := range leases {
		if l.reason == nil { // else it has ended since it was due
			l.renewing++
			call.leases = append(call.leases, l)
			grants = append(grants, l.grant)
			bound = min(bound, attemptBound(l.ttl), time.Until(l.deadline)*9/10) // it has ended when its lease does
		}
	}
	c.mu.Unlock()
	if len(grants) == 0 {
		return
	}
	call.sent = time.Now()
	call.answered = make([]bool, len(grants))
	// A lease is ended by its own timer if this takes longer than its validity; the bound is shorter, so that a
	// hung connection, or a lost answer, leaves time for a second attempt.
	ctx, cancel := context.WithDeadline(context.Background(), call.sent.Add(bound))
	defer cancel()
	if err := c.renewals.overwhelmed(); err != nil {
		call.finish(err)
		return
	}
	returned := c.renewals.after(bound+bound/10, call.outlived)
	c.backend.Renew(ctx, grants, call.done)
	returned()
	call.finish(fmt.Errorf("%w: %s.Renew returned without a result", ErrUnavailable, c.name))
}

// renewals is one call of Backend.Renew.
type renewals struct {
	client *Client
	leases []*Lease
	sent   time.Time // when it began
	jitter float64   // of the next one

	answered []bool // guarded by Client.mu, as is the next
	over     bool   // the call has outlived its ctx
}

// outlived is for a call that ignores its ctx. An Unlock does not wait for it any longer; what it may still say counts
// all the same.
func (b *renewals) outlived() {
	b.client.mu.Lock()
	defer b.client.mu.Unlock()
	b.over = true
	for i, l := range b.leases {
		if !b.answered[i] {
			l.answeredLocked()
			if l.failure == nil {
				l.failure = &noAnswer{}
			}
		}
	}
}

// answeredLocked notes that a renewal is not under way any more.
func (l *Lease) answeredLocked() {
	l.renewing--
	if l.renewing == 0 && l.idle != nil {
		close(l.idle)
	}
}

// done applies the result for one lease, the first that comes.
func (b *renewals) done(i int, r Renewal) {
	c, l := b.client, b.leases[i]
	if r.Sent.IsZero() || r.Sent.After(b.sent) {
		r.Sent = b.sent
	}
	if r.TTL <= 0 {
		r.TTL = l.grant.TTL
	}
	c.mu.Lock()
	if b.answered[i] {
		c.mu.Unlock()
		return
	}
	b.answered[i] = true
	if !b.over {
		l.answeredLocked()
	}
	now := time.Now()
	held := l.reason == nil
	info := RenewedInfo{TTL: r.TTL, Slack: l.deadline.Sub(now), Err: r.Err}
	e := l.renewedLocked(r, now, b.jitter)
	info.Failures = l.failures
	c.arm(c)
	c.mu.Unlock()
	e.announce()
	if held && e.lease == nil && l.seen != nil { // of the end of the lease they are told as that
		c.news.renewed(func() { c.tellRenewed(l, info) })
	}
}

// failedLocked notes why a renewal failed, for the case that the lease ends without another.
func (l *Lease) failedLocked(err error) { l.failure = reason(l.failure, classified(err)) }

// finish gives those that have no result this one.
func (b *renewals) finish(err error) {
	c := b.client
	for i := range b.leases {
		c.mu.Lock()
		answered := b.answered[i]
		c.mu.Unlock()
		if !answered {
			b.done(i, Renewal{Err: err})
		}
	}
}

// renewedLocked applies the result of a renewal.
func (l *Lease) renewedLocked(r Renewal, now time.Time, jitter float64) ending {
	switch {
	case l.reason != nil: // ended meanwhile
		return ending{}
	case errors.Is(r.Err, ErrLost):
		return l.endLocked(lost(r.Err))
	case !now.Before(l.deadline): // too late, whatever the answer
		if r.Err != nil {
			l.failedLocked(r.Err)
		}
		return l.expireLocked()
	case r.Err != nil:
		l.failedLocked(r.Err)
		l.failures++
		retry := jittered(max(2*slack(l.ttl), time.Millisecond))
		l.next = earlier(now.Add(retry), l.deadline)
	case r.Sent.Before(l.confirmed): // overtaken by a later one, but it may have been carried out after that
		if r.TTL < l.ttl {
			l.deadline = earlier(l.deadline, r.Sent.Add(validFor(r.TTL)))
			l.next = earlier(l.next, l.deadline)
		}
	default:
		l.failure, l.failures = nil, 0
		l.confirmed = r.Sent
		d := r.Sent.Add(validFor(r.TTL))
		if d.After(l.deadline) || r.TTL < l.ttl { // for less than before: the store says so
			l.deadline = d
		}
		l.ttl = r.TTL
		l.plan(r.Sent, jitter)
		if soon := now.Add(slack(l.ttl)); l.next.Before(soon) { // the backend counts from long ago
			l.next = earlier(soon, l.deadline)
		}
	}
	heap.Fix(&l.client.leases, l.index)
	return ending{}
}
