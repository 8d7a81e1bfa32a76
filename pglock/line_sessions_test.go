package pglock_test

import (
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestLineNeedsTwoSessions has many goroutines wait for one key: one session has the lock, and another one waits for it, in turn.
func TestLineNeedsTwoSessions(t *testing.T) {
	t.Parallel()
	const waiters = 100
	url, key := pgtest.URL(t), unique("key")
	l := openWatched(t, pglock.Config{}, url)
	first := mustTry(t, l, key)
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() { mustUnlock(t, mustLock(t, l, key)) })
		eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == i+1 })
	}
	most := sample(t, url, l.app)
	mustUnlock(t, first)
	wg.Wait()
	if n := most(); n > 3 {
		t.Errorf("%d connections for a line of %d; want 3 at most, of which one is for leases", n, waiters)
	}
}
