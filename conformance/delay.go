package conformance

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// delayRules are those of exclusion that show when requests and answers are slow.
var delayRules = []rule{
	{
		name: "Delayed", body: delayed, needs: needsCut, since: "v0.1.0",
		did: "Five Lockers lock and unlock one key for two TTLs, with Lock and TryLock, and give up now and then. " +
			"Requests of two of them come late, by up to a fifth of the TTL; answers to other two do.",
		text: "However late requests and answers come, two leases of a key are never held at once, the tokens are in " +
			"order, and what a call leaves behind that was given up lasts for a TTL at most.",
		hint: hintAtomic + " The token is minted in the same step, and not fetched before. Grant.Sent is a moment before " +
			"the request was sent, not when the answer has come.",
	},
}

// delayPart is by which part of the TTL requests and answers are late: see DelayReplies.
const delayPart = 5

// delayed has Lockers compete for a key over slow connections.
func delayed(c *check) {
	const goroutines = 2 // for each Locker
	key := c.key()
	observer := c.open()
	order := &order{c: c}
	var ls []locker.Locker
	for i := range 4 {
		l := c.open()
		c.unlock(c.lock(l, c.key())) // there are connections
		c.cut(delays[i%len(delays)])
		ls = append(ls, l)
	}
	ls = append(ls, c.open()) // the last one is prompt
	lasts := 2 * c.ttl
	if inFakeTime() {
		lasts *= 5
	}
	over := time.Now().Add(lasts)
	c.all(goroutines*len(ls), func(i int) {
		random := c.source()
		for time.Now().Before(over) {
			order.use(ls[i/goroutines], key, random)
		}
	})
	// Requests to acquire or to wait may come after those to give up: then a few who want nothing have the key in turn.
	const few = 4
	within := few*c.ttl + c.ttl/delayPart + c.soon()
	c.freeWithin(observer, key, within, "after all who had wanted it had unlocked it or given up")
}

// order is what those see who lock one key.
type order struct {
	c       *check
	mu      sync.Mutex
	current *locker.Lease // the one that was got last
}

// use locks the key, unless it takes too long, and unlocks it.
func (o *order) use(l locker.Locker, key string, random *rand.Rand) {
	c := o.c
	ctx, cancel := context.WithTimeout(c.ctx, time.Duration(1+random.IntN(100))*c.ttl/100)
	defer cancel()
	lock := l.Lock
	if random.IntN(3) == 0 {
		lock = l.TryLock
	}
	if lease, err := lock(ctx, key); err == nil {
		o.got(lease)
		if random.IntN(2) == 0 {
			time.Sleep(time.Duration(random.IntN(30)) * c.ttl / 100)
		}
		_ = lease.Unlock() // its answer may come too late
	}
	time.Sleep(time.Duration(1+random.IntN(30)) * c.ttl / 100) // the key is to be free now and then
}

// got checks a lease against the one that was got before it. Only what is held counts: a goroutine may come late.
func (o *order) got(lease *locker.Lease) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.current
	o.current = lease
	if before == nil {
		return
	}
	held := before.Err() == nil
	switch {
	case lease.Err() != nil: // whoever had it before may have got it later
	case held:
		o.c.wrongf("a lease was got (token %d) while another (token %d) was held", lease.Token(), before.Token())
	case lease.Token() <= before.Token():
		o.c.wrongf("a lease was got with token %d; one before had %d", lease.Token(), before.Token())
	}
}

// arrivesLate has requests of holders arrive when their leases are over, some in part.
func arrivesLate(c *check) {
	next, other := c.open(), c.open()
	c.lateUnlocks(next, other)
	short := 8
	if inFakeTime() {
		short = 30
	}
	for range short {
		c.lateShortRenewal(next, other)
	}
	c.lateRenewals(next, other) // the last, as that cuts off twice
}

// lateUnlocks unlocks at the end of leases.
func (c *check) lateUnlocks(next, other locker.Locker) {
	leases := c.lockMany(24, c.notRenewed()...)
	c.cut(LateRequests)
	random := c.source()
	for _, lease := range leases {
		early := time.Duration((0.05 + 0.95*random.Float64()) * float64(c.ttl) / delayPart)
		c.do(func() { c.keepsSuccessor(next, other, lease.Key(), "Unlock") })
		c.do(func() {
			time.Sleep(time.Until(lease.Deadline().Add(-early)))
			_ = lease.Unlock()
		})
	}
}

// lateRenewals has renewals come at the end of leases, as those before them have failed.
func (c *check) lateRenewals(next, other locker.Locker) {
	leases := c.lockMany(8)
	failing := time.Until(leases[0].Deadline()) - c.ttl/delayPart
	c.cut(Refuse)
	time.Sleep(failing)
	c.cut(LateRequests)
	for _, lease := range leases {
		c.do(func() { c.keepsSuccessor(next, other, lease.Key(), "a renewal") })
		c.unlockAfter(lease, c.ttl/delayPart)
	}
}

// lateShortRenewal is the same with a TTL that is not much longer than what requests are late by, where the store has
// such a one. So is every renewal then.
func (c *check) lateShortRenewal(next, other locker.Locker) {
	key := c.key()
	l := c.open()
	c.unlock(c.lock(l, c.key())) // there are connections
	c.cut(LateRequests)
	c.do(func() {
		lease, err := l.TryLock(c.within(c.ttl), key, locker.TTL(c.ttl*7/20))
		if err != nil {
			return
		}
		c.do(func() { c.keepsSuccessor(next, other, key, "a renewal") })
		c.unlockAfter(lease, c.ttl)
	})
}

// unlockAfter unlocks a lease that may be over by then, or have been renewed.
func (c *check) unlockAfter(lease *locker.Lease, d time.Duration) {
	c.do(func() {
		select {
		case <-lease.Done():
		case <-time.After(d):
			_ = lease.Unlock()
		}
	})
}

// lockMany returns leases of a new Locker.
func (c *check) lockMany(n int, opts ...locker.CallOption) []*locker.Lease {
	l := c.open()
	leases := make([]*locker.Lease, n)
	c.all(n, func(i int) { leases[i] = c.tryLock(l, c.key(), opts...) })
	for _, lease := range leases {
		if lease == nil {
			c.fatalf("not all of %d free keys were locked", n)
		}
	}
	return leases
}

// keepsSuccessor checks that the next holder of a key keeps it, whatever of the holder before arrives late. Its TTL is
// another one, should that be set once more, and it is not renewed.
func (c *check) keepsSuccessor(next, other locker.Locker, key, what string) {
	lease := c.lock(next, key, append(c.notRenewed(), locker.TTL(4*c.ttl))...)
	select {
	case <-lease.Done():
	case <-time.After(c.ttl + c.ttl/2):
	}
	rival, err := other.TryLock(c.within(10*c.ttl), key)
	switch {
	case time.Now().After(lease.Deadline()):
	case lease.Err() != nil:
		c.errorf("a lease of the TTL %v, which began when another had ended, was lost %v before its end, as %s of the other "+
			"arrived late: %v", 4*c.ttl, time.Until(lease.Deadline()), what, lease.Err())
	case err == nil:
		c.wrongf("TryLock of a key succeeded while another lease of it was held: %s of the one before that had arrived late",
			what)
	}
	if rival != nil {
		_ = rival.Unlock()
		return
	}
	c.unlock(lease)
}
