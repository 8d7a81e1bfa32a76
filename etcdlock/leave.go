package etcdlock

import (
	"context"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// closeLocked returns what ends a session when its Locker is closed. Its etcd lease is given back, and all that is
// attached to it goes. Leases that were detached have to stay until they end: they are put under another one first.
func (s *session) closeLocked(ctx context.Context) func() {
	var detached []*claim
	now, last := time.Now(), time.Time{}
	for c := range s.claims {
		if (c.detached || c.keeping && !c.gone) && !c.expired && now.Before(c.expires) {
			detached = append(detached, c)
			if c.expires.After(last) {
				last = c.expires
			}
		}
	}
	if len(detached) == 0 {
		s.endLocked(errClosed)
		return func() { _ = s.b.revokeOnce(ctx, s) } // if that fails, the lease ends without keep-alives
	}
	return func() {
		err := s.leave(ctx, detached, last)
		s.end(errClosed)
		if err == nil {
			_ = s.b.revokeOnce(ctx, s)
		}
	}
}

// leave puts claims under an etcd lease that ends by itself, not before the given time.
func (s *session) leave(ctx context.Context, claims []*claim, until time.Time) error {
	if _, err := s.settledPulse(ctx); err != nil { // nothing else puts them under a lease now
		return err
	}
	b := s.b
	lease, err := b.grantLease(ctx, max(time.Until(until), 1), s.ttl)
	if err != nil {
		return err
	}
	const atOnce = 64 // is far fewer than a transaction may have
	for some := range slices.Chunk(claims, atOnce) {
		var ops []clientv3.Op
		for _, c := range some {
			ops = append(ops, c.moveOp(clientv3.LeaseID(lease.ID)))
		}
		_, err := writing(ctx, b, s.ttl, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
			return s.fence.raise(ctx, l.kv, ops...)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
