package pglock_test

import (
	"fmt"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
)

// TestFence does what the examples of the README and of this package do.
func TestFence(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	for _, tc := range []struct {
		compare string
		again   bool // whether a holder may write more than once
	}{{"<=", true}, {"<", false}} {
		t.Run("fence "+tc.compare+" token", func(t *testing.T) {
			table := unique("accounts")
			admin.do("CREATE TABLE " + table + " (id int PRIMARY KEY, balance int NOT NULL, fence bigint NOT NULL DEFAULT 0)")
			defer admin.do("DROP TABLE " + table)
			admin.do("INSERT INTO " + table + " VALUES (7, 0)")
			write := func(lease *locker.Lease, balance int) bool {
				return admin.is(fmt.Sprintf(`WITH written AS (
					UPDATE %s SET balance = $1, fence = $2 WHERE id = $3 AND fence %s $2 RETURNING 1
				) SELECT count(*) = 1 FROM written`, table, tc.compare), balance, int64(lease.Token()), 7)
			}
			paused, next := open(t, url), open(t, url)
			stale := mustLock(t, paused, key)
			if !write(stale, 1) || write(stale, 2) != tc.again {
				t.Error("the holder was told something else than expected")
			}
			takeAway(t, url, key) // while it is paused, as it were
			fresh := mustLock(t, next, key)
			if !write(fresh, 3) {
				t.Error("the new holder was refused")
			}
			if write(stale, 4) {
				t.Error("the stale holder was not refused")
			}
			if got := admin.count("SELECT balance FROM " + table); got != 3 {
				t.Errorf("balance = %d", got)
			}
			mustUnlock(t, fresh)
		})
	}
}
