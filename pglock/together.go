package pglock

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// Readers and holders of slots. Both have a shared advisory lock of the key, which keeps out who wants it alone, and is
// all that he knows of. An advisory lock is shared or exclusive: readers and slots keep each other out by marks. These
// are further keys, which they hold shared, too: each has the mark of its own kind, and sees that nobody has the other
// by trying to have that alone, for a moment. The slot of a number is a key that one holder has alone.
//
// The order is the key, the readers' mark, the slots' mark, a slot. Who waits (see waits) waits for one after the other
// and holds those before it; who does not is refused by whoever waits. Who has a slot or reads waits for nothing on the
// same session, so nobody waits in a circle.
//
// Of two who try at the same time to have a mark alone, one would be refused although nobody has it. And who looks for
// a free slot could find each taken, as they change hands, though there is always a free one. So who tries passes a
// gate. Everything behind it is in one message and waits for nothing, least of all for the client: that takes
// microseconds. It is had until the transaction ends, which gives back what it has in any order; so the other mark is
// given back before.
//
// There is one thing that the line does not keep. When the only holder has left, all who wait behind him for slots or
// as readers, up to the next who wants the key alone, go on to the marks at the same moment. Any of them may be the
// first there. For their order, they would have to have a line of their own before that of the key; then who wants the
// key alone, and so knows nothing of that line, would overtake them.
//
// Postgres grants a session what it has, once more, and past those who wait. So those of a Locker that are in on one
// session count here, and have the key and the mark there once: the first of them takes these, and the last gives them
// back. (To have Postgres count would be to know of each statement that failed how far it has come, or the others' lock
// may be given back.) Who comes to others on a session is only let in if a session that has nothing of the key could
// get it, too: the one for hints is asked for that, which looks at Postgres's line like any other. Who gets into line
// after the answer has come after him.
//
// A turnstile would do the same without a second question, a key that writers have while they wait: but then those
// would stand in two lines, of which others, such as LockTx, know one.

// none is no number of a slot.
const none = -1

// span is some numbers in a row, the first and the last.
type span struct{ least, most int }

// plain makes the only one of one slot what it is, a lock for one holder.
func plain(r locker.Request) locker.Request {
	if r.Mode == locker.ModeSlots && r.Slots == 1 {
		r.Mode, r.Slots = locker.ModeExclusive, 0
	}
	return r
}

// admits reports whether those of this Locker who have the key would let somebody in.
func (s *slot) admits(r locker.Request) bool {
	if len(s.held) == 0 {
		return true
	}
	if s.mode() != r.Mode || r.Mode == locker.ModeExclusive {
		return false
	}
	taken := 0
	for _, h := range s.held {
		if h.number < r.Slots {
			taken++
		}
	}
	return r.Mode == locker.ModeShared || taken < r.Slots
}

// mode is that in which this Locker has the key, as it does.
func (s *slot) mode() locker.Mode { return s.held[0].request.Mode }

// against returns somebody of this Locker who cannot have the key beside a new holder, nil if there is nobody.
func (s *slot) against(mode locker.Mode, number int) *holding {
	for _, h := range s.held {
		if mode != h.request.Mode || mode == locker.ModeExclusive || mode == locker.ModeSlots && h.number == number {
			return h
		}
	}
	return nil
}

// newestOf returns the token of the last grant, of those that do not go together with one in a mode.
func (s *slot) newestOf(mode locker.Mode) (token uint64) {
	for other, t := range s.newest {
		if mode == locker.ModeExclusive || other != int(mode) {
			token = max(token, t)
		}
	}
	return token
}

// want returns the request to a session for somebody who wants the key.
func (s *slot) want(r locker.Request, then func(outcome)) *request {
	ask := &request{key: s.key, mode: r.Mode, slots: r.Slots, then: then}
	if ask.together() {
		ask.marks = marksOf(s.key)
	}
	if r.Mode == locker.ModeSlots {
		ask.gaps = []span{{0, r.Slots - 1}}
	}
	return ask
}

// back returns the request to give back what one holder has on a session, nil if others have the same. b.mu is held,
// and the holder is not in the table any more.
func (s *slot) back(session *session, mode locker.Mode, number int, then func(outcome)) *request {
	r := &request{key: s.key, unlock: true, mode: mode, number: none, then: then}
	if !r.together() {
		return r
	}
	r.marks, r.beside = marksOf(s.key), s.standsOn(session)
	if mode == locker.ModeSlots {
		r.number = number
	}
	if r.beside && r.number == none {
		return nil
	}
	return r
}

// standsOn reports whether others of this Locker rely on it that a session has the key.
func (s *slot) standsOn(session *session) bool {
	return slices.Contains(s.joined, session) ||
		slices.ContainsFunc(s.held, func(h *holding) bool { return h.session == session })
}

// gaps returns the numbers below n that a session does not have.
func (s *slot) gaps(session *session, n int) (gaps []span) {
	has := make([]bool, n)
	for _, h := range s.held {
		if h.session == session && h.number < n {
			has[h.number] = true
		}
	}
	for i := range has {
		switch {
		case has[i]:
		case i == 0 || has[i-1]:
			gaps = append(gaps, span{i, i})
		default:
			gaps[len(gaps)-1].most = i
		}
	}
	return gaps
}

// holdingOf returns what an owner has of the key, nil if that is nothing. The slot may be nil.
func (s *slot) holdingOf(o locker.Owner) *holding {
	if s == nil {
		return nil
	}
	for _, h := range s.held {
		if h.request.Owner == o {
			return h
		}
	}
	return nil
}

// expired returns something whose lease is over, nil if there is nothing.
func (s *slot) expired(now time.Time) *holding {
	for _, h := range s.held {
		if h.isExpired(now) {
			return h
		}
	}
	return nil
}

// leavingOf returns what an owner is giving back, nil if that is nothing. The slot may be nil.
func (s *slot) leavingOf(o locker.Owner) *release {
	if s == nil {
		return nil
	}
	for _, r := range s.leaving {
		if r.owner == o {
			return r
		}
	}
	return nil
}

func (s *slot) dropLeaving(r *release) {
	s.leaving = slices.DeleteFunc(s.leaving, func(other *release) bool { return other == r })
}

// mayJoin reports whether the first in line may get in beside others of this Locker, as far as is known. There is a
// line.
func (s *slot) mayJoin() bool {
	first := s.line[0]
	return len(s.held) > 0 && !first.refused && s.admits(first.request)
}

// letJoin begins to let the first in line in beside others of this Locker, unless it has to wait all the same, or
// something is being asked about the key: it is called again then. b.mu is held.
func (b *backend) letJoin(s *slot) {
	if len(s.line) == 0 || s.place != nil || s.entering != locker.ModeExclusive || b.closed || !s.mayJoin() {
		return
	}
	if !s.joining { // again, on another session if this one's does not answer
		s.joining = true
		time.AfterFunc(silence+silence/8, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			s.joining = false
			b.letJoin(s)
		})
	}
	if !b.mayAsk(s) {
		return
	}
	first := s.line[0].request
	l := b.ask(s, first.TTL)
	b.begin(func() { b.pollOn(s, l, first) })
}

// askOn asks a session for a key. b.mu is held. If arrived is not nil, whoever unlocks it may read answers then, until
// arrived reports true.
func (b *backend) askOn(sl *slot, s *session, ask *request, arrived func() bool) {
	switch {
	case !ask.together():
		b.mu.afterwards(func() { s.submitAndRead(ask, arrived) })
	case !sl.standsOn(s):
		b.enter(sl, s, ask, arrived)
	case b.closed:
		b.mu.afterwards(func() { ask.then(outcome{err: locker.ErrClosed}) })
	default:
		b.hints.probes = append(b.hints.probes, probe{ask, func(free bool, err error) {
			if free {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.enter(sl, s, ask, nil)
			} else {
				ask.then(outcome{err: err, unknown: err != nil})
			}
		}})
		b.tend()
	}
}

// enter has a session get a key, beside others if there are any by now. If something of the key is being given back,
// that has to be over: what is repeated of it might give back what is taken now. b.mu is held.
func (b *backend) enter(sl *slot, s *session, ask *request, arrived func() bool) {
	switch {
	case sl.busy > 0:
		sl.delayed = append(sl.delayed, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.enter(sl, s, ask, nil)
		})
	case sl.standsOn(s):
		sl.joined = append(sl.joined, s)
		ask.beside = true
		ask.gaps = sl.gaps(s, ask.slots)
		b.mu.afterwards(func() { s.join(ask) })
	default:
		b.mu.afterwards(func() { s.submitAndRead(ask, arrived) })
	}
}

// hasJoined notes that a request is over, whatever its outcome. If it was beside others, it held their lock. b.mu is
// held.
func (b *backend) hasJoined(sl *slot, s *session, o outcome) {
	if o.beside {
		i := slices.Index(sl.joined, s)
		sl.joined = slices.Delete(sl.joined, i, i+1)
	}
}

// leaveRest has a session give back what it has only for a request that was beside others, and was not granted. b.mu
// is held.
func (b *backend) leaveRest(sl *slot, s *session, mode locker.Mode, o outcome) {
	if o.beside && !sl.standsOn(s) {
		b.giveRestBack(sl, s, mode, none)
	}
}

// orRefused makes it a refusal that a probe has failed, as where there is no connection for it. That is for those who
// wait: in Postgres's line they need no probe, and who polls gets in when the others have left, at the latest.
func (o outcome) orRefused() outcome {
	if o.unknown {
		return outcome{}
	}
	return o
}

// probe is a question whether a key could be locked by one more, who has nothing of it.
type probe struct {
	of   *request
	then func(free bool, err error)
}

// failProbes answers those that cannot be made. b.mu is held.
func (b *backend) failProbes(err error) {
	probes := b.hints.probes
	b.hints.probes = nil
	for _, p := range probes {
		go p.then(false, err) // not here, as b.mu is held
	}
}

// probe asks.
func (w *wire) probe(p probe) {
	shared := "_shared" // refused by who waits for a slot
	if p.of.mode == locker.ModeSlots {
		shared = "" // by readers who wait, too
	}
	w.askText(&message{answered: func(a answer) {
		switch {
		case a.err != nil:
			p.then(false, a.err)
		case len(a.rows[0]) != 2:
			p.then(false, errMismatch)
		default:
			p.then(a.rows[0][1] == "t", nil)
		}
	}}, `SELECT %[1]d, CASE WHEN pg_advisory_xact_lock(%[2]d)::text = '' THEN
	CASE WHEN pg_try_advisory_xact_lock_shared(%[3]d) THEN
		CASE WHEN pg_try_advisory_lock%[4]s(%[5]d) THEN pg_advisory_unlock%[4]s(%[5]d) END END END`,
		p.of.marks.gate, p.of.key, shared, p.of.marks.readers)
}

// join asks for a lock beside others that the session has it for. The key it has.
func (w *wire) join(r *request) {
	if r.mode == locker.ModeShared {
		w.mint([]*request{r}, true)
		return
	}
	var least, most []int64
	for _, gap := range r.gaps {
		least, most = append(least, int64(gap.least)), append(most, int64(gap.most))
	}
	w.askText(&message{answered: func(a answer) {
		w.dealOut([]part{{together: true, requests: []*request{r}}}, a)
	}}, "EXECUTE locker_slot(%d,%d,%d,'%s','%s')", r.marks.gate, r.marks.first, arrayOf(least), arrayOf(most))
}

// appendEnter writes the statement for requests of readers and holders of slots. Unlike those of appendBatch, it is one
// message, so that what has passed a gate does not wait for the rest.
func appendEnter(sql []byte, seq int64, p part) []byte {
	if r := p.requests[0]; len(p.requests) == 1 && r.mode == locker.ModeShared {
		m := r.marks
		return fmt.Appendf(sql, "EXECUTE locker_enter_one(%d,%d,%d,%d,%d)", seq, r.key, m.readers, m.slots, m.gate)
	}
	columns := make([][]int64, 6)
	for _, r := range p.requests {
		ours, theirs := r.marks.readers, r.marks.slots
		if r.mode == locker.ModeSlots {
			ours, theirs = theirs, ours
		}
		for i, n := range []int64{r.key, ours, theirs, r.marks.gate, r.marks.first, int64(r.slots)} {
			columns[i] = append(columns[i], n)
		}
	}
	sql = fmt.Appendf(sql, "EXECUTE locker_enter(%d", seq)
	for _, c := range columns {
		sql = fmt.Appendf(sql, ",'%s'", arrayOf(c))
	}
	return append(sql, ')')
}

// column is what a request puts into a parameter of its statement: the key, and for locker_leave the mark and the slot
// that are given back. It is false for NULL.
func (r *request) column(i int) (n int64, ok bool) {
	switch {
	case i == 0:
		return r.key, true
	case i == 2:
		return r.marks.first + int64(r.number), r.number != none
	case r.mode == locker.ModeSlots:
		return r.marks.slots, !r.beside
	default:
		return r.marks.readers, !r.beside
	}
}

// free gives back what the session may have of a request that has failed: of what others on it do not have, too. It
// looks what there is: to unlock what is not there would put a warning into the log of the server, one for each slot.
// If it fails, the session ends.
func (w *wire) free(r *request, then func(outcome)) {
	var keys []int64
	if !r.beside {
		keys = []int64{r.key, r.marks.readers, r.marks.slots}
	}
	gaps := r.gaps
	if r.unlock && r.number != none {
		gaps = []span{{r.number, r.number}}
	}
	if len(keys)+len(gaps) == 0 {
		then(outcome{done: true})
		return
	}
	condition := fmt.Sprintf("key = ANY ('%s')", arrayOf(keys))
	for _, gap := range gaps {
		condition += fmt.Sprintf(" OR key BETWEEN %d AND %d",
			r.marks.first+int64(gap.least), r.marks.first+int64(gap.most))
	}
	w.askText(&message{answered: func(a answer) {
		if a.err != nil {
			w.fail(a.err) // unless that is why there is an error
			then(outcome{err: w.overBy(), beside: r.beside})
			return
		}
		then(outcome{done: true})
	}}, `SELECT %d,
	count(CASE mode WHEN 'ShareLock' THEN pg_advisory_unlock_shared(key) ELSE pg_advisory_unlock(key) END)
FROM (SELECT mode, classid::bigint << 32 | objid::bigint AS key FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 1 AND pid = pg_backend_pid() AND granted OFFSET 0) AS had
WHERE `+condition)
}
