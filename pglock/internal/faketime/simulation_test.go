package faketime

import (
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faketime"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// TestSimulation: LOCKER_TRIALS says how many minutes there are.
func TestSimulation(t *testing.T) {
	faketime.Simulate(t, wires.Trials(t, 3), func(t *testing.T) faketime.World {
		s := newSimulated()
		return faketime.World{
			Modes: faketime.EveryMode,
			Join: func(opts ...locker.Option) (*locker.Client, []*faketime.Pipes) {
				pool, pipes := s.newPool(t)
				return pglock.New(pool, opts...), []*faketime.Pipes{pipes}
			},
			After: func(t *testing.T) {
				time.Sleep(5 * time.Second) // longer than a session outlasts its Locker
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.processes) > 0 || len(s.locks) > 0 {
					t.Errorf("%d sessions and %d locks are left", len(s.processes), len(s.locks))
				}
			},
		}
	})
}
