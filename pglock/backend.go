package pglock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// maxTimeout is the longest idle_session_timeout that Postgres accepts.
const maxTimeout = (1<<31 - 1) * time.Millisecond

// backend is a locker.Backend, a locker.Queue, a locker.Expirer, a locker.Inspector and a locker.Revoker.
//
// Session locks stack: a session that asks again for what it has gets it. So everything that this Locker has or asks
// for is in a table here, and a session has one request per key under way at a time. Another one is only asked while
// all that were asked before are given up, since they do not answer. For readers and holders of slots, see together.go.
type backend struct {
	*connector
	lifetimes lifetimes
	noBlocks  atomic.Bool // the database cannot execute blocks, see waitSQL

	life    context.Context // ends with Close
	end     context.CancelFunc
	running sync.WaitGroup // what goes on without a caller

	mu       monitor
	closed   bool
	slots    map[int64]*slot
	sessions map[*session]struct{} // all of them
	ghosts   []ghost
	leases   []*leaseSession // for locks taken without waiting, one for each TTL
	waits    waitSessions
	hints    hints
	looking  *leaseSession                   // to look and to tell on, see lookout; nil if there is none
	watched  int                             // how many of the locks that are held make it worth to listen
	looks    looks                           // for revocations
	records  records                         // of those who hold locks here
	raising  []func(limit uint64, err error) // who waits for a greater limit of tokens
}

var (
	_ locker.Backend   = (*backend)(nil)
	_ locker.Queue     = (*backend)(nil)
	_ locker.Expirer   = (*backend)(nil)
	_ locker.Inspector = (*backend)(nil)
	_ locker.Revoker   = (*backend)(nil)
)

// slot is what this Locker knows of a key that it holds, tries to take, or waits for.
type slot struct {
	key       int64
	held      []*holding      // what this Locker has: by one owner, or by several in one mode
	joined    []*session      // those that are asked for the key for one more, and rely on having it
	delayed   []func()        // what is to be asked of sessions when nothing is busy
	newest    [3]uint64       // the tokens of the last grants, by mode
	granted   time.Time       // when the last grant was known
	leaving   []*release      // those that are under way
	asked     []*leaseSession // those that were, by requests that are under way
	busy      int             // how many requests of other sessions, or to unlock, are under way
	unsettled []*arrival      // who waits until it is known what to do, in order of arrival; the first is told
	line      []*waiter       // who waits for the key here, in order of arrival
	returning int             // sessions to wait on that are giving the key back
	place     *place          // of the first of them in Postgres's line; nil if there is none
	starved   bool            // there is a line without a place: it polls
	pollAgain bool            // once more, as the lock may have become free while a poll was under way
	entering  locker.Mode     // in which somebody from the line is about to hold the key: others can get in beside him
	joining   bool            // letJoin is going to be called again
}

// arrival is somebody who wants a key of which it is not known what to do.
type arrival struct {
	request locker.Request
	told    chan struct{} // has room for one
}

// holding is a lock that a session has.
type holding struct {
	request locker.Request
	token   uint64
	number  int // with locker.ModeSlots, else 0
	slot    *slot
	session *session
	granted time.Time // about when
	expires time.Time // from then on it is not renewed any more, and given back

	watched  bool               // it has lasted for a while
	recorded recording          // where others can read of it
	revoked  *locker.Revocation // it is not renewed any more, and kept for who had it
}

func (h *holding) isExpired(now time.Time) bool { return !now.Before(h.expires) }

// release is a lock on its way back.
type release struct {
	owner   locker.Owner
	session *session      // that has the lock
	done    chan struct{} // closed when err is set
	err     error
	failed  bool // the session is over, and it is unknown what became of the lock; guarded by backend.mu
}

func (r *release) isDone() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// Features says what the backend can do.
func (b *backend) Features() locker.Features {
	return locker.Features{
		HeedsContext: true, Queue: true, Expirer: true, Shared: true, Slots: true, Inspect: true, Revoke: true,
	}
}

// storeName is that of the store in errors.
const storeName = "postgres"

// String names the backend in errors.
func (b *backend) String() string { return storeName }

// check refuses what cannot be kept, before the server is asked.
func (b *backend) check(r locker.Request) error {
	switch {
	case r.TTL%time.Millisecond != 0:
		return fmt.Errorf("%w: TTL(%v) is not a whole number of milliseconds, which is what Postgres counts in",
			locker.ErrInvalidOption, r.TTL)
	case r.TTL > maxTimeout:
		return fmt.Errorf("%w: TTL(%v) is longer than %v, the longest that Postgres can count", locker.ErrInvalidOption,
			r.TTL, maxTimeout)
	}
	return nil
}

// expiry is when a lock that was asked for, or renewed, at the given time is given back: when its holder has stopped
// trusting it, and before the server would end an otherwise idle session. See locker.Grant for the former.
func expiry(sent time.Time, ttl time.Duration) time.Time {
	return sent.Add(ttl - ttl/200 - time.Millisecond)
}

// Acquire implements locker.Backend.
func (b *backend) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	d := b.take(ctx, &attempt{request: plain(r), until: time.Now().Add(r.TTL)})
	return d.grant, d.err
}

// take takes a lock if it is free. If not, an attempt that queues gets into line.
func (b *backend) take(ctx context.Context, a *attempt) attempted {
	r := a.request
	b.mu.Lock()
	s, err := b.settle(ctx, r, a.until)
	if err != nil {
		b.mu.Unlock()
		return attempted{err: err}
	}
	if h := s.holdingOf(r.Owner); h != nil {
		b.mu.Unlock()
		g, err := b.again(ctx, h)
		return attempted{grant: g, err: err}
	}
	if !s.admits(r) || len(s.line) > 0 {
		defer b.mu.Unlock()
		if a.queues {
			return attempted{inLine: b.getInLine(&waiter{slot: s, request: r}, len(s.line))}
		}
		return attempted{err: locker.ErrLocked}
	}
	b.try(s, a)
	b.mu.Unlock()
	return b.await(ctx, a)
}

// settle returns the slot of the key of r when it is settled and all that came before have left, or gives up at the
// given time. b.mu is held, but not all the time.
func (b *backend) settle(ctx context.Context, r locker.Request, until time.Time) (*slot, error) {
	key := Key(r.Name())
	s := b.slots[key]
	if s == nil {
		s = &slot{key: key}
		b.slots[key] = s
	}
	for h := s.expired(time.Now()); h != nil; h = s.expired(time.Now()) { // of whom nobody has said that he is
		h.request.ReportLost(errExpired) // before anybody else can get the lock
		b.letGo(h, false)
	}
	if len(s.unsettled) == 0 && b.settled(s, r) {
		return s, nil
	}
	ctx, cancel := context.WithDeadlineCause(ctx, until, errNoAnswer)
	defer cancel()
	a := &arrival{r, make(chan struct{}, 1)}
	s.unsettled = append(s.unsettled, a)
	b.goOn(s)
	for s.unsettled[0] != a || !b.settled(s, r) {
		b.mu.Unlock()
		select {
		case <-a.told:
		case <-time.After(silence):
		case <-ctx.Done():
		}
		b.mu.Lock()
		if ctx.Err() != nil {
			s.unsettled = slices.DeleteFunc(s.unsettled, func(other *arrival) bool { return other == a })
			b.goOn(s)
			b.tidy(s)
			return nil, locker.NotAcquired(context.Cause(ctx))
		}
	}
	s.unsettled = slices.Delete(s.unsettled, 0, 1)
	b.goOn(s) // when b.mu is free again
	return s, nil
}

// settled reports whether it is known what to do for who wants the key of a slot: somebody has it or waits for it here,
// or it may be asked for. b.mu is held.
func (b *backend) settled(s *slot, r locker.Request) bool {
	return !s.admits(r) || len(s.line) > 0 || b.mayAsk(s)
}

// goOn lets the first who waits in settle go on, if the slot is settled. b.mu is held.
func (b *backend) goOn(s *slot) {
	if len(s.unsettled) > 0 && b.settled(s, s.unsettled[0].request) {
		select {
		case s.unsettled[0].told <- struct{}{}:
		default: // it has been told
		}
	}
	b.letJoin(s)
}

// mayAsk reports whether a session for leases may be asked for the key of a slot: no request is under way, or only such
// as may never be answered, of sessions that are given up. b.mu is held.
func (b *backend) mayAsk(s *slot) bool {
	if s.busy > 0 || len(s.asked) == 0 {
		return s.busy == 0
	}
	b.dropSilent()
	return !slices.ContainsFunc(s.asked, func(l *leaseSession) bool { return slices.Contains(b.leases, l) })
}

// ask chooses the session that is going to be asked for the key of a slot, as it may be. b.mu is held.
func (b *backend) ask(s *slot, ttl time.Duration) *leaseSession {
	l := b.leaseSession(ttl)
	s.asked = append(s.asked, l)
	return l
}

// answered notes that a request for the key, which ask began, is over. b.mu is held.
func (b *backend) answered(s *slot, l *leaseSession) {
	i := slices.Index(s.asked, l)
	s.asked = slices.Delete(s.asked, i, i+1)
	b.goOn(s)
	b.tidy(s)
}

// finish notes that another request for the key is over. b.mu is held.
func (b *backend) finish(s *slot) {
	s.busy--
	if s.busy == 0 {
		for _, f := range s.delayed {
			b.begin(f) // not here, as b.mu is held
		}
		s.delayed = nil
	}
	b.goOn(s)
	b.tidy(s)
}

// tidy forgets a slot about which there is nothing to know. b.mu is held.
func (b *backend) tidy(s *slot) {
	quiet := s.busy == 0 && len(s.asked) == 0 && len(s.unsettled) == 0
	if quiet && len(s.held)+len(s.line)+len(s.leaving) == 0 && b.slots[s.key] == s {
		delete(b.slots, s.key)
	}
}

// attempt is a try for a lock that somebody waits for.
type attempt struct {
	slot    *slot
	on      *leaseSession
	request locker.Request
	until   time.Time // when it is given up
	queues  bool      // if it is refused, it gets into line
	sent    bool      // the session has been asked, or is about to be
	left    bool      // nobody waits any more
	done    chan attempted
}

type attempted struct {
	grant  locker.Grant
	err    error
	inLine *waiter // of an attempt that queues, when it was refused
}

// isDone reports whether it is known what has become of it.
func (a *attempt) isDone() bool { return len(a.done) > 0 }

// try begins to ask for the lock of a slot once, which await goes on with. b.mu is held.
func (b *backend) try(s *slot, a *attempt) {
	a.slot, a.on, a.done = s, b.ask(s, a.request.TTL), make(chan attempted, 1)
	if a.on.session != nil {
		b.send(a)
	}
}

// send asks the session of an attempt. b.mu is held.
func (b *backend) send(a *attempt) {
	a.sent = true
	b.askOn(a.slot, a.on.session, a.slot.want(a.request, func(o outcome) { b.tried(a, o) }), a.isDone)
}

// await returns what becomes of an attempt.
func (b *backend) await(ctx context.Context, a *attempt) attempted {
	if !a.sent {
		if err := b.sendWhenReady(ctx, a); err != nil {
			return attempted{err: locker.NotAcquired(err)}
		}
	}
	if a.isDone() {
		return <-a.done
	}
	patience := time.NewTimer(time.Until(a.until)) // cheaper than a context
	defer patience.Stop()
	var err error
	select {
	case d := <-a.done:
		return d
	case <-patience.C:
		err = errNoAnswer
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	b.mu.Lock()
	a.left = true
	b.mu.Unlock()
	select {
	case d := <-a.done: // just now
		if !a.queues || d.inLine != nil || !errors.Is(d.err, locker.ErrLocked) {
			return d
		}
		// It was refused, and has not got into line, as it had left.
	default: // what it may still be granted is given back
	}
	return attempted{err: locker.NotAcquired(err)}
}

// sendWhenReady sends an attempt when its session has been made.
func (b *backend) sendWhenReady(ctx context.Context, a *attempt) error {
	ctx, cancel := context.WithDeadlineCause(ctx, a.until, errNoAnswer)
	defer cancel()
	err := a.on.await(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.answered(a.slot, a.on)
		return err
	}
	b.send(a)
	return nil
}

// tried deals with the outcome of an attempt.
func (b *backend) tried(a *attempt, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	session := a.on.session
	var d attempted
	if a.queues {
		o = o.orRefused()
	}
	b.hasJoined(a.slot, session, o)
	switch {
	case o.err != nil:
		d.err = locker.NotAcquired(explain(o.err))
		b.heedMissing(a.on, d.err)
		b.leaveRest(a.slot, session, a.request.Mode, o)
	case !o.done:
		d.err = locker.ErrLocked
		b.leaveRest(a.slot, session, a.request.Mode, o)
		if a.queues && !a.left { // here, and before those that have come later
			d.inLine = b.getInLine(&waiter{slot: a.slot, request: a.request, refused: true}, 0)
		}
	case a.left:
		b.giveBack(a.slot, session, a.request.Mode, o.number, func() { b.answered(a.slot, a.on) })
		return
	default:
		d.grant, d.err = b.hold(a.slot, session, a.request, o)
	}
	b.answered(a.slot, a.on)
	a.done <- d
}

// heedMissing has nothing more asked of a session that lacks what tokens come from: the next one creates it, if it may.
// b.mu is held.
func (b *backend) heedMissing(l *leaseSession, err error) {
	if errors.Is(err, ErrNoTables) {
		b.dropLease(l)
	}
}

// hold notes that a session has a lock for a request. b.mu is held.
func (b *backend) hold(sl *slot, s *session, r locker.Request, o outcome) (locker.Grant, error) {
	if s.dead {
		return locker.Grant{}, locker.NotAcquired(&sessionOver{errSilent})
	}
	newest := sl.newestOf(r.Mode) // of those that do not go together with this one
	if r.Mode == locker.ModeSlots && b.isGivenUp(s) {
		newest = sl.newestOf(locker.ModeExclusive) // it may be of the same slot
	}
	if o.token < newest && o.sent.Before(sl.granted) {
		// Another session was granted the lock after this one, and its answer was faster: this one is over, which we
		// have yet to hear. (If the lock was asked for when the other was known to have it, tokens have gone back.)
		b.giveRestBack(sl, s, r.Mode, o.number)
		return locker.Grant{}, locker.NotAcquired(&sessionOver{errUnowned})
	}
	for old := sl.against(r.Mode, o.number); old != nil; old = sl.against(r.Mode, o.number) {
		// The server would not have given the lock to another session if that of the holder were not over, which we
		// have yet to hear. Of two leases of one Locker, too, the first has to end before the second begins.
		b.dropHolding(old)
		old.request.ReportLost(errUnowned)
		b.begin(func() { old.session.fail(errUnowned) }) // or it would keep the lock for good, should it live after all
	}
	sl.granted = time.Now()
	if r.Mode == locker.ModeExclusive {
		sl.newest = [3]uint64{} // they may have gone back
	}
	sl.newest[r.Mode] = max(sl.newest[r.Mode], o.token)
	h := &holding{
		request: r, token: o.token, slot: sl, session: s, granted: sl.granted, expires: expiry(o.sent, r.TTL),
	}
	if r.Mode == locker.ModeSlots {
		h.number = o.number
	}
	b.addHolding(h)
	return locker.Grant{Request: r, Token: o.token, Slot: h.number, Sent: o.sent}, nil
}

// addHolding notes that there is a holder. b.mu is held.
func (b *backend) addHolding(h *holding) {
	h.slot.held = append(h.slot.held, h)
	h.session.locks[h] = struct{}{}
	if h.request.Holder != "" || h.slot.isRevoked() {
		b.record(h)
	}
}

// dropHolding notes that somebody is no holder any more. b.mu is held.
func (b *backend) dropHolding(h *holding) {
	h.slot.held = slices.DeleteFunc(h.slot.held, func(other *holding) bool { return other == h })
	delete(h.session.locks, h)
	if h.watched {
		b.watched--
	}
	b.unrecord(h)
}

// giveBack gives a lock back that nobody wants, and then calls then, with b.mu held, to note that the request is over.
// b.mu is held.
func (b *backend) giveBack(sl *slot, s *session, mode locker.Mode, number int, then func()) {
	b.sendBack(sl, s, mode, number, nil, func(outcome) {
		b.mu.Lock()
		defer b.mu.Unlock()
		then()
	})
}

// giveRestBack is giveBack beside another request that is under way. b.mu is held.
func (b *backend) giveRestBack(sl *slot, s *session, mode locker.Mode, number int) {
	sl.busy++
	b.giveBack(sl, s, mode, number, func() {
		b.finish(sl)
		b.park(s)
	})
}

// sendBack has a session give back what one holder has, who is not in the table any more. b.mu is held. If arrived is
// not nil, whoever unlocks it may read answers then, until arrived reports true.
func (b *backend) sendBack(
	sl *slot, s *session, mode locker.Mode, number int, arrived func() bool, then func(outcome),
) {
	back := sl.back(s, mode, number, then)
	b.mu.afterwards(func() {
		if back == nil {
			then(outcome{done: true}) // it is not free, and nobody needs to know
		} else {
			s.submitAndRead(back, arrived)
		}
	})
}

// again is Acquire for an owner that has the lock already.
func (b *backend) again(ctx context.Context, h *holding) (locker.Grant, error) {
	g := locker.Grant{Request: h.request, Token: h.token, Slot: h.number, Sent: time.Now()}
	err := error(errNoAnswer)
	b.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) { err = r.Err })
	switch {
	case errors.Is(err, locker.ErrLost): // which is not for those who want a lock
		return locker.Grant{}, &sessionOver{errUnowned}
	case err != nil:
		return locker.Grant{}, err
	}
	return g, nil
}

// heldBy returns the lock that the owner of g has, nil if he has none. b.mu is held.
func (b *backend) heldBy(g locker.Grant) *holding {
	return b.slots[Key(g.Name())].holdingOf(g.Owner)
}

// renewals are those of the locks that one session has.
type renewals struct {
	holdings []*holding
	indices  []int // of the grants
	answer   answer
}

// Renew implements locker.Backend. A lock is as alive as its session, so that one heartbeat renews all that are in one.
// What the sessions answer is reported as it comes, as one of them may hang.
func (b *backend) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	lost := make(map[int]error)
	sessions := make(map[*session]*renewals)
	now := time.Now()
	every := locker.MaxTTL
	b.mu.Lock()
	for i, g := range gs {
		h := b.heldBy(g)
		if h == nil || h.isExpired(now) {
			lost[i] = locker.ErrLost
			continue
		}
		if h.revoked != nil {
			lost[i] = h.refusal()
			continue
		}
		b.watch(h)
		b.record(h)
		every = min(every, g.TTL)
		rs := sessions[h.session]
		if rs == nil {
			rs = new(renewals)
			sessions[h.session] = rs
		}
		rs.holdings, rs.indices = append(rs.holdings, h), append(rs.indices, i)
	}
	looked, patience := b.lookEvery(every/4), time.Now().Add(every/16)
	answered := make(chan *renewals, len(sessions)) // has room, as this may not wait for all
	for s, rs := range sessions {
		beat := func() { s.heartbeat(func(a answer) { rs.answer = a; answered <- rs }) }
		if !b.begin(beat) { // on a goroutine, as to write may take a while
			rs.answer.err = locker.ErrClosed
			answered <- rs
		}
	}
	b.mu.Unlock()
	for i, err := range lost {
		done(i, locker.Renewal{Err: err})
	}
	missing := make(map[*renewals]bool, len(sessions))
	for _, rs := range sessions {
		missing[rs] = true
	}
	for len(missing) > 0 {
		var rs *renewals
		select {
		case rs = <-answered:
		case <-ctx.Done():
			select {
			case rs = <-answered: // in time
			default:
				for rs := range missing {
					for _, i := range rs.indices {
						done(i, locker.Renewal{Err: errNoAnswer})
					}
				}
				return
			}
		}
		delete(missing, rs)
		looked.await(patience)
		b.renewed(rs, done)
	}
}

// renewed reports what became of the renewals of one session.
func (b *backend) renewed(rs *renewals, done func(int, locker.Renewal)) {
	results := make([]locker.Renewal, len(rs.holdings))
	now := time.Now()
	b.mu.Lock()
	for i, h := range rs.holdings {
		switch {
		case h.slot.holdingOf(h.request.Owner) != h || h.isExpired(now): // given back or lost meanwhile
			results[i].Err = locker.ErrLost
		case h.revoked != nil:
			results[i].Err = h.refusal()
		case rs.answer.err != nil:
			results[i].Err = explain(rs.answer.err)
		default:
			h.expires = expiry(rs.answer.sent, h.request.TTL)
			results[i].Sent = rs.answer.sent
		}
	}
	b.mu.Unlock()
	for i, r := range results {
		done(rs.indices[i], r)
	}
}

// Expired implements locker.Expirer.
func (b *backend) Expired(gs []locker.Grant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begin(func() { // as to write may take a while
		for _, g := range gs {
			g.ReportLost(errExpired) // has no effect if its holder has been told, before anybody else can get the lock
			b.mu.Lock()
			if h := b.heldBy(g); h != nil {
				b.letGo(h, false)
			}
			b.mu.Unlock()
		}
	})
}

// Release implements locker.Backend.
func (b *backend) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	s := b.slots[Key(g.Name())]
	rel := s.leavingOf(g.Owner) // under way since a call that has not waited for the end
	var other *leaseSession
	if h := s.holdingOf(g.Owner); h != nil {
		rel = b.letGo(h, true)
	} else if rel != nil && rel.failed {
		other = b.leaseSession(g.TTL)
	}
	b.mu.Unlock()
	switch {
	case rel == nil:
		return locker.ErrLost
	case other != nil:
		return b.confirm(ctx, s, rel, other)
	}
	select {
	case <-rel.done:
		return rel.err
	case <-ctx.Done():
		return explain(ctx.Err())
	}
}

// letGo gives back a lock that is held. b.mu is held. If wait is set, whoever unlocks it may read answers then, until
// there is that of this one.
func (b *backend) letGo(h *holding, wait bool) *release {
	s, session := h.slot, h.session
	rel := &release{owner: h.request.Owner, session: session, done: make(chan struct{})}
	b.dropHolding(h)
	s.leaving = append(s.leaving, rel)
	s.busy++
	session.used = time.Now()
	returning := 0
	if b.waits.has(session) {
		returning = 1
	}
	s.returning += returning
	var arrived func() bool
	if wait {
		arrived = rel.isDone
	}
	then := func(o outcome) {
		ended := endedByServer(o.err)
		switch {
		case ended: // and has not given the lock back before, or it would have said so
			rel.err = fmt.Errorf("%w: %w", locker.ErrLost, o.err)
		case o.err != nil:
			rel.err = o.err
		case !o.done:
			rel.err = fmt.Errorf("%w: %w", locker.ErrLost, errUnowned)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		rel.failed = o.err != nil && !ended
		if !rel.failed {
			s.dropLeaving(rel)
		} else { // until the lock has ended by itself
			time.AfterFunc(h.request.TTL, func() { b.forget(s, rel) })
		}
		close(rel.done)
		if s.starved && (!o.wanted || b.hints.session == nil) { // or there is a hint, for this Locker and for others
			b.begin(func() { b.pollOnce(s) })
		}
		s.returning -= returning
		b.finish(s)
		b.park(session)
		b.arrange(s)
		if h.revoked != nil { // nobody needs to be told of that any more
			b.look()
		}
	}
	b.sendBack(s, session, h.request.Mode, h.number, arrived, then)
	return rel
}

// confirm is Release for a lock whose session ended before the server had confirmed that it was given back: it is, if
// the server has ended the session too, and if not, it is made to, by way of another one.
func (b *backend) confirm(ctx context.Context, s *slot, rel *release, l *leaseSession) error {
	if err := l.await(ctx); err != nil {
		return explain(err)
	}
	select {
	case <-rel.session.told: // or others would get the locks that it had before their holders know
	case <-ctx.Done():
		return explain(ctx.Err())
	}
	ended := make(chan error, 1)
	l.session.askText(&message{answered: func(a answer) {
		if a.err == nil && a.rows[0][1] != "0" {
			a.err = errStillThere
		}
		ended <- a.err
	}}, endSQL, rel.session.conn.PID(), rel.session.conn.started)
	select {
	case err := <-ended:
		if err != nil {
			return explain(err)
		}
	case <-ctx.Done():
		return explain(ctx.Err())
	}
	b.forget(s, rel)
	return locker.ErrLost // as it is not there any more
}

// forget forgets a release that failed.
func (b *backend) forget(s *slot, rel *release) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.dropLeaving(rel)
	b.tidy(s)
}
