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

// marks are further keys of a lock, by which readers and holders of slots exclude each other, see together.go. They are
// made of the key: in SQL, each is 16 of the digits of encode(sha256(int8send(key)), 'hex').
type marks struct {
	readers, slots int64 // shared by those who hold the lock
	gate           int64 // had by a statement that looks at both
	first          int64 // that of slot 0, which one holder has alone; those of the others follow
}

// slotBits is how many bits of their keys the slots of a lock differ in: enough for locker.MaxSlots.
const slotBits = 14

func marksOf(key int64) marks {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(key)))
	word := func(i int) int64 { return int64(binary.BigEndian.Uint64(sum[8*i:])) }
	const room = 1<<slotBits - 1
	return marks{readers: word(0), slots: word(1), gate: word(2), first: word(3) &^ room}
}
