package scripts

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/lockerkit/locker"
)

// companionMark is in the name of every companion key, right behind its hash tag.
const companionMark = "}:locker:"

// Names are what one request calls things in Redis. The lock is at exactly prefix+key, where other libraries expect
// it; its companions are in the same hash slot of a Redis Cluster, whatever braces the key has.
type Names struct {
	Lock      string
	Fence     string // string: the last token
	Queue     string // sorted set: who waits, by arrival
	Alive     string // sorted set: until when each of them is taken to be alive
	Tombstone string // exists for a while after this owner has given up: late requests of it are refused
	Holders   string // sorted set: who has the lock, if there may be several, by when the lease ends
	Slots     string // sorted set: the same by the number of the slot, if they have one

	Mode   string // as the scripts know it: "" (exclusive), "s" (shared), or how many slots there are
	Value  string // of the lock while this owner has it alone, else of holders and slots
	Member string // of queue and alive, for this owner
}

// modeOf returns the mode of a request as the scripts know it.
func modeOf(r locker.Request) string {
	switch r.Mode {
	case locker.ModeShared:
		return "s"
	case locker.ModeSlots:
		return strconv.Itoa(r.Slots)
	}
	return ""
}

// NamesOf returns the names for a request that process makes.
func NamesOf(r locker.Request, process string) Names {
	const mark, kinds = len("{") + len(companionMark), len("fence:queue:alive:holders:slots:tombstone:")
	var owner [2 * len(r.Owner)]byte
	hex.Encode(owner[:], r.Owner[:])
	mode := modeOf(r)
	// One string holds all of these: this is done for every operation.
	var b strings.Builder
	name := len(r.Prefix) + len(r.Key)
	b.Grow(name + 6*(mark+name) + kinds + len(":") + len(owner) + len(":") + len(r.Holder) +
		len(process) + len(":") + len(owner) + len(":") + len(mode))
	b.WriteString(r.Prefix)
	b.WriteString(r.Key)
	lock := b.String()
	tag, rest := hashTag(lock), "" // the rest tells the companions from those of other locks with the same tag
	if tag != lock {
		rest = lock
		b.Grow(6 * len(tag))
	}
	var ends [6]int
	for i, kind := range [...]string{"fence:", "queue:", "alive:", "holders:", "slots:", "tombstone:"} {
		b.WriteByte('{')
		b.WriteString(tag)
		b.WriteString(companionMark)
		b.WriteString(kind)
		b.WriteString(rest)
		ends[i] = b.Len()
	}
	b.WriteByte(':')
	value := b.Len()
	b.Write(owner[:])
	tombstone := b.Len()
	if r.Holder != "" {
		b.WriteByte(':')
		b.WriteString(r.Holder)
	}
	member := b.Len()
	b.WriteString(process)
	b.WriteByte(':')
	b.Write(owner[:])
	if mode != "" {
		b.WriteByte(':')
		b.WriteString(mode)
	}
	all := b.String()
	return Names{
		Lock: lock, Fence: all[len(lock):ends[0]], Queue: all[ends[0]:ends[1]], Alive: all[ends[1]:ends[2]],
		Holders: all[ends[2]:ends[3]], Slots: all[ends[3]:ends[4]], Tombstone: all[ends[4]:tombstone],
		Mode: mode, Value: all[value:member], Member: all[member:],
	}
}

// ValueOf returns what a lock is set to: the owner, by which it is recognised, and the holder's name, for people.
func ValueOf(owner, holder string) string {
	if holder == "" {
		return owner
	}
	return owner + ":" + holder
}

// HolderIn returns the holder's name in the value of a lock; a foreign client's value has none.
func HolderIn(value string) string {
	holder, _ := ParseValue(value)
	return holder
}

// ParseValue returns the holder's name in the value of a lock, and whether it is one of ours.
func ParseValue(value string) (holder string, ours bool) {
	const ownerLen = 32
	value = strings.TrimPrefix(value, saysRevoked)
	if len(value) < ownerLen || strings.Trim(value[:ownerLen], "0123456789abcdef") != "" {
		return "", false
	}
	if len(value) == ownerLen {
		return "", true
	}
	holder, ours = strings.CutPrefix(value[ownerLen:], ":")
	if !ours {
		return "", false
	}
	return holder, true
}

// ModeOfValue returns what the value of a lock says of its mode.
func ModeOfValue(value string) locker.Mode {
	switch value {
	case saysShared:
		return locker.ModeShared
	case saysSlots:
		return locker.ModeSlots
	}
	return locker.ModeExclusive
}

// ModeOfMember returns the mode that a member of a line waits for.
func ModeOfMember(member string) locker.Mode {
	switch member[min(memberLen, len(member)):] {
	case "":
		return locker.ModeExclusive
	case ":s":
		return locker.ModeShared
	}
	return locker.ModeSlots
}

// memberLen is the length of a member of a line without its mode: a process, a colon and an owner.
const memberLen = 32 + 1 + 32

// NoteOf returns the name of the key that says why the holders of a lock were revoked.
func NoteOf(n Names) string {
	return strings.Replace(n.Fence, companionMark+"fence:", companionMark+"note:", 1)
}

// CheckName refuses lock names that could be those of companions.
func CheckName(name string) error {
	if strings.HasPrefix(name, "{") && strings.Contains(name, companionMark) {
		return fmt.Errorf("%w: names that begin with %q and contain %q are used by redislock itself",
			locker.ErrInvalidKey, "{", companionMark)
	}
	return nil
}

// hashTag returns a string without closing brace that hashes to the same slot as key: the key's own hash tag, or the
// whole key, or, if neither will do, the number that numberOf has for the slot.
func hashTag(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	if !strings.Contains(key, "}") {
		return key
	}
	return strconv.Itoa(numberOf()[slotOf(key)])
}

// numberOf returns for each slot the smallest number, from 1, that hashes to it. The table is made when the first key
// needs it, which most programs do not have: it takes a few milliseconds, and 128 KiB.
var numberOf = sync.OnceValue(func() *[slots]int {
	numbers := new([slots]int)
	for i, missing := 1, slots; missing > 0; i++ { // some 110,000 steps
		if slot := slotOf(strconv.Itoa(i)); numbers[slot] == 0 {
			numbers[slot] = i
			missing--
		}
	}
	return numbers
})

// slots is how many hash slots a Redis Cluster has.
const slots = 16384

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
	return crc % slots
}
