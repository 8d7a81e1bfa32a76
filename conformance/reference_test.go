package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// The reference is the plainest backend that keeps the whole contract: a store that is one map behind one mutex, and
// clients that reach it over links that can fail. The broken backends are made of it by changing one thing.
//
// It runs in fake time, so that no margin of any rule depends on how busy the machine is.

// store is what clients reach over their links.
type store struct {
	mu     sync.Mutex
	held   map[string]*record   // exclusively
	beside map[string][]*record // in another mode
	lines  map[string][]*waiter // in order of arrival
	token  uint64               // the last one given, for whatever key

	// What broken stores do in another way.
	nameOf     func(locker.Request) string
	mayRelease func(holder, caller locker.Request) bool
	mayRenew   func(holder, caller locker.Request) bool
	keptFor    func(ttl time.Duration) time.Duration
	knows      func(holder, caller locker.Request) bool          // that the caller is the holder, who asks again
	mint       func(last uint64) uint64                          // returns the next token
	tells      func(holder, caller locker.Request) string        // the holder's name
	turn       func(waiting int) int                             // returns whose turn in the line it is
	lineOf     func(locker.Request) string                       // returns the name of the line
	granted    func(s *store, name string)                       // is called with each grant
	arrange    func(what event, line []*waiter, i int) []*waiter // changes a line when something happens to that with index i
	calls      *calls                                            // another kind of line, if not nil: see calling
	counts     *countsKeys                                       // mints the tokens instead, if it is not nil
	modes      modes
	inspection inspection
	revocation revocation
	adopts     func(s *store, h *record, r locker.Request, from locker.Grant) bool
	keep       func(s *store, name string, h *record, g locker.Grant) // what is to be kept for MinHold, or was
}

// event is what happens to a line.
type event int

const (
	joined  event = iota // the last in it is new
	leaves               // somebody gives up
	freed                // it is the turn of the next
	renewed              // the holder's lease was
)

// record is a lock that is held. It expires by its timer: if the store has a record, it is valid.
type record struct {
	grant   locker.Grant
	expires time.Time
	timer   *time.Timer
	revoked *locker.Revocation // it is not renewed any more
}

// waiter is somebody in line.
type waiter struct {
	request locker.Request
	from    *link
	since   time.Time
	granted chan locker.Grant // has room for the one grant
}

func newStore() *store {
	sameOwner := func(holder, caller locker.Request) bool { return holder.Owner == caller.Owner }
	s := &store{
		held:       make(map[string]*record),
		beside:     make(map[string][]*record),
		lines:      make(map[string][]*waiter),
		nameOf:     locker.Request.Name,
		mayRelease: sameOwner,
		mayRenew:   sameOwner,
		knows:      sameOwner,
		keptFor:    func(ttl time.Duration) time.Duration { return ttl },
		mint:       func(last uint64) uint64 { return last + 1 },
		tells:      func(holder, _ locker.Request) string { return holder.Holder },
		turn:       func(int) int { return 0 },
		granted:    func(*store, string) {},
		arrange:    func(_ event, line []*waiter, _ int) []*waiter { return line },
	}
	s.lineOf = func(r locker.Request) string { return s.nameOf(r) }
	s.modes = referenceModes()
	s.inspection = referenceInspection()
	s.revocation = referenceRevocation()
	s.adopts = adoptRecord
	s.keep = func(s *store, name string, h *record, g locker.Grant) {
		if g.Keep > 0 {
			keepRecord(s, name, h, g.Keep)
		} else {
			s.freeRecord(name, h)
		}
	}
	return s
}

// acquire, as the methods that follow it, is called with mu held.
func (s *store) acquire(r locker.Request) (locker.Grant, error) {
	held := s.held[s.nameOf(r)]
	switch {
	case held == nil:
		return s.acquireBeside(r)
	case held.revoked == nil && s.knows(held.grant.Request, r):
		s.expireAfter(held, r.TTL)
		return held.grant, nil
	}
	return locker.Grant{}, &locker.Held{Holder: s.tells(held.grant.Request, r), Remaining: time.Until(held.expires)}
}

// grant gives the key to r, whoever had it.
func (s *store) grant(r locker.Request) locker.Grant {
	if s.token = s.mint(s.token); s.counts != nil {
		s.token = s.counts.mint(r)
	}
	// The store's clock is that of its clients: to count from here is safe.
	held := &record{grant: locker.Grant{Request: r, Token: s.token, Sent: time.Now()}}
	if r.Mode != locker.ModeExclusive {
		return s.grantBeside(held)
	}
	name := s.nameOf(r)
	s.held[name] = held
	s.expireAfter(held, r.TTL)
	s.granted(s, name)
	return held.grant
}

// expireAfter sets or moves the expiry of a record.
func (s *store) expireAfter(held *record, ttl time.Duration) {
	ttl = s.keptFor(ttl)
	held.expires = time.Now().Add(ttl)
	if held.timer != nil {
		held.timer.Stop()
	}
	held.timer = time.AfterFunc(ttl, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		name := s.nameOf(held.grant.Request)
		if s.held[name] == held && !time.Now().Before(held.expires) {
			s.free(name)
		}
	})
}

// free takes the key away from its holder and gives it to the next in line.
func (s *store) free(name string) {
	held := s.held[name]
	if held == nil {
		s.freeBeside(name, func(*record) bool { return true })
		return
	}
	held.timer.Stop()
	delete(s.held, name)
	if s.calls != nil {
		s.calls.callFirst(s, name)
	}
	at := s.lineOf(held.grant.Request)
	if line := s.lines[at]; len(line) > 0 {
		line = s.arrange(freed, line, 0)
		i := s.turn(len(line))
		next := line[i]
		s.lines[at] = slices.Delete(line, i, i+1)
		next.granted <- s.grant(next.request)
		s.serveBeside(s.nameOf(next.request), at)
	}
}

// join is acquire for those who wait if they are refused.
func (s *store) join(w *waiter) {
	g, err := s.acquire(w.request)
	if err == nil {
		w.granted <- g
		return
	}
	at := s.lineOf(w.request)
	s.lines[at] = s.arrange(joined, append(s.lines[at], w), len(s.lines[at]))
	w.request.ReportHolder(s.tells(s.holderOf(s.nameOf(w.request)), w.request))
}

func (s *store) renew(g locker.Grant) error {
	if s.revocation.broken(s, g.Owner) {
		return nil
	}
	if g.Mode != locker.ModeExclusive {
		return s.renewBeside(g)
	}
	held := s.held[s.nameOf(g.Request)]
	if held == nil || !s.mayRenew(held.grant.Request, g.Request) {
		return locker.ErrLost
	}
	if err := s.isRevoked(held); err != nil {
		return err
	}
	s.expireAfter(held, g.TTL)
	name := s.nameOf(g.Request)
	if line := s.lines[name]; len(line) > 0 {
		s.lines[name] = s.arrange(renewed, line, 0)
	}
	return nil
}

// leave takes an owner out of a line.
func (s *store) leave(at string, owner locker.Owner) {
	of := func(w *waiter) bool { return w.request.Owner == owner }
	if i := slices.IndexFunc(s.lines[at], of); i >= 0 {
		s.lines[at] = slices.DeleteFunc(s.arrange(leaves, s.lines[at], i), of)
		if s.modes.servesWhenOneLeaves {
			s.serveBeside(at, at) // those behind may have waited for this one alone
		}
	}
}

// release leaves nothing of the owner of g behind, nor in line.
func (s *store) release(g locker.Grant) error {
	name := s.nameOf(g.Request)
	s.leave(s.lineOf(g.Request), g.Owner)
	if g.Mode != locker.ModeExclusive {
		return s.releaseBeside(g)
	}
	held := s.held[name]
	if held == nil || !s.mayRelease(held.grant.Request, g.Request) {
		return locker.ErrLost
	}
	s.giveBack(name, held, g)
	return nil
}

// giveBack takes the key away from one of its holders, who is done with it.
func (s *store) giveBack(name string, h *record, g locker.Grant) {
	switch {
	case g.MinHold > 0:
		s.keep(s, name, h, g)
	case h.revoked != nil:
		s.revocation.releases(s, name, h)
	default:
		s.freeRecord(name, h)
	}
}

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
)

// late is a fifth of the TTL, by which the links delay: see DelayReplies.
const late = time.Second / 5

// link is the connection between one client and the store. Each request is on its own: those that come late may come in
// another order.
type link struct {
	mu      sync.Mutex
	severed bool
	fault   Fault         // if severed
	hanging []func()      // requests to be carried when the link is healed
	reset   chan struct{} // closed when the connection breaks, and made anew
	skew    atomic.Int64  // by how much the wall clock of the client is wrong
}

func (l *link) cut(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.severed, l.fault = true, f
	if f == Refuse {
		l.breakLocked()
	}
}

func (l *link) breakLocked() {
	close(l.reset)
	l.reset = make(chan struct{})
}

func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.severed = false
	if l.fault == BlackHole || l.fault == DropReplies {
		l.breakLocked() // it cannot go on where something is missing
	}
	for _, request := range l.hanging {
		request()
	}
	l.hanging = nil
}

// carry carries a request to the store and the answer back, as well as the link does. After an error the request may
// have been carried out, or be so later.
func (l *link) carry(ctx context.Context, request func()) error {
	l.mu.Lock()
	if !l.severed {
		request()
		l.mu.Unlock()
		return nil
	}
	reset, answered := l.reset, make(chan struct{})
	switch l.fault {
	case Refuse:
		l.mu.Unlock()
		return errRefused
	case BlackHole:
	case Hang:
		l.hanging = append(l.hanging, func() { request(); close(answered) })
	case DropReplies:
		request()
	case DelayReplies:
		request()
		time.AfterFunc(late, func() { close(answered) })
	case LateRequests:
		time.AfterFunc(rand.N(late), func() {
			request()
			close(answered)
		})
	}
	l.mu.Unlock()
	select {
	case <-answered:
		return nil
	case <-reset:
		return errReset
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// client is a backend without a waiting line.
type client struct {
	store *store
	link  *link
}

// now is what the wall clock of the client says. The reference does not ask it.
func (c *client) now() time.Time { return time.Now().Add(time.Duration(c.link.skew.Load())) }

// ask has the store do something, with its mutex held.
func (c *client) ask(ctx context.Context, do func(*store)) error {
	return c.link.carry(ctx, func() {
		c.store.mu.Lock()
		defer c.store.mu.Unlock()
		do(c.store)
	})
}

func (c *client) String() string { return "reference" }
func (c *client) Close() error   { return nil }

// Acquire implements locker.Backend.
func (c *client) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var g locker.Grant
	var refusal error
	if err := c.ask(ctx, func(s *store) { g, refusal = s.acquire(r) }); err != nil {
		return locker.Grant{}, err
	}
	return g, refusal
}

// Renew implements locker.Backend.
func (c *client) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	requested := slices.Clone(gs) // the request may be carried out when Renew has returned
	answers := make([]error, len(gs))
	err := c.ask(ctx, func(s *store) {
		for i, g := range requested {
			answers[i] = s.renew(g)
		}
	})
	for i := range gs {
		if err != nil { // not answers: they may still be written to
			done(i, locker.Renewal{Err: err})
		} else {
			done(i, locker.Renewal{Err: answers[i]})
		}
	}
}

// Release implements locker.Backend.
func (c *client) Release(ctx context.Context, g locker.Grant) error {
	var answer error
	if err := c.ask(ctx, func(s *store) { answer = s.release(g) }); err != nil {
		return err
	}
	return answer
}

// queued is a backend with the store's own waiting line.
type queued struct{ *client }

func (queued) Features() locker.Features {
	return locker.Features{Queue: true, Shared: true, Slots: true, Inspect: true, Revoke: true, MinHold: true,
		Adopt: true}
}

// Wait implements locker.Queue. After an error locker.New calls Release, which leaves the line.
func (q queued) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	w := &waiter{request: r, from: q.link, since: time.Now(), granted: make(chan locker.Grant, 1)}
	var reset chan struct{}
	err := q.ask(ctx, func(s *store) {
		reset = q.link.reset
		s.join(w)
	})
	if err != nil {
		return locker.Grant{}, err
	}
	select {
	case g := <-w.granted:
		return g, q.link.carry(ctx, func() {}) // the grant has to come over the link too
	case <-reset:
		return locker.Grant{}, errReset
	case <-ctx.Done():
		return locker.Grant{}, context.Cause(ctx)
	}
}

// world is a store with its clients.
type world struct {
	store *store
	mu    sync.Mutex
	links []*link
}

func (w *world) connect() *client {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &link{reset: make(chan struct{})}
	w.links = append(w.links, l)
	return &client{w.store, l}
}

// cut severs the link that was made last.
func (w *world) cut(f Fault) (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[len(w.links)-1]
	l.cut(f)
	return l.heal
}

// skew sets the clock wrong of the client that was made last.
func (w *world) skew(d time.Duration) (undo func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[len(w.links)-1]
	l.skew.Store(int64(d))
	return func() { l.skew.Store(0) }
}

// restart breaks all connections. The store forgets those who waited, and nothing else.
func (w *world) restart() {
	w.store.mu.Lock()
	clear(w.store.lines)
	if w.store.calls != nil {
		clear(w.store.calls.lines)
	}
	w.store.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		l.mu.Lock()
		l.breakLocked()
		l.mu.Unlock()
	}
}

// takeAway frees a key without a word to its holder.
func (w *world) takeAway(name string) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.free(name)
}
