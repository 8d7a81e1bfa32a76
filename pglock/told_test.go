package pglock_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// TestToldBeforeARival has sessions terminated: the holder of their lock is told when the server says so, and a rival
// that waits for it has it a round trip later. On one machine, where all take turns on the same processors, that is so
// most of the time.
func TestToldBeforeARival(t *testing.T) { // not in parallel: it measures
	locktest.Tries(t, func() error {
		var margins []time.Duration
		both := 0
		for _, at := range terminate(t, wires.Trials(t, 50)) {
			margins = append(margins, at.margin)
			if at.both {
				both++
			}
		}
		slices.Sort(margins)
		n := len(margins)
		t.Logf("its holder was told before a rival had the lock by at least %v, p10 %v, p50 %v, p90 %v",
			margins[0], margins[n/10], margins[n/2], margins[n*9/10])
		t.Logf("in %d of %d trials, a rival had the lock while its holder still trusted its lease", both, n)
		if margins[n/2] < 0 || both > n/2 {
			return errors.New("mostly, the rival is first")
		}
		return nil
	})
}
