package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
)

// lostWith reports whether a lease may be lost when the connection of its Locker fails in a way.
func (c *check) lostWith(f Fault) bool {
	return f != Hang && connectionBound.reason(c.h.Features) != ""
}

// unlockAway cuts off Lockers that hold, and unlocks. In each way of Fault, one stays cut off until its lease is over,
// and another one does not.
func unlockAway(c *check) {
	if reason := connectionBound.reason(c.h.Features); reason != "" {
		c.leaves(inPart, "relaxed for all faults but %v: %s (Features.%s)", Hang, reason, connectionBound.name)
	}
	other := c.open()
	for _, f := range partitions {
		short := c.tryLock(c.open(), c.key())
		healShort := c.cut(f)
		c.do(func() { c.unlockInVain(short, f, healShort, other) })

		long := c.tryLock(c.open(), c.key(), locker.TTL(4*c.ttl)) // it does not end instead
		healLong := c.cut(f)
		c.do(func() { c.unlockInTheEnd(long, f, healLong, other) })
	}
}

// unlockInVain unlocks a lease whose Locker stays cut off.
func (c *check) unlockInVain(lease *locker.Lease, f Fault, heal func(), other locker.Locker) {
	freed := make(chan struct{})
	c.do(func() {
		defer close(freed)
		if f == DropReplies {
			c.freeWithin(other, lease.Key(), c.soon(),
				"since the beginning of an Unlock whose request reached the store")
		}
	})
	deadline := lease.Deadline()
	err := lease.Unlock()
	c.took(time.Since(deadline), c.soon(), "(%v) from the end of the lease's validity until its Unlock had returned", f)
	switch {
	case c.lostWith(f) && (err == nil || errors.Is(err, locker.ErrLost)):
	case err == nil:
		c.errorf(
			"%v: Unlock while the store could not be reached: nil; want an error, as nobody knows what the store has done",
			f,
		)
	default:
		c.isJust(err, locker.ErrUnavailable, f.String()+": Unlock while the store could not be reached")
	}
	<-freed
	c.freeWithin(other, lease.Key(), c.ttl*3/4, "after the end of a lease whose Unlock had not reached the store")
	heal()
	c.settle()
	c.freeWithin(other, lease.Key(), c.soon(), "when the store could be reached again, which an Unlock had not reached")
}

// unlockInTheEnd unlocks a lease whose Locker can reach the store again long before the lease is over.
func (c *check) unlockInTheEnd(lease *locker.Lease, f Fault, heal func(), other locker.Locker) {
	unlocked := make(chan error, 1)
	c.do(func() { unlocked <- lease.Unlock() })
	time.Sleep(c.ttl / 4)
	heal()
	healed := time.Now()
	err := <-unlocked
	if err != nil && (!c.lostWith(f) || !errors.Is(err, locker.ErrLost)) {
		c.errorf("%v: Unlock, when the store could be reached again before the lease was over: %v; want nil", f, err)
		return
	}
	// One attempt may take a third of its TTL.
	c.took(time.Since(healed), 2*c.ttl, "(%v) from when the store could be reached again until Unlock had returned", f)
	c.freeWithin(other, lease.Key(), c.soon(), "after an Unlock that had to be tried again")
}

// closeAway closes Lockers that are cut off.
func closeAway(c *check) {
	other := c.open()
	for _, f := range partitions {
		l := c.open()
		lease := c.tryLock(l, c.key())
		heal := c.cut(f)
		c.do(func() {
			err := l.Close()
			if err == nil && !c.lostWith(f) {
				c.errorf(
					"%v: Close of a Locker that holds a key, while the store could not be reached: nil; want an error",
					f)
			}
			if err != nil && (errors.Is(err, locker.ErrLost) && !c.lostWith(f) || errors.Is(err, locker.ErrUnlocked)) {
				c.errorf("%v: Close, while the store could not be reached: %v; want the error of the store", f, err)
			}
			c.freeWithin(other, lease.Key(), 2*c.ttl, "after the Close of a Locker that could not reach the store")
			heal()
		})
	}
}

// acquiring is a call that acquires a key, and how it gets into trouble.
type acquiring struct {
	lock  string // TryLock, Lock of a free key, or Lock of one that is held
	first Fault  // while which the request is made, or the lock handed over
	then  Fault  // while which what is left of it is to be cleaned up
}

const (
	tryFree  = "TryLock"
	lockFree = "Lock"
	lockHeld = "Lock of a key that was held"
)

// repeatsCleanUp has acquires come to grief, and keeps what they have left behind from being released for a while.
func repeatsCleanUp(c *check) {
	observer := c.open()
	for _, a := range []acquiring{
		{tryFree, DropReplies, Refuse},
		{tryFree, DropReplies, BlackHole},
		{lockFree, DropReplies, Refuse},
		{lockFree, DropReplies, Hang},
		{lockHeld, DropReplies, Refuse},
		{lockHeld, BlackHole, BlackHole},
	} {
		c.comeToGrief(a, observer)
	}
}

// comeToGrief calls what acquires a key, and has its answer lost. What the store has granted lasts for much longer than
// the rule takes, so that it is not free by itself.
func (c *check) comeToGrief(a acquiring, observer locker.Locker) {
	lasting := locker.TTL(12 * c.ttl)
	key := c.key()
	var holder *locker.Lease
	if a.lock == lockHeld {
		holder = c.tryLock(observer, key, lasting)
	}
	l := c.open()
	c.unlock(c.lock(l, c.key(), lasting)) // whatever it needs for that is there
	ctx, cancel := context.WithCancel(c.within(10 * c.ttl))
	defer cancel()
	lock := l.Lock
	if a.lock == tryFree {
		lock = l.TryLock
	}
	acquired := make(chan *locker.Lease, 1)
	begin := func() {
		c.do(func() {
			lease, _ := lock(ctx, key, lasting)
			acquired <- lease
		})
		c.settle()
	}
	if a.lock == lockHeld {
		begin()
		c.cut(a.first)
		c.unlock(holder)
		c.settle()
	} else {
		c.cut(a.first)
		begin()
	}
	heal := c.cut(a.then)
	time.AfterFunc(c.ttl/20, cancel) // some end by themselves before that, with the error of the connection
	if lease := <-acquired; lease != nil {
		_ = lease.Unlock() // the store was faster than the cut
	}
	c.do(func() {
		time.Sleep(c.ttl * 3 / 4)
		heal()
		c.freeWithin(
			observer,
			key,
			5*c.ttl,
			fmt.Sprintf("since the store could be reached again, after a %s whose answer "+
				"got lost, and a first Release that did, too (%v)", a.lock, a.then),
		)
	})
}
