package memlock

import (
	"context"
	"time"

	"github.com/lockerkit/locker"
)

// Adopt implements locker.Adopter.
func (b backend) Adopt(_ context.Context, r locker.Request, from locker.Grant) (locker.Grant, error) {
	if b.link.severed.Load() {
		return locker.Grant{}, errCut
	}
	name := r.Name()
	s := b.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	e := s.lookup(name, now)
	if e == nil {
		return locker.Grant{}, locker.ErrNotHeld
	}
	h := e.holder(r.Owner)
	if h == nil {
		h = e.holder(from.Owner)
	}
	if h == nil || h.revoked != nil {
		return locker.Grant{}, locker.ErrNotHeld
	}
	h.grant.Request, h.grant.Sent, h.expires = r, now, now.Add(r.TTL)
	s.watch(name, e, now)
	return h.grant, nil
}
