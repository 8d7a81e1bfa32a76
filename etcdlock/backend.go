package etcdlock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// backend is a locker.Backend with all that it can be beside that.
type backend struct {
	config      Config
	client      *clientv3.Client
	endpoints   *endpoints
	closeClient func() error // nil if the client is the caller's

	life    context.Context // of all requests; ends with Close
	end     context.CancelFunc
	running group // what goes on without a caller
	reads   batcher
	watches watches

	contacted atomic.Bool // a member was asked for its version, and is recent enough

	mu       sync.Mutex
	closed   bool
	sessions map[sessionKey]*opening
	claims   map[locker.Owner]*claim
	lines    map[string]*ownLine // by that of the claims

	newcomers newcomers
}

var (
	_ locker.Backend   = (*backend)(nil)
	_ locker.Queue     = (*backend)(nil)
	_ locker.Inspector = (*backend)(nil)
	_ locker.Revoker   = (*backend)(nil)
	_ locker.Adopter   = (*backend)(nil)
	_ locker.Detacher  = (*backend)(nil)
)

func newBackend(config Config, client *clientv3.Client, closeClient func() error) *backend {
	// A member that has lost its leader then says so, where it would otherwise not answer.
	life, end := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	b := &backend{
		config: config, client: client, endpoints: newEndpoints(client), closeClient: closeClient, life: life, end: end,
		sessions: make(map[sessionKey]*opening),
		claims:   make(map[locker.Owner]*claim),
		lines:    make(map[string]*ownLine),
	}
	b.reads = newBatcher(b, nil, life.Done())
	b.watches = watches{endpoints: b.endpoints, life: life, running: &b.running}
	return b
}

// Features implements the optional method of locker.Backend.
func (b *backend) Features() locker.Features {
	return locker.Features{
		HeedsContext: true, Queue: true, Shared: true, Slots: true, Inspect: true, Revoke: true, MinHold: true,
		Adopt: true,
	}
}

// String names the backend in errors.
func (b *backend) String() string { return storeName }

// check refuses what cannot be kept, before the server is asked.
func check(r locker.Request) error {
	if r.TTL%time.Second != 0 {
		return fmt.Errorf("%w: TTL(%v) is not a whole number of seconds, which is what etcd counts in",
			locker.ErrInvalidOption, r.TTL)
	}
	return nil
}

// Acquire implements locker.Backend.
func (b *backend) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := check(r); err != nil {
		return locker.Grant{}, err
	}
	if c := b.claim(r.Owner); c != nil {
		return b.again(ctx, c)
	}
	for attempt := 0; ; attempt++ {
		g, err := b.attempt(ctx, r)
		if !errors.Is(err, errOvertaken) {
			return g, err
		}
		// So that of many who try at once, not all are always overtaken by one.
		if err := pause(ctx, 2*time.Millisecond<<min(attempt, 7)); err != nil {
			return locker.Grant{}, locker.NotAcquired(b.failure(err))
		}
	}
}

// attempt tries once to get a lock that is free. It asks first, so that a refusal costs the servers no entry of their
// log.
func (b *backend) attempt(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.contact(ctx, r.TTL); err != nil {
		return locker.Grant{}, locker.NotAcquired(b.contactFailure(ctx, err))
	}
	line := Key(r.Name())
	ops := []clientv3.Op{firstOp(line, r.Mode)}
	if r.Mode == locker.ModeSlots {
		ops = append(ops, firstSlotsOp(line, r.Slots))
	}
	first := newStep(r.TTL, 2*len(line), ops...)
	if err := b.reads.do(ctx, first); err != nil {
		return locker.Grant{}, locker.NotAcquired(b.failure(err))
	}
	inTheWay, free := first.parts[0].GetResponseRange().Kvs, offer{}
	if r.Mode == locker.ModeSlots {
		inTheWay, free = offerOf(inTheWay, first.parts[1].GetResponseRange().Kvs, r.Slots)
		free.revision = first.revision
	}
	if len(inTheWay) > 0 {
		return locker.Grant{}, &locker.Held{Holder: holderIn(slices.MinFunc(inTheWay, byAge))}
	}
	return b.onSession(ctx, r, func(ctx context.Context, s *session, r locker.Request) (locker.Grant, error) {
		return b.try(ctx, s, r, free)
	})
}

// firstOp reads the oldest of the rivals, whether that is older or not.
func firstOp(line string, mode locker.Mode) clientv3.Op {
	return rivalsOf(line, mode).get(clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend),
		clientv3.WithLimit(1))
}

// byAge puts older keys first.
func byAge(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }

// holderIn returns the name for people of who has made a claim.
func holderIn(kv *mvccpb.KeyValue) string {
	if h, _ := handsIn(kv); h != nil {
		return h.holder
	}
	if _, holder, ok := slotIn(kv); ok {
		return holder
	}
	return valueIn(kv)
}

// onSession calls try with the session for r, and again with another if that turns out to be over.
func (b *backend) onSession(
	ctx context.Context, r locker.Request, try func(context.Context, *session, locker.Request) (locker.Grant, error),
) (locker.Grant, error) {
	for attempt := 1; ; attempt++ {
		s, err := b.session(ctx, r)
		if err != nil {
			return locker.Grant{}, locker.NotAcquired(b.failure(err))
		}
		if err := s.refresh(ctx); err != nil {
			if errors.Is(err, ErrLeaseExpired) && attempt < 3 {
				continue
			}
			return locker.Grant{}, locker.NotAcquired(err)
		}
		g, err := try(ctx, s, r)
		switch {
		case !errors.Is(err, errOver):
			if err != nil {
				b.abandon(r.Owner)
			}
			return g, err
		case attempt >= 3:
			return g, locker.NotAcquired(ErrLeaseExpired)
		}
	}
}

// abandon has what an acquire has left behind deleted a TTL from now: package locker does not call Release for it when
// it has very much to release.
func (b *backend) abandon(o locker.Owner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.claims[o]; c != nil && c.expires.IsZero() {
		c.session.expireLocked(c, time.Now().Add(c.session.ttl))
	}
}

// failure says why a request failed.
func (b *backend) failure(err error) error {
	switch {
	case b.life.Err() != nil:
		return errClosed
	case b.client.Ctx().Err() != nil:
		return errClientClosed
	}
	err, _ = explain(err)
	return err
}

// try makes the claim if the lock is still free, or what was offered of it is.
func (b *backend) try(ctx context.Context, s *session, r locker.Request, free offer) (locker.Grant, error) {
	c := s.newClaim(r, func(c *claim) *step {
		conditions := []clientv3.Cmp{rivalsOf(c.line, r.Mode).isEmpty()}
		grant, refusal := []clientv3.Op{c.putOp(r.Holder)}, firstOp(c.line, r.Mode)
		switch r.Mode {
		case locker.ModeShared: // the attempt before may have succeeded, too
			grant = []clientv3.Op{c.newOp(r.Holder), clientv3.OpGet(c.key, clientv3.WithKeysOnly())}
		case locker.ModeSlots:
			conditions = append(conditions, free.stands(c.line))
			grant, refusal = []clientv3.Op{c.putOp(free.value())}, clientv3.OpGet(c.key)
		}
		step := newStep(s.ttl, 8*len(c.key)+len(r.Holder), clientv3.OpTxn(conditions, grant, []clientv3.Op{refusal}))
		step.line = c.line
		return step
	})
	parts, err := c.made(ctx)
	if err != nil {
		return locker.Grant{}, err
	}
	outcome := parts[0].GetResponseTxn()
	switch {
	case outcome.Succeeded && r.Mode == locker.ModeShared:
		return c.hold(ctx, outcome.Responses[1].GetResponseRange().Kvs[0].CreateRevision, 0, c.seenAtPut())
	case outcome.Succeeded:
		return c.hold(ctx, c.put.revision, free.number, c.seenAtPut())
	}
	kvs := outcome.Responses[0].GetResponseRange().Kvs
	if len(kvs) > 0 && string(kvs[0].Key) == c.key { // the attempt before, whose answer got lost
		return c.hold(ctx, kvs[0].CreateRevision, free.number, 0)
	}
	c.dismiss()
	switch {
	case r.Mode == locker.ModeSlots:
		return locker.Grant{}, errOvertaken
	case len(kvs) > 0:
		return locker.Grant{}, &locker.Held{Holder: holderIn(kvs[0])}
	}
	return locker.Grant{}, locker.ErrLocked
}

// made carries out the step that makes the claim, which is nil if its session is over, and returns what etcd has
// answered to its parts. After an error that is not marked locker.NotAcquired, Release has to follow.
func (c *claim) made(ctx context.Context) ([]*pb.ResponseOp, error) {
	if c == nil {
		return nil, errOver
	}
	s := c.session
	err := s.steps.do(ctx, c.put)
	if err == nil {
		return c.put.takeParts(), nil
	}
	select {
	case <-c.put.done:
	default:
		return nil, err // ctx has ended, and the step is under way
	}
	if c.put.err == nil || !c.put.certain {
		return nil, err // ctx has ended just as the step succeeded, or nobody knows
	}
	c.forget(true)
	if errors.Is(err, ErrLeaseExpired) {
		s.end(ErrLeaseExpired)
		return nil, errOver
	}
	return nil, locker.NotAcquired(err)
}

// again is Acquire for an owner that has the lock already.
func (b *backend) again(ctx context.Context, c *claim) (locker.Grant, error) {
	b.mu.Lock()
	g := c.grant(time.Now())
	b.mu.Unlock()
	var renewal locker.Renewal
	b.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) { renewal = r })
	switch {
	case errors.Is(renewal.Err, locker.ErrLost):
		return locker.Grant{}, fmt.Errorf("%w: the lock that was granted is gone", ErrLeaseExpired)
	case renewal.Err != nil:
		return locker.Grant{}, renewal.Err
	}
	g.Sent = renewal.Sent
	return g, nil
}

// Renew implements locker.Backend. A lock is as alive as its lease, so that one keep-alive renews all that are attached
// to it. Those whose keys are not watched, or not any more, are looked at, and watched from then on: see held.go.
// Locks that are due shortly after others do without a keep-alive, and are due together with them from then on.
func (b *backend) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	beats := make(map[*session]*heartbeat, 1)
	gone := make(map[int]error)
	b.mu.Lock()
	for i, g := range gs {
		c := b.claims[g.Owner]
		if c == nil {
			gone[i] = locker.ErrLost
			continue
		}
		if err := c.lossLocked(); err != nil {
			gone[i] = err
			continue
		}
		h := beats[c.session]
		if h == nil {
			h = &heartbeat{session: c.session, done: done}
			beats[c.session] = h
		}
		if r := (renewal{c, i}); c.watched {
			h.watched = append(h.watched, r)
		} else {
			h.unwatched = append(h.unwatched, r)
		}
	}
	b.mu.Unlock()
	for i, err := range gone {
		done(i, locker.Renewal{Err: err})
	}
	// The sessions do not wait for one another: their leases have different TTLs, and their keep-alives different
	// streams.
	var others sync.WaitGroup
	defer others.Wait()
	for _, h := range beats {
		if delete(beats, h.session); len(beats) == 0 {
			h.beat(ctx) // the last one, which mostly is the only one
			return
		}
		others.Go(func() { h.beat(ctx) })
	}
}

// heartbeat renews locks of a session.
type heartbeat struct {
	session            *session
	watched, unwatched []renewal
	done               func(int, locker.Renewal)
	sent               time.Time // when the keep-alive was sent that renews them
	err                error     // why it failed
}

// renewal is that of one lock.
type renewal struct {
	claim *claim
	i     int // as done wants it
}

// beat sends a keep-alive, unless the last one will do, and looks after the claims that are not watched. Those that are
// do not wait for that.
func (h *heartbeat) beat(ctx context.Context) {
	s, b := h.session, h.session.b
	claims := make([]*claim, len(h.unwatched))
	for i, r := range h.unwatched {
		claims[i] = r.claim
	}
	steps := b.lookAfter(claims)
	before := s.lastConfirmed()
	if h.sent = before; time.Since(before) >= s.renewalInterval()/2 {
		h.err = s.keepAlive(ctx)
		// On slow disks, to verify one takes longer than ctx lasts: then that of the call before counts.
		if h.sent = s.lastConfirmed(); h.sent.After(before) {
			h.err = nil
		}
	}
	for _, r := range h.watched {
		h.report(r, nil)
	}
	for i, r := range h.unwatched {
		if h.err != nil {
			h.report(r, nil) // the next attempt looks again
		} else {
			h.report(r, b.learn(ctx, r.claim, steps[i]))
		}
	}
}

// report reports what has become of a lock. failure is why that is not known, though the lease lives.
func (h *heartbeat) report(r renewal, failure error) { h.done(r.i, h.result(r.claim, failure)) }

func (h *heartbeat) result(c *claim, failure error) locker.Renewal {
	s := h.session
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	switch err := c.lossLocked(); {
	case err != nil: // meanwhile
		return locker.Renewal{Err: err}
	case h.err != nil:
		return locker.Renewal{Err: h.err}
	case failure != nil:
		return locker.Renewal{Err: failure}
	}
	if at := expiry(h.sent, s.ttl); at.After(c.expires) {
		s.expireLocked(c, at)
	}
	return locker.Renewal{Sent: h.sent}
}

// lookAfter asks whether claims are there. The answers are for learn.
func (b *backend) lookAfter(claims []*claim) []*step {
	steps := make([]*step, len(claims))
	for i, c := range claims {
		steps[i] = newStep(c.session.ttl, len(c.key), clientv3.OpGet(c.key))
	}
	if len(steps) > 0 {
		b.reads.submit(steps...)
	}
	return steps
}

// learn takes note of whether a claim is there, and has it watched from then on. It returns why that could not be found
// out.
func (b *backend) learn(ctx context.Context, c *claim, s *step) error {
	if err := b.reads.await(ctx, s); err != nil {
		return b.failure(err)
	}
	kvs := s.parts[0].GetResponseRange().Kvs
	if len(kvs) == 0 || kvs[0].CreateRevision != c.token {
		c.lose(errDeleted)
		return nil
	}
	if r, _ := markIn(kvs[0]); r != nil {
		c.took(r)
	}
	c.watchFrom(s.revision + 1)
	return nil
}

// Release implements locker.Backend.
func (b *backend) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	c := b.claims[g.Owner]
	if c == nil {
		b.mu.Unlock()
		return locker.ErrLost // there has never been a request, or what came of it is gone, or goes with its lease
	}
	if c.expires.IsZero() {
		c.session.expireLocked(c, time.Now().Add(c.session.ttl)) // for the case that this and all further attempts fail
	}
	b.mu.Unlock()
	var err error
	if g.Keep > 0 {
		err = c.keep(ctx, g.Keep)
	} else {
		err = c.drop(ctx)
	}
	if errors.Is(err, locker.ErrClosed) {
		return locker.Final(err)
	}
	return err
}

// Close implements locker.Backend.
func (b *backend) Close() error {
	ctx, cancel := context.WithTimeout(b.life, 2*time.Second) // whoever closes a Locker is in a hurry
	defer cancel()
	var closing sync.WaitGroup
	b.mu.Lock()
	b.closed = true
	for _, o := range b.sessions {
		if o.session != nil {
			closing.Go(o.session.closeLocked(ctx))
		}
	}
	b.mu.Unlock()
	closing.Wait()
	b.end()
	b.watches.close()
	b.running.wait()
	b.endpoints.close()
	if b.closeClient != nil {
		return b.closeClient()
	}
	return nil
}
