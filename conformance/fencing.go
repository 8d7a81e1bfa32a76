package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

var fencingRules = []rule{
	{
		name: "StrictlyIncreasing", body: strictlyIncreasing, expires: true,
		did: "Three Lockers lock one key after Unlock, expiry, a handoff, a cancelled wait and Close, and then " +
			"compete for it.",
		text: "The token of each holder of a key is greater than that of every earlier one, whoever they were and " +
			"however they ended.",
		hint: hintToken,
	},
	{
		name: "StableDuringHold", body: stableDuringHold,
		did:  "A lease is held while it is renewed several times, and unlocked; then another Locker locks the key.",
		text: "The token of a lease never changes, and renewals use up none that a later holder would repeat.",
		hint: hintToken,
	},
	{
		name: "SurvivesRestart", body: survivesRestart, expires: true, serial: true, relaxes: forgetsTokens, needs: needsRestart,
		did:  "Harness.Restart restarts the store while a lease is held; then a new Locker locks the key; three times.",
		text: "Tokens go on increasing when the store restarts.",
		hint: "Keep the last token where it survives, or mint max(last + 1, the clock in µs). If the store forgets " +
			"and has no clock: Features{ForgetsTokens: \"the reason\"}.",
	},
	{
		name: "StaleWriterIsRefused", body: staleWriterIsRefused, expires: true,
		did: "A lease ends with its TTL and another Locker gets the key; both write to a resource that refuses " +
			"tokens smaller than the greatest it has seen, the first holder last.",
		text: "A resource that refuses tokens smaller than the greatest it has seen is safe from a holder that has " +
			"lost the lock.",
		hint: hintToken,
	},
	{
		name: "Remembered", body: remembered, expires: true, since: "v0.1.0",
		did: "Keys are locked three times, and then unlocked, lost or closed; up to 2,500 other keys are locked; " +
			"nobody locks the former for some seconds. Then another Locker locks them.",
		text: "Tokens go on increasing however long a key has been free, whatever was locked meanwhile, and when the " +
			"Locker that had it last has been closed.",
		hint: hintToken + " What is kept for each key must not be evicted, nor end with a TTL, as long as the key can " +
			"come back; unless the clock of the store is part of the token.",
	},
	{
		name: "NeverWraps", body: neverWraps, since: "v0.1.0",
		did: "Keys are locked and unlocked again and again: one of them 65,836 times in fake time, and several as " +
			"often as they can be in a TTL otherwise.",
		text: "Tokens have 64 bits, and increase for as long as anybody locks.",
		hint: "Keep the counter in 64 bits, and let it increase only.",
	},
	{
		name: "FollowsName", body: followsName, since: "v0.1.0",
		did: "Lockers of different prefixes lock keys that are the same lock: prefix a with key bc is prefix ab " +
			"with key c.",
		text: "The token of a lock is greater than all before it of the same Request.Name(), under whatever prefix.",
		hint: hintToken + " If it counts for each lock: by Request.Name(), and not by the prefix and the key.",
	},
	{
		name: "WrongClock", body: tokensOfWrongClocks, needs: needsSkew, since: "v0.1.0",
		did: "Two clients lock a key by turns. The wall clock of one of them is wrong, by two TTLs or a day, to " +
			"either side.",
		text: "Tokens increase whatever the wall clocks of the clients say.",
		hint: "Mint tokens from a counter or the clock of the store, not from time.Now() of the client.",
	},
}

// clockRules are those about leases that have to do with wall clocks.
var clockRules = []rule{
	{
		name: "WrongClock", body: leasesOfWrongClocks, needs: needsSkew, expires: true, since: "v0.1.0",
		did: "Clients whose wall clocks are wrong, by two TTLs or a day, to either side, hold leases, and try keys " +
			"that others hold.",
		text: "A lease lasts for its TTL whatever the wall clocks of the clients say, of its holder and of others.",
		hint: "The store decides when a lease has expired, by one clock that is its own: neither the moment of " +
			"expiry nor what it is compared with comes from time.Now() of a client.",
	},
}

// tokens checks that tokens increase.
type tokens struct {
	c    *check
	last uint64
}

func (ts *tokens) next(lease *locker.Lease, after string) {
	token := lease.Token()
	if token <= ts.last {
		ts.c.add(problem{
			saw: fmt.Sprintf("after %s the token was %d; the holder before had %d", after, token, ts.last), at: caller(1),
			wrong: true,
		})
	}
	ts.last = max(ts.last, token)
}

func strictlyIncreasing(c *check) {
	key := c.key()
	ls := []locker.Locker{c.open(), c.open(), c.open()}
	seen := &tokens{c: c}
	lease := c.tryLock(ls[0], key)
	seen.next(lease, "nothing")
	c.unlock(lease)
	for i := range 30 {
		lease := c.tryLock(ls[i%len(ls)], key)
		seen.next(lease, "Unlock")
		c.unlock(lease)
	}
	seen.next(c.abandon(key), "Unlock")
	lease = c.takeOver(ls[1], key)
	seen.next(lease, "expiry")
	w := c.start(c.within(10*c.ttl), ls[2], key)
	c.settle()
	c.unlock(lease)
	lease, err := c.result(w)
	if err != nil {
		c.fatalf("Lock: %v", err)
	}
	seen.next(lease, "a handoff")
	ctx, cancel := context.WithCancel(c.ctx)
	w = c.start(ctx, ls[0], key)
	c.settle()
	cancel()
	_, _ = c.result(w)
	c.unlock(lease)
	lease = c.lock(ls[1], key)
	seen.next(lease, "a cancelled wait")
	if c.has(needsBreak, "the same after a lock was taken away in the store") {
		c.h.Break(c.t, key)
		next := c.lock(ls[2], key)
		seen.next(next, "the lock was taken away in the store")
		c.unlock(next)
	} else {
		c.unlock(lease)
	}
	if err := ls[0].Close(); err != nil {
		c.errorf("Close: %v", err)
	}
	lease = c.lock(c.open(), key)
	seen.next(lease, "Close, in a new Locker")
	c.unlock(lease)

	// And with goroutines that compete: the order of the critical sections is that of the tokens.
	var mu sync.Mutex
	c.all(8, func(i int) {
		for range 5 {
			lease := c.lock(ls[1+i%2], key)
			mu.Lock()
			seen.next(lease, "competing Locks")
			mu.Unlock()
			c.unlock(lease)
		}
	})
}

func stableDuringHold(c *check) {
	key := c.key()
	a, b := c.open(), c.open()
	lease := c.tryLock(a, key)
	token := lease.Token()
	if token == 0 {
		c.wrongf("the token is 0")
	}
	for range 8 {
		time.Sleep(c.ttl / 5)
		if got := lease.Token(); got != token {
			c.wrongf("the token of a lease changed from %d to %d", token, got)
		}
	}
	c.unlock(lease)
	if got := lease.Token(); got != token {
		c.wrongf("the token of a lease changed from %d to %d with Unlock", token, got)
	}
	next := c.tryLock(b, key)
	if next.Token() <= token {
		c.wrongf("after a lease that was renewed, with token %d, the next holder has token %d", token, next.Token())
	}
	c.unlock(next)
}

func survivesRestart(c *check) {
	key := c.key()
	seen := &tokens{c: c}
	before := c.open()
	for range 3 {
		lease := c.tryLock(before, key)
		seen.next(lease, "Unlock")
		c.unlock(lease)
	}
	for range 3 {
		lease := c.lock(before, key, c.notRenewed()...)
		seen.next(lease, "Unlock")
		if c.h.Features.RenewsItself != "" { // a store that forgets nothing would let it live on
			c.unlock(lease)
		}
		c.h.Restart(c.t)
		fresh := c.open()
		next := c.lock(fresh, key) // at once, or when the lease of before has run out
		seen.next(next, "a restart of the store")
		c.unlock(next)
		_ = lease.Unlock() // lost, or not, as the store forgets or remembers
	}
	// A Locker from before the restart works on, though it may have to find out that its connections broke.
	for attempt := range 10 {
		lease, err := before.Lock(c.within(10*c.ttl), key)
		if err == nil {
			seen.next(lease, "a restart of the store, in a Locker from before it")
			c.unlock(lease)
			return
		}
		if attempt == 9 {
			c.errorf("a Locker from before the restart does not work any more: %v", err)
		}
		time.Sleep(c.ttl / 10)
	}
}

// errStale is what a guard says to a holder that was deposed.
var errStale = errors.New("stale fencing token")

// guard is a resource that protects itself, as in the documentation.
type guard struct {
	mu      sync.Mutex
	highest uint64
	written []uint64
}

func (g *guard) write(token uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if token < g.highest {
		return errStale
	}
	g.highest = token
	g.written = append(g.written, token)
	return nil
}

func staleWriterIsRefused(c *check) {
	key := c.key()
	b := c.open()
	var g guard
	stale := c.abandon(key)
	if err := g.write(stale.Token()); err != nil {
		c.errorf("the first holder's write: %v", err)
	}
	// The first holder is paused here for longer than its TTL.
	next := c.takeOver(b, key)
	if err := g.write(next.Token()); err != nil {
		c.errorf("the second holder's write: %v", err)
	}
	if err := g.write(stale.Token()); !errors.Is(err, errStale) {
		c.wrongf("a write with token %d was accepted after one with token %d", stale.Token(), next.Token())
	}
	if err := g.write(next.Token()); err != nil {
		c.errorf("the second write of the same holder: %v", err)
	}
	c.unlock(next)
}
