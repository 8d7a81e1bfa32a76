package pglock_test

import (
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestHandover: a lease that was waited for is counted from when the wait began, if that was not long ago. Else it
// takes a further message to count it from.
func TestHandover(t *testing.T) {
	t.Parallel()
	for name, long := range map[string]bool{"after a short wait": false, "after a long wait": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ttl := time.Minute
			if long {
				ttl = 4 * time.Second
			}
			url, key := pgtest.URL(t), unique("key")
			admin := connect(t, url)
			l, other := openWatched(t, pglock.Config{}, url, locker.TTL(ttl)), openWatched(t, pglock.Config{}, url)
			held := mustTry(t, other, key)
			waiter := inLineOf(t, l, 1, key)[0]
			eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
			if long {
				time.Sleep(ttl / 15)
			}
			before := pglock.Messages(l.backend)
			mustUnlock(t, held)
			lease := waiter.Get(t)
			if further := pglock.Messages(l.backend) > before; further != long {
				t.Errorf("a further message: %v", further)
			}
			if lease.Token() <= held.Token() {
				t.Errorf("token %d after %d", lease.Token(), held.Token())
			}
			mustUnlock(t, lease)
		})
	}
}
