package faketime

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
)

const (
	simulated = time.Minute
	processes = 3
	workers   = 3 // of each process

	// TTL is that of the leases in a simulation.
	TTL = time.Second
)

// World is where a simulation takes place: the servers of one store.
type World struct {
	// Modes are those in which each key is locked.
	Modes map[string][]Mode

	// Join returns a Client that has connections of its own, which are closed with it.
	Join func(opts ...locker.Option) (*locker.Client, []*Pipes)

	// After is called when all have left, and reports what is left behind.
	After func(t *testing.T)
}

// Simulate has workers of several processes lock a few keys for a minute, while their connections fail in all ways, at
// random, each by itself. What they see must be what the contract says, at each moment: in fake time, all of them have
// the same clock, exactly. There are so many such minutes. No seed would repeat one: Go's scheduler has a part in it.
func Simulate(t *testing.T, minutes int, world func(t *testing.T) World) {
	t.Helper()
	var total tally
	for range minutes {
		if t.Failed() {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s := &simulation{T: t, World: world(t), keys: make(map[string]*held), tally: &total}
			for key := range s.Modes {
				s.keys[key] = &held{}
			}
			s.run()
		})
	}
	t.Logf("%+v", total)
}

// simulation is one of these minutes.
type simulation struct {
	*testing.T
	World

	mu   sync.Mutex
	keys map[string]*held
	*tally
}

// tally is what has happened.
type tally struct {
	Granted, Waited, Refused, GaveUp, Unavailable, Lost, Died, Faults int
}

// held is who has a key.
type held struct {
	leases []grant
	token  uint64 // the greatest one
}

type grant struct {
	*locker.Lease
	mode Mode
}

// Mode is that of a call: so many may have the key together, if all of them call it so.
type Mode struct {
	name string
	most int
	opts []locker.CallOption
}

var (
	exclusive = Mode{"exclusive", 1, nil}
	shared    = Mode{"shared", processes * workers, []locker.CallOption{locker.Shared()}}
	slots     = Mode{"slots", 2, []locker.CallOption{locker.Slots(2)}}
)

// Modes for two keys.
var (
	EveryMode     = map[string][]Mode{"exclusive": {exclusive}, "mixed": {exclusive, shared, shared, slots}}
	ExclusiveOnly = map[string][]Mode{"exclusive": {exclusive}, "another": {exclusive}}
)

func (s *simulation) run() {
	ctx, cancel := context.WithTimeout(s.Context(), simulated)
	defer cancel()
	var all sync.WaitGroup
	for range processes {
		all.Go(func() { s.process(ctx) })
	}
	all.Wait()
	s.After(s.T)
}

// process is a Locker, those who use it, and the faults of its connections.
func (s *simulation) process(ctx context.Context) {
	var all sync.WaitGroup
	l, connections := s.Join(locker.TTL(TTL))
	for _, p := range connections {
		all.Go(func() { s.disturb(ctx, p) })
	}
	for range workers {
		all.Go(func() { s.work(ctx, l) })
	}
	all.Wait()
	if err := l.Close(); err != nil {
		s.Error("Close:", err)
	}
}

// disturb cuts connections off now and then, and heals them.
func (s *simulation) disturb(ctx context.Context, p *Pipes) {
	defer p.Set(None)
	for sleep(ctx, rand.N(6*TTL)) {
		p.Set(conformance.Fault(rand.N(int(conformance.LateRequests) + 1)))
		s.count(&s.Faults)
		if !sleep(ctx, rand.N(3*TTL/2)) {
			return
		}
		p.Set(None)
	}
}

// sleep reports whether there was time for it.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// work locks keys until ctx ends.
func (s *simulation) work(ctx context.Context, l *locker.Client) {
	for ctx.Err() == nil {
		for key, modes := range s.Modes { // in random order
			s.once(ctx, l, key, modes[rand.N(len(modes))])
			sleep(ctx, rand.N(TTL/10))
		}
	}
}

// once locks the key, holds it for a while, and unlocks it, or dies with it.
func (s *simulation) once(ctx context.Context, l *locker.Client, key string, m Mode) {
	dies := rand.N(20) == 0
	opts := m.opts
	if dies {
		opts = append(opts[:len(opts):len(opts)], locker.NoRenew())
	}
	call, counter := l.TryLock, &s.Refused
	if rand.N(4) > 0 {
		call, counter = l.Lock, &s.GaveUp
	}
	patience := rand.N(10 * TTL)
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begun := time.Now()
	lease, err := call(wait, key, opts...)
	if took := time.Since(begun); took > patience+TTL {
		s.Errorf("%s of %s took %v; its context ended after %v", m.name, key, took, patience)
	}
	switch {
	case errors.Is(err, locker.ErrLocked), wait.Err() != nil && errors.Is(err, wait.Err()):
		s.count(counter)
		return
	case errors.Is(err, locker.ErrUnavailable):
		s.count(&s.Unavailable)
		return
	case err != nil:
		s.Errorf("%s of %s: %v", m.name, key, err)
		return
	}
	s.enter(key, grant{lease, m})
	if time.Since(begun) > TTL/100 {
		s.count(&s.Waited)
	}
	select {
	case <-lease.Done():
	case <-time.After(rand.N(TTL) * time.Duration(rand.N(3))):
	}
	if dies {
		s.count(&s.Died)
		<-lease.Done()
	}
	s.leave(key, lease)
	err = lease.Unlock()
	switch {
	case errors.Is(err, locker.ErrLost), errors.Is(err, locker.ErrUnavailable):
		s.count(&s.Lost)
	case err != nil:
		s.Errorf("Unlock of %s: %v", key, err)
	case lease.Err() == nil || !errors.Is(lease.Err(), locker.ErrUnlocked):
		s.Errorf("Unlock of %s succeeded, and the lease says %v", key, lease.Err())
	}
}

// enter notes that a lease was granted, and looks who else has one that is valid.
func (s *simulation) enter(key string, g grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Granted++
	k := s.keys[key]
	beside := 1
	for _, other := range k.leases {
		if other.Err() != nil {
			continue
		}
		beside++
		if other.mode.name != g.mode.name || beside > g.mode.most {
			s.Errorf("%v: %s of %s (token %d) beside %s (%d), and %d in all",
				time.Now(), g.mode.name, key, g.Token(), other.mode.name, other.Token(), beside)
		}
		if g.mode.name == slots.name && other.Slot() == g.Slot() {
			s.Errorf("two have slot %d of %s", g.Slot(), key)
		}
	}
	// Answers to those who have it together may overtake one another.
	if g.Token() <= k.token && g.mode.most == 1 {
		s.Errorf("token %d of %s after %d", g.Token(), key, k.token)
	}
	k.token = max(k.token, g.Token())
	k.leases = append(k.leases, g)
}

func (s *simulation) leave(key string, lease *locker.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[key]
	i := slices.IndexFunc(k.leases, func(g grant) bool { return g.Lease == lease })
	if i < 0 {
		s.Errorf("a lease of %s that nobody has", key)
		return
	}
	k.leases = slices.Delete(k.leases, i, i+1)
}

func (s *simulation) count(what *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*what++
}
