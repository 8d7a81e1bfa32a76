package memlock

import (
	"context"
	"time"

	"github.com/lockerkit/locker"
)

// Revoke implements locker.Revoker. The holders have been told when it returns.
func (b backend) Revoke(_ context.Context, name string, r *locker.Revocation) error {
	return b.takeAway(name, r, func(*shard, *entry) {})
}

// Break implements locker.Revoker. The holders have been told before anybody else gets the lock.
func (b backend) Break(_ context.Context, name string, r *locker.Revocation, _ bool) error {
	return b.takeAway(name, r, func(s *shard, e *entry) {
		e.holders = e.holders[:0]
		s.serve(name, e, time.Now()) // whose token is greater, as is each that is minted
	})
}

// takeAway tells the holders that they have lost a lock, and then does the rest.
func (b backend) takeAway(name string, r *locker.Revocation, then func(*shard, *entry)) error {
	if b.link.severed.Load() {
		return ErrCut
	}
	s := b.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(name, time.Now())
	if e == nil {
		return locker.ErrNotHeld
	}
	var lost []locker.Request
	for i := range e.holders {
		h := &e.holders[i]
		if h.revoked == nil {
			h.revoked = r
			lost = append(lost, h.grant.Request)
		}
	}
	if len(lost) == 0 && !r.Broken {
		return locker.ErrNotHeld
	}
	locker.ReportLost(lost, r)
	then(s, e)
	return nil
}
