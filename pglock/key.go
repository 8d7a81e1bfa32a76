package pglock

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key returns the advisory lock key of a name, which is the Locker's prefix and the key joined together: the first 64
// bits of its SHA-256. It is for people who look into pg_locks; in SQL it is
//
//	('x' || left(encode(sha256('orders/42'), 'hex'), 16))::bit(64)::bigint
//
// Two names with the same key exclude one another, which is safe. Among a million names, the chance that there are
// two such is 1 in 37 million.
func Key(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}
