package conformance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

var nameRules = []rule{
	{
		name: "KeysAreIndependent", body: keysAreIndependent,
		did: "One Locker holds twenty keys that differ in little: in case, a slash, a NUL at the end. Another tries them; " +
			"then they are unlocked one by one.",
		text: "Keys that differ in any byte never block one another, nor does one free another.",
		hint: "Store the whole of Request.Name() as it is: without folding case, trimming, cutting, or looking for what " +
			"begins with it.",
	},
	{
		name: "KeyAlphabet", body: keyAlphabet, relaxes: sharesKeys,
		did: "A Locker locks keys of one byte to 1,024: spaces, braces, slashes, NUL, invalid UTF-8, emoji. Another tries " +
			"them; then they are unlocked.",
		text: "Any 1 to 1,024 bytes are a key and work like any other; anything else is ErrInvalidKey before the store is " +
			"asked.",
		hint: "Encode Request.Name() for your store without loss, as bytes or in hexadecimal, or store a hash of it where " +
			"names can be too long. (locker.New refuses keys of other lengths.) If the store cannot: Features{SharesKeys: " +
			"\"the reason\"}.",
	},
	{
		name: "PrefixIsolates", body: prefixIsolates,
		did:  "Three Lockers lock the same key, one of them with another locker.Prefix.",
		text: "Lockers with different prefixes do not see one another's locks; Lockers with the same prefix do.",
		hint: "Use Request.Name(), which begins with the prefix of the Locker, where you use Request.Key.",
	},
	{
		name: "EveryByteCounts", body: everyByteCounts, relaxes: sharesKeys, since: "v0.1.0",
		did: "A Locker holds a thousand names for longer than a TTL, or as many as a slow store can: each single byte, " +
			"long ones that differ in one byte, random ones, and what looks alike in case, spaces, separators, escapes, " +
			"patterns, accents, emoji. Another tries them all; then they are unlocked, half of them first.",
		text: "Names that differ in any byte are different locks, while they are taken, held, renewed and unlocked.",
		hint: "Use the same encoding of Request.Name(), one without loss, wherever the store is asked: to acquire, renew " +
			"and release, and in lists of names, which need more than a separator. Names of your own beside the locks must " +
			"not be those of other locks. If the store cannot: Features{SharesKeys: \"the reason\"}.",
	},
	{
		name: "PrefixAndKeyAreJoined", body: prefixAndKeyAreJoined, since: "v0.1.0",
		did: "Four Lockers lock the same name, each with another part of it as its locker.Prefix: they hand it on to one " +
			"another and hold it beyond a TTL. Others hold one key beneath prefixes that look alike.",
		text: "What is locked is prefix and key joined, wherever the one ends and the other begins, and nothing but that.",
		hint: "Use Request.Name() alone, and neither Request.Prefix nor Request.Key: in Acquire, Wait, Renew and Release, " +
			"in names of channels and lines, in maps of your own. A column for each of the two makes two locks of one.",
	},
}

func keysAreIndependent(c *check) {
	base := c.key()
	a, b := c.openForMany(), c.openForMany()
	keys := []string{ // some of them before those that they begin with, some after
		"", "orders/42", "orders", "orders/", "orders//", "orders/4", "orders/42/", "Orders/42", "ORDERS/42", "orders/42 ",
		" orders/42", "orders:42", "orders.42", "orders", "order", "{orders}", "{orders}/42", "{orders}/43", "orders\x00",
		"orders\x0042",
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
	a, b := c.openForMany(locker.Prefix(prefix)), c.openForMany(locker.Prefix(prefix))
	keys := []string{
		"a", " ", "  ", "\x00", "\x00\x00", "\n", "\r\n", "\t", "\x7f", "\xff", "\xff\xfe\xfd", "a\x00b", "a\xc3", "é",
		"e\u0301", "🔒", "🔒🔒", "{", "}", "{}", "}{", "{{}}", "{a}", "{a}b", "a{b}c", "a}b", "a{b", "{}a", "a{}b{c}",
		":", "::",
		"%", "%00", "%2F", "%s", "*", "?", "[a]", "\\", "\\\\", "/", "//", ".", "..", "../a", "a/../b", "a/./b", "-", "--",
		"~", "$", "'", `"`, "`", ";", "#", "|", "<>", "con", "NUL", strings.Repeat("k", 255), strings.Repeat("k", 256),
		strings.Repeat("k", locker.MaxKeyLen-1), strings.Repeat("k", locker.MaxKeyLen),
		strings.Repeat("\x00", locker.MaxKeyLen), strings.Repeat("}", locker.MaxKeyLen),
		strings.Repeat("🔒", locker.MaxKeyLen/4),
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
		c.took(time.Since(start), c.soon(), "to refuse a key of %d bytes", len(key))
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

// name is a key beneath a prefix.
type name struct{ prefix, key string }

func (n name) String() string {
	return fmt.Sprintf("%.48q (%d bytes)", n.prefix+n.key, len(n.prefix+n.key))
}

// peers are independent Lockers for each of some prefixes, as many as there are processes.
type peers map[string][]locker.Locker

func (c *check) openPeers(processes int, prefixes ...string) peers {
	ps := make(peers)
	for _, prefix := range prefixes {
		for range processes {
			ps[prefix] = append(ps[prefix], c.open(locker.Prefix(prefix)))
		}
	}
	return ps
}

// several runs f(0) to f(n-1), a few at a time.
func (c *check) several(n int, f func(i int)) {
	const atATime = 16
	c.all(min(n, atATime), func(first int) {
		for i := first; i < n; i += atATime {
			f(i)
		}
	})
}

// pace returns how long a Locker takes to lock a key that is free, for a rule to ask no more than a store can do.
func (c *check) pace(l locker.Locker) time.Duration {
	var took []time.Duration
	for range 15 {
		start := time.Now()
		lease := c.tryLock(l, c.key())
		took = append(took, time.Since(start))
		c.unlock(lease)
	}
	return median(took)
}

// asMany returns how many things that take so long fit into a time: at least some, at most all.
func asMany(time, each time.Duration, some, all int) int {
	if each <= 0 {
		return all
	}
	return int(max(int64(min(some, all)), min(int64(all), int64(time/each))))
}

// Whether names have been locked before, and been unlocked. One that never was is not refused for being late.
const (
	anew  = false
	again = true
)

// lockAll has a process lock all names at the same time. The lease of a name that it could not lock is nil.
func (c *check) lockAll(ps peers, process int, names []name, before bool, opts ...locker.CallOption) []*locker.Lease {
	return c.lockFor(10*c.ttl, ps, process, names, before, opts...)
}

// lockFor is lockAll that begins no more when some time has passed.
func (c *check) lockFor(
	d time.Duration, ps peers, process int, names []name, before bool, opts ...locker.CallOption,
) []*locker.Lease {
	ctx := c.within(10 * c.ttl)
	start := time.Now()
	leases := make([]*locker.Lease, len(names))
	c.several(len(names), func(i int) {
		if time.Since(start) > d {
			return
		}
		n := names[i]
		opts := append(slices.Clip(opts), locker.Holder(holderOf(n)))
		lease, err := ps[n.prefix][process].TryLock(ctx, n.key, opts...)
		switch {
		case errors.Is(err, locker.ErrLocked) && c.h.Features.SharesKeys != "":
		case errors.Is(err, locker.ErrLocked) && before:
			c.errorf("TryLock(%v), which was unlocked, while other names are held%s: %v", n, heldBy(err), err)
		case errors.Is(err, locker.ErrLocked):
			c.wrongf("TryLock(%v), while other names are held that differ from it%s: %v", n, heldBy(err), err)
		case errors.Is(err, locker.ErrInvalidKey) && slices.Contains(takenNames, n.key):
		case errors.Is(err, locker.ErrInvalidKey) && len(n.prefix+n.key) > locker.MaxKeyLen+64: // more than a key has to have
		case err != nil:
			c.errorf("TryLock(%v): %v; want a lease", n, err)
		case lease.Key() != n.key:
			c.errorf("TryLock(%v): Lease.Key() = %.40q", n, lease.Key())
		}
		leases[i] = lease
	})
	return leases
}

// holderOf is what the holder of a name is called.
func holderOf(n name) string { return fmt.Sprintf("%.100s", strconv.QuoteToASCII(n.prefix+n.key)) }

// heldBy says which name it is that is held, if the store tells the name of its holder.
func heldBy(err error) string {
	if holder := holderIn(err); holder != "" {
		return ", such as " + holder
	}
	return ""
}

// keptOut checks that a process cannot lock the name of a lease that somebody has.
func (c *check) keptOut(ps peers, process int, n name, held *locker.Lease, when string) {
	if held == nil {
		return
	}
	lease, err := ps[n.prefix][process].TryLock(c.within(10*c.ttl), n.key)
	if err == nil {
		if loss := held.Err(); loss == nil {
			c.add(problem{
				saw: fmt.Sprintf("TryLock(%v) %s: it succeeded, and now there are two holders", n, when), at: caller(1),
				wrong: true,
			})
		} else {
			c.record(1, "TryLock(%v) %s: it succeeded, as the holder has lost its lease: %v", n, when, loss)
		}
		_ = lease.Unlock()
	} else if !errors.Is(err, locker.ErrLocked) {
		c.record(1, "TryLock(%v) %s: %v; want ErrLocked", n, when, err)
	}
}

// stillHeld checks that a lease has not ended.
func (c *check) stillHeld(n name, lease *locker.Lease, when string) {
	if lease == nil {
		return
	}
	if err := lease.Err(); err != nil {
		c.record(1, "the lease of %v was lost %s: %v", n, when, err)
	}
}

// unlockAll unlocks leases, of which some may be nil.
func (c *check) unlockAll(names []name, leases []*locker.Lease) {
	c.several(len(leases), func(i int) {
		if leases[i] == nil {
			return
		}
		if err := leases[i].Unlock(); err != nil {
			c.record(1, "Unlock of %v: %v; want nil", names[i], err)
		}
	})
}

// beyondTTL waits until leases that were just taken are held for longer than their TTL.
func (c *check) beyondTTL() { time.Sleep(c.ttl + c.ttl/4) }

// livesOn checks that leases are held, for longer than their TTL by now, and unlocks them.
func (c *check) livesOn(ps peers, other int, names []name, leases []*locker.Lease, when string) {
	for i, n := range names {
		c.stillHeld(n, leases[i], when)
	}
	// Not for so long that whoever asks keeps the holder from renewing, as may be where there is one of all.
	start := time.Now()
	c.several(len(names), func(i int) {
		if time.Since(start) < c.ttl/8 {
			c.keptOut(ps, other, names[i], leases[i], "more than a TTL after it was locked, "+when)
		}
	})
	c.several(len(names), func(i int) {
		if leases[i] != nil && leases[i].Err() == nil {
			c.unlock(leases[i])
		}
	})
}

func everyByteCounts(c *check) {
	prefix, own := c.key()+":", c.key()
	const holder, other = 0, 1
	ps := c.openPeers(2, prefix, "")
	var names, stores []name // and those that stores may use for themselves
	for _, key := range c.allNames() {
		if slices.Contains(takenNames, key) {
			stores = append(stores, name{prefix, key})
		} else {
			names = append(names, name{prefix, key})
		}
	}
	names = append(names, name{"", own})
	for _, end := range firstOrLast {
		names = append(names, name{"", end + own}, name{"", own + end})
	}
	for _, tw := range knownTwins {
		names = append(names, name{"", tw.first + own}, name{"", tw.second + own})
	}
	for _, key := range escaped(own) {
		names = append(names, name{"", key})
	}
	names = distinct(names)
	c.shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	c.shuffle(len(stores), func(i, j int) { stores[i], stores[j] = stores[j], stores[i] })
	if !inFakeTime() { // a store that takes long for each is asked for some of them
		const some = 200
		names = c.someOf(names, asMany(4*c.ttl, c.pace(ps[""][holder]), some, len(names)))
	}

	// What stores may use comes last: it is taken if they do, and the others are then locked once more.
	long := locker.TTL(20 * c.ttl) // there may be more than can be renewed within a short one
	leases := c.lockAll(ps, holder, names, anew, long)
	leases = append(leases, c.lockAll(ps, holder, stores, anew, long)...)
	names = append(names, stores...)
	if c.failed() { // the rest would say the same again, of each of them
		return
	}
	c.several(len(names), func(i int) { c.keptOut(ps, other, names[i], leases[i], "while it is held along with others") })
	half := len(names) / 2
	c.unlockAll(names[:half], leases[:half])
	next := c.lockAll(ps, other, names[:half], again, long)
	c.several(len(names)-half, func(i int) {
		i += half
		c.stillHeld(names[i], leases[i], "when others were unlocked")
		c.keptOut(ps, other, names[i], leases[i], "when other names were unlocked")
	})
	c.unlockAll(names[half:], leases[half:])
	c.several(half, func(i int) { c.stillHeld(names[i], next[i], "when a former holder unlocked other names") })
	c.unlockAll(names[:half], next)
	if c.failed() {
		return
	}

	slices.SortStableFunc(names, func(a, b name) int { return cmp.Compare(rank(a), rank(b)) })
	names = names[:asMany(c.ttl/6, c.pace(ps[prefix][other]), 60, len(names))]
	leases = c.lockFor(c.ttl/4, ps, holder, names, again)
	c.beyondTTL()
	c.livesOn(ps, other, names, leases, "though its holder lives")
}

// rank has common names come first.
func rank(n name) int {
	if slices.Contains(commonNames, n.key) {
		return 0
	}
	return 1
}

func prefixAndKeyAreJoined(c *check) {
	c.do(func() { c.prefixesApart() })
	base := c.key()
	whole := base + "\u00e9{a}:b"
	var parts []name
	for _, at := range []int{0, len(base) + 1, len(base) + 3, len(whole) - 1} { // within a character, within braces
		parts = append(parts, name{whole[:at], whole[at:]})
	}
	ps := make(peers)
	for _, n := range parts {
		ps[n.prefix] = append(ps[n.prefix], c.open(locker.Prefix(n.prefix)))
	}
	othersKeptOut := func(lease *locker.Lease, holder int, when string) {
		for i, n := range parts {
			if i != holder {
				c.keptOut(ps, 0, n, lease, fmt.Sprintf("%s by a Locker with Prefix(%.40q)", when, parts[holder].prefix))
			}
		}
	}
	holder := 0
	lease := c.tryLock(ps[parts[0].prefix][0], parts[0].key)
	for _, next := range []int{1, 2, 3, 0, 2, 1} {
		othersKeptOut(lease, holder, "while it is held")
		n := parts[next]
		w := c.start(c.within(10*c.ttl), ps[n.prefix][0], n.key)
		c.settle()
		released := time.Now()
		c.unlock(lease)
		got, err := c.result(w)
		if err != nil {
			c.fatalf("Lock(%v) with Prefix(%.40q), which another had locked, and unlocked: %v", n, n.prefix, err)
		}
		c.took(w.at.Sub(released), c.soon(), "from Unlock until a Locker had the same name with another prefix")
		if got.Token() <= lease.Token() {
			c.wrongf("the token was %d, and %d when another prefix was used for the same name", lease.Token(), got.Token())
		}
		lease, holder = got, next
	}
	c.beyondTTL()
	c.stillHeld(parts[holder], lease, "though its holder lives")
	othersKeptOut(lease, holder, "more than a TTL after it was locked")
	c.unlock(lease)
}

// prefixesApart checks that Lockers do not see the locks of those whose prefixes look like theirs.
func (c *check) prefixesApart() {
	base := c.key()
	long := base + strings.Repeat("p", locker.MaxKeyLen-len(base)-1)
	prefixes := []string{
		base, base + ":", base + "P:", base + "p:", base + "p: ", base + "p:\x00", base + "p%3A", base + "\u00e9:",
		base + "e\u0301:", base + "\xe9:", long + "a", long + "b",
	}
	if c.h.Features.SharesKeys != "" {
		c.leaves(inPart, "relaxed for prefixes that look alike: %s (Features.%s)", c.h.Features.SharesKeys, sharesKeys.name)
		prefixes = []string{base, base + "p:", base + "q:", base + "q:r:"}
	}
	var names []name
	ps := make(peers)
	for _, prefix := range prefixes {
		ps[prefix] = []locker.Locker{c.open(locker.Prefix(prefix))}
		names = append(names, name{prefix, "key"})
	}
	for _, prefix := range prefixes[len(prefixes)-2:] {
		key := strings.Repeat("k", locker.MaxKeyLen-1)
		names = append(names, name{prefix, key + "a"}, name{prefix, key + "b"})
	}
	leases := c.lockAll(ps, 0, names, anew)
	c.several(len(names), func(i int) { c.keptOut(ps, 0, names[i], leases[i], "by the Locker that holds it") })
	c.beyondTTL()
	c.livesOn(ps, 0, names, leases, "though its holder lives")
}
