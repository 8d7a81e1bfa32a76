package pglock_test

import (
	"testing"

	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestCeilingDeleted deletes what tokens depend on most. The Locker that it happens to says so, and keeps the locks it has.
func TestCeilingDeleted(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l, other := openConfig(t, config, url), open(t, url)
	for range 2 {
		admin.do(pglock.SchemaSQL(config.Namespace))
		before := mustLock(t, l, unique("key"))
		admin.do("DELETE FROM " + config.Namespace + ".token_ceiling; DELETE FROM " + config.Namespace + ".token_limit")
		key := unique("key")
		checkFailure(t, l, key, pglock.ErrNoTables)
		if n := admin.holders(key); n != 0 {
			t.Error("a failed key is locked")
		}
		// Those who wait learn it, too, and let the next one have the lock.
		held := mustLock(t, other, key)
		waiter := started(func() error {
			lease, err := lock(l, key)
			if err == nil {
				_ = lease.Unlock()
			}
			return err
		})
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		mustUnlock(t, held)
		checkError(t, waiter.get(t), "lock", key, pglock.ErrNoTables)
		eventually(t, "the key is free", func() bool { return admin.isFree(key) })
		if err := before.Err(); err != nil {
			t.Errorf("another lease of the same Locker: %v", err)
		}
		mustUnlock(t, before)
		admin.do(pglock.SchemaSQL(config.Namespace))
		works(t, l, l, 0)
	}
}
