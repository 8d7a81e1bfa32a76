package redislock

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lockerkit/locker"
)

// companionMark is in the name of every companion key, right behind its hash tag.
const companionMark = "}:locker:"

// keys are the names of what belongs to one lock. The lock itself is at exactly prefix+key, where other libraries expect
// it; its companions are in the same hash slot of a Redis Cluster, whatever braces the key has.
type keys struct {
	lock  string
	fence string // string: the last token
	queue string // sorted set: who waits, by arrival
	alive string // sorted set: until when each of them is taken to be alive
	gone  string // what the owner id is appended to, for owners that have given up
}

func keysOf(lock string) keys {
	tag := hashTag(lock)
	companion := func(kind string) string {
		name := "{" + tag + companionMark + kind + ":"
		if tag != lock {
			name += lock // the tag alone does not tell it from others
		}
		return name
	}
	return keys{
		lock:  lock,
		fence: companion("fence"),
		queue: companion("queue"),
		alive: companion("alive"),
		gone:  companion("gone"),
	}
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
