package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var exclusionRules = []rule{
	{
		name: "OneHolder", body: oneHolder,
		did:  "12 goroutines over 3 Lockers lock and unlock one key, 12 times each.",
		text: "Two leases of a key are never held at once.",
		hint: hintAtomic,
	},
	{
		name: "Counter", body: counter,
		did:  "12 goroutines over 3 Lockers read and write a number under the lock, 10 times each.",
		text: "A counter that is read and written under the lock, and not protected otherwise, loses nothing.",
		hint: hintAtomic,
	},
	{
		name: "TryLockHeld", body: tryLockHeld,
		did:  "One Locker holds a key, and another calls TryLock; then the first one unlocks, and the other tries again.",
		text: "TryLock of a key that is held returns ErrLocked at once, and leaves the holder alone.",
		hint: "Acquire returns a *locker.Held, or ErrLocked, when the store says that there is another owner. It waits for nobody, and changes nothing. (If nothing excludes anything: do the Lockers of Harness.Open reach the same store?)",
	},
	{
		name: "NotReentrant", body: notReentrant,
		did:  "A Locker locks a key that it holds itself, with TryLock and with Lock.",
		text: "A key that is held cannot be locked again, not even by the same Locker or goroutine.",
		hint: "Decide by Request.Owner, which is another for each Lock: not by the process, the connection or Request.Holder.",
	},
	{
		name: "KeysAreIndependent", body: keysAreIndependent,
		did:  "One Locker holds twenty keys that differ in little: in case, a slash, a NUL at the end. Another tries them; then they are unlocked one by one.",
		text: "Keys that differ in any byte never block one another, nor does one free another.",
		hint: "Store the whole of Request.Name() as it is: without folding case, trimming, cutting, or looking for what begins with it.",
	},
	{
		name: "KeyAlphabet", body: keyAlphabet, relaxes: sharesKeys,
		did:  "A Locker locks keys of one byte to 1,024: spaces, braces, slashes, NUL, invalid UTF-8, emoji. Another tries them; then they are unlocked.",
		text: "Any 1 to 1,024 bytes are a key and work like any other; anything else is ErrInvalidKey before the store is asked.",
		hint: "Encode Request.Name() for your store without loss, as bytes or in hexadecimal, or store a hash of it where names can be too long. (locker.New refuses keys of other lengths.) " +
			"If the store cannot: Features{SharesKeys: \"the reason\"}.",
	},
	{
		name: "PrefixIsolates", body: prefixIsolates,
		did:  "Three Lockers lock the same key, one of them with another locker.Prefix.",
		text: "Lockers with different prefixes do not see one another's locks; Lockers with the same prefix do.",
		hint: "Use Request.Name(), which begins with the prefix of the Locker, where you use Request.Key.",
	},
	{
		name: "Relock", body: relock,
		did:  "A Locker locks a key and unlocks it, a hundred times.",
		text: "A key that was unlocked can be locked again, a hundred times in a row.",
		hint: "When Release returns nil the key is free: it waits for the store's answer, and leaves nothing of the lease behind.",
	},
}

func oneHolder(c *check) {
	const lockers, goroutines, rounds = 3, 4, 12
	key := c.key()
	var current atomic.Pointer[locker.Lease]
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	c.all(lockers*goroutines, func(i int) {
		for range rounds {
			lease := c.lock(ls[i%lockers], key)
			if before := current.Swap(lease); before != nil && before.Err() == nil {
				c.errorf("Lock returned a lease (token %d) while another (token %d) was held", lease.Token(), before.Token())
			}
			if i%2 == 0 {
				time.Sleep(c.ttl / 1000) // so that the others meet a key that is held
			}
			c.unlock(lease)
		}
	})
}

func counter(c *check) {
	const lockers, goroutines, rounds = 3, 4, 10
	key := c.key()
	var n atomic.Int64 // atomic only for the race detector: the increment is not
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	c.all(lockers*goroutines, func(i int) {
		for range rounds {
			lease := c.lock(ls[i%lockers], key)
			read := n.Load()
			time.Sleep(c.ttl / 2000)
			n.Store(read + 1)
			c.unlock(lease)
		}
	})
	if got, want := n.Load(), int64(lockers*goroutines*rounds); got != want {
		c.errorf("the counter is %d after %d increments", got, want)
	}
}

func tryLockHeld(c *check) {
	key := c.key()
	holder, other := c.open(), c.open()
	lease := c.lock(holder, key)
	var took []time.Duration
	for range 5 {
		start := time.Now()
		c.refused(other, lease, "of a key that another Locker holds")
		took = append(took, time.Since(start))
	}
	if m := median(took); m > c.soon() {
		c.errorf("TryLock took %v to say that the key is held", m)
	}
	if err := lease.Err(); err != nil {
		c.errorf("the holder's lease ended: %v", err)
	}
	c.unlock(lease)
	c.freeWithin(other, key, c.soon(), "after Unlock")
}

func notReentrant(c *check) {
	key := c.key()
	l := c.open()
	lease := c.lock(l, key)
	c.refused(l, lease, "of a key that the same Locker holds")
	again, err := l.Lock(c.within(c.ttl/4), key)
	switch {
	case err == nil:
		c.errorf("Lock of a key that the same Locker and goroutine holds succeeded")
		_ = again.Unlock()
	case !errors.Is(err, context.DeadlineExceeded):
		c.errorf("Lock of a key that the same Locker holds: %v; want it to wait until its ctx ends", err)
	}
	if err := lease.Err(); err != nil {
		c.errorf("the holder's lease ended: %v", err)
	}
	c.unlock(lease)
	c.freeWithin(l, key, c.soon(), "after Unlock")
}

func keysAreIndependent(c *check) {
	base := c.key()
	a, b := c.open(), c.open()
	keys := []string{ // some of them before those that they begin with, some after
		"", "orders/42", "orders", "orders/", "orders//", "orders/4", "orders/42/", "Orders/42", "ORDERS/42", "orders/42 ",
		" orders/42", "orders:42", "orders.42", "orders", "order", "{orders}", "{orders}/42", "{orders}/43", "orders\x00", "orders\x0042",
	}
	held := make(map[string]*locker.Lease)
	for _, k := range keys {
		key := base + k
		if held[key] != nil {
			continue
		}
		lease, err := a.TryLock(c.within(10*c.ttl), key)
		if err != nil {
			c.errorf("TryLock(%q) while %d other keys that begin or end alike are held: %v", key, len(held), err)
			continue
		}
		held[key] = lease
	}
	for key, lease := range held {
		c.refused(b, lease, fmt.Sprintf("of %.60q, which is held along with others", key))
	}
	for key, lease := range held {
		c.unlock(lease)
		delete(held, key)
		c.freeWithin(b, key, c.soon(), "after Unlock")
		for other, lease := range held {
			if err := lease.Err(); err != nil {
				c.errorf("Unlock of %q ended the lease of %q: %v", key, other, err)
			}
		}
	}
}

func keyAlphabet(c *check) {
	// With a prefix of its own, the test can use keys as short as it likes.
	prefix := c.key() + ":"
	a, b := c.open(locker.Prefix(prefix)), c.open(locker.Prefix(prefix))
	keys := []string{
		"a", " ", "  ", "\x00", "\x00\x00", "\n", "\r\n", "\t", "\x7f", "\xff", "\xff\xfe\xfd", "a\x00b", "a\xc3", "é", "e\u0301", "🔒", "🔒🔒",
		"{", "}", "{}", "}{", "{{}}", "{a}", "{a}b", "a{b}c", "a}b", "a{b", "{}a", "a{}b{c}", ":", "::", "%", "%00", "%2F", "%s", "*", "?", "[a]", "\\", "\\\\",
		"/", "//", ".", "..", "../a", "a/../b", "a/./b", "-", "--", "~", "$", "'", `"`, "`", ";", "#", "|", "<>", "con", "NUL",
		strings.Repeat("k", 255), strings.Repeat("k", 256), strings.Repeat("k", locker.MaxKeyLen-1), strings.Repeat("k", locker.MaxKeyLen),
		strings.Repeat("\x00", locker.MaxKeyLen), strings.Repeat("}", locker.MaxKeyLen), strings.Repeat("🔒", locker.MaxKeyLen/4),
	}
	leases := make([]*locker.Lease, len(keys))
	c.all(len(keys), func(i int) {
		lease, err := a.TryLock(c.within(10*c.ttl), keys[i])
		if err != nil {
			c.errorf("TryLock(%.40q), %d bytes: %v", keys[i], len(keys[i]), err)
			return
		}
		if lease.Key() != keys[i] {
			c.errorf("Lease.Key() = %.40q after TryLock(%.40q)", lease.Key(), keys[i])
		}
		leases[i] = lease
	})
	const atATime = 8 // as what follows is timed
	c.all(atATime, func(first int) {
		for i := first; i < len(keys); i += atATime {
			if leases[i] == nil {
				continue
			}
			c.refused(b, leases[i], fmt.Sprintf("of %.40q, which is held", keys[i]))
			c.unlock(leases[i])
			c.freeWithin(b, keys[i], c.soon(), fmt.Sprintf("after Unlock of %.40q", keys[i]))
		}
	})
	if c.has(needsCut, "that the store is not asked for a key of another length") {
		defer c.cut(BlackHole)() // severs b: whoever asks the store now, waits
	}
	for _, key := range []string{"", strings.Repeat("k", locker.MaxKeyLen+1)} {
		start := time.Now()
		lease, err := b.TryLock(c.within(c.ttl), key)
		if err == nil {
			_ = lease.Unlock()
		}
		if !errors.Is(err, locker.ErrInvalidKey) {
			c.errorf("TryLock with a key of %d bytes: %v; want ErrInvalidKey", len(key), err)
		}
		if took := time.Since(start); took > c.soon() {
			c.errorf("it took %v to refuse a key of %d bytes", took, len(key))
		}
	}
}

func prefixIsolates(c *check) {
	key := c.key()
	a1, a2, b := c.open(locker.Prefix(key+"a:")), c.open(locker.Prefix(key+"a:")), c.open(locker.Prefix(key+"b:"))
	la := c.tryLock(a1, key)
	lb := c.tryLock(b, key)
	if la.Key() != key {
		c.errorf("Lease.Key() = %q; want it without the prefix: %q", la.Key(), key)
	}
	c.refused(a2, la, "of a key held by another Locker with the same prefix")
	c.unlock(lb)
	c.refused(a2, la, "after a Locker with another prefix unlocked its own")
	c.unlock(la)
}

func relock(c *check) {
	key := c.key()
	l := c.open()
	for range 100 {
		c.unlock(c.tryLock(l, key))
	}
}
