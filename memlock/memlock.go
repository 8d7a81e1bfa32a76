// Package memlock keeps locks in memory: for a program that runs as one process, for local development, and as
// the test double of every other backend. It keeps the whole contract of package locker: leases that really
// expire, fencing tokens, a waiting line served in order of arrival. It works inside testing/synctest, in whose
// fake time a lease of an hour expires at once.
//
// Locks are shared by the Lockers that come from one New by way of Peer. They do not exclude other processes, and
// are gone, with the count of tokens, when the process ends.
//
//	l := memlock.New()
//	lease, err := l.Lock(ctx, "orders/42") // as of every locker.Locker
//	l.Break("orders/42")                   // in a test: what does the program do when it loses the lock?
//
// It makes Lockers of package [github.com/lockerkit/locker], which tells what all of them promise. With a server:
// [github.com/lockerkit/locker/redislock], [github.com/lockerkit/locker/pglock] and [github.com/lockerkit/locker/etcdlock].
package memlock

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// ErrBroken is the reason in the ErrLost of a lease that Break took away.
var ErrBroken = errors.New("taken away by Break")

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
// goroutine and no connection of its own. The options are those of locker.New.
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

// Break takes the lock of name, which is the key with the prefix of its Locker if it has one, away from its holder,
// as an operator or a lost connection would: the lease ends with ErrLost, its Done is closed, and the next waiter
// gets the lock, all before Break returns. It reports whether there was a holder. It is for testing what a program
// does when it loses a lease.
func (l *Locker) Break(name string) bool { return l.store.breakLock(name) }

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

// entry is the state of one key. A key with neither holder nor waiters has none.
type entry struct {
	holder  locker.Grant
	expires time.Time   // when the holder's lease ends
	line    []*waiter   // in order of arrival
	timer   *time.Timer // set while there is a line: to grant the lock when the holder's lease ends
}

// waiter is somebody in line.
type waiter struct {
	request locker.Request
	granted chan locker.Grant // has room for the one grant
}

// lookup returns the entry of name if it has a living holder, and clears it away if its holder's lease is over.
func (s *shard) lookup(name string, now time.Time) *entry {
	e := s.entries[name]
	if e != nil && !now.Before(e.expires) {
		s.pass(name, e)
		e = s.entries[name]
	}
	return e
}

// grant gives the key to r.
func (s *shard) grant(e *entry, r locker.Request, now time.Time) locker.Grant {
	s.token++
	e.holder = locker.Grant{Request: r, Token: s.token, Sent: now}
	e.expires = now.Add(r.TTL)
	return e.holder
}

// pass gives the key to the next in line, or removes its entry if there is none.
func (s *shard) pass(name string, e *entry) {
	if len(e.line) == 0 {
		if e.timer != nil {
			e.timer.Stop()
		}
		delete(s.entries, name)
		*e = entry{line: e.line}
		s.spare = e
		return
	}
	next := e.line[0]
	e.line[0] = nil
	e.line = e.line[1:]
	now := time.Now()
	next.granted <- s.grant(e, next.request, now)
	s.watch(name, e, now)
}

// watch sees to it that a key with a line is passed on when its holder's lease ends.
func (s *shard) watch(name string, e *entry, now time.Time) {
	switch {
	case len(e.line) == 0:
	case e.timer == nil:
		e.timer = time.AfterFunc(e.expires.Sub(now), func() { s.expire(name, e) })
	default:
		e.timer.Reset(e.expires.Sub(now))
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

// breakLock is Locker.Break.
func (s *store) breakLock(name string) bool {
	sh := s.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.lookup(name, time.Now())
	if e == nil {
		return false
	}
	e.holder.ReportLost(ErrBroken) // closes Done, before anybody else gets the lock
	sh.pass(name, e)
	return true
}

// backend is a locker.Backend over a store.
type backend struct {
	*store
	link *link
}

var (
	_ locker.Backend = backend{}
	_ locker.Queue   = backend{}
)

func (backend) Features() locker.Features { return locker.Features{HeedsContext: true, Queue: true} }
func (backend) String() string            { return "memory" }
func (backend) Close() error              { return nil }

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
		if e.holder.Owner == r.Owner {
			e.expires = now.Add(r.TTL)
			return e.holder, nil
		}
		return locker.Grant{}, &locker.Held{Holder: e.holder.Holder, Remaining: e.expires.Sub(now)}
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

// sweep clears away leases that have run out, among some of the entries: more than were added since the last time, so that
// what the holders of a million keys did not unlock does not pile up.
func (s *shard) sweep(now time.Time) {
	s.grants = 0
	looked := 0
	for name, e := range s.entries {
		if len(e.line) == 0 && !now.Before(e.expires) {
			s.pass(name, e)
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
	w := &waiter{request: r, granted: make(chan locker.Grant, 1)}
	e.line = append(e.line, w)
	if len(e.line) == 1 {
		s.watch(name, e, now)
	}
	holder := e.holder.Holder
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
		if e := s.lookup(name, time.Now()); e != nil && e.holder.Owner == r.Owner {
			s.pass(name, e)
		}
	default:
		e.leave(w)
	}
	return locker.Grant{}, err
}

// leave takes w out of the line.
func (e *entry) leave(w *waiter) {
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
			now := time.Now()
			if !now.Before(e.expires) {
				return locker.ErrLost // though nobody has asked for it since
			}
			e.expires = now.Add(g.TTL)
			return nil
		})})
	}
}

// Release implements locker.Backend.
func (b backend) Release(_ context.Context, g locker.Grant) error {
	return b.withHeld(g, func(s *shard, name string, e *entry) error { s.pass(name, e); return nil })
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
	if e == nil || e.holder.Owner != g.Owner {
		return locker.ErrLost
	}
	return f(s, name, e)
}
