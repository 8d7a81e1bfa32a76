package pglock

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// Waiting. Whoever is refused a key gets into line for it here, and the first in this line into Postgres's own, by a
// pg_advisory_lock on a session that has no locks and does nothing else meanwhile. The lock that it is granted stays on
// that session. If others are in line here, the next of them then gets into Postgres's line on another session. So this
// Locker has one place in Postgres's line however many wait here, and takes turns with others that have one; its own
// waiters are served in order of arrival.
//
// There are only so many sessions for that. A key that has none is polled for on the session for leases, until one is
// free.
//
// A wait that is cancelled ends without an error, which the server would write into its log, statement and all.

// waitSessions are the sessions that wait, or that have got their lock by waiting.
type waitSessions struct {
	most    int
	count   int                   // of all, including those in the making
	all     map[*session]struct{} // those that are made
	idle    []*session
	spare   bool           // one is being made ahead of need
	starved []*slot        // those that have to poll, the first come first
	polling bool           // pollAll is going to be called, or runs
	leaving sync.WaitGroup // waits that are being cancelled

	refusals  int       // how often in a row the server had no room for a session
	notBefore time.Time // when to try again to make one
}

// available reports whether there is a session to wait on, or one may be made.
func (w *waitSessions) available() bool { return len(w.idle) > 0 || w.count < w.most && w.mayConnect() }

// mayConnect reports whether to make a session that can be done without.
func (w *waitSessions) mayConnect() bool { return !time.Now().Before(w.notBefore) }

// connecting notes that a session is being made that can be done without. After a refusal, one is tried at a time.
func (w *waitSessions) connecting() {
	if w.refusals > 0 {
		w.pause()
	}
}

// connected notes whether the server had room for such a session. If so, the next is tried at once, and those after it
// one at a time.
func (w *waitSessions) connected(err error) {
	switch {
	case err == nil:
		w.refusals, w.notBefore = min(w.refusals, 1), time.Time{}
	case errors.Is(err, ErrTooManyConnections):
		w.refusals++
		w.pause()
	}
}

// pause puts the next attempt to make a session off.
func (w *waitSessions) pause() {
	const longest = time.Minute
	d := min(silence<<min(w.refusals-1, 10), longest)
	w.notBefore = time.Now().Add(d/2 + rand.N(d/2))
}

func (w *waitSessions) has(s *session) bool { _, ok := w.all[s]; return ok }

func (w *waitSessions) add(s *session) {
	if w.all == nil {
		w.all = make(map[*session]struct{})
	}
	w.all[s] = struct{}{}
}

// drop forgets a session that is over.
func (w *waitSessions) drop(s *session) {
	if w.has(s) {
		delete(w.all, s)
		w.count--
		w.idle = slices.DeleteFunc(w.idle, func(other *session) bool { return other == s })
	}
}

// waiter is a call of Wait that is in line.
type waiter struct {
	slot    *slot
	request locker.Request
	refused bool // as the first, beside others of this Locker: somebody else waits, or there is no room
	left    bool // it does not wait any more
	done    chan attempted
}

// place is the place of a Locker in Postgres's line for a key.
type place struct {
	slot    *slot
	session *session       // nil while it is being made
	request locker.Request // whose lock it is for, or one like it
	since   time.Time
	entered chan struct{} // closed when the session has been told to wait
	ended   chan struct{} // closed when the server has said how the wait has ended
	left    bool          // it was given up
}

// stand notes that a session is going to wait in a place. b.mu is held.
func (p *place) stand(s *session) {
	p.session, p.request, p.since = s, p.slot.line[0].request, time.Now()
	s.place = p
}

// firstCancel is the first pause between two attempts to cancel a wait. A second one that comes while the server deals
// with the first is an error in its log: PL/pgSQL looks for it when the block has caught the first, and is left.
const firstCancel = 200 * time.Millisecond

// attempts is how many times a wait is begun whose session ended before anything was known of the key. That session may
// have been over before. Afterwards, package locker begins it anew.
const attempts = 3

// Wait implements locker.Queue.
func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	r = plain(r)
	for try := 1; ; try++ {
		// For the answer that tells whether to wait. A TTL may be shorter than it takes to make the first connection.
		until := time.Now().Add(max(r.TTL, silence))
		d := b.take(ctx, &attempt{request: r, until: until, queues: true})
		if d.inLine != nil {
			r.ReportHolder("") // nobody knows who it is
			return b.wait(ctx, d.inLine)
		}
		if over := (*sessionOver)(nil); !errors.As(d.err, &over) || try == attempts || ctx.Err() != nil {
			return d.grant, d.err
		}
	}
}

// wait waits for the turn of somebody who is in line.
func (b *backend) wait(ctx context.Context, w *waiter) (locker.Grant, error) {
	select {
	case d := <-w.done:
		return d.grant, d.err
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case d := <-w.done: // just now
		return d.grant, d.err
	default:
	}
	w.left = true
	s := w.slot
	if i := slices.Index(s.line, w); i >= 0 {
		s.line = slices.Delete(s.line, i, i+1)
		b.deserted(s)
		b.checkPlace(s)
	}
	return locker.Grant{}, locker.NotAcquired(context.Cause(ctx)) // what it may still be granted goes to the next, or back
}

// getInLine puts a waiter into the line of its slot, at index i. b.mu is held.
func (b *backend) getInLine(w *waiter, i int) *waiter {
	sl := w.slot
	w.done = make(chan attempted, 1)
	sl.line = slices.Insert(sl.line, i, w)
	b.checkPlace(sl)
	b.arrange(sl)
	return w
}

// checkPlace gives up the place of a slot, to get in again, if its session has the timeout of somebody who is not the
// first in line any more, or waits for another kind of lock. b.mu is held.
func (b *backend) checkPlace(sl *slot) {
	p := sl.place
	if p == nil || p.session == nil {
		return
	}
	if first := sl.line[0].request; p.session.wanted() != first.TTL || !alike(p.request, first) {
		b.leavePlace(p)
	}
}

// arrange gets the line of a slot a place in Postgres's line, or makes it poll. b.mu is held.
func (b *backend) arrange(sl *slot) {
	if len(sl.line) > 1 && sl.place != nil && sl.busy == 0 &&
		!slices.ContainsFunc(sl.held, func(h *holding) bool { return b.waits.has(h.session) }) {
		b.openSpare(sl.line[1].request.TTL)
	}
	if len(sl.line) == 0 || sl.place != nil || b.closed {
		return
	}
	w := &b.waits
	if sl.returning > 0 {
		return // there is a session in a moment, and letGo comes back here
	}
	if sl.entering != locker.ModeExclusive && sl.entering == sl.line[0].request.Mode {
		return // served comes back here
	}
	if sl.mayJoin() {
		b.letJoin(sl)
		return
	}
	p := &place{slot: sl, entered: make(chan struct{}), ended: make(chan struct{})}
	switch {
	case len(w.idle) > 0:
		p.stand(w.idle[len(w.idle)-1])
		p.session.setTimeout(sl.line[0].request.TTL)
		w.idle = w.idle[:len(w.idle)-1]
		sl.place = p
		b.begin(func() { b.enqueue(p) }) // not here, as b.mu is held
	case w.available():
		w.count++
		w.connecting()
		sl.place = p
		timeout := sl.line[0].request.TTL
		b.begin(func() { b.openPlace(p, timeout) })
	case !sl.starved:
		b.startPolling(sl)
	}
}

// openSpare sees to it that there is a session for the second in a line when the first has been served, unless that of
// the holder will be free by then. To make a connection only then takes so long that other Lockers would get more
// turns. b.mu is held.
func (b *backend) openSpare(timeout time.Duration) {
	w := &b.waits
	if len(w.idle) > 0 || w.spare || !w.available() {
		return
	}
	w.count++
	w.connecting()
	w.spare = b.begin(func() {
		s, err := b.open(timeout, toLock)
		b.mu.Lock()
		defer b.mu.Unlock()
		w.spare = false
		w.connected(err)
		if err == nil && !s.dead {
			w.add(s)
			b.park(s)
			return
		}
		w.count-- // if it cannot be had, who needs it will be told
	})
}

// openPlace makes a session for a place.
func (b *backend) openPlace(p *place, timeout time.Duration) {
	s, err := b.open(timeout, toLock)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waits.connected(err)
	if err == nil && s.dead {
		err = &sessionOver{errSilent}
	}
	switch {
	case err != nil:
		b.waits.count--
		if !p.left {
			b.noPlace(p, err)
		}
	case p.left:
		b.waits.add(s)
		b.park(s)
	default:
		b.waits.add(s)
		s.setTimeout(p.slot.line[0].request.TTL) // who was the first when this began may have left
		p.stand(s)
		b.mu.afterwards(func() { b.enqueue(p) })
	}
}

// noPlace is called when there can be no session for a place. b.mu is held.
func (b *backend) noPlace(p *place, err error) {
	p.slot.place = nil
	if !errors.Is(err, ErrTooManyConnections) {
		b.failLine(p.slot, err)
		return
	}
	first := p.slot.line[0].request
	b.startPolling(p.slot)                                         // the session for leases may be all that it takes
	b.mu.afterwards(func() { first.ReportRetry(classified(err)) }) // an observer may do anything
}

// enqueue gets into Postgres's line.
func (b *backend) enqueue(p *place) {
	if p.session.needsTimeout() { // before the wait, since who is cut off while it waits may be granted the lock all the same
		p.session.heartbeat(func(answer) {})
	}
	how := waits[p.request.Mode]
	plain := func() { b.stand(p, how.plain, func(a answer) { b.reached(p, a) }) }
	if b.noBlocks.Load() {
		plain()
	} else {
		b.stand(p, how.block, func(a answer) {
			if isCode(a.err, "42704", "42501") { // no such language, or it is not allowed
				b.noBlocks.Store(true)
				plain()
			} else {
				b.reached(p, a)
			}
		})
	}
	close(p.entered)
}

// stand sends one of the statements that wait.
func (b *backend) stand(p *place, statement string, answered func(answer)) {
	m := marksOf(p.slot.key)
	p.session.askText(&message{patient: true, answered: answered}, statement,
		p.slot.key, m.readers, m.slots, m.first, p.request.Slots, b.sql.mint)
}

// reached is called when Postgres's line has come to an end: with a lock, cancelled, or with an error.
func (b *backend) reached(p *place, a answer) {
	close(p.ended)
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.left { // whoever gave it up sees to the rest
		return
	}
	sl := p.slot
	sl.place, p.session.place = nil, nil
	sl.busy++
	if o := a.granted(); o.done {
		b.serve(sl, p.session, p.request, o)
		return
	}
	if a.err != nil && !isCode(a.err, queryCanceled) {
		b.failLine(sl, explain(a.err))
	}
	// A wait that was cancelled may have been granted all the same.
	b.mu.afterwards(func() {
		p.session.unlockAll(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.vacated(sl, p.session)
		})
	})
}

// vacated notes that a session that somebody has waited on has nothing of the key any more. b.mu is held.
func (b *backend) vacated(sl *slot, s *session) {
	b.finish(sl)
	b.park(s)
	b.arrange(sl)
}

// serve hands a lock that a session has got by waiting, for a request like r, to the first in line. b.mu is held.
func (b *backend) serve(sl *slot, s *session, r locker.Request, o outcome) {
	if len(sl.line) == 0 || !alike(sl.line[0].request, r) { // as who was the first has left
		b.giveBack(sl, s, r.Mode, o.number, func() { b.vacated(sl, s) })
		return
	}
	w := sl.line[0]
	sl.entering = r.Mode
	sl.line = slices.Delete(sl.line, 0, 1)
	b.deserted(sl) // unless there is a next, who is to be in Postgres's line before those that come later get there
	b.arrange(sl)
	s.setTimeout(w.request.TTL)
	// When the lock was granted is not known here: the time for which the lease is valid is counted from when the wait
	// began, if that was not long ago.
	if time.Since(o.sent) < w.request.TTL/16 && s.mayUse(o.token) && !s.needsTimeout() {
		b.served(sl, s, w, o)
		return
	}
	// Else from a further message, by which the server also begins to count anew.
	ask := sl.want(w.request, func(o outcome) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.served(sl, s, w, o)
	})
	ask.number = o.number
	b.mu.afterwards(func() { s.mint([]*request{ask}, true) })
}

// served delivers a lock to a waiter. b.mu is held.
func (b *backend) served(sl *slot, s *session, w *waiter, o outcome) {
	sl.entering = locker.ModeExclusive
	switch {
	case o.err != nil: // and the lock is given back, or the session over
		b.park(s)
		w.done <- attempted{err: locker.NotAcquired(explain(o.err))}
	case w.left:
		b.serve(sl, s, w.request, o)
		return
	default:
		g, err := b.hold(sl, s, w.request, o)
		w.done <- attempted{grant: g, err: err}
	}
	b.finish(sl)
	b.arrange(sl) // for the next
}

// deserted is called when somebody has left the line of a slot. b.mu is held.
func (b *backend) deserted(sl *slot) {
	if len(sl.line) > 0 {
		return
	}
	b.stopPolling(sl)
	if sl.place != nil {
		b.leavePlace(sl.place)
	}
	b.tidy(sl)
}

// leavePlace begins to give up a place. If anybody is in line here when that is done, the session gets into Postgres's
// line again. b.mu is held.
func (b *backend) leavePlace(p *place) {
	p.left = true
	p.slot.place = nil
	if p.session == nil || b.closed { // openPlace sees to it, or Close
		return
	}
	p.session.place = nil
	p.slot.returning++
	b.waits.leaving.Add(1)
	b.begin(func() {
		defer b.waits.leaving.Done()
		b.leave(p)
		b.mu.Lock()
		defer b.mu.Unlock()
		p.slot.returning--
		b.park(p.session)
		b.arrange(p.slot)
	})
}

// leave leaves Postgres's line, and gives back what was granted meanwhile: of a wait that is cancelled at the moment
// when it is granted, the server may say that it was cancelled, though the session has the lock.
func (b *backend) leave(p *place) {
	<-p.entered // which is about to happen; or the lock would be asked for when it has been given back
	s := p.session
	ctx, cancel := context.WithTimeout(b.life, silence)
	defer cancel()
	if err := p.cancel(ctx); err != nil {
		s.fail(err)
		return
	}
	done := make(chan struct{})
	s.unlockAll(func() { close(done) })
	select {
	case <-done:
	case <-ctx.Done():
		s.fail(errSilent)
	}
}

// cancel ends the wait, and returns when it has ended. It tries again: a cancel that overtakes what it is for has no
// effect.
func (p *place) cancel(ctx context.Context) error {
	for pause := firstCancel; ; pause *= 2 {
		if err := p.session.cancel(ctx); err != nil {
			return err
		}
		select {
		case <-p.ended:
			return nil
		case <-time.After(pause - rand.N(pause/2)):
		case <-ctx.Done():
			return errSilent
		}
	}
}

// park puts a session that somebody has waited on to what it is needed for next. For other sessions, it does nothing.
// b.mu is held.
func (b *backend) park(s *session) {
	if s.dead || !b.waits.has(s) || slices.Contains(b.waits.idle, s) {
		return
	}
	s.used = time.Now()
	b.waits.idle = append(b.waits.idle, s)
	for len(b.waits.starved) > 0 {
		sl := b.waits.starved[0]
		b.stopPolling(sl)
		b.arrange(sl)
		if sl.place != nil {
			return
		}
	}
}

// failLine ends the waits of all in line. b.mu is held.
func (b *backend) failLine(sl *slot, err error) {
	for _, w := range sl.line {
		w.done <- attempted{err: locker.NotAcquired(err)}
	}
	sl.line = nil
	b.deserted(sl)
}
