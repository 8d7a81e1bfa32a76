package conformance

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

var fencingRules = []rule{
	{
		name: "StrictlyIncreasing", body: strictlyIncreasing,
		did:  "Three Lockers lock one key after Unlock, expiry, a handoff, a cancelled wait and Close, and then compete for it.",
		text: "The token of each holder of a key is greater than that of every earlier one, whoever they were and however they ended.",
		hint: hintToken,
	},
	{
		name: "StableDuringHold", body: stableDuringHold,
		did:  "A lease is held while it is renewed several times, and unlocked; then another Locker locks the key.",
		text: "The token of a lease never changes, and renewals use up none that a later holder would repeat.",
		hint: hintToken,
	},
	{
		name: "SurvivesRestart", body: survivesRestart, serial: true, relaxes: forgetsTokens, needs: needsRestart,
		did:  "Harness.Restart restarts the store while a lease is held; then a new Locker locks the key; three times.",
		text: "Tokens go on increasing when the store restarts.",
		hint: "Keep the last token where it survives, or mint max(last + 1, the clock in µs). If the store forgets and has no clock: Features{ForgetsTokens: \"the reason\"}.",
	},
	{
		name: "StaleWriterIsRefused", body: staleWriterIsRefused,
		did:  "A lease ends with its TTL and another Locker gets the key; both write to a resource that refuses tokens smaller than the greatest it has seen, the first holder last.",
		text: "A resource that refuses tokens smaller than the greatest it has seen is safe from a holder that has lost the lock.",
		hint: hintToken,
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
		ts.c.record(1, "after %s the token was %d; the holder before had %d", after, token, ts.last)
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
	_ = c.tryLock(ls[0], key, locker.NoRenew())
	seen.last++ // at least
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
		c.errorf("the token is 0")
	}
	for range 8 {
		time.Sleep(c.ttl / 5)
		if got := lease.Token(); got != token {
			c.errorf("the token of a lease changed from %d to %d", token, got)
		}
	}
	c.unlock(lease)
	if got := lease.Token(); got != token {
		c.errorf("the token of a lease changed from %d to %d with Unlock", token, got)
	}
	next := c.tryLock(b, key)
	if next.Token() <= token {
		c.errorf("after a lease that was renewed, with token %d, the next holder has token %d", token, next.Token())
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
		lease := c.lock(before, key, locker.NoRenew()) // or a store that forgets nothing would let it live on
		seen.next(lease, "Unlock")
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
	a, b := c.open(), c.open()
	var g guard
	stale := c.tryLock(a, key, locker.NoRenew())
	if err := g.write(stale.Token()); err != nil {
		c.errorf("the first holder's write: %v", err)
	}
	// The first holder is paused here for longer than its TTL.
	next := c.takeOver(b, key)
	if err := g.write(next.Token()); err != nil {
		c.errorf("the second holder's write: %v", err)
	}
	if err := g.write(stale.Token()); !errors.Is(err, errStale) {
		c.errorf("a write with token %d was accepted after one with token %d", stale.Token(), next.Token())
	}
	if err := g.write(next.Token()); err != nil {
		c.errorf("the second write of the same holder: %v", err)
	}
	c.unlock(next)
}
