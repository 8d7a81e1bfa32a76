package pglock_test

import (
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestLineNeedsTwoSessions has many goroutines wait for one key: one session has the lock, and another one waits for
// it, in turn.
func TestLineNeedsTwoSessions(t *testing.T) {
	t.Parallel()
	const waiters = 100
	url, key := pgtest.URL(t), unique("key")
	l := openWatched(t, pglock.Config{}, url)
	first := mustTry(t, l, key)
	var wg sync.WaitGroup
	var mu sync.Mutex
	most := 0
	for i := range waiters {
		wg.Go(func() {
			lease := mustLock(t, l, key)
			// Not by the server's count, which has sessions in it that were given up because it did not answer.
			n := pglock.WaitSessions(l.backend)
			mu.Lock()
			most = max(most, n)
			mu.Unlock()
			mustUnlock(t, lease)
		})
		eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == i+1 })
	}
	mustUnlock(t, first)
	wg.Wait()
	if most > 2 {
		t.Errorf("%d sessions to wait on, for a line of %d; want 2 at most", most, waiters)
	}
}
