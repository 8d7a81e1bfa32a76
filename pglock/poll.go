package pglock

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Polling, for the lines that have no session to wait on. So that nobody has to wait for the next poll, who polls tells all
// Lockers so, and the one that holds the key tells them all when it is free: two notifications per handoff, of
// which there are none as long as nobody polls. They are only hints. A NOTIFY takes a lock that is one for the whole
// database, so it must not be what all handoffs depend on.

const (
	// firstPoll and longestPoll bound the pause between two attempts of a line that has to poll.
	firstPoll   = 5 * time.Millisecond
	longestPoll = 100 * time.Millisecond

	// askEvery is after how many refusals others are told again that somebody polls.
	askEvery = 10
)

// The hints, sent on one channel of the database.
const (
	channel = "locker"
	want    = "want" // tell me when this key is free
	free    = "free"
)

// listen makes the session receive hints.
func (s *session) listen() {
	s.askText(&message{answered: func(answer) {}}, "LISTEN "+channel+";SELECT %d")
}

// hint sends a hint about a key.
func (s *session) hint(kind string, key int64) {
	s.askText(&message{answered: func(answer) {}}, "SELECT %d, pg_notify('%s', '%s %d')", channel, kind, key)
}

// hinted receives a hint.
func (b *backend) hinted(payload string) {
	kind, number, _ := strings.Cut(payload, " ")
	key, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return // somebody else uses the channel
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch s := b.slots[key]; {
	case s == nil:
	case kind == want && s.held != nil:
		s.wanted = true
	case kind == free && s.poll != nil:
		s.refused = 0
		s.poll.Reset(rand.N(firstPoll / 4))
	}
}

// startPolling makes the line of a slot poll. b.mu is held.
func (b *backend) startPolling(sl *slot) {
	sl.refused = 0
	sl.poll = time.AfterFunc(0, func() { b.pollOnce(sl) })
	b.waits.starved = append(b.waits.starved, sl)
}

// stopPolling undoes startPolling. b.mu is held.
func (b *backend) stopPolling(sl *slot) {
	if sl.poll == nil {
		return
	}
	sl.poll.Stop()
	sl.poll = nil
	b.waits.starved = slices.DeleteFunc(b.waits.starved, func(other *slot) bool { return other == sl })
}

// pollLater polls again after a pause. b.mu is held.
func (b *backend) pollLater(sl *slot) {
	if sl.poll == nil {
		return
	}
	longest := min(firstPoll<<min(sl.refused, 10), longestPoll)
	sl.poll.Reset(longest - rand.N(longest/2))
	sl.refused++
}

// pollOnce tries to get the lock for the first in line.
func (b *backend) pollOnce(sl *slot) {
	b.mu.Lock()
	if sl.poll == nil || len(sl.line) == 0 {
		b.mu.Unlock()
		return
	}
	if b.waits.available() { // since a session has ended
		b.stopPolling(sl)
		b.arrange(sl)
		b.mu.Unlock()
		return
	}
	if sl.held != nil || !b.mayAsk(sl) { // by this Locker, which will see to it that there is another poll
		b.pollLater(sl)
		b.mu.Unlock()
		return
	}
	l := b.ask(sl, sl.line[0].request.TTL)
	b.mu.Unlock()
	<-l.ready // within a bounded time
	if l.err != nil {
		b.mu.Lock()
		b.failLine(sl, l.err)
		b.answered(sl, l)
		b.mu.Unlock()
		return
	}
	l.session.submit(&request{key: sl.key, then: func(o outcome) { b.polled(sl, l, o) }})
}

// polled deals with the outcome of a poll.
func (b *backend) polled(sl *slot, l *leaseSession, o outcome) {
	ask := false
	b.mu.Lock()
	switch {
	case isCode(o.err, queryCanceled):
		b.pollLater(sl)
	case o.err != nil:
		b.failLine(sl, explain(o.err))
	case !o.done:
		ask = sl.poll != nil && sl.refused%askEvery == 0
		b.pollLater(sl)
	case len(sl.line) == 0:
		b.mu.Unlock()
		b.giveBack(sl, l.session, func() { b.answered(sl, l) })
		return
	default:
		w := sl.line[0]
		sl.line = slices.Delete(sl.line, 0, 1)
		g, err := b.hold(sl, l.session, w.request, o)
		w.done <- attempted{grant: g, err: err}
		b.pollLater(sl)
		b.deserted(sl)
	}
	b.answered(sl, l)
	b.mu.Unlock()
	if ask {
		l.session.hint(want, sl.key)
	}
}
