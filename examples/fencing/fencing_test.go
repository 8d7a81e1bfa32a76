package fencing

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/testserver"
)

func TestMain(m *testing.M) { os.Exit(testserver.Main(m, redistest.Main, pgtest.Main)) }

// handover returns the lease of a holder that has lost its lock, and that of the next one. The first would not notice
// if it were paused at this moment: what it does with its token is what it would do then.
func handover(t *testing.T, a, b locker.Locker, key string) (stale, fresh *locker.Lease) {
	t.Helper()
	// Not much longer than this test has to wait, but long enough for an answer on a machine that is busy.
	stale, err := a.Lock(t.Context(), key, locker.TTL(time.Second), locker.NoRenew())
	if err != nil {
		t.Fatal(err)
	}
	fresh, err = b.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fresh.Unlock(); err != nil {
			t.Error(err)
		}
	})
	if err := stale.Err(); !errors.Is(err, locker.ErrLost) {
		t.Fatalf("the first holder: %v", err)
	}
	return stale, fresh
}

func wantStale(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrStale) {
		t.Errorf("the stale holder: %v; want ErrStale", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
