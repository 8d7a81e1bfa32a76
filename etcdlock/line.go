package etcdlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Wait implements locker.Queue. The claim joins the line in the same transaction that sees whether it is the first; that costs the servers
// one entry of their log, also if the lock was free.
func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := check(r); err != nil {
		return locker.Grant{}, err
	}
	return b.onSession(ctx, r, b.stand)
}

// stand joins the line and waits for the turn. The lock is the claim's when no older one is left; each waiter therefore
// watches only the one before it (https://etcd.io/docs/v3.6/dev-guide/api_concurrency_reference_v3/).
func (b *backend) stand(ctx context.Context, s *session, r locker.Request) (locker.Grant, error) {
	c := s.newClaim(r, func(c *claim) *step {
		step := newStep(s.ttl, 4*len(c.key)+len(r.Holder), c.putOp(),
			clientv3.OpGet(c.line, clientv3.WithRange(afterLine(c.line)), clientv3.WithCountOnly()))
		step.line = c.line
		return step
	})
	if c == nil {
		return locker.Grant{}, errOver
	}
	if err := c.made(ctx); err != nil {
		return locker.Grant{}, err
	}
	claims := c.put.takeParts()[1].GetResponseRange().Count // with this one
	if claims > 1 {
		r.ReportHolder("") // by whom is seen at the first look
	}
	w := &waiter{backend: b, claim: c}
	if !c.put.repeated { // or else it may have been made by an earlier request
		w.revision = c.put.revision
		if claims == 1 {
			return c.hold(ctx, w.revision)
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
	events   chan watchEvent // of the watch; has room for all of them
	before   string          // the claim before, which is watched
	watch    *watch
}

// wait waits until no claim is before this one.
func (w *waiter) wait(ctx context.Context) (locker.Grant, error) {
	s := w.claim.session
	// Later, it fires in case a deletion was not told. That costs time, and nothing else.
	poll := time.NewTimer(0) // it is not known yet which to watch
	defer poll.Stop()
	for {
		var event watchEvent
		select {
		case event = <-w.events:
		case <-poll.C:
		case <-s.over:
			return locker.Grant{}, locker.NotAcquired(s.cause) // and the claim is gone
		case <-ctx.Done():
			return locker.Grant{}, ctx.Err() // not its cause, which may be anything: Release has to follow
		}
		if event == watchBroken {
			w.unwatch()
			poll.Reset(jittered(min(s.renewalInterval()/10, 500*time.Millisecond))) // the server may be gone
			continue
		}
		l, err := w.look(ctx)
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
		case l.before == "":
			return w.claim.hold(ctx, w.revision)
		}
		w.claim.request.ReportHolder(l.holder)
		w.watchOnly(l.before)
		poll.Reset(jittered(s.ttl))
	}
}

// isFinal reports whether a waiter cannot go on after err.
func isFinal(err error) bool {
	return errors.Is(err, locker.ErrDenied) || errors.Is(err, locker.ErrUnfit) || errors.Is(err, locker.ErrClosed)
}

// watchOnly watches the claim before, from now on. It then has to be looked at again: that is what watchReady calls for.
func (w *waiter) watchOnly(before string) {
	if w.watch != nil && w.before == before {
		return
	}
	w.unwatch()
	w.events = make(chan watchEvent, 3)
	events := w.events
	w.before = before
	w.watch = w.backend.watches.add(before, 0, func(e watchEvent) { events <- e })
}

func (w *waiter) unwatch() {
	w.backend.watches.remove(w.watch)
	w.watch = nil
}

// view is what the line looks like to a waiter.
type view struct {
	there  bool   // its own claim is in it
	before string // the claim before; "" if there is none
	holder string // the name of who holds the lock
}

func (w *waiter) look(ctx context.Context) (view, error) {
	c := w.claim
	if w.revision == 0 {
		step := newStep(c.session.ttl, len(c.key), clientv3.OpGet(c.key, clientv3.WithKeysOnly()))
		step.over = c.session.over
		if err := w.backend.reads.do(ctx, step); err != nil {
			return view{}, w.backend.failure(err)
		}
		own := step.parts[0].GetResponseRange().Kvs
		if len(own) == 0 {
			return view{}, nil
		}
		w.revision = own[0].CreateRevision
	}
	step := newStep(c.session.ttl, 4*len(c.line),
		clientv3.OpGet(c.line, clientv3.WithRange(afterLine(c.line)), clientv3.WithMaxCreateRev(w.revision),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend), clientv3.WithLimit(2), clientv3.WithKeysOnly()),
		firstOp(c.line))
	step.over = c.session.over
	if err := w.backend.reads.do(ctx, step); err != nil {
		return view{}, w.backend.failure(err)
	}
	var v view
	for _, kv := range step.parts[0].GetResponseRange().Kvs {
		if string(kv.Key) == c.key {
			v.there = true
		} else if v.before == "" {
			v.before = string(kv.Key)
		}
	}
	if first := step.parts[1].GetResponseRange().Kvs; len(first) > 0 {
		v.holder = string(first[0].Value)
	}
	return v, nil
}

// jittered returns a duration of d less up to half of it.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/2+1) }
