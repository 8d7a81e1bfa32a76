package faketime

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/redlock"
)

const (
	simulated = time.Minute
	ttl       = time.Second
	processes = 3
	workers   = 3 // of each process
)

// TestSimulation has workers of several processes lock a few keys for a minute, in all modes that there are, while
// their connections fail in all ways, at random, each by itself. What they see must be what the contract says, at each
// moment: in fake time, all of them have the same clock, exactly. LOCKER_TRIALS says how many such minutes there are.
// No seed would repeat one: Go's scheduler has a part in it.
func TestSimulation(t *testing.T) {
	t.Run("one server", func(t *testing.T) {
		simulate(t, 1, everyMode, newOnOne)
	})
	t.Run("Redlock", func(t *testing.T) {
		simulate(t, 3, exclusiveOnly, redlock.New)
	})
}

// simulate runs the simulation with so many servers.
func simulate(t *testing.T, n int, modes map[string][]mode, open opener) {
	var total tally
	for range wires.Trials(t, 5) {
		if t.Failed() {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s := &simulation{T: t, modes: modes, open: open, keys: make(map[string]*held), tally: &total}
			for key := range modes {
				s.keys[key] = &held{}
			}
			s.servers = newServers(t, n)
			s.run()
		})
	}
	t.Logf("%+v", total)
}

// simulation is one of these minutes.
type simulation struct {
	*testing.T
	servers servers
	modes   map[string][]mode // of each key
	open    opener

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
	mode mode
}

// mode is that of a call: so many may have the key together, if all of them call it so.
type mode struct {
	name string
	most int
	opts []locker.CallOption
}

var (
	exclusive = mode{"exclusive", 1, nil}
	shared    = mode{"shared", processes * workers, []locker.CallOption{locker.Shared()}}
	slots     = mode{"slots", 2, []locker.CallOption{locker.Slots(2)}}
)

var (
	everyMode     = map[string][]mode{"exclusive": {exclusive}, "mixed": {exclusive, shared, shared, slots}}
	exclusiveOnly = map[string][]mode{"exclusive": {exclusive}, "another": {exclusive}}
)

func (s *simulation) run() {
	ctx, cancel := context.WithTimeout(s.Context(), simulated)
	defer cancel()
	var all sync.WaitGroup
	for range processes {
		all.Go(func() { s.process(ctx) })
	}
	all.Wait()
	time.Sleep(scripts.RefuseLate + ttl) // which is longer than what is left of the dead, and of lines
	for _, server := range s.servers {
		for _, name := range server.Keys() {
			if !strings.Contains(name, ":fence:") {
				s.Errorf("%s is left behind", name)
			}
		}
	}
}

// process is a Locker, those who use it, and the faults of its connections.
func (s *simulation) process(ctx context.Context) {
	var all sync.WaitGroup
	var clients []redis.UniversalClient
	for _, server := range s.servers {
		c := server.newClient()
		defer c.Close()
		clients = append(clients, c.Client)
		all.Go(func() { s.disturb(ctx, c) })
	}
	l := s.open(clients, locker.TTL(ttl))
	for range workers {
		all.Go(func() { s.work(ctx, l) })
	}
	all.Wait()
	if err := l.Close(); err != nil {
		s.Error("Close:", err)
	}
}

// disturb cuts a client off now and then, and heals it.
func (s *simulation) disturb(ctx context.Context, c *client) {
	defer c.set(noFault)
	for sleep(ctx, rand.N(6*ttl)) {
		fault := conformance.Fault(rand.N(int(conformance.LateRequests) + 1))
		c.set(fault)
		s.count(&s.Faults)
		if !sleep(ctx, rand.N(3*ttl/2)) {
			return
		}
		c.set(noFault)
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
		for key, modes := range s.modes { // in random order
			s.once(ctx, l, key, modes[rand.N(len(modes))])
			sleep(ctx, rand.N(ttl/10))
		}
	}
}

// once locks the key, holds it for a while, and unlocks it, or dies with it.
func (s *simulation) once(ctx context.Context, l *locker.Client, key string, m mode) {
	dies := rand.N(20) == 0
	opts := m.opts
	if dies {
		opts = append(opts[:len(opts):len(opts)], locker.NoRenew())
	}
	call, counter := l.TryLock, &s.Refused
	if rand.N(4) > 0 {
		call, counter = l.Lock, &s.GaveUp
	}
	patience := rand.N(10 * ttl)
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begun := time.Now()
	lease, err := call(wait, key, opts...)
	if took := time.Since(begun); took > patience+ttl {
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
	if time.Since(begun) > ttl/100 {
		s.count(&s.Waited)
	}
	select {
	case <-lease.Done():
	case <-time.After(rand.N(ttl) * time.Duration(rand.N(3))):
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
