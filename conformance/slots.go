package conformance

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

var slotRules = []rule{
	{
		name: "NeverMore", body: neverMore, mode: locker.Slots(3), since: "v0.1.0",
		did:  "12 goroutines over 3 Lockers lock and unlock one of 3 slots, 12 times each.",
		text: "There are never more holders than slots.",
		hint: hintModes,
	},
	{
		name: "SlotsAreDistinct", body: slotsAreDistinct, mode: locker.Slots(4), since: "v0.1.0",
		did: "Four slots are locked over 2 Lockers; two are unlocked, by those who came second and third, and locked " +
			"again.",
		text: "Lease.Slot is another number for each holder, of 0 to n-1.",
		hint: "Grant.Slot is the smallest number that no living holder has. It is chosen in the step that grants " +
			"the slot.",
	},
	{
		name: "CrashedSlotReturns", body: crashedSlotReturns, mode: locker.Slots(2), since: "v0.1.0", expires: true,
		did:  "Of the holders of two slots, the process of one dies. Another Locker waits for a slot.",
		text: "A slot whose holder has died is free when its TTL has passed, not before, and not much after.",
		hint: hintEachItsOwn + " A count without owners never comes back.",
	},
	{
		name: "CancelledWaitTakesNone", body: cancelledWaitTakesNone, mode: locker.Slots(2), since: "v0.1.0",
		did: "Two slots are held, and a Lock waits whose ctx is cancelled just as one of them is unlocked; nine " +
			"times.",
		text: "A Lock whose ctx ends takes no slot away.",
		hint: hintOrphan,
	},
	{
		name: "InOrder", body: slotsInOrder, mode: locker.Slots(2), since: "v0.1.0", relaxes: unordered,
		did: "Two slots are held. Six wait for one, over 3 Lockers, and a seventh tries. Then the slots are " +
			"unlocked, one after the other.",
		text: "Those who wait for a slot are served in order of arrival, and not overtaken.",
		hint: hintOneLine,
	},
	{
		name: "OneIsExclusive", body: oneIsExclusive, mode: locker.Slots(1), since: "v0.1.0",
		did:  "A key is held without the option, with Slots(1) and with Slots(3), and tried in the other ways.",
		text: "Slots(1) and a lock without the option exclude one another, as does one with another number of slots.",
		hint: hintModes,
	},
	{
		name: "DifferentN", body: differentN, mode: locker.Slots(2), since: "v0.1.0",
		did: "Some ask for one of two slots of a key, and others for one of three.",
		text: "Who asks for one of n slots gets it while there are fewer than n holders, whatever those have asked " +
			"for.",
		hint: "The number is that of the request. It is not kept in the store.",
	},
	{
		name: "TokensPerSlot", body: increasing(locker.Slots(2)), mode: locker.Slots(2), since: "v0.1.0",
		did:  "Two slots of a key are locked and unlocked in turn, over 2 Lockers, between locks without the option.",
		text: "Each grant of a slot has a token greater than those of all grants of the key before.",
		hint: hintToken,
	},
}

func neverMore(c *check) {
	const lockers, goroutines, rounds, n = 3, 4, 12, 3
	key := c.key()
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	var inside census
	c.all(lockers*goroutines, func(i int) {
		for range rounds {
			lease := c.lock(ls[i%lockers], key, locker.Slots(n))
			if all := inside.enter(lease); len(all) > n {
				c.wrongf("%d hold one of %d slots", len(all), n)
			}
			time.Sleep(c.ttl / 1000)
			inside.leave(lease)
			c.unlock(lease)
		}
	})
	if inside.most < 2 {
		c.errorf("of %d goroutines, never two held one of %d slots at the same time", lockers*goroutines, n)
	}
}

func slotsAreDistinct(c *check) {
	const n = 4
	key := c.key()
	ls := []locker.Locker{c.open(), c.open()}
	leases := make([]*locker.Lease, n)
	distinct := func() {
		slots := make([]int, n)
		for i, lease := range leases {
			slots[i] = lease.Slot()
		}
		c.noneIsLost(leases...)
		if sorted := slices.Sorted(slices.Values(slots)); !slices.Equal(sorted, []int{0, 1, 2, 3}) {
			c.wrongf("the holders have the slots %v; want each of 0 to %d once", slots, n-1)
		}
	}
	for i := range leases {
		leases[i] = c.tryLock(ls[i%len(ls)], key, locker.Slots(n))
	}
	distinct()
	c.refused(ls[0], leases[0], "of one of 4 slots, all of which are held", locker.Slots(n))
	c.unlockEach(leases[1], leases[2])
	for i := 1; i <= 2; i++ {
		leases[i] = c.lock(ls[0], key, locker.Slots(n))
	}
	distinct()
	if mode := leases[0].Mode(); mode != locker.ModeSlots {
		c.errorf("the mode of the lease is %d; want %d", mode, locker.ModeSlots)
	}
	c.unlockEach(leases...)
	c.freeWithin(ls[1], key, c.soon(), "after all slots were unlocked")
}

func crashedSlotReturns(c *check) {
	const n = 2
	key := c.key()
	l, other := c.open(), c.open()
	lives := c.lock(l, key, locker.Slots(n))
	for range 2 { // if it comes back once only, it has leaked
		start := time.Now()
		dead := c.abandon(key, locker.Slots(n))
		w := c.start(c.within(10*c.ttl), other, key, locker.Slots(n))
		lease, err := c.result(w)
		if err != nil {
			c.fatalf("Lock of a slot whose holder's process is dead: %v; want a lease", err)
		}
		c.noneIsLost(lives)
		c.passed(w, c.ttl, start, "a Lock that waits for a slot whose holder's process is dead")
		if lease.Slot() != dead.Slot() {
			c.errorf("slot %d was free, and slot %d was granted", dead.Slot(), lease.Slot())
		}
		c.unlock(lease)
	}
	c.unlock(lives)
}

func cancelledWaitTakesNone(c *check) {
	const n = 2
	key := c.key()
	l, other := c.open(), c.open()
	for i := range 9 {
		start := time.Now()
		leases := []*locker.Lease{c.lock(l, key, locker.Slots(n)), c.lock(l, key, locker.Slots(n))}
		c.took(time.Since(start), c.soon(),
			"to get both slots, after those who had them have unlocked, or have given up")
		ctx, cancel := context.WithCancel(c.within(10 * c.ttl))
		w := c.waits(ctx, other, key, locker.Slots(n))
		switch i % 3 {
		case 0:
			cancel()
			c.unlock(leases[0])
		case 1:
			c.unlock(leases[0])
			cancel()
		default:
			c.do(cancel)
			c.unlock(leases[0])
		}
		if lease, err := c.result(w); err == nil {
			c.unlock(lease)
		}
		c.unlock(leases[1])
	}
	leases := []*locker.Lease{c.lock(l, key, locker.Slots(n)), c.lock(other, key, locker.Slots(n))}
	c.unlockEach(leases...)
	c.freeWithin(l, key, c.soon(), "after all slots were unlocked")
}

func slotsInOrder(c *check) {
	const n, waiters, lockers = 2, 6, 3
	key := c.key()
	first := c.open()
	held := []*locker.Lease{c.lock(first, key, locker.Slots(n)), c.lock(first, key, locker.Slots(n))}
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = c.open()
	}
	each := waiters
	if c.h.Features.OrderedPerLocker != "" {
		each = lockers // a Locker has one place in line
	}
	waits := make([]*wait, each)
	for i := range waits {
		waits[i] = c.waits(c.within(20*c.ttl), ls[i%lockers], key, locker.Slots(n))
	}
	for i, w := range waits {
		next := held[0]
		held = held[1:]
		start := time.Now()
		c.unlock(next)
		lease := c.granted(w, start, fmt.Sprintf("number %d in line for a slot, after one was unlocked", i+1))
		held = append(held, lease)
		if i == 0 {
			c.refused(first, lease, "of a slot for which others wait", locker.Slots(n))
		}
		for j, later := range waits[i+1:] {
			c.stillWaits(later, fmt.Sprintf("for number %d in line, when number %d has its slot", i+j+2, i+1))
		}
	}
	c.unlockEach(held...)
	c.freeWithin(first, key, c.soon(), "after all slots were unlocked")
}

func oneIsExclusive(c *check) {
	key := c.key()
	l, other := c.open(), c.open()
	modes := map[string][]locker.CallOption{
		"without the option": nil, "with Slots(1)": {locker.Slots(1)}, "with Slots(3)": {locker.Slots(3)},
	}
	for held, has := range modes {
		lease := c.lock(l, key, has...)
		for tried, wants := range modes {
			if held == "with Slots(3)" && tried == held || held == "with Slots(1)" && tried == "with Slots(3)" {
				continue // see DifferentN
			}
			c.refused(other, lease, fmt.Sprintf("%s, of a key that is held %s", tried, held), wants...)
		}
		c.unlock(lease)
	}
	c.freeWithin(other, key, c.soon(), "after Unlock")
}

func differentN(c *check) {
	key := c.key()
	l, other := c.open(), c.open()
	leases := []*locker.Lease{
		c.tryLock(l, key, locker.Slots(2)), c.tryLock(other, key, locker.Slots(2)), c.tryLock(l, key, locker.Slots(3)),
	}
	c.refused(other, leases[0], "of one of 3 slots, with 3 holders", locker.Slots(3))
	c.refused(l, leases[0], "of one of 2 slots, with 3 holders", locker.Slots(2))
	c.unlock(leases[2]) // not one of the first two: a store may give their numbers to whoever asks for two
	c.refused(l, leases[1], "of one of 2 slots, with 2 holders", locker.Slots(2))
	again := c.lock(l, key, locker.Slots(3))
	c.noneIsLost(leases[:2]...)
	for _, lease := range leases[:2] {
		if lease.Slot() == again.Slot() {
			c.wrongf("two holders have slot %d", again.Slot())
		}
	}
	c.unlockEach(again, leases[0], leases[1])
	c.freeWithin(other, key, c.soon(), "after all slots were unlocked")
}
