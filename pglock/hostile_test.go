package pglock_test

import (
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestShortTimeouts has a role whose timeouts are so short that they may pass before a session has overridden them.
func TestShortTimeouts(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	app, dsn := role(t, admin, server.URL(), "SUPERUSER")
	hostile(admin, app, "10ms", "50ms")
	var wg sync.WaitGroup
	for range 50 { // which makes the server busy
		l := open(t, dsn, locker.TTL(2*time.Second))
		wg.Go(func() {
			lease, err := lock(l, unique("key"))
			if err != nil {
				t.Error(err)
				return
			}
			mustUnlock(t, lease)
		})
	}
	wg.Wait()
}
