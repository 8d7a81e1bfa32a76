package etcdlock

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// claim is a key in etcd by which a lock is held, or waited for. It is deleted as long as there is a doubt that it may
// exist.
type claim struct {
	request locker.Request // with the TTL that was granted
	line    string         // of all claims to the lock, see Key
	place   string         // in it: what the keys of claims begin with that are like this one
	ordinal uint64         // among them
	key     string
	adopted bool // the key was made by another Locker, or by an earlier owner
	session *session
	put     *step         // the request that makes it
	turn    chan struct{} // has room for one: there is news of the claim of this Locker before it

	// What follows is guarded by backend.mu.
	gone     bool               // nobody has it any more: its owner may make another
	over     bool               // and there is nothing left of it
	drops    int                // how often its deletion was begun
	lost     error              // why, if it was lost
	revoked  *locker.Revocation // why it is not renewed any more, though it may still be there; nil if it is
	token    int64              // once the lock is held
	number   int                // of the slot, if it is one that is held
	created  int64              // the revision at which it was made, once it is in backend.lines
	expires  time.Time          // when it is deleted unless renewed; zero as long as it waits
	expired  bool               // that has passed: it cannot be renewed any more
	detached bool               // nobody renews it, and another Locker may adopt it
	keeping  bool               // its owner is done, and the key is to stay until it expires
	keeper   clientv3.LeaseID   // the etcd lease for that; 0 until there is one
	watched  bool               // what is done with its key would be told
	watch    *watch
}

// newClaim returns a claim of r that is in the tables, or nil if the session is over. put makes the step by which the
// claim will be made.
func (s *session) newClaim(r locker.Request, put func(*claim) *step) *claim {
	return s.enter(&claim{request: r}, put)
}

// enter is newClaim for one that may have a key already.
func (s *session) enter(c *claim, put func(*claim) *step) *claim {
	r := c.request
	c.line, c.session, c.turn = Key(r.Name()), s, make(chan struct{}, 1)
	c.place = placeOf(c.line, r.Mode)
	c.request.TTL = s.ttl
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.isOver() {
		return nil
	}
	if !c.adopted {
		c.ordinal = s.takeOrdinalLocked(c.place)
		c.key = claimKey(c.place, s.id, s.generation, c.ordinal)
		if c.isForSlot() {
			c.key += slotSuffix(r)
		}
	}
	c.put = put(c)
	s.b.claims[r.Owner] = c
	s.claims[c] = struct{}{}
	return c
}

// ordinals are those of the claims in one place.
type ordinals struct {
	free []uint64 // below next, and not in use
	next uint64
}

func (s *session) takeOrdinalLocked(place string) uint64 {
	o := s.ordinals[place]
	if o == nil {
		o = new(ordinals)
		s.ordinals[place] = o
	}
	if n := len(o.free); n > 0 {
		ordinal := o.free[n-1]
		o.free = o.free[:n-1]
		return ordinal
	}
	o.next++
	return o.next - 1
}

func (s *session) freeOrdinalLocked(c *claim) {
	o := s.ordinals[c.place]
	if o.free = append(o.free, c.ordinal); len(o.free) == int(o.next) {
		delete(s.ordinals, c.place)
	}
}

func (c *claim) isForSlot() bool { return c.request.Mode == locker.ModeSlots }

func (b *backend) claim(o locker.Owner) *claim {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.claims[o]
}

// putOp returns the operation that makes the claim. backend.mu is held.
func (c *claim) putOp(value string) clientv3.Op {
	return clientv3.OpPut(c.key, value, clientv3.WithLease(c.session.lease))
}

// newOp is putOp, unless the claim has been made: what its value says by then, a number or a mark, stays.
func (c *claim) newOp(value string) clientv3.Op { return unlessMade(c.putOp(value)) }

// unlessMade is an operation that puts a key only if it is not there.
func unlessMade(put clientv3.Op) clientv3.Op {
	isNew := span{from: string(put.KeyBytes())}.isEmpty()
	return clientv3.OpTxn([]clientv3.Cmp{isNew}, []clientv3.Op{put}, nil)
}

// hold makes c the holder of the lock, or of the slot with that number. The validity of the grant counts from the last
// keep-alive, which is at most a third of the TTL ago; where that would not do, it sends another. seen is as
// for watchSoonLocked.
func (c *claim) hold(ctx context.Context, token int64, number int, seen int64) (locker.Grant, error) {
	s, b := c.session, c.session.b
	b.mu.Lock()
	if !c.gone && (c.request.NoRenew || s.overdueLocked()) {
		b.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, b.bound(s.ttl))
		_ = s.keepAliveOnce(ctx) // if it fails, there is less time
		cancel()
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	switch {
	case c.gone && c.lost != nil:
		return locker.Grant{}, locker.NotAcquired(c.lost)
	case c.gone || c.expired:
		return locker.Grant{}, ErrLeaseExpired
	}
	c.token, c.number = token, number
	b.enlistLocked(c, token)
	b.tellNextLocked(c)
	s.expireLocked(c, expiry(s.confirmed, s.ttl))
	b.watchSoonLocked(c, seen)
	return c.grant(s.confirmed), nil
}

// lossLocked returns ErrLost with its reason, or nil if the claim holds the lock, and can be renewed.
func (c *claim) lossLocked() error {
	switch {
	case c.revoked != nil:
		return fmt.Errorf("%w: %w", locker.ErrLost, c.revoked)
	case c.token != 0 && !c.expired && !c.gone:
		return nil
	case c.lost != nil:
		return fmt.Errorf("%w: %w", locker.ErrLost, c.lost)
	}
	return locker.ErrLost // let go
}

func (c *claim) grant(sent time.Time) locker.Grant {
	return locker.Grant{Request: c.request, Token: uint64(c.token), Slot: c.number, Sent: sent, Private: c}
}

// expiry is when a claim is deleted that was last renewed at the given time: when its holder has stopped trusting it,
// see locker.Grant, and was told. The lease lives on for other claims, and for those that come.
func expiry(sent time.Time, ttl time.Duration) time.Time { return sent.Add(ttl) }

// seenAtPut is the revision at which the claim was made, or 0 if the request was repeated: it may have been marked
// since.
func (c *claim) seenAtPut() int64 {
	if c.put.repeated {
		return 0
	}
	return c.put.revision
}

// doubtful reports whether the request that makes the claim may arrive yet. put is done.
func (c *claim) doubtful() bool {
	return c.put.doubtful.Load() || c.put.err != nil && !c.put.certain && !errors.Is(c.put.err, ErrNoSpace)
}

// disownLocked takes the claim away from its owner.
func (c *claim) disownLocked() {
	if c.gone {
		return
	}
	c.gone = true
	b := c.session.b
	delete(b.claims, c.request.Owner)
	b.delistLocked(c)
	b.watches.remove(c.watch)
}

// forgetLocked forgets a claim that is not there any more. settled is whether no request about its key can arrive any
// more: one that deletes it, say. Otherwise all claims that are made from now on have other keys than those before.
func (c *claim) forgetLocked(settled bool) {
	c.disownLocked()
	if c.over {
		return
	}
	c.over = true
	s := c.session
	if !settled {
		s.generation++
	}
	if !c.adopted {
		s.freeOrdinalLocked(c)
	}
	delete(s.claims, c)
	s.used = time.Now()
}

func (c *claim) forget(settled bool) {
	c.session.b.mu.Lock()
	defer c.session.b.mu.Unlock()
	c.forgetLocked(settled)
}

// goneLocked notes that the claim is not there any more, and reports whether its owner, who had the lock, is to be
// told.
func (c *claim) goneLocked(why error) bool {
	if c.gone {
		return false
	}
	c.lost = why
	c.dismissLocked()
	return c.token != 0
}

// lose is for a claim that was seen to be deleted, by somebody else unless that is what is being done with it.
func (c *claim) lose(why error) {
	c.session.b.mu.Lock()
	defer c.session.b.mu.Unlock()
	if c.drops == 0 && c.goneLocked(why) {
		c.request.ReportLost(why)
	}
}

func (c *claim) dismiss() {
	c.session.b.mu.Lock()
	defer c.session.b.mu.Unlock()
	c.dismissLocked()
}

// dismissLocked is for a claim that is not there as far as we know. If the request that makes it was sent more than
// once, one may have made it anew since, or may yet arrive. Then it is deleted all the same, and in the latter case the
// fence is raised. Its put is done, or its session over.
func (c *claim) dismissLocked() {
	if s := c.session; !s.isOver() && (c.put.repeated || c.doubtful()) {
		c.disownLocked()
		s.expireLocked(c, time.Now())
		return
	}
	c.forgetLocked(c.drops == 0)
}

// drop deletes the key, whatever is known about it, and then forgets the claim. It returns ErrLost if the key was not
// there.
func (c *claim) drop(ctx context.Context) error {
	s := c.session
	select {
	case <-c.put.done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %s", ErrNoAnswer, "the request for the lock is still under way")
	}
	if c.put.err != nil && c.put.certain {
		c.forget(true)
		return locker.ErrLost
	}
	b := s.b
	b.mu.Lock()
	if c.over { // since the caller has looked, and the key may be another claim's by now
		b.mu.Unlock()
		return locker.ErrLost
	}
	c.drops++
	op := c.deleteOpLocked()
	b.mu.Unlock()
	deleted, once, err := c.delete(ctx, op)
	switch {
	case errors.Is(err, ErrLeaseExpired):
		s.end(ErrLeaseExpired)
		return fmt.Errorf("%w: %w", locker.ErrLost, ErrLeaseExpired)
	case errors.Is(err, ErrNoSpace): // to raise the fence
		return c.dropUnfenced(ctx, op)
	case err != nil:
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// What was not deleted on a condition may be there, and another owner's.
	c.forgetLocked(once && c.drops == 1 && (deleted || op.IsDelete()))
	if !deleted && c.drops == 1 { // or else we may have deleted it before
		return locker.ErrLost
	}
	return nil
}

// dropUnfenced deletes the key without raising the fence, which takes space. That is left to the sweep, which tries
// until there is some again; the lease is not given up for that.
func (c *claim) dropUnfenced(ctx context.Context, op clientv3.Op) error {
	s, b := c.session, c.session.b
	step := newStep(s.ttl, len(c.key), op)
	if err := s.steps.do(ctx, step); err != nil {
		return b.failure(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.disownLocked()
	if !c.over {
		s.expireLocked(c, time.Now().Add(s.renewalInterval()))
	}
	if !hasDeleted(step.parts[0]) && c.drops == 1 {
		return locker.ErrLost
	}
	return nil
}

// delete deletes the key. It is among the steps of the session, except after a doubtful put: then it raises the fence.
// deleted is false if the key was not there before, with certainty; once is true if no request that deletes it can
// arrive any more.
func (c *claim) delete(ctx context.Context, op clientv3.Op) (deleted, once bool, err error) {
	s := c.session
	if !c.doubtful() {
		step := newStep(s.ttl, len(c.key), op)
		if err := s.steps.do(ctx, step); err != nil {
			return false, false, s.b.failure(err)
		}
		return hasDeleted(step.parts[0]) || step.repeated, !step.repeated, nil
	}
	ctx, cancel := s.b.requestOf(ctx)
	defer cancel()
	var sent atomic.Int32
	resp, err := writing(ctx, s.b, s.ttl, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
		sent.Add(1)
		return s.fence.raise(ctx, l.kv, op)
	})
	if err != nil {
		return false, false, s.b.failure(err)
	}
	return hasDeleted(resp.Responses[0]) || sent.Load() > 1, false, nil
}

// hasDeleted reports whether an operation of claim.deleteOpLocked has deleted the key.
func hasDeleted(part *pb.ResponseOp) bool {
	if txn := part.GetResponseTxn(); txn != nil {
		return txn.Succeeded && txn.Responses[0].GetResponseDeleteRange().Deleted > 0
	}
	return part.GetResponseDeleteRange().Deleted > 0
}

// expireLocked has the claim deleted at the given time, unless that is put off by another call.
func (s *session) expireLocked(c *claim, at time.Time) {
	c.expires = at
	if s.sweepAt.IsZero() || at.Before(s.sweepAt) {
		s.sweepAt = at
		if s.sweeper == nil {
			s.sweeper = time.AfterFunc(time.Until(at), s.sweep)
		} else {
			s.sweeper.Reset(time.Until(at))
		}
	}
}

// overdueCause is why a claim that is held has expired.
func (c *claim) overdueCause() error {
	if c.request.NoRenew {
		return errNoRenew
	}
	return errOverdue
}

// sweep deletes the claims whose time is over: those of leases that are not renewed, or were abandoned, and what an
// acquire has left that failed. If it has not succeeded a TTL later, the lease is given up, and with it all that is
// attached to it: who holds the other locks is told, and they are not left in doubt, nor is anybody locked out for
// good.
func (s *session) sweep() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || s.isOver() {
		return
	}
	now := time.Now()
	next := time.Time{}
	for c := range s.claims {
		at := c.expires
		switch {
		case at.IsZero():
			continue
		case now.Sub(at) > s.ttl:
			s.endLocked(errGivenUp)
			b.running.start(func() { b.revoke(s) })
			return
		case !now.Before(at):
			at = now.Add(min(s.renewalInterval()/2, 5*time.Second)) // for the next attempt
			c.expired = true
			if c.token != 0 && !c.gone {
				c.request.ReportLost(c.overdueCause()) // mostly it knows: but nobody else may get the lock before that
			}
			b.running.start(func() {
				ctx, cancel := context.WithTimeout(b.life, b.bound(s.ttl))
				defer cancel()
				_ = c.drop(ctx)
			})
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	s.sweepAt = next
	if !next.IsZero() {
		s.sweeper.Reset(time.Until(next))
	}
}
