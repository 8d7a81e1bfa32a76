package memlock

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// Leases that run out without anybody asking about their keys again do not pile up.
func TestExpiredLeasesAreCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(locker.TTL(time.Second), locker.NoRenew())
		for i := range 40_000 {
			if _, err := l.TryLock(t.Context(), strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond) // a thousand are valid at a time
		}
		n := 0
		for i := range l.store.shards {
			n += len(l.store.shards[i].entries)
		}
		if n > 10_000 {
			t.Errorf("%d entries are kept, of which a thousand are valid", n)
		}
	})
}
