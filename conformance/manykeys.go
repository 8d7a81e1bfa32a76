package conformance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var manyKeysRules = []rule{
	{
		name: "ManyKeys", body: manyKeys, serial: true, since: "v0.1.0",
		did: "As many keys are locked at once as the store can do in a third of a TTL, up to 200,000, and others try some " +
			"of them. Pairs of names are locked that have the same CRC-32, FNV, first 32 bits of SHA-256, and the like. Then " +
			"a Locker holds up to 2,000 keys for one and a half TTLs, while others come and go.",
		text: "However many keys are held, a new one can be locked, and none of the others is let go or lost.",
		hint: "The name of a lock in the store is Request.Name() itself, or a hash of at least 64 bits. Nothing that is " +
			"kept of a lock (a row, an entry in a cache) goes before the lease ends as it was renewed last: no limit of a " +
			"number, and no clean-up by age. If names share locks: Features{SharesKeys: \"the reason\"}.",
	},
}

func manyKeys(c *check) {
	crowd := c.newCrowd()
	crowd.gather()
	crowd.look()
	crowd.disperse()
	c.triesTwins()
	if c.failed() {
		return
	}
	c.holdsMany()
}

// crowd is keys that are held at the same time, and hardly ever renewed: their TTL is longer than the test. The bare
// backend holds them where it can be had, which costs less.
type crowd struct {
	*check
	ctx   context.Context
	since time.Time
	names string // what all keys begin with
	most  int    // of keys
	refused,
	failed atomic.Int64
	failure atomic.Pointer[error]

	backend locker.Backend // or nil, and then:
	locker  locker.Locker
	grants  []locker.Grant  // of the backend; without a token where there is none
	leases  []*locker.Lease // of the Locker
}

// crowdTTL is in TTLs.
const crowdTTL = 20

func (c *check) newCrowd() *crowd {
	cr := &crowd{check: c, ctx: c.within(crowdTTL * c.ttl), since: time.Now(), names: c.key() + "/"}
	if c.h.Backend != nil {
		cr.backend, cr.most = c.h.Backend(c.t), 200_000
		cr.grants = make([]locker.Grant, cr.most)
	} else {
		cr.locker, cr.most = c.open(locker.TTL(crowdTTL*c.ttl)), 50_000
		cr.leases = make([]*locker.Lease, cr.most)
	}
	return cr
}

// spread runs f for each key, as many at the same time as a client can put to use, until enough is true.
func (cr *crowd) spread(n int, enough func() bool, f func(i int)) {
	const atATime = 64
	var next atomic.Int64
	cr.all(atATime, func(int) {
		for !enough() {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			f(i)
		}
	})
}

// gather locks keys for a third of a TTL, but not for more than half a second.
func (cr *crowd) gather() {
	const mostFailures = 32 // the store may be full
	start := time.Now()
	before, _ := cpuTime()
	var tired atomic.Bool
	enough := func() bool {
		return time.Since(start) > min(cr.ttl/3, time.Second/2) ||
			cr.failed.Load() > mostFailures || cr.refused.Load() > mostFailures || tired.Load()
	}
	var locked atomic.Int64
	cr.spread(cr.most, enough, func(i int) {
		if i%1024 == 0 && inFakeTime() { // in which none passes, however long that takes
			if now, known := cpuTime(); known && now-before > time.Second {
				tired.Store(true)
			}
		}
		switch err := cr.lock(i); {
		case err == nil:
			locked.Add(1)
		case errors.Is(err, locker.ErrLocked):
			cr.refused.Add(1)
			if cr.h.Features.SharesKeys == "" {
				cr.wrongf("a key that nobody has was refused, with %d others held: %v", locked.Load(), err)
			}
		default:
			cr.failed.Add(1)
			cr.failure.Store(&err)
		}
	})
	const few = 200
	if failure := cr.failure.Load(); failure != nil && locked.Load() < few {
		cr.errorf("%d keys could be locked, and %d could not: %v", locked.Load(), cr.failed.Load(), *failure)
	}
	cr.t.Logf("%d keys were locked at once within %v", locked.Load(), time.Since(start).Round(time.Millisecond))
	if cr.refused.Load() > 0 && cr.h.Features.SharesKeys != "" {
		cr.leaves(inPart, "relaxed for %d of %d keys, which were refused: %s (Features.%s)",
			cr.refused.Load(), locked.Load(), cr.h.Features.SharesKeys, sharesKeys.name)
	}
}

// lock locks the key with a number.
func (cr *crowd) lock(i int) error {
	key := fmt.Sprintf("%s%d", cr.names, i)
	switch i % 4 { // in case that those are treated in another way
	case 1:
		key += strings.Repeat("-", 300)
	case 2:
		key = "\u00e9\xff" + key
	}
	if cr.backend == nil {
		lease, err := cr.locker.TryLock(cr.ctx, key)
		cr.leases[i] = lease
		return err
	}
	r := locker.Request{Key: key, Owner: newOwner(), TTL: crowdTTL * cr.ttl}
	g, err := cr.backend.Acquire(cr.ctx, r)
	if err != nil && !errors.Is(err, locker.ErrLocked) {
		_ = cr.backend.Release(cr.ctx, locker.Grant{Request: r}) // something may be left
	}
	if err == nil {
		g.Request = r
		cr.grants[i] = g
	}
	return err
}

// newOwner returns an owner that nobody else is.
func newOwner() (o locker.Owner) {
	binary.NativeEndian.PutUint64(o[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(o[8:], rand.Uint64())
	return o
}

// held returns the numbers of the keys that were locked, in that order.
func (cr *crowd) held() (held []int) {
	for i := range cr.most {
		if cr.leases != nil && cr.leases[i] != nil || cr.grants != nil && cr.grants[i].Token != 0 {
			held = append(held, i)
		}
	}
	return held
}

// look has somebody else try the first keys, the last, and some of the others.
func (cr *crowd) look() {
	const first, last, others = 500, 100, 900
	held := cr.held()
	if len(held) > first+others+last {
		middle := held[first : len(held)-last]
		cr.shuffle(len(middle), func(i, j int) { middle[i], middle[j] = middle[j], middle[i] })
		held = slices.Concat(held[:first], middle[:others], held[len(held)-last:])
	}
	stranger := cr.locker
	if cr.backend == nil {
		stranger = cr.open(locker.TTL(crowdTTL * cr.ttl))
	}
	var gone atomic.Int64
	start := time.Now()
	enough := func() bool { return gone.Load() > 10 || time.Since(start) > cr.ttl/2 }
	cr.spread(len(held), enough, func(n int) {
		i := held[n]
		if !cr.letGo(i, stranger) {
			return
		}
		gone.Add(1)
		if time.Since(cr.since) < crowdTTL/2*cr.ttl { // it lives for longer
			cr.wrongf("with %d keys held, the one that was locked as number %d could be locked by another", len(cr.held()), i+1)
		}
	})
}

// letGo reports whether somebody else can lock a key that is held. It undoes that.
func (cr *crowd) letGo(i int, stranger locker.Locker) bool {
	if cr.backend == nil {
		lease, err := stranger.TryLock(cr.ctx, cr.leases[i].Key())
		if err != nil {
			return false
		}
		lost := cr.leases[i].Err() != nil
		_ = lease.Unlock()
		return !lost
	}
	r := cr.grants[i].Request
	r.Owner = newOwner()
	g, err := cr.backend.Acquire(cr.ctx, r)
	if err != nil {
		return false
	}
	g.Request = r
	_ = cr.backend.Release(cr.ctx, g)
	return true
}

// disperse unlocks all keys.
func (cr *crowd) disperse() {
	held := cr.held()
	var lost atomic.Int64
	cr.spread(len(held), func() bool { return cr.ctx.Err() != nil }, func(n int) {
		var err error
		if i := held[n]; cr.backend == nil {
			err = cr.leases[i].Unlock()
		} else {
			err = cr.backend.Release(cr.ctx, cr.grants[i])
		}
		if errors.Is(err, locker.ErrLost) {
			lost.Add(1)
		}
	})
	if lost := lost.Load(); lost > 0 && time.Since(cr.since) < crowdTTL*cr.ttl {
		cr.errorf("of %d keys that were held at once, %d were lost", len(held), lost)
	}
}

// triesTwins locks names that a hash of 32 bits takes for one.
func (c *check) triesTwins() {
	if c.h.Features.SharesKeys != "" {
		return
	}
	usingTwins.Lock()
	defer usingTwins.Unlock()
	all := slices.Clone(foundTwins())
	own := "/" + c.key()
	for _, tw := range knownTwins {
		all = append(all, collision{tw.hash, tw.first + own, tw.second + own})
		long := own + strings.Repeat("-", 300)
		all = append(all, collision{tw.hash, tw.first + long, tw.second + long})
	}
	l := c.open(locker.Prefix(""))
	c.several(len(all), func(i int) {
		tw := all[i]
		first := c.tryLock(l, tw.first)
		second, err := l.TryLock(c.within(10*c.ttl), tw.second)
		switch {
		case errors.Is(err, locker.ErrLocked):
			c.wrongf("TryLock(%.64q) while %.64q is held: %v; by %s the two are the same", tw.second, tw.first, err, tw.hash)
		case err != nil:
			c.errorf("TryLock(%.64q): %v", tw.second, err)
		default:
			c.unlock(second)
		}
		c.unlock(first)
	})
}

// holdsMany holds as many keys as a backend that renews them one after the other can renew.
func (c *check) holdsMany() {
	const most, least = 2000, 60 // least is what lease/RenewedSeparately holds
	a, b := c.open(), c.open()
	n := asMany(c.ttl/6, c.pace(a), least, most)
	names := make([]name, n)
	for i := range names {
		names[i].key = c.key()
	}
	ps := peers{"": {a, b}}
	leases := c.lockFor(c.ttl/4, ps, holding, names, anew)
	c.comeAndGo(b, n)
	c.livesOn(ps, waiting, names, leases, fmt.Sprintf("as one of %d that a Locker holds", n))
}

// comeAndGo has somebody lock and unlock other keys for one and a half TTLs, now and then, and in the end three times
// as many as there are others: what a store cleans up by the way it does when somebody comes.
func (c *check) comeAndGo(l locker.Locker, others int) {
	for start := time.Now(); time.Since(start) < c.ttl+c.ttl/2 && !c.failed(); time.Sleep(c.ttl / 10) {
		c.newcomers(l, 20, c.ttl/50, others)
	}
	c.newcomers(l, 3*others, c.ttl/10, others)
}

// newcomers locks and unlocks up to n keys that nobody has, for some time, while others are held.
func (c *check) newcomers(l locker.Locker, n int, d time.Duration, others int) {
	start := time.Now()
	for range n {
		lease, err := l.TryLock(c.within(10*c.ttl), c.key())
		switch {
		case errors.Is(err, locker.ErrLocked) && c.h.Features.SharesKeys != "":
		case errors.Is(err, locker.ErrLocked):
			c.wrongf("a key that nobody has was refused, with %d others held by one Locker: %v", others, err)
			return
		case err != nil:
			c.errorf("TryLock of a key that is free, with %d others held by one Locker: %v", others, err)
			return
		default:
			c.unlock(lease)
		}
		if time.Since(start) > d {
			return
		}
	}
}
