package redlock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/redlock/internal/protocol"
)

// renewal is one call of redlock.Renew.
type renewal struct {
	b      *redlock
	gs     []locker.Grant
	claims []*claim
	report func(i int, r locker.Renewal)

	mu        sync.Mutex
	votes     []ballot
	open      int            // leases whose outcome is not certain yet
	decided   chan struct{}  // closed when there is none
	reporting sync.WaitGroup // calls of report
}

// ballot is what the nodes have said about one lease.
type ballot struct {
	answers int
	renewed int
	lost    []int // nodes
	reasons []error
	decided bool
}

// ask renews the leases at one node and counts its answers.
func (r *renewal) ask(ctx context.Context, i int, bound time.Duration) {
	n := r.b.nodes[i]
	if n.full() {
		for j := range r.gs {
			r.count(ctx, i, j, errSilent)
		}
		return
	}
	_ = n.call(ctx, bound, func(ctx context.Context) error {
		var mu sync.Mutex
		var failure error
		n.RenewValues(ctx, r.gs, func(j int) string { return r.claims[j].value() }, func(j int, err error) {
			r.count(ctx, i, j, err)
			if err != nil && !conn.IsReply(err) && !isLost(err) {
				mu.Lock()
				defer mu.Unlock()
				failure = err
			}
		})
		return failure
	})
}

// count counts what a node has said about one lease, and reports the outcome as soon as it is certain. The last answer
// has those nodes looked after that have lost the lease.
func (r *renewal) count(ctx context.Context, i, j int, err error) {
	r.mu.Lock()
	v := &r.votes[j]
	v.answers++
	switch {
	case err == nil:
		v.renewed++
	case isLost(err):
		v.lost = append(v.lost, i)
	default:
		v.reasons = append(v.reasons, r.b.nodes[i].blame(err))
	}
	outcome, certain := r.outcome(v)
	tell := certain && !v.decided
	if tell {
		v.decided = true
		r.reporting.Add(1)
	}
	complete := v.answers == len(r.b.nodes)
	r.mu.Unlock()

	if tell {
		r.report(j, locker.Renewal{Err: outcome})
		r.reporting.Done()
		r.mu.Lock()
		if r.open--; r.open == 0 {
			close(r.decided)
		}
		r.mu.Unlock()
	}
	if complete {
		r.repair(ctx, j)
	}
}

// outcome returns the outcome for one lease, if it is certain.
func (r *renewal) outcome(v *ballot) (err error, certain bool) {
	nodes, quorum := len(r.b.nodes), r.b.quorum
	pending := nodes - v.answers
	switch {
	case v.renewed >= quorum:
		return nil, true
	case len(v.lost) > nodes-quorum:
		return locker.ErrLost, true
	case v.renewed+pending < quorum && len(v.lost)+pending <= nodes-quorum:
		return &noQuorumError{nodes, quorum, v.reasons}, true
	}
	return nil, false
}

// end reports the leases whose outcome is not certain: their time is up. Nothing is reported afterwards.
func (r *renewal) end() {
	r.mu.Lock()
	var uncertain []int
	for j := range r.votes {
		if v := &r.votes[j]; !v.decided {
			v.decided = true
			uncertain = append(uncertain, j)
		}
	}
	r.mu.Unlock()
	for _, j := range uncertain {
		r.report(j, locker.Renewal{Err: conn.ErrNoAnswer})
	}
	r.reporting.Wait()
}

// repair brings a lease back to nodes that have lost it, as one does that restarts without its data: only if a quorum
// has just renewed it, so that never more than a minority is repaired, and no other owner can have a quorum meanwhile.
func (r *renewal) repair(ctx context.Context, j int) {
	r.mu.Lock()
	v := r.votes[j]
	r.mu.Unlock()
	if v.renewed < r.b.quorum {
		return
	}
	ctx = context.WithoutCancel(ctx)
	for _, i := range v.lost {
		r.b.nodes[i].running.Go(func() { r.claims[j].repair(ctx, i) })
	}
}

// repair sets the lock again at a node that has lost it, if nobody else has it there.
func (c *claim) repair(ctx context.Context, i int) {
	p := &c.places[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.occupyLocked(p)
	defer c.vacateLocked(p)
	if c.phase != protocol.Holding {
		return
	}
	names, token, ttl := c.names, c.token, c.request.TTL
	var ours, late bool
	err := c.do(ctx, i, func(ctx context.Context, n *node) (err error) {
		ours, late, err = n.confirm(ctx, names, token, ttl)
		return err
	})
	if late {
		p.strays |= strayMove
	}
	switch {
	case err != nil:
		p.state, p.err = unknown, err
	case ours:
		p.state, p.token, p.err = held, token, nil
	default:
		p.state, p.err = nothing, nil // somebody else has it there
	}
	c.settleLocked(ctx, i) // it may be over by now
}

// value returns what the lock is set to, or, if it is not to be renewed any more, what no lock is set to.
func (c *claim) value() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == protocol.Over {
		return c.names.Member
	}
	return c.names.Value
}

func isLost(err error) bool { return errors.Is(err, locker.ErrLost) }
