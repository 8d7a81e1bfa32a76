package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

var unlockRules = []rule{
	{
		name: "FreesAtOnce", body: freesAtOnce,
		did:  "One Locker locks a key and unlocks it, and then another does at once; 20 times.",
		text: "When Unlock has returned, an independent Locker can lock the key at once.",
		hint: "Release frees the key if Grant.Owner holds it, and returns when the store has done so: nil then, and " +
			"ErrLost only if that owner did not hold it.",
	},
	{
		name: "AfterContextEnded", body: afterContextEnded,
		did:  "The ctx of Lock, and a context of the lease, are cancelled; then the lease is unlocked.",
		text: "Unlock works when every ctx that had to do with the lease has ended.",
		hint: "Release gets a ctx of its own: use that, and nothing that was made with the ctx of Acquire or Wait.",
	},
	{
		name: "Twice", body: unlockTwice,
		did:  "A lease is unlocked, and again while another lease of the key is held.",
		text: "A second Unlock returns ErrUnlocked and changes nothing, whoever holds the key by then.",
		hint: "locker.New does not ask the backend a second time; so does the first Release go on after it has " +
			"returned, or does TryLock not refuse at all? See exclusion/TryLockHeld.",
	},
	{
		name: "StaleCannotFreeSuccessor", body: staleCannotFreeSuccessor, expires: true,
		did: "A lease ends with its TTL and another Locker gets the key; then the first one unlocks, with " +
			"Harness.Cut also while it does not know that its lease is over.",
		text: "Unlock of a lease that is over does not free the key of the next holder.",
		hint: hintOwner,
	},
	{
		name: "ReportsLoss", body: reportsLoss, expires: true,
		did:  "A lease with NoRenew ends with its TTL, and is unlocked then.",
		text: "Unlock of a lease that was lost returns ErrLost.",
		hint: hintNew,
	},
	{
		name: "NoRenewalAfter", body: noRenewalAfter, expires: true,
		did: "Leases are unlocked at eight moments before and after their first renewal; another Locker takes each " +
			"key with NoRenew, and lets it run out.",
		text: "After Unlock nothing that this lease did or does keeps the key locked.",
		hint: "If the backend renews by itself (a keep-alive, a session), Release ends that before it returns.",
	},
	{
		name: "DuringRenewal", body: duringRenewal,
		did: "Leases are unlocked close to the moment of their first renewal, on 16 goroutines; another Locker looks " +
			"whether the key is free, and stays so.",
		text: "An Unlock that meets a renewal on its way frees the key for good all the same.",
		hint: "Renew changes a record only if it is there and has the owner of the grant, in one atomic step, and " +
			"has ended when it returns: nothing goes on in the background.",
	},
	{
		name: "ArrivesLate", body: arrivesLate, needs: needsCut, expires: true, since: "v0.1.0",
		did: "Leases end while their Unlocks, or renewals, are on their way, each request of which is late by up to " +
			"a fifth of the TTL. Another Locker has waited for the keys.",
		text: "What arrives late of an Unlock or a renewal, as a whole or in part, changes nothing for the next " +
			"holder.",
		hint: hintOwner + " Between two requests the lease may end.",
	},
	{
		name: "StoreAway", body: unlockAway, expires: true, needs: needsCut, since: "v0.1.0",
		did: "Holders are cut off from the store, in each of the four ways of Fault, and unlock. Some stay cut off " +
			"until the lease is over, others for a quarter of the TTL.",
		text: "An Unlock that does not reach the store tries again for as long as the lease is valid. If that is in " +
			"vain, it returns ErrUnavailable, and not nil or ErrLost; the key is free when its TTL has passed.",
		hint: "Release returns nil only when the store has said that the key is free now, and ErrLost only when it " +
			"has said that the owner does not have it; with any other error New calls it again, and it asks the " +
			"store again. locker.Final is for what cannot pass. If locks end with their connection: " +
			"Features{ConnectionBound: \"the reason\"}.",
	},
	{
		name: "RepeatsCleanUp", body: repeatsCleanUp, needs: needsCut, since: "v0.1.0",
		did: "The answers to TryLock and Lock get lost, and for three quarters of a TTL what would release the key " +
			"does not reach the store, either. The TTL of the lock is twelve times that of the harness.",
		text: "What an acquire may have left behind is released when the store can be reached again, and not when " +
			"its TTL has passed.",
		hint: hintOrphan + " Release returns an error for as long as the store has not answered: neither nil nor ErrLost, " +
			"and not locker.Final. A backend that cleans up by itself tries that again, too.",
	},
}

func freesAtOnce(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	for range 20 {
		c.unlock(c.tryLock(a, key))
		lease, err := b.TryLock(c.within(10*c.ttl), key)
		if err != nil {
			c.errorf("TryLock right after Unlock returned: %v", err)
			return
		}
		c.unlock(lease)
	}
}

func afterContextEnded(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	ctx, cancel := context.WithCancel(c.ctx)
	lease, err := a.Lock(ctx, key)
	if err != nil {
		c.fatalf("Lock: %v", err)
	}
	_, stop := lease.Context(ctx)
	defer stop()
	cancel()
	c.settle() // whatever ends with ctx has ended
	c.unlock(lease)
	c.freeWithin(b, key, c.soon(), "after Unlock with a ctx that had ended")
}

func unlockTwice(c *check) {
	key := c.key()
	a, b, other := c.open(), c.open(), c.open()
	lease := c.tryLock(a, key)
	c.unlock(lease)
	if err := lease.Unlock(); !errors.Is(err, locker.ErrUnlocked) {
		c.errorf("second Unlock: %v; want ErrUnlocked", err)
	}
	for _, l := range []locker.Locker{b, a} { // the same Locker too
		next := c.tryLock(l, key)
		if err := lease.Unlock(); !errors.Is(err, locker.ErrUnlocked) {
			c.errorf("second Unlock while somebody else holds the key: %v; want ErrUnlocked", err)
		}
		c.refused(other, next, "after the former holder unlocked a second time")
		c.unlock(next)
	}
}

func staleCannotFreeSuccessor(c *check) {
	key := c.key()
	// The name of the holder plays no part in ownership, however much room it takes beside the owner.
	name := locker.Holder(strings.Repeat("h", locker.MaxHolderLen))
	b, other := c.open(name), c.open()
	stale := c.abandon(key, name)
	next := c.takeOver(b, key) // when the first lease is over
	if err := stale.Unlock(); !errors.Is(err, locker.ErrLost) {
		c.errorf("Unlock of a lease that is over: %v; want ErrLost", err)
	}
	c.refused(other, next, "after a former holder, whose lease was over, unlocked")
	if err := next.Err(); err != nil {
		c.errorf("the next holder's lease ended when the former holder unlocked: %v", err)
	}
	c.unlock(next)

	if !c.has(needsCut, "the same for an Unlock that reaches the store late") {
		return
	}
	// The same with a holder whose own clock still believes in the lease, while the store has given it away: only the
	// store can tell. A holder that cannot reach the store retries until its lease is over, so it heals after that.
	key = c.key()
	cut := c.open(name)
	stale = c.tryLock(cut, key, locker.TTL(c.ttl))
	heal := c.cut(Hang)
	unlocked := make(chan struct{})
	c.do(func() {
		time.Sleep(c.ttl / 10)
		_ = stale.Unlock() // as the store was out of reach
		close(unlocked)
	})
	next = c.takeOver(b, key)
	heal()
	<-unlocked
	time.Sleep(c.ttl / 2) // whatever was on its way has arrived
	c.refused(other, next, "after the Unlock of a former holder reached the store late")
	if err := next.Err(); err != nil {
		c.errorf("the next holder's lease ended when the former holder's Unlock arrived late: %v", err)
	}
	c.unlock(next)
}

func reportsLoss(c *check) {
	lease := c.abandon(c.key())
	c.closedWithin(lease, 2*c.ttl, "although nothing renews the lease")
	err := lease.Unlock()
	if !errors.Is(err, locker.ErrLost) {
		c.errorf("Unlock of a lost lease: %v; want ErrLost", err)
	}
	if errors.Is(err, locker.ErrUnlocked) {
		c.errorf("the error of Unlock of a lost lease is ErrUnlocked as well: %v", err)
	}
}

func noRenewalAfter(c *check) {
	a, b := c.open(), c.open()
	c.all(8, func(i int) {
		key := c.key()
		lease := c.tryLock(a, key)
		time.Sleep(time.Duration(i) * c.ttl / 10) // some before the first renewal, some after it
		c.unlock(lease)
		// If something went on renewing, it would show now, or when the next lease runs out.
		next := c.abandon(key)
		c.closedWithin(next, 2*c.ttl, "although nothing renews the lease")
		c.freeWithin(b, key, c.soon(), "after a lease that nothing renews had run out")
	})
}

func duringRenewal(c *check) {
	a, b := c.open(), c.open()
	var mu sync.Mutex
	var took []time.Duration
	c.all(16, func(int) {
		key := c.key()
		for range 3 {
			lease := c.tryLock(a, key)
			// Renewals are sent at a third of the TTL, or a little before.
			time.Sleep(c.ttl*3/10 + rand.N(c.ttl/20))
			c.unlock(lease)
			unlocked := time.Now()
			// What a renewal has brought back lasts for a TTL.
			c.freeWithin(b, key, c.soon(), "after an Unlock close to a renewal")
			mu.Lock()
			took = append(took, time.Since(unlocked))
			mu.Unlock()
		}
		time.Sleep(c.ttl / 10)
		c.freeWithin(b, key, c.soon(), "a while after an Unlock close to a renewal")
	})
	if len(took) > 0 {
		c.took(median(took), c.ttl/4, "from an Unlock close to a renewal until another Locker had locked and unlocked "+
			"(median of %d)", len(took))
	}
}
