package pglock

import "fmt"

// The sessions of a Locker are marked, for those who want to know who holds a lock: by shared advisory locks of two
// integers, the second of which is the number of the Locker. pg_locks shows them to everybody, and they end with the
// session. A session without such a mark that has a key is no Locker's: it cannot be told that its lock is revoked.
const (
	lockerMark = 0x6c656173 // "leas": a session that may have locks
	hearsMark  = 0x68656172 // "hear": one that is told of revocations
)

// markSQL marks the session of a Locker.
func markSQL(mark, id int32) string {
	return fmt.Sprintf("SELECT pg_catalog.pg_try_advisory_lock_shared(%d, %d);", mark, id)
}
