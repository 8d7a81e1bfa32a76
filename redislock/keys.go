package redislock

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lockerkit/locker"
)

// companionMark is in the name of every companion key, right behind its hash tag.
const companionMark = "}:locker:"

// names are what one request calls things in Redis. The lock is at exactly prefix+key, where other libraries expect
// it; its companions are in the same hash slot of a Redis Cluster, whatever braces the key has.
type names struct {
	lock  string
	fence string // string: the last token
	queue string // sorted set: who waits, by arrival
	alive string // sorted set: until when each of them is taken to be alive
	gone  string // exists for a while after this owner has given up

	value  string // of the lock while this owner has it
	member string // of queue and alive, for this owner
}

// namesOf returns the names for a request that process makes.
func namesOf(r locker.Request, process string) names {
	lock := r.Name()
	tag := hashTag(lock)
	owner := r.Owner.String()
	rest := lock // what tells the companions from those of other locks with the same tag
	if tag == lock {
		rest = ""
	}
	// One string holds all of these: this is done for every operation.
	var b strings.Builder
	b.Grow(4*(len(tag)+len(companionMark)+len(rest)+8) + 2*len(owner) + len(process) + 2)
	var ends [4]int
	for i, kind := range [...]string{"fence:", "queue:", "alive:", "gone:"} {
		b.WriteByte('{')
		b.WriteString(tag)
		b.WriteString(companionMark)
		b.WriteString(kind)
		b.WriteString(rest)
		if kind == "gone:" {
			b.WriteByte(':')
			b.WriteString(owner)
		}
		ends[i] = b.Len()
	}
	b.WriteString(process)
	b.WriteByte(':')
	b.WriteString(owner)
	all := b.String()
	return names{
		lock: lock, fence: all[:ends[0]], queue: all[ends[0]:ends[1]], alive: all[ends[1]:ends[2]],
		gone: all[ends[2]:ends[3]], value: valueOf(owner, r.Holder), member: all[ends[3]:],
	}
}

// valueOf returns what a lock is set to: the owner, by which it is recognised, and the holder's name, for people.
func valueOf(owner, holder string) string {
	if holder == "" {
		return owner
	}
	return owner + ":" + holder
}

// holderIn returns the holder's name in the value of a lock; a foreign client's value has none.
func holderIn(value string) string {
	const ownerLen = 32
	if len(value) <= ownerLen || value[ownerLen] != ':' || strings.Trim(value[:ownerLen], "0123456789abcdef") != "" {
		return ""
	}
	return value[ownerLen+1:]
}

// checkName refuses lock names that could be those of companions.
func checkName(name string) error {
	if strings.HasPrefix(name, "{") && strings.Contains(name, companionMark) {
		return fmt.Errorf("%w: names that begin with %q and contain %q are used by redislock itself", locker.ErrInvalidKey, "{", companionMark)
	}
	return nil
}

// hashTag returns a string without closing brace that hashes to the same slot as key: the key's own hash tag, or the
// whole key, or, if neither will do, a number that happens to.
func hashTag(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	if !strings.Contains(key, "}") {
		return key
	}
	slot := slotOf(key)
	for i := 0; ; i++ { // some 16,000 steps; the keys that need it are rare
		if tag := strconv.Itoa(i); slotOf(tag) == slot {
			return tag
		}
	}
}

// slotOf returns the hash slot of a key without hash tag: CRC-16/XMODEM modulo 16384, as in the Redis Cluster
// specification (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
func slotOf(s string) uint16 {
	var crc uint16
	for i := range len(s) {
		crc ^= uint16(s[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % 16384
}
