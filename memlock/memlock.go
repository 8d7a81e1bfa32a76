// Package memlock keeps locks in memory: for a program that runs as one process, for local development, and as
// the test double of every other backend. It keeps the whole contract of package locker: leases that really
// expire, fencing tokens, a waiting line served in order of arrival. It works inside testing/synctest, in whose
// fake time a lease of an hour expires at once.
//
// It has the locks of the options locker.Shared and locker.Slots, too: one line for all, in order of arrival, from
// which readers, or as many as there are slots, get in together.
//
// Locks are shared by the Lockers that come from one New by way of Peer. They do not exclude other processes, and
// are gone, with the count of tokens, when the process ends.
//
//	l := memlock.New()
//	lease, err := l.Lock(ctx, "orders/42") // as of every locker.Locker
//	err = l.Break(ctx, "orders/42")        // in a test: what does the program do when it loses the lock?
//
// See package [github.com/lockerkit/locker] for the contract. With a server: [github.com/lockerkit/locker/redislock],
// [github.com/lockerkit/locker/pglock] and [github.com/lockerkit/locker/etcdlock].
package memlock

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// ErrCut is the error of a Locker that Cut has severed from its memory. It is a locker.ErrUnavailable.
var ErrCut = backends.Sentinel(locker.ErrUnavailable, "severed by Cut")

// Locker is a Client in memory, with what a test needs to do to it.
type Locker struct {
	*locker.Client
	store *store
	link  *link
}

var _ locker.Locker = (*Locker)(nil)

// New returns a Locker over new, empty memory. It needs no Close unless you want its leases unlocked: it has no
// goroutine and no connection of its own. The options are as of locker.New.
func New(opts ...locker.Option) *Locker {
	s := &store{seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].entries = make(map[string]*entry)
	}
	return s.open(opts)
}

// Peer returns another Locker over the same memory, as another process has over a server: independent of the
// first in everything but the locks, and to be closed by itself. Its options are its own.
func (l *Locker) Peer(opts ...locker.Option) *Locker { return l.store.open(opts) }

// Cut severs this Locker from its memory, as a network that fails severs another backend from its store: until heal is
// called, all that it asks fails with ErrCut, and nothing of what it holds is renewed or unlocked. Its leases run
// out, and those who wait on other Lockers of the same memory follow; who waits on this one leaves the line, and gets
// into it again after heal. It is for testing, and for showing, what a crash or a partition does. A second Cut before
// heal has no further effect.
func (l *Locker) Cut() (heal func()) { return l.link.cut() }

// link is the connection between a Locker and its memory.
type link struct {
	severed atomic.Bool
	mu      sync.Mutex
	down    chan struct{} // closed while severed
}

func newLink() *link { return &link{down: make(chan struct{})} }

func (l *link) cut() (heal func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.severed.Swap(true) {
		close(l.down)
	}
	return l.heal
}

func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.severed.Swap(false) {
		l.down = make(chan struct{})
	}
}

// severance returns a channel that is closed while, or as soon as, the link is severed.
func (l *link) severance() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

// errCut is ErrCut, after which nothing is locked.
var errCut = locker.NotAcquired(ErrCut)

// store is the memory that several Lockers share. Keys are spread over shards, so that goroutines that use
// different keys seldom meet.
type store struct {
	seed   maphash.Seed
	shards [32]shard
}

func (s *store) open(opts []locker.Option) *Locker {
	link := newLink()
	return &Locker{Client: locker.New(backend{s, link}, opts...), store: s, link: link}
}

func (s *store) shard(name string) *shard {
	return &s.shards[maphash.String(s.seed, name)%uint64(len(s.shards))]
}

// shard is a part of the keys.
type shard struct {
	mu      sync.Mutex
	entries map[string]*entry // the keys that have a holder, or had one that has not been cleared away
	token   uint64            // the last one given, for any key here: a counter per key would have to be kept for ever
	spare   *entry            // for reuse
	grants  int               // since the last sweep
	_       [64]byte          // keep neighbours off the same cache line
}

// entry is the state of one key. A key with neither holders nor waiters has none.
type entry struct {
	holders []holder    // all of the same mode
	line    []*waiter   // in order of arrival, of whatever mode
	timer   *time.Timer // set while there is a line: to look at it when the first lease ends
}

// holder is somebody who has the lock, or one of its slots.
type holder struct {
	grant   locker.Grant
	expires time.Time          // when the lease ends
	revoked *locker.Revocation // why it is not renewed any more; nil if it is renewed
}

// waiter is somebody in line.
type waiter struct {
	request locker.Request
	since   time.Time
	granted chan locker.Grant // has room for the one grant
}

// lookup returns the entry of name if it has a living holder, and clears away holders whose leases are over.
func (s *shard) lookup(name string, now time.Time) *entry {
	e := s.entries[name]
	if e == nil || now.Before(e.firstExpiry()) {
		return e
	}
	e.holders = slices.DeleteFunc(e.holders, func(h holder) bool { return !now.Before(h.expires) })
	s.serve(name, e, now)
	return s.entries[name]
}

// firstExpiry returns when the first of the leases ends.
func (e *entry) firstExpiry() time.Time {
	first := e.holders[0].expires
	for _, h := range e.holders[1:] {
		if h.expires.Before(first) {
			first = h.expires
		}
	}
	return first
}

// holder returns what an owner has, nil if that is nothing.
func (e *entry) holder(o locker.Owner) *holder {
	for i := range e.holders {
		if e.holders[i].grant.Owner == o {
			return &e.holders[i]
		}
	}
	return nil
}

// admits reports whether r can have the lock beside those who have it. Slots of which there are different numbers are
// those of one lock: there are never more holders than the one says who came last.
func (e *entry) admits(r locker.Request) bool {
	if len(e.holders) == 0 {
		return true
	}
	switch mode := e.holders[0].grant.Mode; r.Mode {
	case locker.ModeShared:
		return mode == locker.ModeShared
	case locker.ModeSlots:
		return mode == locker.ModeSlots && len(e.holders) < r.Slots
	default:
		return false
	}
}

// grant gives the key to r, whom it admits.
func (s *shard) grant(e *entry, r locker.Request, now time.Time) locker.Grant {
	s.token++
	g := locker.Grant{Request: r, Token: s.token, Sent: now}
	if r.Mode == locker.ModeSlots {
		g.Slot = e.freeSlot()
	}
	e.holders = append(e.holders, holder{grant: g, expires: now.Add(r.TTL)})
	return g
}

// freeSlot returns the smallest number that no holder has.
func (e *entry) freeSlot() int {
	taken := make([]bool, len(e.holders)+1)
	for _, h := range e.holders {
		if h.grant.Slot < len(taken) {
			taken[h.grant.Slot] = true
		}
	}
	return slices.Index(taken, false)
}

// leave takes the lock from an owner who has it.
func (s *shard) leave(name string, e *entry, o locker.Owner) {
	e.holders = slices.DeleteFunc(e.holders, func(h holder) bool { return h.grant.Owner == o })
	s.serve(name, e, time.Now())
}

// serve gives the key to those at the head of the line who can have it, or removes its entry if there is nobody any
// more.
func (s *shard) serve(name string, e *entry, now time.Time) {
	for len(e.line) > 0 && e.admits(e.line[0].request) {
		next := e.line[0]
		e.line[0] = nil
		e.line = e.line[1:]
		next.granted <- s.grant(e, next.request, now)
	}
	if len(e.holders) > 0 {
		s.watch(name, e, now)
		return
	}
	if e.timer != nil {
		e.timer.Stop()
	}
	delete(s.entries, name)
	*e = entry{line: e.line, holders: e.holders}
	s.spare = e
}

// watch sees to it that a key with a line is looked at when the first of its leases ends.
func (s *shard) watch(name string, e *entry, now time.Time) {
	switch {
	case len(e.line) == 0:
	case e.timer == nil:
		e.timer = time.AfterFunc(e.firstExpiry().Sub(now), func() { s.expire(name, e) })
	default:
		e.timer.Reset(e.firstExpiry().Sub(now))
	}
}

// expire is the timer's function.
func (s *shard) expire(name string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[name] != e {
		return
	}
	now := time.Now()
	if s.lookup(name, now) == e {
		s.watch(name, e, now) // the lease was renewed
	}
}

// backend is a locker.Backend over a store.
type backend struct {
	*store
	link *link
}

var (
	_ locker.Backend   = backend{}
	_ locker.Queue     = backend{}
	_ locker.Inspector = backend{}
	_ locker.Revoker   = backend{}
)

func (backend) Features() locker.Features {
	return locker.Features{
		HeedsContext: true, Queue: true, Shared: true, Slots: true, Inspect: true, Revoke: true, MinHold: true,
		Adopt: true,
	}
}
func (backend) String() string { return "memory" }
func (backend) Close() error   { return nil }

// Acquire implements locker.Backend.
func (b backend) Acquire(_ context.Context, r locker.Request) (locker.Grant, error) {
	if b.link.severed.Load() {
		return locker.Grant{}, errCut
	}
	name := r.Name()
	s := b.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acquire(name, r, time.Now())
}

func (s *shard) acquire(name string, r locker.Request, now time.Time) (locker.Grant, error) {
	if e := s.lookup(name, now); e != nil {
		if h := e.holder(r.Owner); h != nil && h.revoked == nil {
			h.expires = now.Add(r.TTL)
			return h.grant, nil
		}
		if len(e.line) == 0 && e.admits(r) {
			return s.grant(e, r, now), nil
		}
		return locker.Grant{}, &locker.Held{Holder: e.holders[0].grant.Holder, Remaining: e.firstExpiry().Sub(now)}
	}
	if s.grants++; s.grants == sweepEvery {
		s.sweep(now)
	}
	e := s.spare
	s.spare = nil
	if e == nil {
		e = new(entry)
	}
	s.entries[name] = e
	return s.grant(e, r, now), nil
}

// sweepEvery is after how many grants of free keys a shard looks for entries that nobody will ask about any more.
const sweepEvery = 64

// sweep clears away leases that have run out, among some of the entries: more than were added since the last time, so
// that what the holders of a million keys did not unlock does not pile up.
func (s *shard) sweep(now time.Time) {
	s.grants = 0
	looked := 0
	for name, e := range s.entries {
		if len(e.line) == 0 {
			s.lookup(name, now)
		}
		if looked++; looked == 2*sweepEvery {
			return
		}
	}
}

// Wait implements locker.Queue.
func (b backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if b.link.severed.Load() {
		return locker.Grant{}, errCut
	}
	name := r.Name()
	s := b.shard(name)
	s.mu.Lock()
	now := time.Now()
	g, err := s.acquire(name, r, now)
	if err == nil {
		s.mu.Unlock()
		return g, nil
	}
	e := s.entries[name]
	w := &waiter{request: r, since: now, granted: make(chan locker.Grant, 1)}
	e.line = append(e.line, w)
	if len(e.line) == 1 {
		s.watch(name, e, now)
	}
	holder := e.holders[0].grant.Holder
	s.mu.Unlock()
	severance := b.link.severance()
	r.ReportHolder(holder)

	select {
	case g := <-w.granted:
		return g, nil
	case <-severance:
		err = errCut
	case <-ctx.Done():
		err = locker.NotAcquired(context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.granted: // at the same moment: pass it on, unless that lease is over already
		if e := s.lookup(name, time.Now()); e != nil && e.holder(r.Owner) != nil {
			s.leave(name, e, r.Owner)
		}
	default:
		e.quit(w)
		now := time.Now()
		if s.lookup(name, now) == e {
			s.serve(name, e, now) // those behind may have waited for this one alone
		}
	}
	return locker.Grant{}, err
}

// quit takes w out of the line.
func (e *entry) quit(w *waiter) {
	for i, other := range e.line {
		if other == w {
			copy(e.line[i:], e.line[i+1:])
			e.line[len(e.line)-1] = nil
			e.line = e.line[:len(e.line)-1]
			return
		}
	}
}

// Renew implements locker.Backend.
func (b backend) Renew(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i, g := range gs {
		done(i, locker.Renewal{Err: b.withHeld(g, func(_ *shard, _ string, e *entry) error {
			now, h := time.Now(), e.holder(g.Owner)
			switch {
			case !now.Before(h.expires):
				return locker.ErrLost // though nobody has asked for it since
			case h.revoked != nil:
				return fmt.Errorf("%w: %w", locker.ErrLost, h.revoked)
			}
			h.expires = now.Add(g.TTL)
			return nil
		})})
	}
}

// Release implements locker.Backend.
func (b backend) Release(_ context.Context, g locker.Grant) error {
	return b.withHeld(g, func(s *shard, name string, e *entry) error {
		if g.Keep > 0 {
			s.keep(name, e, g)
		} else {
			s.leave(name, e, g.Owner)
		}
		return nil
	})
}

// keep takes the lock from an owner who has it, and gives it to nobody else for a while.
func (s *shard) keep(name string, e *entry, g locker.Grant) {
	now, h := time.Now(), e.holder(g.Owner)
	h.grant.Owner, h.revoked, h.expires = locker.Owner{}, &locker.Revocation{}, now.Add(g.Keep)
	s.watch(name, e, now)
}

// withHeld calls f if g is held, with its shard locked, and returns ErrLost otherwise.
func (b backend) withHeld(g locker.Grant, f func(*shard, string, *entry) error) error {
	if b.link.severed.Load() {
		return ErrCut
	}
	name := g.Name()
	s := b.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	if e == nil || e.holder(g.Owner) == nil {
		return locker.ErrLost
	}
	return f(s, name, e)
}
