package etcdlock

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// keep gives the lock back, but keeps it from others for a while. It puts the key under an etcd lease of its own, which
// nobody keeps alive: so it stays if this Locker ends. If it does not, it deletes the key as soon as the time is over,
// and need not wait until etcd has noticed: see sweep. It does that, too, if the key could not be put there.
//
// What was kept is marked, as if it had been revoked, and has no owner: it can be broken, and nothing else.
func (c *claim) keep(ctx context.Context, d time.Duration) error {
	s, b := c.session, c.session.b
	until := time.Now().Add(d)
	b.mu.Lock()
	c.keeping = true
	s.expireLocked(c, until)
	b.mu.Unlock()
	ctx, cancel := b.requestOf(ctx)
	defer cancel()
	if c.keeper == 0 { // or else the attempt before got that far
		lease, err := b.grantLease(ctx, d, s.ttl)
		if err != nil {
			return b.failure(err)
		}
		c.keeper = clientv3.LeaseID(lease.ID)
	}
	op := c.keepOp()
	var sent atomic.Int32
	// Not among the steps of the session: that this lease has ended must not be taken for the end of the session's.
	resp, err := writing(ctx, b, s.ttl, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
		sent.Add(1)
		if c.doubtful() { // as in delete
			return s.fence.raise(ctx, l.kv, op)
		}
		return s.fence.commit(ctx, l.kv, []clientv3.Op{op})
	})
	if err != nil {
		err = b.failure(err)
		if errors.Is(err, ErrLeaseExpired) {
			c.keeper = 0
		}
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.disownLocked()
	kept := resp.Responses[0].GetResponseTxn()
	switch {
	case kept.Succeeded, kept.Responses[0].GetResponseTxn().Succeeded:
	case sent.Load() > 1, c.drops > 0: // or else we may have done it before, or the time is over
	default:
		return locker.ErrLost
	}
	return nil
}

// keepOp hands the claim on to nobody; or deletes it, if it was revoked. It does nothing if that was done before.
func (c *claim) keepOp() clientv3.Op {
	unmarked := clientv3.Compare(clientv3.Value(c.key), "=", c.value())
	mark := marked(&mvccpb.KeyValue{Value: []byte(c.plainValue())}, &locker.Revocation{})
	put := clientv3.OpPut(c.key, hands{holder: c.request.Holder}.around(mark), clientv3.WithLease(c.keeper))
	free := clientv3.OpTxn(append(c.isOurs(), c.isStill()), []clientv3.Op{clientv3.OpDelete(c.key)}, nil)
	return clientv3.OpTxn([]clientv3.Cmp{c.isStill(), unmarked}, []clientv3.Op{put}, []clientv3.Op{free})
}
