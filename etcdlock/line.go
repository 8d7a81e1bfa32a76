package etcdlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Wait implements locker.Queue. The claim joins the line in the same transaction that sees whether it is the first;
// that costs the servers one entry of their log, also if the lock was free.
func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := check(r); err != nil {
		return locker.Grant{}, err
	}
	if r.Mode == locker.ModeSlots { // while one is free, that takes an entry less than to stand in line for it
		g, err := b.attempt(ctx, r)
		var held *locker.Held
		switch {
		case errors.As(err, &held):
			r.ReportHolder(held.Holder)
		case !errors.Is(err, errOvertaken):
			return g, err
		}
	}
	return b.onSession(ctx, r, b.stand)
}

// stand joins the line and waits for the turn. The lock is the claim's when no older one is left; each waiter therefore
// watches only the one before it (https://etcd.io/docs/v3.6/dev-guide/api_concurrency_reference_v3/).
func (b *backend) stand(ctx context.Context, s *session, r locker.Request) (locker.Grant, error) {
	c := s.newClaim(r, func(c *claim) *step {
		join := c.putOp(r.Holder)
		if c.isForSlot() {
			join = c.newOp("") // it may have taken a number when the request arrives twice
		}
		step := newStep(s.ttl, 4*len(c.key)+len(r.Holder), join,
			rivalsOf(c.line, r.Mode).get(clientv3.WithCountOnly()))
		step.line = c.line
		return step
	})
	parts, err := c.made(ctx)
	if err != nil {
		return locker.Grant{}, err
	}
	others := parts[1].GetResponseRange().Count
	if r.Mode == locker.ModeExclusive {
		others-- // this one
	}
	if others > 0 {
		r.ReportHolder("") // by whom is seen at the first look
	}
	w := &waiter{backend: b, claim: c}
	if !c.put.repeated { // or else it may have been made by an earlier request
		w.revision = c.put.revision
		b.enlist(c, w.revision)
		if others == 0 && !c.isForSlot() {
			return c.hold(ctx, w.revision, 0, w.revision)
		}
	}
	defer w.unwatch()
	return w.wait(ctx)
}

// waiter is a claim that waits for its turn.
type waiter struct {
	backend  *backend
	claim    *claim
	revision int64           // at which the claim was created; 0 until it is known
	events   chan watchEvent // of the watch; has room for one to look after, and the last one
	before   target          // what it waits for, which is watched
	watch    *watch

	overtaken bool // when it was about to take a slot
}

// wait waits until no claim is before this one that keeps it from having the lock.
func (w *waiter) wait(ctx context.Context) (locker.Grant, error) {
	c, s := w.claim, w.claim.session
	// Later, it fires in case a deletion was not told. That costs time, and nothing else.
	poll := time.NewTimer(0) // it is not known yet which to watch
	defer poll.Stop()
	for looks := 0; ; looks++ {
		var event watchEvent
		ticked := false
		select {
		case event = <-w.events:
		case <-c.turn:
		case <-poll.C:
			ticked = looks > 0 // or else it has just been made
		case <-s.over:
			return locker.Grant{}, locker.NotAcquired(s.cause) // and the claim is gone
		case <-ctx.Done():
			if before, _ := w.backend.ownBefore(c); before != nil {
				c.request.ReportHolder(w.backend.holderOf(c))
			}
			return locker.Grant{}, ctx.Err() // not its cause, which may be anything: Release has to follow
		}
		if event == watchBroken {
			w.unwatch()
			poll.Reset(jittered(min(s.renewalInterval()/10, 500*time.Millisecond))) // the server may be gone
			continue
		}
		var l view
		var err error
		before, holds := w.backend.ownBefore(c)
		if holds && c.request.Mode != locker.ModeExclusive {
			before = nil // of whom it need not wait for the end
		}
		switch {
		case before == nil, event == watchChanged:
			before = nil
			l, err = w.look(ctx)
		case ticked:
			l.there, err = w.find(ctx)
		default:
			l.there = true
		}
		switch {
		case err != nil && isFinal(err):
			return locker.Grant{}, err
		case err != nil: // as long as the lease lives, the place in the line is kept
			if ctx.Err() == nil && !s.isOver() { // or else it does not go on
				w.claim.request.ReportRetry(err)
			}
			poll.Reset(jittered(min(s.renewalInterval()/5, 2*time.Second)))
			continue
		case !l.there:
			w.claim.dismiss() // somebody has deleted it: the next Wait goes to the end of the line
			return locker.Grant{}, locker.NotAcquired(errDeleted)
		case before != nil:
			if holds {
				w.watchOnly(deletionOf(before.key))
			}
			poll.Reset(jittered(s.ttl))
			continue
		case l.before == target{}:
			return w.claim.hold(ctx, w.revision, l.number, l.seen)
		}
		w.claim.request.ReportHolder(l.holder)
		w.backend.sawHolder(c, l.holder)
		w.watchOnly(l.before)
		poll.Reset(jittered(s.ttl))
	}
}

// isFinal reports whether a waiter cannot go on after err.
func isFinal(err error) bool {
	return errors.Is(err, locker.ErrDenied) || errors.Is(err, locker.ErrUnfit) || errors.Is(err, locker.ErrClosed)
}

// watchOnly watches what it waits for, from now on. It then has to look again: that is what watchReady calls for.
func (w *waiter) watchOnly(before target) {
	if w.watch != nil && w.before == before {
		return
	}
	w.unwatch()
	events := make(chan watchEvent, 2)
	w.events, w.before = events, before
	w.watch = w.backend.watches.add(before, 0, func(e watchEvent, _ []*mvccpb.Event) {
		if e == watchBroken || len(events) == 0 { // or else it is going to look anyhow
			events <- e
		}
	})
}

func (w *waiter) unwatch() {
	w.backend.watches.remove(w.watch)
	w.watch = nil
}

// view is what the line looks like to a waiter.
type view struct {
	there  bool   // its own claim is in it
	before target // what it has to wait for, if there is something
	number int    // of the slot that it has got, if it has to wait for nothing and wants one
	holder string // the name of who holds the lock

	revision int64 // of the store
	seen     int64 // the same, or 0 if its own claim is marked as taken away: it has just got the lock
}

func (w *waiter) look(ctx context.Context) (view, error) {
	c := w.claim
	if w.revision == 0 {
		if there, err := w.find(ctx); err != nil || !there {
			return view{}, err
		}
	}
	older := rivalsOf(c.line, c.request.Mode).get(clientv3.WithMaxCreateRev(w.revision-1), clientv3.WithLimit(1),
		clientv3.WithKeysOnly(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	ops := []clientv3.Op{clientv3.OpGet(c.key), older, firstOp(c.line, locker.ModeExclusive)}
	if c.isForSlot() {
		ops = append(ops, firstSlotsOp(c.line, c.request.Slots), w.slotsBeforeOp())
	}
	step := newStep(c.session.ttl, 5*len(c.line), ops...)
	step.over = c.session.over
	if err := w.backend.reads.do(ctx, step); err != nil {
		return view{}, w.backend.failure(err)
	}
	v := view{revision: step.revision}
	own := step.parts[0].GetResponseRange().Kvs
	if v.there = w.sees(own); v.there {
		if mark, _ := markIn(own[0]); mark == nil {
			v.seen = v.revision
		}
	}
	if older := step.parts[1].GetResponseRange().Kvs; len(older) > 0 {
		v.before = deletionOf(string(older[0].Key))
	}
	if first := step.parts[2].GetResponseRange().Kvs; len(first) > 0 {
		v.holder = holderIn(first[0])
	}
	if c.isForSlot() && v.there && v.before == (target{}) {
		return w.lookAtSlots(ctx, v, step.parts[3].GetResponseRange().Kvs, step.parts[4].GetResponseRange().Kvs)
	}
	return v, nil
}

// find looks whether the claim is there, and when it was made.
func (w *waiter) find(ctx context.Context) (there bool, err error) {
	c := w.claim
	step := newStep(c.session.ttl, len(c.key), clientv3.OpGet(c.key, clientv3.WithKeysOnly()))
	step.over = c.session.over
	if err := w.backend.reads.do(ctx, step); err != nil {
		return false, w.backend.failure(err)
	}
	return w.sees(step.parts[0].GetResponseRange().Kvs), nil
}

// sees takes note of what is at the key of the claim, and reports whether that is the claim. If it is not of the same
// revision as before, it was deleted, and made anew by a request that came late: its place is the last one then.
func (w *waiter) sees(own []*mvccpb.KeyValue) bool {
	if len(own) == 0 {
		return false
	}
	if w.revision == 0 {
		w.revision = own[0].CreateRevision
		w.backend.enlist(w.claim, w.revision)
	}
	return own[0].CreateRevision == w.revision
}

// jittered returns a duration of d less up to half of it.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/2+1) }
