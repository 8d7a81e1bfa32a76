package pglock_test

import (
	"testing"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestCeilingDeleted deletes what tokens depend on most. The Locker that needs it next says so, and keeps the locks it
// has.
func TestCeilingDeleted(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l, other := openConfig(t, config, url), open(t, url)
	for range 2 {
		ns, key := config.Namespace, unique("key")
		admin.do(pglock.SchemaSQL(ns))
		before, held := mustLock(t, l, unique("key")), mustLock(t, other, key)
		waiter := locktest.Started(func() error {
			lease, err := lock(l, key)
			if err == nil {
				_ = lease.Unlock()
			}
			return err
		})
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		// So that it is needed.
		admin.do("SELECT setval('" + ns + ".token', (SELECT ceiling + 1 FROM " + ns + ".token_ceiling))")
		admin.do("DELETE FROM " + ns + ".token_ceiling; DELETE FROM " + ns + ".token_limit")
		// Those who wait learn it, and let the next one have the lock.
		mustUnlock(t, held)
		checkError(t, waiter.Get(t), "lock", key, pglock.ErrNoTables)
		eventually(t, "the key is free", func() bool { return admin.isFree(key) })
		failures.CheckAcquires(t, l, key, pglock.ErrNoTables)
		if n := admin.holders(key); n != 0 {
			t.Error("a failed key is locked")
		}
		if err := before.Err(); err != nil {
			t.Errorf("another lease of the same Locker: %v", err)
		}
		mustUnlock(t, before)
		admin.do(pglock.SchemaSQL(config.Namespace))
		works(t, l, l, 0)
	}
}
