package conformance

import (
	"errors"
	"time"

	"github.com/lockerkit/locker"
)

var closeRules = []rule{
	{
		name: "UnlocksHeld", body: closeUnlocksHeld,
		did:  "A Locker that holds 50 keys is closed; another locks them.",
		text: "Close unlocks what is held: the leases are done with ErrUnlocked, and the keys free at once.",
		hint: "locker.New calls Release for each of them, and then Backend.Close: Release has to free the key, and " +
			"Close nothing that Release needs.",
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
		hint: "locker.New calls Backend.Close once. If Harness.Open returns something around its Locker, that has to " +
			"bear a second Close: sync.Once.",
	},
	{
		name: "UseAfterClose", body: useAfterClose,
		did:  "A Locker is closed, and Lock, TryLock and the Unlock of a lease are called.",
		text: "After Close, Lock and TryLock return ErrClosed, and Unlock of a lease ErrUnlocked.",
		hint: hintNew,
	},
	{
		name: "StoreAway", body: closeAway, expires: true, needs: needsCut, since: "v0.1.0",
		did:  "Lockers that hold a key are cut off from the store, in each of the four ways of Fault, and closed.",
		text: "A Close that cannot unlock what is held says so; the key is free when its TTL has passed.",
		hint: "locker.New returns what Release returns, unless that is nil: the error of the client, not ErrLost. If " +
			"Harness.Open returns something around its Locker, that returns the error, too.",
	},
	{
		name: "LeaksNothing", body: leaksNothing, serial: true,
		did: "Two Lockers are opened, used and closed, twice; the goroutines, open files and connections of the " +
			"process are counted.",
		text: "Close leaves no goroutine, file or connection behind.",
		hint: "Backend.Close ends what the backend has started. The Close of what Harness.Open returns also ends " +
			"what Open itself has made, such as a client.",
	},
	{
		name: "LeaksNothingWhileOpen", body: leaksNothingWhileOpen, expires: true, serial: true, since: "v0.1.0",
		did: "Two Lockers lock 30 keys, are refused, renew, hand over, wait in vain and lose leases, twice; the " +
			"goroutines, open files and connections of the process are counted.",
		text: "What a lock, an attempt, a renewal or a wait needs is given back when it is over, and not only with " +
			"Close.",
		hint: "Look at what each call starts or opens: does it end when the call returns, when its ctx ends, when " +
			"the lease is unlocked, and also when it is lost?",
	},
}

func closeUnlocksHeld(c *check) {
	a, b := c.openForMany(), c.openForMany()
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
	c.took(time.Since(start), c.soon(), "Close of a Locker with waiters")
	c.freeWithin(other, own, c.soon(), "after the Locker was closed that held it and waited for it")
	w := c.start(c.within(10*c.ttl), other, key)
	c.settle()
	released := time.Now()
	c.unlock(lease)
	next, err := c.result(w)
	if err != nil {
		c.fatalf("Lock behind waiters whose Locker was closed: %v", err)
	}
	c.took(w.at.Sub(released), c.soon(), "from Unlock until a waiter behind those whose Locker was closed had the lock")
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
