//go:build !race

package faketime

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faketime"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// simulation is a server, and the connections of the last Locker.
type simulation struct {
	*simulated
	last *faketime.Pipes
}

var inUse faketime.PerTest[*simulation]

// simulationOf returns the server of a test, which it starts if there is none.
func simulationOf(t *testing.T) *simulation {
	return inUse.Of(t, func() *simulation {
		// Until its processes have ended: afterwards, time stands still.
		t.Cleanup(func() { time.Sleep(2 * time.Second) })
		return &simulation{simulated: newSimulated()}
	})
}

// crash ends all sessions, and with them their locks, in the time that this takes a server at least.
func (s *simulated) crash() {
	s.mu.Lock()
	for _, p := range s.processes {
		p.end()
	}
	s.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
}

// takeAway ends the session that has a key, as an administrator would.
func (s *simulated) takeAway(t *testing.T, key int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.lock(lockID{key: key}).had {
		p.end()
		return
	}
	t.Error("nobody has it")
}

func TestConformance(t *testing.T) {
	conformance.Run(t, conformance.Harness{
		Wrap: synctest.Test,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			s := simulationOf(t)
			pool, pipes := s.newPool(t)
			s.last = pipes
			return plain{wires.Closing(pglock.New(pool, opts...), pool.Close)}
		},
		Cut: func(t *testing.T, f conformance.Fault) (heal func()) {
			last := simulationOf(t).last
			last.Set(f)
			return func() { last.Set(faketime.None) }
		},
		Restart: func(t *testing.T) { simulationOf(t).crash() },
		Break:   func(t *testing.T, key string) { simulationOf(t).takeAway(t, pglock.Key(key)) },
		Trials:  wires.Trials(t, 5),
		Features: conformance.Features{
			ConnectionBound:  "an advisory lock ends with its session",
			OrderedPerLocker: "a Locker has one place in the server's line for all its waiters on a key",
		},
	})
}

// plain has nothing that the simulated server has no tables for: to see what is locked, and to take it away.
type plain struct{ locker.Locker }
