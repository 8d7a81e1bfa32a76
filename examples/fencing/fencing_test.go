package fencing

import (
	"errors"
	"os"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(running(func() int { return pgtest.Main(m) }))) }

type running func() int

func (f running) Run() int { return f() }

// handover returns the lease of a holder that has lost its lock, and that of the next one. The first would not notice if it
// were paused at this moment: what it does with its token is what it would do then.
func handover(t *testing.T, a, b locker.Locker, key string) (stale, fresh *locker.Lease) {
	t.Helper()
	stale, err := a.Lock(t.Context(), key, locker.TTL(locker.MinTTL), locker.NoRenew())
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
