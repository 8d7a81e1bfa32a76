package faketime

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faketime"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestTokensWhenTheClockStandsStill: the tokens of two locks at the same microsecond differ.
func TestTokensWhenTheClockStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newServers(t, 1)
		servers[0].SetTime(time.Now())
		clients, _, closeAll := servers.connect()
		defer closeAll()
		l := newOnOne(clients)
		defer l.Close()
		var last uint64
		for range 3 {
			lease, err := l.Lock(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if lease.Token() <= last {
				t.Errorf("token %d after %d", lease.Token(), last)
			}
			last = lease.Token()
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestSimulation: LOCKER_TRIALS says how many minutes there are.
func TestSimulation(t *testing.T) {
	t.Run("one server", func(t *testing.T) {
		simulate(t, 1, faketime.EveryMode, newOnOne)
	})
	t.Run("Redlock", func(t *testing.T) {
		simulate(t, 3, faketime.ExclusiveOnly, redlock.New)
	})
}

// simulate runs the simulation with so many servers.
func simulate(t *testing.T, n int, modes map[string][]faketime.Mode, open opener) {
	faketime.Simulate(t, wires.Trials(t, 5), func(t *testing.T) faketime.World {
		servers := newServers(t, n)
		return faketime.World{
			Modes: modes,
			Join: func(opts ...locker.Option) (*locker.Client, []*faketime.Pipes) {
				clients, pipes, closeAll := servers.connect()
				t.Cleanup(closeAll)
				return open(clients, opts...), pipes
			},
			After: func(t *testing.T) {
				time.Sleep(scripts.RefuseLate + faketime.TTL) // longer than what is left of the dead, and of lines
				for _, server := range servers {
					for _, name := range server.Keys() {
						if !strings.Contains(name, ":fence:") {
							t.Errorf("%s is left behind", name)
						}
					}
				}
			},
		}
	})
}
