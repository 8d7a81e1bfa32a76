package pglock

import (
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// Readers. A reader has a shared advisory lock of the key. The readers of a Locker that have it on the same session have
// it as often: Postgres counts. But a session that has a shared lock gets it again at once, past a writer that waits for
// it in another session. So who comes to readers that are on the session which would be asked is only let in if a
// session that has no lock of the key could get it, too: the one for hints is asked for that, which looks at Postgres's
// line like any other. A writer that comes after the answer has come after the reader.
//
// A turnstile would do the same without a second question, a key that writers have while they wait: but then those would
// stand in two lines, of which others, such as LockTx, know one.

func isReader(r locker.Request) bool { return r.Mode == locker.ModeShared }

// admits reports whether those of this Locker who have the key would let somebody in.
func (s *slot) admits(mode locker.Mode) bool {
	return len(s.held) == 0 || mode == locker.ModeShared && s.held[0].request.Mode == locker.ModeShared
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

// expired returns something whose lease is over, nil if there is nothing. The slot may be nil.
func (s *slot) expired(now time.Time) *holding {
	if s == nil {
		return nil
	}
	for _, h := range s.held {
		if h.isExpired(now) {
			return h
		}
	}
	return nil
}

func (s *slot) dropHolding(h *holding) {
	s.held = slices.DeleteFunc(s.held, func(other *holding) bool { return other == h })
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

// readBy reports whether readers of this Locker have the key on a session.
func (s *slot) readBy(session *session) bool {
	return slices.ContainsFunc(s.held, func(h *holding) bool { return h.session == session && isReader(h.request) })
}

// stackedOn reports whether a session may have the key for readers of this Locker.
func (s *slot) stackedOn(session *session) bool {
	return s.readBy(session) ||
		slices.ContainsFunc(s.leaving, func(r *release) bool { return r.session == session && !r.failed })
}

// mayJoin reports whether the first in line may get in beside readers of this Locker, as far as is known. There is a
// line.
func (s *slot) mayJoin() bool {
	first := s.line[0]
	return len(s.held) > 0 && isReader(first.request) && !first.refused && s.admits(locker.ModeShared)
}

// letJoin begins to let the first in line in beside readers of this Locker, unless it has to wait all the same, or
// something is being asked about the key: it is called again then. b.mu is held.
func (b *backend) letJoin(s *slot) {
	if len(s.line) == 0 || s.place != nil || s.entering || b.closed || !s.mayJoin() {
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

// joinOn has a session get a lock for a reader that it has for others, if no writer waits for that.
func (b *backend) joinOn(s *session, ask *request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		go ask.then(outcome{err: locker.ErrClosed})
		return
	}
	ask.stacked = true
	b.hints.probes = append(b.hints.probes, probe{ask.key, func(free bool, err error) {
		if free {
			s.submit(ask)
		} else {
			ask.then(outcome{err: err, unknown: err != nil})
		}
	}})
	b.tend()
}

// orRefused makes it a refusal that a probe has failed, as where there is no connection for it. That is for those who
// wait: in Postgres's line they need no probe, and who polls gets in when the readers have left, at the latest.
func (o outcome) orRefused() outcome {
	if o.unknown {
		return outcome{}
	}
	return o
}

// probe is a question whether a key could be locked for one more reader.
type probe struct {
	key  int64
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
	w.askText(&message{answered: func(a answer) {
		switch {
		case a.err != nil:
			p.then(false, a.err)
		case len(a.rows[0]) != 2:
			p.then(false, errMismatch)
		default:
			p.then(a.rows[0][1] == "t", nil)
		}
	}}, "SELECT %d, pg_try_advisory_xact_lock_shared(%d)", p.key)
}

// stack asks for a lock that the session may have for other readers, too, or gives one of those back. That is a
// statement of its own, as it has to be certain whether it was executed: if one was given back too many, a writer would
// get in beside the others. It was if its row has come, whatever became of the rest of the message.
func (w *wire) stack(r *request) {
	if r.unlock {
		w.unstack(r, true)
		return
	}
	w.askText(&message{answered: func(a answer) {
		switch {
		case len(a.rows) == 0:
			r.then(outcome{err: a.err})
		case len(a.rows[0]) != 2 || a.rows[0][1] != "t":
			r.then(outcome{})
		default:
			var token uint64
			if a.err == nil && len(a.rows) == 2 && len(a.rows[1]) == 2 {
				token = parseToken(a.rows[1][1])
			}
			w.minted([]*request{r}, token, a, true)
		}
	}}, "SELECT %[1]d, pg_try_advisory_lock_shared(%[2]d);EXECUTE locker_mint(%[1]d)", r.key)
}

// unstack gives back, and then looks for the mark of somebody who polls. If it was not executed, it is repeated; a
// second failure ends the session.
func (w *wire) unstack(r *request, again bool) {
	w.askText(&message{answered: func(a answer) {
		switch {
		case len(a.rows) > 0:
			o := outcome{done: len(a.rows[0]) == 2 && a.rows[0][1] == "t"}
			o.wanted = len(a.rows) == 2 && a.rows[1][0] == "t"
			r.then(o)
			if o.wanted {
				w.events.tellFree([]int64{r.key})
			}
		case again:
			w.unstack(r, false)
		default:
			w.fail(a.err) // unless that is why there is an error
			r.then(outcome{err: w.overBy()})
		}
	}}, "SELECT %[1]d, pg_advisory_unlock_shared(%[2]d);SELECT NOT pg_try_advisory_xact_lock('%[3]d'::int, '%[4]d'::int)",
		r.key, int32(r.key>>32), int32(r.key))
}
