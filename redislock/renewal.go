package redislock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// renewal is one call of redlock.Renew.
type renewal struct {
	b      *redlock
	gs     []locker.Grant
	claims []*claim

	mu    sync.Mutex
	votes []ballot
	errs  []error
	open  int           // leases whose outcome is not certain yet
	done  chan struct{} // closed when there is none
	in    int           // nodes that have answered
}

// ballot is what the nodes have said about one lease.
type ballot struct {
	renewed int
	lost    []int // nodes
	reasons []error
	decided bool
}

// ask renews the leases at one node and counts its answers. The last one looks after the nodes that have lost a lease.
func (r *renewal) ask(ctx context.Context, i int, bound time.Duration) {
	n := r.b.nodes[i]
	var errs []error
	err := n.call(ctx, bound, func(ctx context.Context) error {
		ctx, cancel := timed(ctx)
		defer cancel()
		errs = n.renew(ctx, r.gs, func(j int) string { return r.claims[j].value() })
		for _, err := range errs {
			if err != nil && !isReply(err) && !isLost(err) {
				return err
			}
		}
		return nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in++
	for j := range r.gs {
		v := &r.votes[j]
		failure := err
		if errs != nil {
			failure = errs[j]
		}
		switch {
		case failure == nil:
			v.renewed++
		case isLost(failure):
			v.lost = append(v.lost, i)
		default:
			v.reasons = append(v.reasons, n.blame(failure))
		}
		r.decide(j)
	}
	if r.in == len(r.b.nodes) {
		r.repair(ctx)
	}
}

// decide sets the outcome for one lease, if it is certain.
func (r *renewal) decide(j int) {
	v, nodes, quorum := &r.votes[j], len(r.b.nodes), r.b.quorum
	if v.decided {
		return
	}
	switch {
	case v.renewed >= quorum:
		v.decided = true
	case len(v.lost) > nodes-quorum:
		v.decided, r.errs[j] = true, locker.ErrLost
	case r.in == nodes:
		v.decided, r.errs[j] = true, &noQuorumError{nodes, v.reasons}
	}
	if v.decided {
		if r.open--; r.open == 0 {
			close(r.done)
		}
	}
}

// results returns the outcome for each lease; for those that are not certain, an error that says so.
func (r *renewal) results() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := make([]error, len(r.errs))
	for j, v := range r.votes {
		errs[j] = r.errs[j]
		if !v.decided {
			errs[j] = errNoAnswer
		}
	}
	return errs
}

// repair brings leases back to nodes that have lost them, as one does that restarts without its data: only those that a quorum
// has just renewed, so that never more than a minority is repaired, and no other owner can have a quorum meanwhile.
func (r *renewal) repair(ctx context.Context) {
	for j, v := range r.votes {
		if v.renewed < r.b.quorum {
			continue
		}
		for _, i := range v.lost {
			r.b.nodes[i].running.Go(func() { r.claims[j].repair(ctx, i) })
		}
	}
}

// repair sets the lock again at a node that has lost it, if nobody else has it there.
func (c *claim) repair(ctx context.Context, i int) {
	p := &c.places[i]
	p.busy.Lock()
	defer p.busy.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != holding {
		return
	}
	names, token, ttl := c.names, c.token, c.request.TTL
	var ours, late bool
	err := c.do(ctx, i, func(ctx context.Context, n *node) (err error) {
		ours, late, err = n.confirm(ctx, names, token, ttl)
		return err
	})
	p.late = p.late || late
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
	if c.phase == over {
		return c.names.member
	}
	return c.names.value
}

func isLost(err error) bool { return errors.Is(err, locker.ErrLost) }
