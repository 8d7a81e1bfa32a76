//go:build !race

package faketime

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faketime"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// simulations are the servers of the tests that run, and the connections of the last Locker, by *testing.T.
var simulations sync.Map

type simulation struct {
	*simulated
	last *faketime.Pipes
}

func simulationOf(t *testing.T) *simulation {
	s, there := simulations.LoadOrStore(t, &simulation{simulated: newSimulated()})
	if !there {
		t.Cleanup(func() {
			simulations.Delete(t)
			time.Sleep(2 * time.Second) // until the server's processes have ended: afterwards, time stands still
		})
	}
	return s.(*simulation)
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
