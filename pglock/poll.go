package pglock

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// Polling, for the lines that have no session to wait on. A Locker polls for all of them together, about once a second.
// Hints make that sooner.

const (
	// pollEvery is the time between two polls, and pollJitter that by which it may be longer, so that Lockers do not
	// poll in step.
	pollEvery  = time.Second
	pollJitter = pollEvery / 4

	// hintJitter is for how long at most a Locker waits that is told of a free key, as all others are told, too.
	hintJitter = 1250 * time.Microsecond
)

// startPolling makes the line of a slot poll. b.mu is held.
func (b *backend) startPolling(sl *slot) {
	sl.starved = true
	b.waits.starved = append(b.waits.starved, sl)
	b.tend()
	b.pollAfter()
}

// stopPolling undoes startPolling. b.mu is held.
func (b *backend) stopPolling(sl *slot) {
	if !sl.starved {
		return
	}
	sl.starved, sl.pollAgain = false, false
	b.waits.starved = slices.DeleteFunc(b.waits.starved, func(other *slot) bool { return other == sl })
	b.tend()
}

// pollAfter polls for all lines that have to, after a pause, if there are any. b.mu is held.
func (b *backend) pollAfter() {
	if w := &b.waits; !w.polling && len(w.starved) > 0 && !b.closed {
		w.polling = true
		time.AfterFunc(pollEvery+rand.N(pollJitter), b.pollAll)
	}
}

// pollAll polls for all lines that have to.
func (b *backend) pollAll() {
	b.mu.Lock()
	b.tend()
	starved := slices.Clone(b.waits.starved)
	b.mu.Unlock()
	for _, sl := range starved {
		b.pollOnce(sl)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waits.polling = false
	b.pollAfter()
}

// pollSoon polls for a key of which there is a hint that it is free. b.mu is held.
func (b *backend) pollSoon(sl *slot) {
	time.AfterFunc(rand.N(hintJitter), func() { b.pollOnce(sl) })
}

// pollOnce tries to get the lock for the first in line.
func (b *backend) pollOnce(sl *slot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !sl.starved || !sl.admits(sl.line[0].request): // this Locker has it, and polls when it gives it back
		return
	case b.waits.available(): // since a session has ended
		b.stopPolling(sl)
		b.arrange(sl)
		return
	case !b.mayAsk(sl):
		sl.pollAgain = true
		return
	}
	first := sl.line[0].request
	l := b.ask(sl, first.TTL)
	poll := func() { b.pollOn(sl, l, first) }
	if l.session != nil || !b.begin(poll) { // else it is being made: the other lines do not wait
		b.mu.afterwards(poll)
	}
}

// pollOn is pollOnce on a session that ask has chosen for the first in line.
func (b *backend) pollOn(sl *slot, l *leaseSession, first locker.Request) {
	<-l.ready // within a bounded time
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.err != nil {
		b.failLine(sl, l.err)
		b.answered(sl, l)
		return
	}
	b.askOn(sl, l.session, sl.want(first, func(o outcome) { b.polled(sl, l, first, o) }), nil)
}

// polled deals with the outcome of a poll for who was the first in line.
func (b *backend) polled(sl *slot, l *leaseSession, first locker.Request, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o = o.orRefused()
	b.hasJoined(sl, l.session, o)
	if !o.done {
		b.leaveRest(sl, l.session, first.Mode, o)
	}
	again := sl.pollAgain
	sl.pollAgain = false
	refused := len(sl.line) > 0 && sl.mayJoin() && !o.done && !isCode(o.err, queryCanceled)
	if refused { // not past somebody else's writer: it has to get into Postgres's line, or to poll
		sl.line[0].refused = true
	}
	switch {
	case isCode(o.err, queryCanceled):
	case refused && !sl.starved:
		b.arrange(sl)
	case o.err != nil:
		err := explain(o.err)
		b.heedMissing(l, err)
		b.failLine(sl, err)
	case !o.done && again:
		b.begin(func() { b.pollOnce(sl) }) // there was a hint while this was under way
	case !o.done:
		b.arrange(sl)
	case len(sl.line) == 0 || !covers(first, sl.line[0].request):
		b.giveBack(sl, l.session, first.Mode, o.number, func() {
			b.answered(sl, l)
			b.arrange(sl)
		})
		return
	default:
		w := sl.line[0]
		sl.line = slices.Delete(sl.line, 0, 1)
		g, err := b.hold(sl, l.session, w.request, o)
		w.done <- attempted{grant: g, err: err}
		b.deserted(sl)
		b.checkPlace(sl) // there may be one by now, for who has got in
		b.arrange(sl)
	}
	b.answered(sl, l)
}

// covers reports whether a lock that was taken for one request does for another: it is of the same kind, and the server
// does not end its session before that lease is over.
func covers(r, other locker.Request) bool { return alike(r, other) && r.TTL >= other.TTL }

// alike reports whether two requests are for a lock of the same kind.
func alike(r, other locker.Request) bool { return r.Mode == other.Mode && r.Slots == other.Slots }
