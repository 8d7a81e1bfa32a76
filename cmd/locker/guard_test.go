//go:build unix

package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/memlock"
)

// The guard acts before the first of the leases ends: a process that is killed takes a moment to die.
func TestWhenToAct(t *testing.T) {
	t.Parallel()
	c, said := memlock.New(), &buffer{}
	first := locktest.MustLock(t, c, "first", locker.TTL(time.Minute))
	later := locktest.MustLock(t, c, "later", locker.TTL(time.Hour))
	end := first.Deadline()
	for name, leases := range map[string]locker.Leases{"in order": {first, later}, "reversed": {later, first}} {
		newGuard := func() *guard {
			return &guard{
				app: &app{stderr: said}, opts: guardOptions{"warn", 5 * time.Second}, ttl: time.Minute, leases: leases,
			}
		}
		g := newGuard()
		if g.overdue(); g.asked { // the timer was set before the last renewal
			t.Errorf("%s: it asks the command to end, with %v left", name, time.Until(end))
		}
		if got, want := g.next(), end.Add(-5500*time.Millisecond); !got.Equal(want) {
			t.Errorf("%s: it asks the command to end at %v, want %v", name, got, want)
		}
		g.asked = true
		if got, want := g.next(), end.Add(-500*time.Millisecond); !got.Equal(want) {
			t.Errorf("%s: it kills the command at %v, want %v", name, got, want)
		}
		// Who is revoked has the grace, but not beyond the end of the lease.
		revoked := fmt.Errorf("%w: a test", locker.ErrRevoked)
		g = newGuard()
		g.taken(revoked)
		if left := time.Until(g.next()); g.killed || left > 5*time.Second {
			t.Errorf("%s: who was revoked is killed %v later", name, left)
		}
		g = newGuard()
		g.opts.grace = time.Hour
		g.taken(revoked)
		if got, want := g.next(), end.Add(-500*time.Millisecond); !got.Equal(want) {
			t.Errorf("%s: who was revoked is killed at %v, want %v", name, got, want)
		}
		g = newGuard()
		if g.taken(locker.ErrLost); !g.killed {
			t.Errorf("%s: who has lost a lock is not killed", name)
		}
	}
}
