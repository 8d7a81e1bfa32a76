package conformance

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

const (
	hintInspect = "Inspect returns what the store has of the key at this moment: each holder whose lease has not " +
		"ended, and who waits. What the store does not keep is zero, and not a guess."
	hintReadOnly = "Inspect and List only read. They do not lock the key to see whether it is free, push no expiry, " +
		"and do not get into line."
)

var inspectRules = []rule{
	{
		name: "SaysWhoHolds", body: byInspecting(saysWhoHolds), since: "v0.1.0", expires: true,
		did: "A key is held by one, by two readers and in two of three slots, as far as the backend offers that. " +
			"Another Locker inspects it, and that of a holder does.",
		text: "Inspect tells each holder, with its mode and slot, and its token, name and what is left of its " +
			"lease if the store knows them.",
		hint: hintInspect,
	},
	{
		name: "Since", body: byInspecting(sinceWhen), since: "v0.1.0",
		did: "A key is inspected as soon as it is held, and again when its lease has been renewed.",
		text: "HolderInfo.Since is when the lock was granted, and not when it was renewed or looked at; or zero, " +
			"as long as the store does not know.",
		hint: hintInspect,
	},
	{
		name: "CountsWaiters", body: byInspecting(countsWaiters), since: "v0.1.0", relaxes: unordered,
		did: "Three Lockers wait for a key that is held; one of them gives up. Then the key is unlocked, by each " +
			"in turn.",
		text: "LockInfo.Waiting is how many wait in line. Waiters has no more than those, in the order of their " +
			"arrival.",
		hint: hintInspect,
	},
	{
		name: "FreeIsFree", body: byInspecting(freeIsFree), since: "v0.1.0", expires: true,
		did:  "A key is inspected that nobody has locked, that was unlocked, and of which the lease has ended.",
		text: "A key that is free has no holders, and to inspect it is no error.",
		hint: hintInspect,
	},
	{
		name: "ListsUnderPrefix", body: byInspecting(listsUnderPrefix), since: "v0.1.0", relaxes: listsInPart,
		did: "Keys are held that begin with the same text, which has signs in it that mean something to patterns, " +
			"and others that begin nearly so; two were unlocked. They are listed, also with the option Prefix.",
		text: "List yields each key that is held and begins with the prefix, once, and no other.",
		hint: "A prefix is plain text: what it has in common with a pattern is to be escaped.",
	},
	{
		name: "DisturbsNobody", body: byInspecting(disturbsNobody), since: "v0.1.0", expires: true,
		did: "A key whose holder has died is inspected and listed all the time, while another Locker waits for " +
			"it; and one that is free, while others lock it by TryLock.",
		text: "To inspect makes no lease longer, takes no lock, and nobody's place in line.",
		hint: hintReadOnly,
	},
}

// inspecting is what a Client can do beyond a Locker.
type inspecting interface {
	Inspect(ctx context.Context, key string) (locker.LockInfo, error)
	List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error]
}

// byInspecting returns a rule's body: f, with another Locker that can inspect, unless the backend does not offer that.
func byInspecting(f func(*check, inspecting)) func(*check) {
	return func(c *check) {
		l, ok := c.open().(inspecting)
		if !ok {
			c.leaves(notOffered, "the Locker has no methods Inspect and List")
			return
		}
		if _, err := l.Inspect(c.within(10*c.ttl), c.key()); errors.Is(err, errors.ErrUnsupported) {
			c.leaves(notOffered, "the backend does not state that it can inspect (locker.Features)")
			return
		}
		f(c, l)
	}
}

// inspect returns what is known of a key, who has so many holders.
func (c *check) inspect(l inspecting, key string, holders int, when string) locker.LockInfo {
	info, err := l.Inspect(c.within(10*c.ttl), key)
	switch {
	case err != nil:
		c.fatalf("Inspect of a key %s: %v", when, err)
	case len(info.Holders) != holders:
		c.fatalf("Inspect of a key %s tells of %d holders; want %d", when, len(info.Holders), holders)
	case info.Key != key:
		c.errorf("Inspect of %q tells of the key %q", key, info.Key)
	}
	return info
}

func saysWhoHolds(c *check, l inspecting) {
	const name, lasting = "a worker", 4
	other := c.open(locker.Holder(name))
	for _, mode := range []locker.CallOption{nil, locker.Shared(), locker.Slots(3)} {
		opts := []locker.CallOption{locker.TTL(lasting * c.ttl)}
		if mode != nil {
			opts = append(opts, mode)
		}
		key := c.key()
		lease, err := other.TryLock(c.within(10*c.ttl), key, opts...)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err != nil {
			c.fatalf("TryLock of a key that is free: %v; want a lease", err)
		}
		leases := []*locker.Lease{lease}
		if mode != nil {
			leases = append(leases, c.tryLock(l.(locker.Locker), key, append(opts, locker.Holder(name))...))
		}
		for _, by := range []inspecting{l, other.(inspecting)} {
			info := c.inspect(by, key, len(leases), "that is held, "+lease.Mode().String())
			for _, lease := range leases {
				c.describes(info.Holders, lease, name, lasting*c.ttl)
			}
			if info.Waiting != 0 || len(info.Waiters) != 0 {
				c.errorf("Inspect tells of %d waiters, and describes %d; want none", info.Waiting, len(info.Waiters))
			}
		}
		c.unlockEach(leases...)
	}
}

// describes checks that one of the holders is that of a lease, as far as they say who they are.
func (c *check) describes(holders []locker.HolderInfo, lease *locker.Lease, name string, ttl time.Duration) {
	for _, h := range holders {
		switch {
		case h.Mode != lease.Mode():
			c.errorf("Inspect says that a holder is %v; it is %v", h.Mode, lease.Mode())
		case h.Name != "" && h.Name != name:
			c.errorf("Inspect says that a holder is called %q; it is %q", h.Name, name)
		case h.Left < 0 || h.Left > ttl:
			c.errorf("Inspect says that %v are left of a lease with a TTL of %v", h.Left, ttl)
		}
	}
	if !slices.ContainsFunc(holders, func(h locker.HolderInfo) bool { return h.Slot == lease.Slot() }) {
		c.errorf("Inspect does not tell of the holder of slot %d: %v", lease.Slot(), holders)
	}
	if !slices.ContainsFunc(holders, func(h locker.HolderInfo) bool {
		return (h.Token == 0 || h.Token == lease.Token()) && h.Slot == lease.Slot()
	}) {
		c.errorf("Inspect does not tell of the holder with the token %d: %v", lease.Token(), holders)
	}
}

func sinceWhen(c *check, l inspecting) {
	key := c.key()
	lease := c.lock(c.open(), key)
	first := c.inspect(l, key, 1, "that is held").Holders[0]
	renewed := time.Now()
	for range 2 { // the store has seen the first for certain when the second is confirmed
		c.awaitRenewal(lease, "a lease is lost that is renewed")
	}
	second := c.inspect(l, key, 1, "that is held").Holders[0]
	if first.Since.IsZero() && !second.Since.IsZero() { // the store has learnt it since
		c.awaitRenewal(lease, "a lease is lost that is renewed")
		first, second = second, c.inspect(l, key, 1, "that is held").Holders[0]
	}
	if !second.Since.Equal(first.Since) {
		c.errorf("HolderInfo.Since was %v at first, and %v when the lease had been renewed; want the same",
			first.Since, second.Since)
	}
	if first.Since.IsZero() {
		c.unlock(lease)
		return
	}
	c.unlock(lease)
	next := c.lock(c.open(), key)
	third := c.inspect(l, key, 1, "that is held again").Holders[0]
	if third.Since.IsZero() {
		c.awaitRenewal(next, "a lease is lost that is renewed")
		c.awaitRenewal(next, "a lease is lost that is renewed")
		third = c.inspect(l, key, 1, "that is held again").Holders[0]
	}
	if passed := time.Since(renewed); third.Since.Sub(first.Since) < c.ttl/3 {
		c.errorf("HolderInfo.Since is %v later of a grant that came %v later", third.Since.Sub(first.Since), passed)
	}
	c.unlock(next)
}

func countsWaiters(c *check, l inspecting) {
	const waiters = 3
	key := c.key()
	lease := c.lock(c.open(), key)
	ctxs := make([]context.CancelFunc, waiters)
	waits := make([]*wait, waiters)
	for i := range waits {
		ctx, cancel := context.WithCancel(c.within(20 * c.ttl))
		ctxs[i] = cancel
		waits[i] = c.waits(ctx, c.open(), key)
	}
	defer func() {
		for _, cancel := range ctxs {
			cancel()
		}
	}()
	c.waiting(l, key, waiters, "for which three wait")
	ctxs[1]()
	if lease, err := c.result(waits[1]); err == nil {
		c.fatalf("a Lock whose ctx has ended returned a lease with the token %d, of a key that is held", lease.Token())
	}
	c.waiting(l, key, waiters-1, "for which two wait, and one has given up")
	left := waiters - 1
	for _, w := range []*wait{waits[0], waits[2]} {
		start := time.Now()
		c.unlock(lease)
		lease = c.granted(w, start, "the next in line, after the holder has unlocked")
		left--
		c.waiting(l, key, left, "after one of those who waited was served")
	}
	c.unlock(lease)
}

// waiting checks how many wait for a key, which the store may know a little later.
func (c *check) waiting(l inspecting, key string, n int, when string) {
	start := time.Now()
	for {
		info := c.inspect(l, key, 1, when)
		if len(info.Waiters) > info.Waiting {
			c.errorf("Inspect describes %d waiters of %d", len(info.Waiters), info.Waiting)
		}
		if !slices.IsSortedFunc(info.Waiters, func(a, b locker.WaiterInfo) int { return a.Since.Compare(b.Since) }) {
			c.errorf("Inspect tells of waiters who are not in the order of their arrival: %v", info.Waiters)
		}
		if info.Waiting == n {
			return
		}
		if time.Since(start) > c.soon() {
			c.record(1, "Inspect of a key %s says that %d wait; want %d", when, info.Waiting, n)
			return
		}
		time.Sleep(c.ttl / 50)
	}
}

func freeIsFree(c *check, l inspecting) {
	other := c.open()
	key := c.key()
	c.inspect(l, key, 0, "that nobody has locked")
	c.unlock(c.lock(other, key))
	c.inspect(l, key, 0, "that was unlocked")
	c.abandon(key)
	for start := time.Now(); ; time.Sleep(c.ttl / 50) {
		info, err := l.Inspect(c.within(10*c.ttl), key)
		if err != nil {
			c.fatalf("Inspect of a key whose holder has died: %v", err)
		}
		if len(info.Holders) == 0 {
			break
		}
		if waited := time.Since(start); waited > c.ttl+c.soon() {
			c.errorf("Inspect tells of a holder who has died %v ago, with a TTL of %v", waited, c.ttl)
			return
		}
	}
	c.unlock(c.tryLock(other, key))
}

func listsUnderPrefix(c *check, l inspecting) {
	const sign = "/*?[a]\\%_{x}"
	other := c.open()
	base := c.key()
	prefix := base + sign
	want := []string{prefix, prefix + "1", prefix + "2/x", prefix + "é"}
	leases := make([]*locker.Lease, 0, len(want))
	for _, key := range want {
		leases = append(leases, c.lock(other, key))
	}
	for _, key := range []string{base, base + "/1a2xyz", base + "/*?a" + "\\%_{x}", base + "0", "x" + prefix} {
		leases = append(leases, c.lock(other, key))
	}
	c.unlock(c.lock(other, prefix+"3"))
	c.unlock(c.lock(other, base+"1"))
	c.lists(l, prefix, want)
	c.lists(l, prefix+"2", want[2:3])
	c.lists(l, prefix+"4", nil)

	prefixed := base + "p:"
	under := c.open(locker.Prefix(prefixed)).(inspecting)
	locking := c.open(locker.Prefix(prefixed))
	leases = append(leases, c.lock(locking, "one"), c.lock(locking, "two"), c.lock(other, base+"one"))
	c.lists(under, "", []string{"one", "two"})
	c.lists(under, "t", []string{"two"})
	c.unlockEach(leases...)
	c.lists(l, prefix, nil)
}

// lists checks what is listed under a prefix.
func (c *check) lists(l inspecting, prefix string, want []string) {
	var got []string
	for info, err := range l.List(c.within(10*c.ttl), prefix) {
		if err != nil {
			c.fatalf("List: %v", err)
		}
		if len(info.Holders) == 0 {
			c.errorf("List yields the key %q, which nobody holds", info.Key)
		}
		got = append(got, info.Key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		c.record(1, "List(%q) yields %q; want %q", prefix, strings.Join(got, " "), strings.Join(want, " "))
	}
}

func disturbsNobody(c *check, l inspecting) {
	other := c.open()
	dead, free := c.key(), c.key()
	ctx, cancel := context.WithCancel(c.within(20 * c.ttl))
	start := time.Now()
	c.abandon(dead)
	looking := make(chan struct{})
	defer func() {
		cancel()
		<-looking
	}()
	go func() {
		defer close(looking)
		for ctx.Err() == nil {
			_, _ = l.Inspect(ctx, dead)
			_, _ = l.Inspect(ctx, free)
			l.List(ctx, dead)(func(locker.LockInfo, error) bool { return true })
			l.List(ctx, free)(func(locker.LockInfo, error) bool { return true })
			time.Sleep(c.ttl / 200)
		}
	}()
	w := c.start(c.within(20*c.ttl), other, dead)
	tries := 0
	for !isClosed(w.done) {
		c.unlock(c.tryLock(other, free))
		tries++
		time.Sleep(c.ttl / 100)
	}
	lease, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose holder has died, and which is inspected: %v; want a lease", err)
	}
	c.passed(w, c.ttl, start, "a Lock that waits for a key whose holder has died, and which is inspected")
	c.unlock(lease)
	if tries < 3 {
		c.errorf("only %d attempts at a key that is inspected", tries)
	}
}
