package conformance

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// lineDefects are broken in the order in which they serve, and in what becomes of waiters that give up or die.
var lineDefects = slices.Concat(orderDefects, overtakingDefects, leavingDefects, dyingDefects)

// fineInLine is what most defects of a line have nothing to do with.
var fineInLine = []string{"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/WakesOnExpiry", "waiting/Cancelled"}

func alsoFine(rules ...string) []string { return slices.Concat(fineInLine, rules) }

// arranging is for stores that change their lines.
func arranging(arrange func(what event, line []*waiter, i int) []*waiter) func(*store) {
	return func(s *store) { s.arrange = arrange }
}

// onEvent is for stores that change their lines when something happens to them.
func onEvent(on event, change func(line []*waiter, i int) []*waiter) func(*store) {
	return arranging(func(what event, line []*waiter, i int) []*waiter {
		if what == on {
			return change(line, i)
		}
		return line
	})
}

// sorted is for stores whose line is in another order than that of arrival.
func sorted(less func(a, b *waiter) int) func(*store) {
	return onEvent(joined, func(line []*waiter, _ int) []*waiter {
		slices.SortStableFunc(line, less)
		return line
	})
}

func reversed(line []*waiter, _ int) []*waiter {
	slices.Reverse(line)
	return line
}

// toFront moves the waiter with an index to the front.
func toFront(line []*waiter, i int) []*waiter {
	if i <= 0 {
		return line
	}
	first := line[i]
	return slices.Insert(slices.Delete(line, i, i+1), 0, first)
}

// orderDefects do not serve in order of arrival.
var orderDefects = []defect{
	{
		name: "waiters of the process that was served last come first",
		store: func(s *store) {
			last := make(map[string]*link) // by key
			onEvent(freed, func(line []*waiter, _ int) []*waiter {
				key := line[0].request.Key
				line = toFront(line, slices.IndexFunc(line, func(w *waiter) bool { return w.from == last[key] }))
				last[key] = line[0].from
				return line
			})(s)
		},
		caught: []string{"waiting/FIFO", "waiting/NoOvertaking"},
		fine:   alsoFine("waiting/DeadWaiters"),
	},
	{
		name: "processes take turns", store: takesTurns,
		caught: []string{"waiting/FIFO"},
		fine:   alsoFine("waiting/NoOvertaking"),
	},
	{
		name:   "a long line is served from its end",
		store:  func(s *store) { s.turn = lastIfMoreThan(8) },
		caught: []string{"waiting/FIFO", "waiting/KeepsItsPlace"},
		fine:   alsoFine("waiting/DeadWaiters"),
	},
	{
		name:   "a very long line is served from its end",
		store:  func(s *store) { s.turn = lastIfMoreThan(64) },
		caught: []string{"waiting/FIFO"},
		fine:   alsoFine("waiting/CancelKeepsOrder", "waiting/KeepsItsPlace"),
	},
	{
		name: "two at the head are served in the wrong order",
		store: func(s *store) {
			s.turn = func(waiting int) int { return min(1, waiting-1) }
		},
		caught: []string{"waiting/FIFO", "waiting/NoOvertaking"},
		fine:   fineInLine,
	},
	{
		name:   "a line sorted by owner",
		store:  sorted(func(a, b *waiter) int { return slices.Compare(a.request.Owner[:], b.request.Owner[:]) }),
		caught: []string{"waiting/FIFO", "waiting/NoOvertaking", "waiting/KeepsItsPlace"},
		fine:   fineInLine,
	},
	{
		name:   "a line sorted by the names of the holders",
		store:  sorted(func(a, b *waiter) int { return strings.Compare(a.request.Holder, b.request.Holder) }),
		caught: []string{"waiting/FIFO"},
		fine:   alsoFine("waiting/NoOvertaking"),
	},
	{
		name:   "the shortest lease first",
		store:  sorted(func(a, b *waiter) int { return int(a.request.TTL - b.request.TTL) }),
		caught: []string{"waiting/FIFO"},
		fine:   alsoFine("waiting/NoOvertaking"),
	},
	{
		name: "a line by the second of arrival",
		store: func(s *store) {
			came := make(map[*waiter]int64)
			sorted(func(a, b *waiter) int {
				for _, w := range []*waiter{a, b} {
					if came[w] == 0 {
						came[w] = time.Now().Unix()
					}
				}
				if came[a] != came[b] {
					return int(came[a] - came[b])
				}
				return slices.Compare(a.request.Owner[:], b.request.Owner[:])
			})(s)
		},
		caught: []string{"waiting/FIFO", "waiting/CancelKeepsOrder"},
		fine:   alsoFine("waiting/DeadWaiters"),
	},
	{
		name: "the line turns round with a handoff",
		store: func(s *store) {
			handed := 0
			onEvent(freed, func(line []*waiter, _ int) []*waiter {
				if handed++; handed%5 == 0 {
					slices.Reverse(line[1:])
				}
				return line
			})(s)
		},
		caught: []string{"waiting/FIFO"},
		fine:   fineInLine,
	},
	{
		name: "who comes when others have been served comes first",
		store: func(s *store) {
			served := false
			arranging(func(what event, line []*waiter, i int) []*waiter {
				switch {
				case what == freed:
					served = len(line) > 1
				case what == joined && served:
					line = toFront(line, i)
				}
				return line
			})(s)
		},
		caught: []string{"waiting/FIFO"},
		fine:   fineInLine,
	},
	{
		name: "the line turns round with a renewal", store: onEvent(renewed, reversed),
		caught: []string{"waiting/KeepsItsPlace", "waiting/FIFO"},
		fine:   fineInLine,
	},
	{
		name:    "a place in line lasts for three seconds",
		backend: func(_ *testing.T, c *client) locker.Backend { return joinsAgain{queued{c}} },
		caught:  []string{"waiting/KeepsItsPlace"},
		fine:    alsoFine("waiting/FIFO", "waiting/NoOvertaking"),
	},
}

// takesTurns serves first who is of the process that has waited for the longest time since it was served.
func takesTurns(s *store) {
	type turn struct {
		key  string
		from *link
	}
	turns := make(map[turn]int)
	n := 0
	onEvent(freed, func(line []*waiter, _ int) []*waiter {
		of := func(i int) turn { return turn{line[i].request.Key, line[i].from} }
		first := 0
		for i := range line {
			if turns[of(i)] < turns[of(first)] {
				first = i
			}
		}
		n++
		turns[of(first)] = n
		return toFront(line, first)
	})(s)
}

func lastIfMoreThan(few int) func(waiting int) int {
	return func(waiting int) int {
		if waiting > few {
			return waiting - 1
		}
		return 0
	}
}

// joinsAgain gives up its place every three seconds, and gets into line again.
type joinsAgain struct{ queued }

func (b joinsAgain) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	for {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		g, err := b.queued.Wait(short, r)
		cancel()
		if err == nil || ctx.Err() != nil || short.Err() == nil {
			return g, err
		}
		_ = b.Release(ctx, locker.Grant{Request: r})
	}
}

// TestOrderedPerLocker is about what that relaxes: turns of Lockers, but not the order among the waiters of one.
func TestOrderedPerLocker(t *testing.T) {
	lastOfOwn := func(s *store) { // of each process, who came last is served first
		onEvent(freed, func(line []*waiter, _ int) []*waiter {
			own := slices.Clone(line)
			slices.Reverse(own)
			return toFront(line, len(line)-1-slices.IndexFunc(own, func(w *waiter) bool { return w.from == line[0].from }))
		})(s)
	}
	for _, test := range []struct {
		name  string
		store func(*store)
		fails bool
	}{{"in turns", takesTurns, false}, {"last of its own first", lastOfOwn, true}} {
		d := &defect{store: test.store}
		h := d.harness().withDefaults()
		h.Features.OrderedPerLocker = "they take turns"
		for _, rule := range []string{"waiting/FIFO", "waiting/CancelKeepsOrder", "waiting/KeepsItsPlace"} {
			t.Run(test.name+"/"+rule, func(t *testing.T) {
				v, _ := ruleNamed(t, rule).wrapped(t, h, &result{name: rule})
				if len(v.problems) > 0 != test.fails {
					t.Errorf("problems: %v", v.problems)
				}
				if len(v.gaps) != 1 {
					t.Errorf("the report says %v; want that the order is relaxed, once", v.gaps)
				}
			})
		}
	}
}

// calls is the line of a store that calls the first in it when a key is free, who then has to come for the key. It is
// reserved until then, but not for long.
type calls struct {
	lines    map[string][]*comer
	reserves time.Duration
	poll     time.Duration // how often a waiter asks without having been called

	// What broken ones do.
	openTo      func(how arrival, released bool) bool // lets some in although there is a line
	leave       func(s *store, name string)           // called when the first in line has left it
	withoutDead func(line []*comer) []*comer          // takes the first out of the line, which has not come
	forgetful   bool                                  // who is not in line any more does not notice
	freedByName map[string]bool                       // the key was released, and is not held
}

// arrival is how somebody asks for a key.
type arrival int

const (
	byTry arrival = iota
	byLock
)

// comer is somebody in such a line.
type comer struct {
	owner  locker.Owner
	called chan struct{} // has room for one
}

// callsFirst makes a store that calls, which is right unless one of the changes is made to it.
func callsFirst(change func(*calls)) func(*store) {
	return func(s *store) {
		s.calls = &calls{
			lines: make(map[string][]*comer), freedByName: make(map[string]bool),
			reserves: time.Second, poll: 400 * time.Millisecond,
			withoutDead: func(line []*comer) []*comer { return line[1:] },
			openTo:      func(arrival, bool) bool { return false },
			leave:       func(s *store, name string) { s.calls.callFirst(s, name) },
		}
		if change != nil {
			change(s.calls)
		}
	}
}

// callFirst calls the first in line if the key is free.
func (cs *calls) callFirst(s *store, name string) {
	line := cs.lines[name]
	if s.held[name] != nil || len(line) == 0 {
		return
	}
	first := line[0]
	select {
	case first.called <- struct{}{}:
	default:
	}
	time.AfterFunc(cs.reserves, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if line := cs.lines[name]; s.held[name] == nil && len(line) > 0 && line[0] == first {
			cs.lines[name] = cs.withoutDead(line)
			cs.callFirst(s, name)
		}
	})
}

// take is acquire for somebody who may have a place in line, for what is free: ok is false if it is not, or not for
// him.
func (cs *calls) take(s *store, how arrival, r locker.Request) (g locker.Grant, ok bool) {
	name := s.nameOf(r)
	line := cs.lines[name]
	i := slices.IndexFunc(line, func(other *comer) bool { return other.owner == r.Owner })
	switch held := s.held[name]; {
	case held != nil && !s.knows(held.grant.Request, r):
		return g, false
	case held == nil && i != 0 && len(line) > 0 && !cs.openTo(how, cs.freedByName[name]):
		return g, false
	}
	if i >= 0 {
		cs.lines[name] = slices.Delete(line, i, i+1)
	}
	cs.freedByName[name] = false
	g, err := s.acquire(r)
	return g, err == nil
}

// calling is a backend of such a store. A waiter keeps its place when its connection breaks.
type calling struct{ *client }

func (calling) Features() locker.Features { return locker.Features{Queue: true} }

func (b calling) Acquire(ctx context.Context, r locker.Request) (g locker.Grant, err error) {
	var ok bool
	if err := b.ask(ctx, func(s *store) { g, ok = s.calls.take(s, byTry, r) }); err != nil {
		return locker.Grant{}, err
	}
	if !ok {
		return locker.Grant{}, locker.ErrLocked
	}
	return g, nil
}

func (b calling) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	const trip = 2 * time.Millisecond
	me := &comer{r.Owner, make(chan struct{}, 1)}
	for inLine := false; ; {
		var g locker.Grant
		var ok bool
		var reset chan struct{}
		sent := time.Now()
		err := b.ask(ctx, func(s *store) {
			reset = b.link.reset
			name := s.nameOf(r)
			isThere := slices.Contains(s.calls.lines[name], me)
			if s.calls.forgetful && inLine && !isThere {
				return
			}
			if g, ok = s.calls.take(s, byLock, r); ok {
				return
			}
			if !isThere {
				s.calls.lines[name] = append(s.calls.lines[name], me)
				s.calls.callFirst(s, name)
			}
			if held := s.held[name]; held != nil {
				r.ReportHolder(s.tells(held.grant.Request, r))
			} else {
				r.ReportHolder("")
			}
		})
		pause := b.store.calls.poll
		switch {
		case err == nil && ok:
			g.Sent = sent
			return g, nil
		case err == nil:
			inLine = true
		case !inLine || ctx.Err() != nil:
			return locker.Grant{}, err
		default:
			r.ReportRetry(err)
			reset, pause = nil, 100*time.Millisecond
		}
		select {
		case <-me.called:
			time.Sleep(trip)
		case <-reset:
		case <-time.After(pause):
		case <-ctx.Done():
			return locker.Grant{}, context.Cause(ctx)
		}
	}
}

func (b calling) Release(ctx context.Context, g locker.Grant) error {
	var answer error
	err := b.ask(ctx, func(s *store) {
		name := s.nameOf(g.Request)
		line := s.calls.lines[name]
		i := slices.IndexFunc(line, func(other *comer) bool { return other.owner == g.Owner })
		if i >= 0 {
			s.calls.lines[name] = slices.Delete(line, i, i+1)
		}
		if i == 0 {
			s.calls.leave(s, name)
		}
		if answer = s.release(g); answer == nil {
			s.calls.freedByName[name] = true
		}
	})
	if err != nil {
		return err
	}
	return answer
}

func callingBackend(_ *testing.T, c *client) locker.Backend { return calling{c} }

// TestReferenceThatCalls proves that the suite asks of no line that the key is handed over while it is freed.
func TestReferenceThatCalls(t *testing.T) {
	withoutRaces(t)
	d := &defect{store: callsFirst(nil), backend: callingBackend}
	Run(t, d.harness())
}

// overtakingDefects let others in between the moment when a key becomes free and that when the first in line has come
// for it.
var overtakingDefects = []defect{
	{
		name: "TryLock takes what is reserved", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.openTo = func(how arrival, _ bool) bool { return how == byTry } }),
		caught: []string{"waiting/NoOvertaking", "waiting/NoOvertakingOnExpiry", "waiting/FIFO"},
		fine:   alsoFine("waiting/KeepsItsPlace", "waiting/CancelKeepsOrder"),
	},
	{
		name: "a new Lock takes what is reserved", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.openTo = func(how arrival, _ bool) bool { return how == byLock } }),
		caught: []string{"waiting/NoOvertaking", "waiting/NoOvertakingOnExpiry"},
		fine:   alsoFine("waiting/DeadWaiters"),
	},
	{
		name: "nothing is reserved when a lease expires", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.openTo = func(_ arrival, released bool) bool { return !released } }),
		caught: []string{"waiting/NoOvertakingOnExpiry"},
		fine:   alsoFine("waiting/NoOvertaking", "waiting/FIFO"),
	},
	{
		name: "TryLock takes what is reserved when a lease has expired", backend: callingBackend,
		store: callsFirst(func(cs *calls) {
			cs.openTo = func(how arrival, released bool) bool { return how == byTry && !released }
		}),
		caught: []string{"waiting/NoOvertakingOnExpiry"},
		fine:   alsoFine("waiting/NoOvertaking", "waiting/FIFO"),
	},
	{
		name: "a new Lock takes what is reserved when a lease has expired", backend: callingBackend,
		store: callsFirst(func(cs *calls) {
			cs.openTo = func(how arrival, released bool) bool { return how == byLock && !released }
		}),
		caught: []string{"waiting/NoOvertakingOnExpiry"},
		fine:   alsoFine("waiting/NoOvertaking", "waiting/FIFO"),
	},
	{
		name:    "the process that unlocks may lock again at once",
		backend: func(_ *testing.T, c *client) locker.Backend { return newHandsToItself(c) },
		caught:  []string{"waiting/NoOvertaking"},
		fine:    alsoFine("waiting/KeepsItsPlace", "waiting/CancelKeepsOrder"),
	},
}

// handsToItself gives a key that is unlocked to whoever of its own process comes within two milliseconds.
type handsToItself struct {
	queued
	mu   sync.Mutex
	warm map[string]locker.Owner // who has unlocked, by name
}

func newHandsToItself(c *client) *handsToItself {
	return &handsToItself{queued: queued{c}, warm: make(map[string]locker.Owner)}
}

func (b *handsToItself) Release(ctx context.Context, g locker.Grant) error {
	if g.Token == 0 {
		return b.queued.Release(ctx, g)
	}
	b.mu.Lock()
	b.warm[g.Name()] = g.Owner
	b.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	b.mu.Lock()
	taken := b.warm[g.Name()] != g.Owner
	if !taken {
		delete(b.warm, g.Name())
	}
	b.mu.Unlock()
	if taken {
		return nil
	}
	return b.queued.Release(ctx, g)
}

func (b *handsToItself) take(ctx context.Context, r locker.Request) (g locker.Grant, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.warm[r.Name()]; !ok {
		return locker.Grant{}, false, nil
	}
	delete(b.warm, r.Name())
	err = b.ask(ctx, func(s *store) { g = s.grant(r) })
	return g, true, err
}

func (b *handsToItself) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if g, ok, err := b.take(ctx, r); ok {
		return g, err
	}
	return b.queued.Acquire(ctx, r)
}

func (b *handsToItself) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if g, ok, err := b.take(ctx, r); ok {
		return g, err
	}
	return b.queued.Wait(ctx, r)
}

// atCancel is what such defects have nothing to do with. Others may meet a waiter that is granted the key while it
// leaves.
var atCancel = []string{
	"exclusion/OneHolder", "waiting/WakesOnRelease", "waiting/WakesOnExpiry", "waiting/FIFO", "waiting/CancelKeepsOrder",
}

// leavingDefects are broken in what becomes of a line, or of a grant, when somebody gives up.
var leavingDefects = []defect{
	{
		name:   "those behind who leaves leave, too",
		store:  onEvent(leaves, func(line []*waiter, i int) []*waiter { return line[:i+1] }),
		caught: []string{"waiting/CancelKeepsOrder", "waiting/CancelledWhenServed"},
		fine:   alsoFine("waiting/FIFO", "waiting/NoOvertaking"),
	},
	{
		name: "the last takes the place of who leaves",
		store: onEvent(leaves, func(line []*waiter, i int) []*waiter {
			line[i], line[len(line)-1] = line[len(line)-1], line[i]
			return line
		}),
		caught: []string{"waiting/CancelKeepsOrder"},
		fine:   alsoFine("waiting/FIFO", "waiting/CancelledWaiterDoesNotBlockQueue"),
	},
	{
		name: "the line turns round when somebody leaves", store: onEvent(leaves, reversed),
		caught: []string{"waiting/CancelKeepsOrder"},
		fine:   alsoFine("waiting/FIFO", "waiting/CancelledWaiterDoesNotBlockQueue"),
	},
	{
		name: "a process leaves as a whole",
		store: onEvent(leaves, func(line []*waiter, i int) []*waiter {
			from := line[i].from
			return slices.DeleteFunc(line, func(w *waiter) bool { return w.from == from })
		}),
		caught: []string{"waiting/CancelKeepsOrder", "waiting/CancelledWhenServed"},
		fine:   alsoFine("waiting/FIFO", "waiting/CancelledWaiterDoesNotBlockQueue"),
	},
	{
		name:   "the first leaves along with others",
		store:  onEvent(leaves, func(line []*waiter, i int) []*waiter { return line[min(i, 1):] }),
		caught: []string{"waiting/CancelKeepsOrder"},
		fine:   alsoFine("waiting/FIFO", "waiting/CancelledWaiterDoesNotBlockQueue"),
	},
	{
		name:    "a grant at the moment of cancel is kept",
		backend: func(_ *testing.T, c *client) locker.Backend { return keepsGrant{queued{c}} },
		caught:  []string{"waiting/CancelledWhenServed", "waiting/CancelledOnExpiry"},
		fine:    atCancel,
	},
	{
		name:    "a grant that comes when ctx has ended is dropped",
		backend: func(_ *testing.T, c *client) locker.Backend { return dropsGrant{queued{c}} },
		caught:  []string{"waiting/CancelledWhenServed"},
		fine:    atCancel,
	},
	{
		name:    "a grant at the moment of cancel is given back when there is time for it",
		backend: func(_ *testing.T, c *client) locker.Backend { return givesBackLate{queued{c}} },
		caught:  []string{"waiting/CancelledWhenServed", "waiting/CancelledOnExpiry"},
		fine:    atCancel,
	},
	{
		name:    "a grant at the moment of cancel is given back, but not to the line",
		backend: func(_ *testing.T, c *client) locker.Backend { return forgetsTheNext{queued{c}} },
		caught:  []string{"waiting/CancelledWhenServed", "waiting/CancelledOnExpiry"},
		fine:    atCancel,
	},
	{
		name: "who was called leaves without a word", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.leave, cs.poll = func(*store, string) {}, 5*time.Second }),
		caught: []string{"waiting/CancelledWhenServed", "waiting/CancelledOnExpiry"},
		fine:   atCancel,
	},
	{
		name:   "hold bound to the ctx of the wait, if there was one",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return bindsWaited{l} },
		caught: []string{"waiting/WaitDoesNotBoundHold"},
		fine:   alsoFine("waiting/FIFO", "unlock/AfterContextEnded"),
	},
}

// keepsGrant leaves the line when ctx ends, and does not look whether it was granted the key meanwhile.
type keepsGrant struct{ queued }

func (b keepsGrant) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if err != nil && ctx.Err() != nil {
		if b.ask(context.WithoutCancel(ctx), func(s *store) { s.leave(s.nameOf(r), r.Owner) }) == nil {
			err = locker.NotAcquired(err)
		}
	}
	return g, err
}

// dropsGrant has no use for a grant when ctx has ended.
type dropsGrant struct{ queued }

func (b dropsGrant) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if err == nil && ctx.Err() != nil {
		return locker.Grant{}, locker.NotAcquired(context.Cause(ctx))
	}
	return g, err
}

// givesBackLate waits for a while before it gives back what it has been granted, but leaves the line at once.
type givesBackLate struct{ queued }

func (b givesBackLate) Release(ctx context.Context, g locker.Grant) error {
	var granted bool
	if err := b.ask(ctx, func(s *store) {
		name := s.nameOf(g.Request)
		s.leave(name, g.Owner)
		granted = s.held[name] != nil && s.held[name].grant.Owner == g.Owner
	}); err != nil {
		return err
	}
	if granted && g.Token == 0 {
		time.Sleep(800 * time.Millisecond)
		ctx = context.WithoutCancel(ctx)
	}
	return b.queued.Release(ctx, g)
}

// forgetsTheNext frees what it gives up, but does not look into the line.
type forgetsTheNext struct{ queued }

func (b forgetsTheNext) Release(ctx context.Context, g locker.Grant) error {
	if g.Token != 0 {
		return b.queued.Release(ctx, g)
	}
	return b.ask(ctx, func(s *store) {
		name := s.nameOf(g.Request)
		s.leave(name, g.Owner)
		if held := s.held[name]; held != nil && held.grant.Owner == g.Owner {
			held.timer.Stop()
			delete(s.held, name)
		}
	})
}

// bindsWaited is bindsHold for locks that had to be waited for.
type bindsWaited struct{ locker.Locker }

func (l bindsWaited) Lock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if lease, err := l.TryLock(ctx, key, opts...); !errors.Is(err, locker.ErrLocked) {
		return lease, err
	}
	return bindsHold(l).Lock(ctx, key, opts...)
}

// dyingDefects are broken in what becomes of a line when somebody in it dies, or the store restarts.
var dyingDefects = []defect{
	{
		name: "the key is reserved for a dead waiter for good", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.reserves = time.Hour }),
		caught: []string{"waiting/DeadWaiters", "waiting/KilledWhenServed"},
		fine: alsoFine("waiting/FIFO", "waiting/NoOvertakingOnExpiry", "waiting/CancelKeepsOrder",
			"waiting/CancelledWhenServed"),
	},
	{
		name: "a dead waiter takes those behind it along", backend: callingBackend,
		store: callsFirst(func(cs *calls) {
			cs.forgetful = true
			cs.withoutDead = func([]*comer) []*comer { return nil }
		}),
		caught: []string{"waiting/DeadWaiters"},
		fine: alsoFine("waiting/FIFO", "waiting/NoOvertakingOnExpiry", "waiting/CancelKeepsOrder",
			"waiting/CancelledWhenServed"),
	},
	{
		name:    "what a waiter is granted expires when it has heard of it",
		backend: func(_ *testing.T, c *client) locker.Backend { return expiresIfHeard{queued{c}} },
		caught:  []string{"waiting/DeadWaiters", "waiting/KilledWhenServed"},
		fine:    alsoFine("waiting/FIFO", "waiting/NoOvertakingOnExpiry", "waiting/CancelKeepsOrder", "lease/NoRenew"),
	},
	{
		name:    "what a waiter is granted counts from when it has heard of it",
		backend: func(_ *testing.T, c *client) locker.Backend { return countsFromHearing{queued{c}} },
		caught:  []string{"waiting/KilledWhenServed"},
		fine:    alsoFine("waiting/FIFO", "waiting/DeadWaiters", "waiting/CancelKeepsOrder", "lease/NoRenew"),
	},
	{
		name: "who is not in line after a restart does not get into it again", backend: callingBackend,
		store:  callsFirst(func(cs *calls) { cs.forgetful = true }),
		caught: []string{"waiting/WaitsAcrossRestart"},
		fine:   alsoFine("waiting/RidesOut", "waiting/FIFO", "waiting/CancelKeepsOrder"),
	},
	{
		name:    "a wait that believes in a place in line that a restart has taken",
		backend: func(_ *testing.T, c *client) locker.Backend { return waitsInVain{queued{c}} },
		caught:  []string{"waiting/WaitsAcrossRestart"},
		fine:    alsoFine("waiting/FIFO", "waiting/DeadWaiters", "waiting/CancelKeepsOrder"),
	},
	{
		name: "a restart ends the wait",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return classifies{client: c, wait: locker.ErrUnfit}
		},
		caught: []string{"waiting/WaitsAcrossRestart"},
		fine:   alsoFine("waiting/FIFO", "waiting/DeadWaiters", "waiting/CancelKeepsOrder"),
	},
}

// expiresIfHeard has the store keep for an hour what it grants to a waiter, and sets the TTL when it has heard of it.
type expiresIfHeard struct{ queued }

func (b expiresIfHeard) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	forGood := r
	forGood.TTL = time.Hour
	g, err := b.queued.Wait(ctx, forGood)
	if err != nil {
		return g, err
	}
	sent := time.Now()
	if err := b.ask(ctx, func(s *store) {
		if held := s.held[s.nameOf(r)]; held != nil && held.grant.Owner == r.Owner {
			s.expireAfter(held, r.TTL)
		}
	}); err != nil {
		return locker.Grant{}, err
	}
	g.TTL, g.Sent = r.TTL, sent
	return g, nil
}

// countsFromHearing does not know when a waiter was granted the key.
type countsFromHearing struct{ queued }

func (b countsFromHearing) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	g.Sent = time.Now()
	return g, err
}

// TestReferenceThatPolls proves that the suite asks for nothing impossible of a backend without a line.
func TestReferenceThatPolls(t *testing.T) {
	withoutRaces(t)
	h := (&defect{backend: func(_ *testing.T, c *client) locker.Backend { return c }}).harness()
	h.Features.Unordered = "it polls"
	Run(t, h)
}
