package etcdlock

import (
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Key returns what the keys in etcd have in common by which a lock is held and waited for. name is the key of the lock
// with its prefix. Each acquisition has a key of its own, which is Key(name), the id of its etcd lease, and two
// numbers; its value is the name for people (locker.Holder). The one with the smallest create revision holds the lock,
// and the others wait in that order:
//
//	etcdctl get --prefix 'locker/orders/42@' --sort-by=CREATE             # the holder, and who waits
//	etcdctl get --prefix 'locker/orders/42@' --sort-by=CREATE --limit=1   # the holder
//
// The keys of readers (see locker.Shared) have an r behind Key(name). A reader holds the lock when no older key is
// without one. Keys for slots (see locker.Slots) have a # there, and end with how many slots there are and the name for
// people. Their value is the number of the slot, and empty while they wait for one.
//
// The value of a holder that was revoked (see locker.Client.Revoke) begins with the byte 0xff. It says by whom and why,
// and what was there before. The value of one that was adopted (see locker.Adopt), or is kept (see locker.MinHold),
// begins with two of them. It says which owner has it, with its name; the owner is 0 if it is kept. To delete the key
// of the holder is to break the lock (see locker.Client.Break), without a reason.
//
// Visible ASCII characters stand for themselves, except for "%", "@" and "!", which are written as %25, %40 and %21,
// like all other bytes. "@" ends the name, so that no name is the beginning of another.
func Key(name string) string { return escape(name) + string(endOfName) }

const (
	endOfName  = '@' // is followed by what tells claims apart
	endOfFence = '!' // is followed by the lease
)

func escape(name string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '%' && c != endOfName && c != endOfFence }
	special := 0
	for i := range len(name) {
		if !plain(name[i]) {
			special++
		}
	}
	if special == 0 {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 2*special)
	for i := range len(name) {
		if c := name[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// afterLine is the end of the range of keys that begin with line, a result of Key.
func afterLine(line string) string { return line[:len(line)-1] + string(endOfName+1) }

// span is the keys from one on and before another, or the first alone if there is no other.
type span struct{ from, end string }

// get reads what is there.
func (s span) get(options ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpGet(s.from, append(options, clientv3.WithRange(s.end))...)
}

// isEmpty is the condition that nothing is there.
func (s span) isEmpty() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(s.from), "=", 0).WithRange(s.end)
}

// placeOf is what the keys of claims in that mode begin with, in a line. Those of writers go on with a hexadecimal
// digit: they come after those to slots (see locker.Slots), and before those of readers (see locker.Shared). So what a
// claim waits for is one span.
func placeOf(line string, mode locker.Mode) string {
	switch mode {
	case locker.ModeShared:
		return line + "r"
	case locker.ModeSlots:
		return line + "#"
	}
	return line
}

// slotsOf is the claims to slots in a line.
func slotsOf(line string) span { return span{line + "#", line + "$"} }

// rivalsOf is the claims that one in that mode has to wait for if they are older. One to a slot may also have to wait
// for others to slots, see slots.go.
func rivalsOf(line string, mode locker.Mode) span {
	switch mode {
	case locker.ModeShared:
		return span{line, placeOf(line, mode)}
	case locker.ModeSlots:
		return span{slotsOf(line).end, afterLine(line)}
	}
	return span{line, afterLine(line)}
}

// claimKey is the key of a claim. place is what placeOf says.
//
// Keys are used again: etcd keeps those that have been deleted in its index until it compacts, and reads past them when
// it looks who is first in line. A key of its own for each acquisition would make the thousandth of them in an hour
// read a thousand. ordinal tells apart the claims in one place that exist at the same time, see session.ordinals, and
// generation those whose requests may still arrive from those that came after, see session.generation.
func claimKey(place string, lease clientv3.LeaseID, generation, ordinal uint64) string {
	b := make([]byte, 0, len(place)+24)
	b = append(b, place...)
	b = strconv.AppendUint(b, uint64(lease), 16)
	b = append(b, '.')
	b = strconv.AppendUint(b, generation, 16)
	b = append(b, '.')
	return string(strconv.AppendUint(b, ordinal, 16))
}

// fenceKey is the key whose changes make requests fail that were sent before, see session.fence. It begins with the
// prefix of the Locker, so that it takes no other permission than the locks.
func fenceKey(prefix string, lease clientv3.LeaseID) string {
	return fmt.Sprintf("%s%c%x", escape(prefix), endOfFence, uint64(lease))
}
