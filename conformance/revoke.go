package conformance

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

const (
	hintRevoke = "Revoke marks the holder in the store: its renewals fail with ErrLost around the Revocation, and " +
		"Release works as before. The key stays taken until then, or until its lease, as it was last renewed, has " +
		"ended."
	hintTell = "The backend of the holder learns of it by a message, or when it renews, and calls Request.ReportLost."
	hintMark = "The mark is on the record of this holder, and goes with it: the next one has a record of its own."
)

var revokeRules = []rule{
	{
		name: "TellsTheHolder", body: byRevoking(tellsTheHolder), since: "v0.1.0",
		did: "A key is held, in each mode that the backend offers by two, and another Locker waits. A third one " +
			"revokes it. The holders unlock an eighth of a TTL after they are told, one after the other.",
		text: "Who is revoked is told, with the reason and who did it, within a TTL. Nobody else gets the key " +
			"before all of the holders have unlocked, and then the next in line does at once.",
		hint: hintRevoke + " " + hintTell,
	},
	{
		name: "StubbornHolderEndsByTTL", body: byRevoking(stubbornHolderEnds), since: "v0.1.0", expires: true,
		did: "A key is held, and another Locker waits. It is revoked when its lease has just been renewed. The " +
			"holder does not unlock.",
		text: "The key of a holder who was revoked, and does not unlock, is free when his lease has ended as it " +
			"was last renewed, and not before.",
		hint: hintRevoke,
	},
	{
		name: "FrozenHolderEndsByTTL", body: byRevoking(frozenHolderEnds), since: "v0.1.0", expires: true,
		needs: needsCut,
		did: "A key is held by a Locker that is cut off from the store, and another one waits. It is revoked by a " +
			"third.",
		text: "The key of a holder who cannot be told is free when his lease has ended, and not before.",
		hint: hintRevoke,
	},
	{
		name: "OnlyTheHolder", body: byRevoking(revokesOnlyTheHolder), since: "v0.1.0",
		did: "Two keys are held by one Locker, and others wait for one of them, which is revoked and unlocked, twice.",
		text: "A revocation is about who holds the key at that moment: not about who gets it next, and not about " +
			"other keys.",
		hint: hintMark,
	},
	{
		name: "LeadStepsDown", body: byRevoking(leadStepsDown), since: "v0.1.0",
		did:  "Two Lockers lead. The one whose turn it is is revoked.",
		text: "Lead ends the work of a leader who is revoked, and campaigns again behind those who wait.",
		hint: hintRevoke + " " + hintTell,
	},
	{
		name: "NotHeld", body: byRevoking(revokeNotHeld), since: "v0.1.0",
		did:  "A key is revoked and broken that is free, and one that is revoked already is revoked again.",
		text: "To take away what nobody holds is ErrNotHeld, and changes nothing.",
		hint: hintRevoke,
	},
}

var breakRules = []rule{
	{
		name: "FreesNow", body: byRevoking(breakFreesNow), since: "v0.1.0",
		did: "A key is held for ten TTLs, in each mode that the backend offers by two, and another Locker waits. " +
			"A third one breaks it.",
		text: "Break frees the key at once for the next in line, whose token is greater.",
		hint: "Break deletes the record of all holders, and has the next in line served.",
	},
	{
		name: "OldHolderIsTold", body: byRevoking(breakTells), since: "v0.1.0",
		did:  "A key is held whose lease is renewed. It is broken.",
		text: "The old holder is told, with the reason if it is told otherwise than by a renewal, within a TTL.",
		hint: hintTell,
	},
	{
		name: "OldHolderHarmsNobody", body: byRevoking(brokenHarmsNobody), since: "v0.1.0",
		did:  "A key is held by two in turn, the first of whom was broken and unlocks then.",
		text: "The next holder keeps the key, whatever the one before does who was broken.",
		hint: hintOwner,
	},
}

// revoking is what a Client can do beyond a Locker.
type revoking interface {
	Revoke(ctx context.Context, key, reason string) error
	Break(ctx context.Context, key string, opts ...locker.BreakOption) error
}

const (
	revoker = "an operator"
	why     = "to see what it does"
)

// byRevoking returns a rule's body: f, with another Locker that can revoke, unless the backend does not offer that.
func byRevoking(f func(*check, revoking)) func(*check) {
	return func(c *check) {
		l, ok := c.open(locker.Holder(revoker)).(revoking)
		if !ok {
			c.leaves(notOffered, "the Locker has no methods Revoke and Break")
			return
		}
		if err := l.Revoke(c.within(10*c.ttl), c.key(), why); errors.Is(err, errors.ErrUnsupported) {
			c.leaves(notOffered, "the backend does not state that it can revoke (locker.Features)")
			return
		}
		f(c, l)
	}
}

func (c *check) revoke(l revoking, key string) {
	if err := l.Revoke(c.within(10*c.ttl), key, why); err != nil {
		c.fatalf("Revoke of a key that is held: %v", err)
	}
}

// wasTold checks that a lease ends soon, as one that was revoked.
func (c *check) wasTold(lease *locker.Lease) {
	start := time.Now()
	select {
	case <-lease.Done():
	case <-time.After(10 * c.ttl):
		c.fatalf("a holder who was revoked is not told within ten TTLs")
	}
	c.took(time.Since(start), c.ttl, "a holder who was revoked to be told")
	err := lease.Err()
	if !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrRevoked) {
		c.fatalf("Err of a lease that was revoked: %v; want ErrLost with ErrRevoked", err)
	}
	if text := err.Error(); !strings.Contains(text, why) || !strings.Contains(text, revoker) {
		c.errorf("Err of a lease that was revoked does not say by whom (%s) and why (%s): %v", revoker, why, err)
	}
}

// unlockRevoked unlocks leases that were revoked.
func (c *check) unlockRevoked(leases ...*locker.Lease) {
	for _, lease := range leases {
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrRevoked) {
			c.record(1, "Unlock of a lease that was revoked: %v; want ErrLost with ErrRevoked", err)
		}
	}
}

// inEachMode calls f with a key and those who hold it: one, and, in each mode that the backend offers, two.
func (c *check) inEachMode(f func(key string, holders []*locker.Lease), opts ...locker.CallOption) {
	l, other := c.open(), c.open()
	for _, mode := range []locker.CallOption{nil, locker.Shared(), locker.Slots(2)} {
		with := opts
		if mode != nil {
			with = append(with[:len(with):len(with)], mode)
		}
		key := c.key()
		lease, err := l.TryLock(c.within(10*c.ttl), key, with...)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err != nil {
			c.fatalf("TryLock of a key that is free: %v; want a lease", err)
		}
		holders := []*locker.Lease{lease}
		if mode != nil {
			holders = append(holders, c.tryLock(other, key, with...))
		}
		f(key, holders)
	}
}

func tellsTheHolder(c *check, by revoking) {
	waiting := c.open()
	c.inEachMode(func(key string, holders []*locker.Lease) {
		w := c.waits(c.within(20*c.ttl), waiting, key)
		c.revoke(by, key)
		for _, lease := range holders {
			c.wasTold(lease)
		}
		for i, lease := range holders {
			time.Sleep(c.ttl / 8)
			if isClosed(w.done) && time.Now().Before(lease.Deadline()) {
				c.wrongf("a Lock has returned (%v) while %d of %d holders who were revoked have yet to unlock",
					w.err, len(holders)-i, len(holders))
			}
			c.unlockRevoked(lease)
		}
		start := time.Now()
		next, err := c.result(w)
		if err != nil {
			c.fatalf("Lock of a key whose holders were revoked and have unlocked: %v; want a lease", err)
		}
		// Their leases would have lasted for longer.
		c.took(w.at.Sub(start), c.ttl/4, "the next in line to get the key, after those who were revoked have unlocked")
		c.unlock(next)
	})
}

func stubbornHolderEnds(c *check, by revoking) {
	key := c.key()
	lease := c.lock(c.open(), key)
	w := c.waits(c.within(20*c.ttl), c.open(), key)
	c.awaitRenewal(lease, "a lease was lost before it was revoked")
	c.revoke(by, key)
	c.wasTold(lease)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose holder was revoked and does not unlock: %v; want a lease", err)
	}
	c.afterDeadline(w, lease, "of a holder who was revoked and does not unlock")
	c.unlockRevoked(lease) // now, when it is somebody else's
	if err := next.Err(); err != nil {
		c.errorf("the next holder's lease has ended when the one before, who was revoked, unlocked late: %v", err)
	}
	c.unlock(next)
}

// afterDeadline checks that a Lock got a key when the lease before it had ended, and not much later.
func (c *check) afterDeadline(w *wait, before *locker.Lease, what string) {
	late := w.at.Sub(before.Deadline())
	if late < 0 {
		c.wrongf("a Lock got the key %v before the end of the lease %s", -late, what)
	}
	c.took(late, c.soon(), "a Lock to get the key, from the end of the lease %s", what)
}

func frozenHolderEnds(c *check, by revoking) {
	waiting := c.open()
	key := c.key()
	c.opening.take()
	holding := c.openLocked()
	lease := c.lock(holding, key)
	heal := c.cut(BlackHole)
	c.opening.pass()
	defer heal()
	w := c.waits(c.within(20*c.ttl), waiting, key)
	err := by.Revoke(c.within(10*c.ttl), key, why)
	if err != nil && lease.Err() == nil {
		c.fatalf("Revoke of a key whose holder is cut off: %v", err)
	}
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock of a key whose holder was revoked and is cut off: %v; want a lease", err)
	}
	c.afterDeadline(w, lease, "of a holder who was revoked and is cut off")
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		c.errorf("Err of a lease that has ended: %v; want ErrLost", err)
	}
	c.unlock(next)
}

func revokesOnlyTheHolder(c *check, by revoking) {
	key, other := c.key(), c.key()
	l := c.open()
	lease, spared := c.lock(l, key), c.lock(l, other)
	for range 2 {
		w := c.waits(c.within(20*c.ttl), c.open(), key)
		c.revoke(by, key)
		c.wasTold(lease)
		c.unlockRevoked(lease)
		lease = c.granted(w, time.Now(), "the next in line, after the one who was revoked has unlocked")
	}
	c.awaitRenewal(lease, "the lease of who came after the one who was revoked is lost")
	if err := spared.Err(); err != nil {
		c.errorf("the lease of another key of a holder who was revoked is lost: %v", err)
	}
	c.unlockEach(lease, spared)
	again := c.lock(l, key)
	c.unlock(again)
}

func leadStepsDown(c *check, by revoking) {
	key := c.key()
	ctx, stop := context.WithCancel(c.within(20 * c.ttl))
	defer stop()
	leads := make(chan int, 16)
	ended := make(chan error, 2)
	for i := range 2 {
		l := c.open()
		c.do(func() {
			ended <- locker.Lead(ctx, l, key, func(ctx context.Context, _ *locker.Lease) error {
				leads <- i
				<-ctx.Done()
				return nil
			})
		})
	}
	next := func(when string) int {
		select {
		case i := <-leads:
			return i
		case <-ctx.Done():
			c.fatalf("nobody leads %s", when)
			return 0
		}
	}
	first := next("at the beginning")
	for range 2 {
		c.settle()
		c.revoke(by, key)
		if second := next("after the leader was revoked"); second == first {
			c.errorf("after the leader was revoked it leads again, before the one who has waited")
		} else {
			first = second
		}
	}
	stop()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			c.errorf("Lead: %v; want context.Canceled", err)
		}
	}
}

func revokeNotHeld(c *check, by revoking) {
	key := c.key()
	notHeld := func(what string, err error) {
		if !errors.Is(err, locker.ErrNotHeld) {
			c.errorf("%s: %v; want ErrNotHeld", what, err)
		}
	}
	notHeld("Revoke of a key that is free", by.Revoke(c.within(10*c.ttl), key, why))
	notHeld("Break of a key that is free", by.Break(c.within(10*c.ttl), key))
	lease := c.lock(c.open(), key)
	c.revoke(by, key)
	notHeld("Revoke of a key whose holder is revoked already", by.Revoke(c.within(10*c.ttl), key, "again"))
	c.wasTold(lease)
	c.unlockRevoked(lease)
	c.unlock(c.tryLock(c.open(), key))
	notHeld("Revoke of a key that was unlocked", by.Revoke(c.within(10*c.ttl), key, why))
}

func breakFreesNow(c *check, by revoking) {
	waiting := c.open()
	c.inEachMode(func(key string, holders []*locker.Lease) {
		w := c.waits(c.within(20*c.ttl), waiting, key)
		start := time.Now()
		c.breaks(by, key)
		next := c.granted(w, start, "the next in line, after the key was broken")
		for _, lease := range holders {
			if next.Token() <= lease.Token() {
				c.errorf("the token after Break is %d; want more than the %d of a holder before", next.Token(),
					lease.Token())
			}
		}
		c.unlock(next)
	}, locker.TTL(10*c.ttl))
}

func (c *check) breaks(l revoking, key string) {
	if err := l.Break(c.within(10*c.ttl), key, locker.Reason(why), locker.AlsoOthers()); err != nil {
		c.fatalf("Break of a key that is held: %v", err)
	}
}

func breakTells(c *check, by revoking) {
	key := c.key()
	lease := c.lock(c.open(), key)
	c.breaks(by, key)
	c.closedWithin(lease, c.ttl, "when it was broken")
	err := lease.Err()
	if !errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrRevoked) {
		c.errorf("Err of a lease that was broken: %v; want ErrLost, and not ErrRevoked", err)
	}
	if errors.Is(err, locker.ErrBroken) && !strings.Contains(err.Error(), why) {
		c.errorf("Err of a lease that was broken does not say why (%s): %v", why, err)
	}
}

func brokenHarmsNobody(c *check, by revoking) {
	key := c.key()
	old := c.lock(c.open(), key)
	other := c.open()
	c.breaks(by, key)
	next := c.lock(other, key)
	if err := old.Unlock(); err != nil && !errors.Is(err, locker.ErrLost) {
		c.errorf("Unlock of a lease that was broken: %v; want ErrLost", err)
	}
	third := c.open()
	c.refused(third, next, "of a key whose holder before was broken, and has unlocked since")
	c.awaitRenewal(next, "the lease of who came after the one who was broken is lost")
	c.unlock(next)
	c.freeWithin(third, key, c.soon(), "after the next holder has unlocked")
}
