package etcdlock

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Moving. A leader that stands still for longer than two thirds of a TTL is replaced. If it goes on, leases that others
// have kept alive since are over by its clock, and until it has heard of the new leader, for some milliseconds, it may
// have them revoked: those requests are forwarded to the new leader, and carried out (etcd checks against that since
// 3.5.13, but not if its raft clock has just ticked, as it has when a process is continued:
// https://github.com/etcd-io/etcd/pull/16822, https://github.com/etcd-io/etcd/issues/12528). So when an answer shows a
// raft term that is later than when the lease was granted, the session takes a new lease, of which no earlier leader
// has heard, and puts all its keys again under that. Their create revisions stay, and with them the places in line and
// the tokens. Until that is done, no keep-alive counts.

// saw takes note of the raft term of an answer.
func (s *session) saw(term uint64) {
	if term <= s.seen.Load() { // as nearly always
		return
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s.seen.Store(max(term, s.seen.Load()))
	if s.moving != nil || s.isOver() || b.closed {
		return
	}
	s.moving = make(chan struct{})
	b.running.start(s.move)
}

// settledPulse returns the pulse of the lease, when all keys are attached to it.
func (s *session) settledPulse(ctx context.Context) (*pulse, error) {
	for {
		s.b.mu.Lock()
		p, moving := s.pulse, s.moving
		s.b.mu.Unlock()
		if moving == nil {
			return p, nil
		}
		select {
		case <-moving:
		case <-s.over:
			return nil, ErrLeaseExpired
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isSettledAt reports whether all keys are attached to the lease of a pulse, which was granted in that raft term.
func (s *session) isSettledAt(p *pulse, term uint64) bool {
	s.saw(term)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.pulse == p && s.moving == nil
}

// move moves the keys, until there is nobody to move them for, or no later raft term.
func (s *session) move() {
	b := s.b
	for {
		term := s.seen.Load()
		err := s.moveOnce()
		if errors.Is(err, ErrNoSpace) { // which to move takes: better stay where the risk is
			s.stay()
			err = nil
		}
		b.mu.Lock()
		if s.isOver() || b.closed || err == nil && s.seen.Load() == term {
			close(s.moving)
			s.moving = nil
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		if err == nil {
			continue
		}
		select {
		case <-time.After(jittered(min(s.renewalInterval()/10, 500*time.Millisecond))):
		case <-s.over:
		case <-b.life.Done():
		}
	}
}

// moveOnce puts all keys of the session under a new lease. If it fails, some of them may be.
func (s *session) moveOnce() error {
	b := s.b
	lease, err := b.grantLease(b.life, s.ttl, s.ttl)
	if err != nil {
		return err
	}
	s.saw(lease.GetHeader().GetRaftTerm())
	b.mu.Lock()
	s.generation++ // the key of a claim that was handed on stays, and is forgotten here
	s.former = append(s.former, s.lease)
	s.lease = clientv3.LeaseID(lease.ID)
	s.pulse.close()
	s.pulse = b.pulseOf(s.lease, s.ttl)
	claims := make([]*claim, 0, len(s.claims))
	for c := range s.claims {
		claims = append(claims, c)
	}
	end := s.confirmed.Add(s.ttl)
	b.mu.Unlock()
	ctx, cancel := context.WithDeadline(b.life, end)
	defer cancel()
	// What was sent before this is refused: it could attach keys to a former lease.
	if _, err := writing(ctx, b, s.ttl, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
		return s.fence.raise(ctx, l.kv)
	}); err != nil {
		return b.failure(err)
	}
	steps := make([]*step, 0, len(claims))
	for _, c := range claims {
		select {
		case <-c.put.done:
		case <-s.over:
			return ErrLeaseExpired
		case <-ctx.Done():
			return ctx.Err()
		}
		step := newStep(s.ttl, 4*len(c.key), c.moveOp(clientv3.LeaseID(lease.ID)))
		step.over = s.over
		steps = append(steps, step)
	}
	s.steps.submit(steps...)
	for i, step := range steps {
		switch err := s.steps.await(ctx, step); {
		case errors.Is(err, ErrLeaseExpired): // the new one
			s.end(ErrLeaseExpired)
			return err
		case err != nil:
			return err
		case !step.parts[0].GetResponseTxn().Succeeded && claims[i].isMade():
			claims[i].lose(errDeleted)
		}
	}
	b.mu.Lock()
	s.former = nil
	b.mu.Unlock()
	s.confirm(lease.sent)
	return nil
}

// moveOp puts the claim under a lease, if it is there, and was not handed on.
func (c *claim) moveOp(lease clientv3.LeaseID) clientv3.Op {
	again := clientv3.OpPut(c.key, "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease))
	return clientv3.OpTxn(c.isOurs(), []clientv3.Op{again}, nil)
}

// stay goes back to the first of the leases that keys may be attached to. Nothing has been attached to others.
func (s *session) stay() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if len(s.former) > 0 {
		s.lease, s.former = s.former[0], nil
		s.pulse.close()
		s.pulse = s.b.pulseOf(s.lease, s.ttl)
	}
}

// isMade reports whether the request that makes the claim is known to have succeeded. put is done.
func (c *claim) isMade() bool { return c.put.err == nil && !c.doubtful() }
