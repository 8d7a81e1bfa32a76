package pglock

import (
	"fmt"
	"strconv"
	"time"
)

// Hints, for the lines that poll. A Locker marks the keys that it polls for, by a shared advisory lock in the key space
// of two integers. Who gives a lock back looks for the mark in the same statement (locker_unlock), and if there is one,
// notifies all Lockers that poll. So there is one notification per handoff, of which there are none as long as nobody
// polls; nothing has to be told that somebody polls; and the marks of who dies are gone.
//
// They are only hints, since nobody sends one for a holder that dies. A NOTIFY takes a lock that is one for the whole
// server, and that a commit has while it waits for a standby. So it is not sent on a session that has leases, and no
// session with leases listens: to one that does not read, the server would write for ever, and not look at its timeout.

// channel is that of the hints. They are the keys that are free.
const channel = "locker"

// notifyWithin bounds how long a NOTIFY waits for others.
const notifyWithin = time.Second

// hints is what a Locker does for those that poll, its own and others.
type hints struct {
	session *session           // that marks, listens and notifies, and has no other locks; nil if there is none
	marked  map[int64]struct{} // the keys that it has marked
	free    []int64            // those that others are to be told of
	probes  []probe            // those that are to be made, see together.go
	tended  bool               // tendHints runs
}

// tellFree has those that poll for some keys told that they are free.
func (b *backend) tellFree(keys []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hints.free = append(b.hints.free, keys...)
	b.tend()
}

// tend begins to do what is to be done about hints. b.mu is held.
func (b *backend) tend() {
	if !b.hints.tended {
		b.hints.tended = b.begin(b.tendHints)
	}
}

// tendHints marks the keys that are polled for, and no others, and tells of those that are free, until there is nothing
// left to be done, or it cannot be done now.
func (b *backend) tendHints() {
	h := &b.hints
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { h.tended = false }()
	for {
		if h.session == nil && !b.openHints() {
			h.free = nil
			return
		}
		s := h.session
		mark, unmark, free := b.untold()
		probes := h.probes
		h.probes = nil
		if len(mark)+len(unmark)+len(free)+len(probes) == 0 {
			return
		}
		s.used = time.Now()
		b.mu.Unlock()
		for _, p := range probes {
			s.probe(p)
		}
		if len(free) > 0 {
			s.notify(free)
		}
		if len(unmark) > 0 {
			s.unmark(unmark)
		}
		if len(mark) > 0 {
			s.mark(mark, func(marked []bool) { b.marked(s, mark, marked) })
		}
		b.mu.Lock()
	}
}

// openHints makes the session for hints, if it is needed, and reports whether there is one. b.mu is held, but not all
// the time.
func (b *backend) openHints() bool {
	h, w := &b.hints, &b.waits
	if len(h.free)+len(h.probes)+len(w.starved) == 0 {
		return false
	}
	if !w.mayConnect() {
		b.failProbes(fmt.Errorf("%w: of late", ErrTooManyConnections))
		return false
	}
	w.connecting()
	b.mu.Unlock()
	s, err := b.open(connectWithin, toLook)
	if err == nil {
		s.listen()
	}
	b.mu.Lock()
	w.connected(err)
	if err == nil && s.dead {
		err = &sessionOver{errSilent}
	}
	if err != nil { // the next poll tries again
		b.failProbes(err)
		return false
	}
	h.session, h.marked = s, make(map[int64]struct{})
	return true
}

// untold returns the keys that are to be marked, those that are not any more, and those that are free, and notes that
// it is done. b.mu is held.
func (b *backend) untold() (mark, unmark, free []int64) {
	h := &b.hints
	polled := make(map[int64]struct{}, len(b.waits.starved))
	for _, sl := range b.waits.starved {
		polled[sl.key] = struct{}{}
		if _, ok := h.marked[sl.key]; !ok {
			mark = append(mark, sl.key)
			h.marked[sl.key] = struct{}{}
		}
	}
	for key := range h.marked {
		if _, ok := polled[key]; !ok {
			unmark = append(unmark, key)
			delete(h.marked, key)
		}
	}
	free, h.free = h.free, nil
	return mark, unmark, free
}

// marked polls for keys that have just been marked, as they may have become free before. Those that could not be,
// because somebody gave them back at that moment, are marked with the next poll.
func (b *backend) marked(s *session, keys []int64, marked []bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, key := range keys {
		if i >= len(marked) || !marked[i] {
			if b.hints.session == s {
				delete(b.hints.marked, key)
			}
		}
		if sl := b.slots[key]; sl != nil && sl.starved {
			b.pollSoon(sl)
		}
	}
}

// hinted receives a hint.
func (b *backend) hinted(key int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if sl := b.slots[key]; sl != nil && sl.starved {
		b.pollSoon(sl)
	}
}

// listen makes the session receive hints.
func (w *wire) listen() {
	w.askText(&message{answered: func(answer) {}}, "LISTEN "+channel+";SELECT %d")
}

// notify sends hints. They are lost if others keep the server from sending them.
func (w *wire) notify(free []int64) {
	w.askText(&message{answered: func(answer) {}},
		"SET LOCAL lock_timeout = %[2]d;"+
			"SELECT %[1]d, count(pg_notify('%[3]s', key)) FROM unnest('%[4]s'::text[]) AS key",
		notifyWithin.Milliseconds(), channel, arrayOf(free))
}

// mark marks keys, and calls then with whether it could.
func (w *wire) mark(keys []int64, then func(marked []bool)) {
	w.askText(&message{answered: func(a answer) {
		if a.err == nil && len(a.rows[0]) == 2 {
			then(parseBools(a.rows[0][1]))
		} else {
			then(nil)
		}
	}}, "SELECT %d, array_agg(pg_try_advisory_lock_shared("+halves+")) FROM unnest('%s'::bigint[]) AS key",
		arrayOf(keys))
}

// unmark undoes mark.
func (w *wire) unmark(keys []int64) {
	w.askText(&message{answered: func(answer) {}},
		"SELECT %d, count(pg_advisory_unlock_shared("+halves+")) FROM unnest('%s'::bigint[]) AS key", arrayOf(keys))
}

// arrayOf writes an array as Postgres reads it.
func arrayOf(keys []int64) string {
	array := []byte{'{'}
	for i, key := range keys {
		if i > 0 {
			array = append(array, ',')
		}
		array = strconv.AppendInt(array, key, 10)
	}
	return string(append(array, '}'))
}
