package conformance

import (
	"sync/atomic"
	"testing"

	"github.com/lockerkit/locker"
)

// closeDefects are broken in what Close does, and in what it leaves behind.
var closeDefects = []defect{
	{
		name:    "Close leaks a goroutine",
		backend: leaks,
		caught:  []string{"close/LeaksNothing"},
		fine:    []string{"close/UnlocksHeld", "close/Idempotent", "exclusion/OneHolder"},
	},
	{
		name:   "Close does nothing",
		locker: staysOpen,
		caught: []string{"close/UnlocksHeld", "close/FailsWaiters", "close/UseAfterClose"},
		fine:   []string{"close/Idempotent", "exclusion/OneHolder", "unlock/Twice"},
	},
	{
		name:   "Close works once",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return &closesOnce{Locker: l} },
		caught: []string{"close/Idempotent"},
		fine:   []string{"close/UnlocksHeld", "close/FailsWaiters", "close/UseAfterClose", "close/LeaksNothing"},
	},
}

// leaks returns a backend with a goroutine that does not end before the test does.
func leaks(t *testing.T, c *client) locker.Backend {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() { <-end }()
	return queued{c}
}

// notClosed is a Locker whose Close says that all is well.
type notClosed struct{ locker.Locker }

func (notClosed) Close() error { return nil }

func staysOpen(t *testing.T, l locker.Locker) locker.Locker {
	t.Cleanup(func() { _ = l.Close() })
	return notClosed{l}
}

// closesOnce is a Locker that can be closed a single time.
type closesOnce struct {
	locker.Locker
	closed atomic.Bool
}

func (l *closesOnce) Close() error {
	if l.closed.Swap(true) {
		return locker.ErrClosed
	}
	return l.Locker.Close()
}
