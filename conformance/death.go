package conformance

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// deathRules are about waiters that are cut off, for good or because the store restarts.
var deathRules = []rule{
	{
		name: "DeadWaiters", body: deadWaiters, expires: true, needs: needsCut, since: "v0.1.0",
		did: "Of four Locks that wait for a key, the first and the third are cut off for good, by the faults refuse and " +
			"black-hole. For other keys, such a one is all there is in line. Then the holders unlock.",
		text: "A waiter that dies in line does not block it: those behind it, and TryLock, get the key within a few TTLs, and " +
			"five seconds.",
		hint: "A place in line lasts for as long as its waiter is heard of: its session, its connection, or a time that it has " +
			"to renew. What is granted to, or reserved for, a waiter that does not come for it ends with its TTL at the " +
			"latest, and then it is the turn of the next.",
	},
	{
		name: "KilledWhenServed", body: killedWhenServed, expires: true, needs: needsCut, since: "v0.1.0",
		did: "Two Locks wait for a key. When its holder unlocks, the first of them is cut off: just after it, just before, at " +
			"the same time, a moment later; by the faults refuse, black-hole and hang. It is healed when the second has the " +
			"lock.",
		text: "A waiter that dies when its turn comes does not block those behind it; and if it comes back, it has not got " +
			"what has been granted to another meanwhile.",
		hint: "What is granted to a waiter that does not come for it ends with its TTL, like any other lease. Wait returns a " +
			"grant with Grant.Sent from before the request that was granted: then New sees that it comes too late. What is " +
			"only a call to come for the lock is no grant.",
	},
	{
		name: "WaitsAcrossRestart", body: waitsAcrossRestart, needs: needsRestart, serial: true, since: "v0.1.0",
		did: "Locks of two Lockers wait for a key, Harness.Restart restarts the store, and the holder unlocks.",
		text: "A Lock that the store has told to wait goes on waiting when the store restarts, and gets the lock. Then, too, it " +
			"has one holder at a time.",
		hint: "A store that has forgotten its line does not call those who were in it. When the connection breaks, Wait returns " +
			"what its client says, without ErrDenied or ErrUnfit: New then calls it again. Or it connects again by itself, " +
			"gets into line again if it is not there, and calls Request.ReportRetry.",
	},
}

// deadWithin is how long so many waiters that have died may delay those behind them: until the store has noticed, and
// what it may have granted to them has expired.
func (c *check) deadWithin(dead int) time.Duration {
	return 5*time.Second + time.Duration(2*dead)*c.ttl
}

// dying is the Lock of a Locker that can be cut off, until another is opened.
type dying struct {
	*wait
	giveUp context.CancelFunc
}

// opensInLine opens a Locker and has it wait for a key.
func (c *check) opensInLine(key string) dying {
	l := c.open()
	c.unlock(c.lock(l, c.key())) // there are connections
	ctx, giveUp := context.WithCancel(c.ctx)
	d := dying{c.start(ctx, l, key), giveUp}
	c.settle()
	return d
}

// buries ends the Lock of a waiter that has died, or come back, when another has the lock, and checks that not both
// have it.
func (c *check) buries(d dying, f Fault, next *locker.Lease) {
	if isClosed(d.done) && d.err == nil && d.lease.Err() == nil && next.Err() == nil {
		c.twoHolders(f, d.lease, "a waiter that was cut off (%v) has the lock (token %d), and so has who was behind it "+
			"(token %d)", f, d.lease.Token(), next.Token())
	}
}

// ends the Lock of a waiter that has died, or come back.
func (d dying) ends() {
	d.giveUp()
	<-d.done
	if d.err == nil {
		_ = d.lease.Unlock()
	}
}

func deadWaiters(c *check) {
	ls := c.openAll(3, 2)
	holder, x, y := ls[0], ls[1], ls[2]
	var unlocked []func()
	for _, f := range []Fault{BlackHole, Refuse} {
		key := c.key()
		bound := c.deadWithin(2)
		lease := c.lock(holder, key)
		var living []*wait
		var dead []dying
		for _, l := range []locker.Locker{x, y} {
			dead = append(dead, c.opensInLine(key))
			c.cut(f)
			living = append(living, c.start(c.within(bound+2*c.ttl), l, key))
		}
		unlocked = append(unlocked, func() {
			c.unlock(lease)
			released := time.Now()
			c.all(len(living), func(i int) { // in any order, if there is no line
				w := living[i]
				<-w.done
				if w.err != nil {
					c.nothing(w.at.Sub(released), bound, "Lock behind waiters that were cut off (%v): nothing %v after "+
						"the holder's Unlock: %v", f, w.at.Sub(released), w.err)
					return
				}
				c.took(w.at.Sub(released), bound,
					"from Unlock until a waiter behind others that were cut off (%v) had the lock", f)
				for _, d := range dead {
					c.buries(d, f, w.lease)
				}
				c.unlock(w.lease)
			})
			for _, d := range dead {
				d.ends()
			}
		})

		alone := c.key()
		held := c.lock(holder, alone)
		d := c.opensInLine(alone)
		c.cut(f)
		unlocked = append(unlocked, func() {
			c.unlock(held)
			c.freeWithin(x, alone, c.deadWithin(1),
				"after Unlock, with nobody in line but a waiter that was cut off ("+f.String()+")")
			d.ends()
		})
	}
	c.settle()
	c.all(len(unlocked), func(i int) { unlocked[i]() })
}

func killedWhenServed(c *check) {
	ls := c.openAll(2, 5)
	holder, behind := ls[0], ls[1]
	bound := c.deadWithin(1)
	most := int(2*c.turn(holder, behind) + c.ttl/1000)
	for _, f := range []Fault{BlackHole, Refuse, Hang} {
		for _, e := range endings {
			key := c.key()
			lease := c.lock(holder, key)
			first := c.opensInLine(key)
			second := c.start(c.within(bound+2*c.ttl), behind, key)
			var heal func()
			e.run(c, func() { c.unlock(lease) }, func() { heal = c.cut(f) }, time.Duration(c.draw(most)))
			released := time.Now()
			c.do(func() {
				defer first.ends()
				<-second.done
				if second.err != nil {
					took := second.at.Sub(released)
					c.nothing(took, bound, "Lock behind a waiter that was cut off (%v) %s: nothing %v later: %v",
						f, e.how, took, second.err)
					return
				}
				c.took(second.at.Sub(released), bound,
					"until who was behind a waiter that was cut off (%v) %s had the lock", f, e.how)
				c.buries(first, f, second.lease)
				heal()
				for range 3 {
					c.settle()
					c.buries(first, f, second.lease)
				}
				c.unlock(second.lease)
				first.ends()
				c.freeWithin(behind, key, bound,
					"after a waiter that was cut off ("+f.String()+") when its turn came has given up")
			})
		}
	}
}

func waitsAcrossRestart(c *check) {
	const waiters = 2
	ls := c.openAll(waiters+1, 1)
	bound := 10*time.Second + 10*c.ttl
	key := c.key()
	lease := c.lock(ls[waiters], key)
	waits := make([]*wait, waiters)
	for i := range waits {
		waits[i] = c.start(c.within(bound+2*c.ttl), ls[i], key)
		c.settle()
	}
	time.Sleep(c.ttl / 4) // until the store has answered
	c.h.Restart(c.t)
	restarted := time.Now()
	c.do(func() { _ = lease.Unlock() }) // it may be lost
	var current atomic.Pointer[locker.Lease]
	c.all(waiters, func(i int) {
		w := waits[i]
		<-w.done
		if w.err != nil {
			took := w.at.Sub(restarted)
			c.nothing(took, bound, "Lock, which had waited when the store restarted: %v after that, it returned %v",
				took, w.err)
			return
		}
		if before := current.Swap(w.lease); before != nil && before.Err() == nil {
			c.wrongf("Lock returned a lease (token %d) while another, since the restart, was held (token %d)",
				w.lease.Token(), before.Token())
		}
		c.took(w.at.Sub(restarted), bound,
			"from the restart of the store until a Lock that had waited before had the lock")
		time.Sleep(c.ttl / 50)
		c.unlock(w.lease)
	})
}
