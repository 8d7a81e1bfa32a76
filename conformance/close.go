package conformance

import (
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

var closeRules = []rule{
	{
		name: "UnlocksHeld", body: closeUnlocksHeld,
		did:  "A Locker that holds 50 keys is closed; another locks them.",
		text: "Close unlocks what is held: the leases are done with ErrUnlocked, and the keys free at once.",
		hint: "locker.New calls Release for each of them, and then Backend.Close: Release has to free the key, and Close nothing that Release needs.",
	},
	{
		name: "FailsWaiters", body: closeFailsWaiters,
		did:  "A Locker is closed while three of its Locks wait; then the holder of their key unlocks.",
		text: "Close ends waits with ErrClosed, and leaves nothing of them in line.",
		hint: hintOrphan,
	},
	{
		name: "Idempotent", body: closeIdempotent,
		did:  "A Locker is closed three times, and another by four goroutines at once.",
		text: "A second Close returns nil.",
		hint: "locker.New calls Backend.Close once. If Harness.Open returns something around its Locker, that has to bear a second Close: sync.Once.",
	},
	{
		name: "UseAfterClose", body: useAfterClose,
		did:  "A Locker is closed, and Lock, TryLock and the Unlock of a lease are called.",
		text: "After Close, Lock and TryLock return ErrClosed, and Unlock of a lease ErrUnlocked.",
		hint: hintNew,
	},
	{
		name: "LeaksNothing", body: leaksNothing, serial: true,
		did:  "Two Lockers are opened, used and closed, twice; the goroutines of the process are counted.",
		text: "Close leaves no goroutine behind.",
		hint: "Backend.Close ends what the backend has started. The Close of what Harness.Open returns also ends what Open itself has made, such as a client.",
	},
}

func closeUnlocksHeld(c *check) {
	a, b := c.open(), c.open()
	const n = 50
	keys := make([]string, n)
	leases := make([]*locker.Lease, n)
	for i := range keys {
		keys[i] = c.key()
	}
	c.all(n, func(i int) { leases[i] = c.tryLock(a, keys[i]) })
	if err := a.Close(); err != nil {
		c.errorf("Close: %v", err)
	}
	for i, lease := range leases {
		if lease == nil {
			continue
		}
		if !isClosed(lease.Done()) || !errors.Is(lease.Err(), locker.ErrUnlocked) {
			c.errorf("after Close, Err of a lease: %v; want ErrUnlocked", lease.Err())
		}
		next, err := b.TryLock(c.within(10*c.ttl), keys[i])
		if err != nil {
			c.errorf("TryLock of a key that Close has unlocked: %v", err)
			continue
		}
		c.unlock(next)
	}
}

func closeFailsWaiters(c *check) {
	a, b, other := c.open(), c.open(), c.open()
	key, own := c.key(), c.key()
	lease := c.tryLock(a, key)
	_ = c.tryLock(b, own)
	waits := []*wait{
		c.start(c.within(10*c.ttl), b, key), c.start(c.within(10*c.ttl), b, key),
		c.start(c.within(10*c.ttl), b, own), // for a key that the same Close unlocks
	}
	c.settle()
	start := time.Now()
	if err := b.Close(); err != nil {
		c.errorf("Close: %v", err)
	}
	for _, w := range waits {
		if _, err := c.result(w); !errors.Is(err, locker.ErrClosed) {
			c.errorf("Lock while its Locker was closed: %v; want ErrClosed", err)
		}
	}
	if took := time.Since(start); took > c.soon() {
		c.errorf("it took %v to close a Locker with waiters", took)
	}
	c.freeWithin(other, own, c.soon(), "after the Locker was closed that held it and waited for it")
	w := c.start(c.within(10*c.ttl), other, key)
	c.settle()
	released := time.Now()
	c.unlock(lease)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock behind waiters whose Locker was closed: %v", err)
	}
	if took := w.at.Sub(released); took > c.soon() {
		c.errorf("behind waiters whose Locker was closed, it took %v to get the lock", took)
	}
	c.unlock(next)
}

func closeIdempotent(c *check) {
	l := c.open()
	c.tryLock(l, c.key())
	for i := range 3 {
		if err := l.Close(); err != nil {
			c.errorf("Close, call %d: %v", i+1, err)
		}
	}
	l = c.open()
	c.tryLock(l, c.key())
	c.all(4, func(int) {
		if err := l.Close(); err != nil {
			c.errorf("Close from several goroutines: %v", err)
		}
	})
}

func useAfterClose(c *check) {
	l := c.open()
	key := c.key()
	lease := c.tryLock(l, key)
	if err := l.Close(); err != nil {
		c.errorf("Close: %v", err)
	}
	if _, err := l.Lock(c.within(c.ttl), key); !errors.Is(err, locker.ErrClosed) {
		c.errorf("Lock after Close: %v; want ErrClosed", err)
	}
	if _, err := l.TryLock(c.within(c.ttl), key); !errors.Is(err, locker.ErrClosed) {
		c.errorf("TryLock after Close: %v; want ErrClosed", err)
	}
	if err := lease.Unlock(); !errors.Is(err, locker.ErrUnlocked) {
		c.errorf("Unlock after Close: %v; want ErrUnlocked", err)
	}
	if lease.Key() != key || lease.Token() == 0 {
		c.errorf("after Close a lease does not know its key or token any more")
	}
}

func leaksNothing(c *check) {
	use := func() {
		a, b := c.open(), c.open()
		key := c.key()
		lease := c.tryLock(a, key)
		w := c.start(c.within(10*c.ttl), b, key) // so that whatever a wait needs is there
		c.settle()
		waits := c.start(c.within(c.ttl/10), b, key)
		time.Sleep(c.ttl / 2) // and a renewal
		c.unlock(lease)
		next, err := c.result(w)
		if err != nil {
			c.fatalf("Lock: %v", err)
		}
		_, _ = c.result(waits)
		_, _ = a.TryLock(c.within(10*c.ttl), key)
		ctx, cancel := next.Context(c.ctx)
		defer cancel()
		for _, l := range []locker.Locker{a, b} {
			if err := l.Close(); err != nil {
				c.errorf("Close: %v", err)
			}
		}
		if ctx.Err() == nil {
			c.errorf("the context of a lease has not ended with Close")
		}
	}
	use() // what exists once per process may stay
	before := len(stacks())
	use()
	if c.goroutinesFall(before) {
		return
	}
	// Something else in the process may have begun meanwhile, such as the client of a hook that connects anew. A leak happens again.
	before = len(stacks())
	use()
	if !c.goroutinesFall(before) {
		c.errorf("%d goroutines before a Locker was opened, %d after it was closed:\n%s", before, len(stacks()), goroutines())
	}
}

// goroutinesFall waits until there are no more than so many goroutines, for a TTL.
func (c *check) goroutinesFall(to int) bool {
	for start := time.Now(); ; time.Sleep(c.ttl / 100) {
		if len(stacks()) <= to {
			return true
		}
		if time.Since(start) > c.ttl {
			return false
		}
	}
}

// stacks returns the stack of each goroutine. Unlike those that runtime.NumGoroutine counts, none of them has just ended.
func stacks() []string {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Split(string(buf[:n]), "\n\n")
		}
	}
}

// goroutines returns the stacks of all goroutines but those of the test runner.
func goroutines() string {
	var b strings.Builder
	for _, stack := range stacks() {
		if !strings.Contains(stack, "testing.(*T).Run") && !strings.Contains(stack, "conformance.goroutines") {
			b.WriteString(stack + "\n\n")
		}
	}
	return b.String()
}
