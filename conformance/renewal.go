package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

const hintRenew = "Renew sets the expiry of each grant to its own Grant.TTL from now, whatever it was before and whatever the TTLs " +
	"of the others are, and calls done(i, ...) for gs[i] with what the store has said of that one: ErrLost if it does not " +
	"have Grant.Owner, nil only if it has set the expiry."

// renewalRules are about what a renewal does, and what it says.
var renewalRules = []rule{
	{
		name: "RidesOutOneFailedRenewal", body: ridesOutOneFailedRenewal, needs: needsCut,
		did:  "A holder is cut off for a while in which a renewal is due, in each of the four ways of Fault.",
		text: "A lease survives a renewal that fails, if the store can be reached again before its validity is over.",
		hint: hintRidesOut,
	},
	{
		name: "RidesOutTimeout", body: ridesOutTimeout, needs: needsCut, since: "v0.1.0",
		did: "A holder is cut off for three quarters of its TTL, which is longer than one renewal may take, in each of the " +
			"four ways of Fault. For others, answers or requests are late, by a tenth of the TTL at most, for as long as they " +
			"hold it.",
		text: "A lease survives a renewal that is given up without an answer, if the store can be reached again before its " +
			"validity is over, and renewals that are answered late.",
		hint: hintRidesOut + " That ctx has ended says nothing about the lease: return context.Cause(ctx).",
	},
	{
		name: "RenewedSeparately", body: renewedSeparately, since: "v0.1.0",
		did:  "A Locker holds 10 leases of the TTL and 50 of four times the TTL, for three TTLs.",
		text: "No lease is lost for the sake of others: Renew reports each grant as soon as its result is known.",
		hint: "Renew asks for all grants in one round trip, or for several at a time, and calls done(i, ...) for gs[i] as " +
			"its answer comes, and for each one before it returns. It does not wait for another call of Renew.",
	},
	{
		name: "RenewalResults", body: renewalResults, needs: needsBackend, since: "v0.1.0",
		did: "Renew is called for up to some dozens of grants, in mixed order, of which some are held, some were released, some " +
			"have been taken by another owner since, and some are of an owner that never had the key.",
		text: "Renew reports each grant once, at its own index, before it returns, and leaves alone what it was given.",
		hint: hintRenew + " It does not write into gs.",
	},
	{
		name: "RenewedForItsTTL", body: renewedForItsTTL, expires: true, needs: needsBackend, relaxes: renewsItself, since: "v0.1.0",
		did: "Some backends renew grants of several TTLs up to a few times, and then never again; rivals ask for the keys " +
			"from the beginning, or from the last renewal on.",
		text: "Each renewal that is confirmed makes a lock last for its own TTL from then on: no shorter, and no longer.",
		hint: hintRenew,
	},
	{
		name: "RenewedInBatches", body: renewedInBatches, needs: needsBackend, relaxes: renewsItself, since: "v0.1.0",
		did: "Renew is called for as many grants as can be had in a quarter of the TTL, up to a thousand; another owner " +
			"tries the keys when their TTL would have passed without that.",
		text: "A call of Renew renews all of up to a thousand grants.",
		hint: "If your store takes fewer at a time, ask for several batches at once. A batch that has failed as a whole is " +
			"reported as an error for each of its grants.",
	},
	{
		name: "LossIsItsOwn", body: lossIsItsOwn, since: "v0.1.0",
		did: "Of two, three or seven leases of one Locker, one is unlocked, and another is taken away with Harness.Break; " +
			"another Locker takes those keys. The rest is looked at for more than a TTL.",
		text: "What becomes of one lease is nothing to the others of its Locker: they are renewed, and not told of a loss.",
		hint: hintRenew,
	},
	{
		name: "NeverResurrects", body: neverResurrects, needs: needsBreak,
		did: "Harness.Break takes locks away from their holders, before and after a renewal; some of the keys stay free, " +
			"and others another Locker takes.",
		text: "A renewal that finds the key gone or taken reports the loss, and does not bring the lock back.",
		hint: "Renew changes a record only if it is there and has the owner of the grant, in one atomic step, and returns " +
			"ErrLost if not. (Does Harness.Break take away what Request.Name() names in your store?)",
	},
}

const hintRidesOut = "Renew returns ErrLost only if the store said that the owner does not hold the key; with any other error " +
	"New tries again, so connections have to be made anew. If locks end with their connection: " +
	"Features{ConnectionBound: \"the reason\"}."

func ridesOutOneFailedRenewal(
	c *check,
) {
	c.survivesCut(partitions, c.ttl, c.ttl*9/20)
} // the first renewal is sent, and fails

// The first renewal is given up after a third of the TTL. A connection that was refused all the time needs a while
// then.
func ridesOutTimeout(c *check) {
	ttl := affordable(2*c.ttl, 5*c.ttl)
	c.survivesCut(slices.Concat(partitions, delays), ttl, ttl*3/4)
}

// survivesCut cuts holders off from when they have locked a key, for so long. What delays only lasts for as long as
// they hold it.
func (c *check) survivesCut(faults []Fault, ttl, lasts time.Duration) {
	bound := connectionBound.reason(c.h.Features)
	if bound != "" {
		c.leaves(inPart, "relaxed where connections break: %s (Features.%s)", bound, connectionBound.name)
	}
	for _, f := range faults {
		lasts := lasts
		if slices.Contains(delays, f) {
			lasts = ttl * 6 / 5
		}
		other := c.open()
		l := c.open() // the last, for cut
		lease := c.tryLock(l, c.key(), locker.TTL(ttl))
		heal := c.cut(f)
		c.do(func() {
			time.Sleep(lasts)
			heal()
			if bound != "" && f != Hang && slices.Contains(partitions, f) {
				c.lostBeforeRival(lease, other, f)
				return
			}
			select {
			case <-lease.Done():
				c.errorf("%v, for %v, while a renewal was due: the lease was lost, of a TTL of %v: %v", f, lasts, ttl,
					lease.Err())
				return
			case <-time.After(ttl*6/5 - lasts): // what was confirmed before has ended
			}
			c.refused(other, lease, fmt.Sprintf("although the holder rode out a failed renewal (%v)", f))
			c.unlock(lease)
		})
	}
}

// lostBeforeRival checks that a rival gets the lock only after the end of the lease.
func (c *check) lostBeforeRival(lease *locker.Lease, rival locker.Locker, f Fault) {
	done := lease.Done()
	next, err := rival.Lock(c.within(6*c.ttl), lease.Key())
	switch {
	case err != nil:
		c.errorf("%v: Lock of a key whose holder's connection broke: %v", f, err)
		return
	case lease.Err() == nil:
		c.wrongf("%v: a rival had the lock while the lease of the holder was valid", f)
	case !isClosed(done):
		c.errorf("%v: a rival had the lock while the Done of the holder was not closed", f)
	case !errors.Is(lease.Err(), locker.ErrLost):
		c.errorf("%v: Err of the holder whose connection broke: %v; want ErrLost", f, lease.Err())
	}
	c.unlock(next)
}

func renewedSeparately(c *check) {
	const short, long = 10, 50
	l := c.open()
	leases := make([]*locker.Lease, long+short)
	acquire := func(from, to int, ttl time.Duration) {
		c.all(to-from, func(i int) { leases[from+i] = c.tryLock(l, c.key(), locker.TTL(ttl)) })
	}
	acquire(0, long, 4*c.ttl)
	acquire(long, long+short, c.ttl)
	time.Sleep(3 * c.ttl)
	for i, lease := range leases {
		switch {
		case lease == nil: // tryLock has said why
		case lease.Err() != nil && i >= long:
			c.errorf("a lease of the TTL %v was lost, beside many of another: %v", c.ttl, lease.Err())
		case lease.Err() != nil:
			c.errorf("one of many leases of the TTL %v was lost: %v", 4*c.ttl, lease.Err())
		}
	}
	c.all(len(leases), func(i int) {
		if leases[i] != nil && leases[i].Err() == nil {
			c.unlock(leases[i])
		}
	})
}

// fate is what has become of a grant before it is renewed.
type fate int

const (
	held      fate = iota
	released       // by its owner, and nobody has the key
	taken          // by another owner, after it was released
	succeeded      // taken, and renewed together with the grant of that owner
	strange        // the key is held, and the grant is of another owner
	fates          // how many there are
)

func (f fate) String() string {
	return [...]string{
		"held", "released", "released, and taken by another owner", "released, and taken by the owner of another one of them",
		"of an owner that never had the key",
	}[f]
}

func renewalResults(c *check) {
	b := c.h.Backend(c.t)
	batches := [][]fate{
		{
			held,
		}, {released}, {held, held}, {held, released}, {released, held}, {held, released, held, held}, {held, held, taken},
		{strange, held, held, held}, {released, taken, strange}, {succeeded}, {held, succeeded, released},
	}
	for range affordable(6, 12) {
		batch := make([]fate, 2+c.draw(16))
		for i := range batch {
			batch[i] = max(held, fate(c.draw(2*int(fates))-int(fates))) // most of them are held
		}
		batches = append(batches, batch)
	}
	c.all(len(batches), func(i int) { c.renewalBatch(b, batches[i]) })
}

// fated is a grant, and what has become of it.
type fated struct {
	locker.Grant
	fate
	request func() locker.Request // of another owner, for the same key
	holder  locker.Grant          // who has the key; the zero Grant if nobody has
}

// fatedGrant returns one, and that of who has the key if it is to be renewed, too.
func (c *check) fatedGrant(b locker.Backend, f fate) (all []fated) {
	key := c.request()
	request := func() locker.Request {
		r := key()
		r.TTL = 20 * c.ttl
		return r
	}
	g := fated{c.acquires(b, request(), "of a free key"), f, request, locker.Grant{}}
	switch f {
	case held:
		g.holder = g.Grant
	case strange:
		g.holder = g.Grant
		g.Request = request()
	default:
		c.releases(b, g.Grant, "by the owner")
		if f != released {
			g.holder = c.acquires(b, request(), "of a key that was released")
		}
		if f == succeeded {
			all = append(all, fated{g.holder, held, request, g.holder})
		}
	}
	return append(all, g)
}

// renewalBatch checks what Renew says of some grants.
func (c *check) renewalBatch(b locker.Backend, batch []fate) {
	var all []fated
	for _, f := range batch {
		all = append(all, c.fatedGrant(b, f)...)
	}
	c.shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	passed := make([]locker.Grant, len(all))
	for i, g := range all {
		passed[i] = g.Grant
	}
	for i, of := range c.renewAll(b, passed) {
		var want error
		if all[i].fate != held {
			want = locker.ErrLost
		}
		switch {
		case len(of) != 1:
			c.errorf("Renew of %d grants reported %d results of the grant with index %d before it returned; want one",
				len(all), len(of), i)
		case !errors.Is(of[0].Err, want):
			c.errorf("of %d grants, Renew reported %v for that with index %d, which was %v; want %v", len(all),
				of[0].Err, i, all[i].fate, want)
		}
		if g := passed[i]; g.Request != all[i].Request || g.Token != all[i].Token || !g.Sent.Equal(all[i].Sent) {
			c.errorf("Renew has changed the slice of grants that it was given, which is New's")
		}
	}
	for _, g := range all {
		switch g.fate {
		case released:
			g.holder = c.acquires(b, g.request(), "of a key that was released, and renewed by its former owner")
		case succeeded: // see its holder
			continue
		default:
			c.refuses(b, g.request(), fmt.Sprintf("after Renew of a grant that was %v", g.fate))
		}
		c.releases(b, g.holder, fmt.Sprintf("by the owner, after Renew of a grant that was %v", g.fate))
	}
}

// renewAll returns what Renew has reported of each grant by the time that it returned. If a store cannot be reached it
// asks again.
func (c *check) renewAll(b locker.Backend, gs []locker.Grant) [][]locker.Renewal {
	const attempts = 4
	for attempt := 1; ; attempt++ {
		var mu sync.Mutex
		results := make([][]locker.Renewal, len(gs))
		ctx, cancel := context.WithTimeout(c.ctx, c.ttl)
		b.Renew(ctx, gs, func(i int, r locker.Renewal) {
			mu.Lock()
			defer mu.Unlock()
			if i < 0 || i >= len(results) {
				c.errorf("Renew of %d grants reported a result for index %d", len(results), i)
				return
			}
			results[i] = append(results[i], r)
		})
		cancel()
		mu.Lock()
		results = slices.Clone(results) // what it reports later does not count
		mu.Unlock()
		failed := slices.ContainsFunc(results, func(of []locker.Renewal) bool {
			return slices.ContainsFunc(of,
				func(r locker.Renewal) bool { return r.Err != nil && !errors.Is(r.Err, locker.ErrLost) })
		})
		if !failed || attempt == attempts {
			return results
		}
		c.settle()
	}
}

// trusted is for how long a holder trusts a lease after it has sent the request.
func trusted(ttl time.Duration) time.Duration { return ttl - ttl/100 - 2*time.Millisecond }

// kept is a lock that a backend holds without a Locker.
type kept struct {
	grant locker.Grant

	mu       sync.Mutex
	renewed  int
	ttl      time.Duration
	sent     time.Time // from when it is valid for that long
	answered time.Time // until when the store may have set the expiry
	failure  error     // of the renewal that failed last
	over     bool      // lost, or found to be somebody else's
}

// confirm notes that the store has granted or renewed it.
func (k *kept) confirm(sent, since, answered time.Time, ttl time.Duration) {
	if k.sent = sent; !since.IsZero() && since.Before(sent) {
		k.sent = since
	}
	if k.ttl = k.grant.TTL; ttl > 0 {
		k.ttl = ttl
	}
	k.answered = answered
}

// until is when its holder stops trusting it.
func (k *kept) until() time.Time { return k.sent.Add(trusted(k.ttl)) }

func (k *kept) state() (until time.Time, over bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.until(), k.over
}

// tryKeep has b lock a new key for a TTL.
func (c *check) tryKeep(b locker.Backend, ttl time.Duration) (*kept, error) {
	r := c.request()()
	r.TTL = ttl
	sent := time.Now()
	g, err := b.Acquire(c.within(c.ttl), r)
	if err != nil {
		return nil, err
	}
	k := &kept{grant: g}
	granted := g.TTL
	k.grant.Request = r
	k.confirm(sent, g.Sent, time.Now(), granted)
	return k, nil
}

// keep is tryKeep, which has to succeed.
func (c *check) keep(b locker.Backend, ttl time.Duration) *kept {
	k, err := c.tryKeep(b, ttl)
	if err != nil {
		c.record(1, "Acquire of a free key with TTL(%v): %v; want a grant", ttl, err)
		runtime.Goexit()
	}
	return k
}

func renewedForItsTTL(c *check) {
	for _, n := range affordable([]int{1, 2, 3, 4}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}) {
		b := c.h.Backend(c.t)
		rival := c.rivalOf(b)
		ttls := []time.Duration{c.ttl}
		if n <= 2 {
			ttls = append(ttls, 2*c.ttl)
		}
		ttls = affordable(ttls, []time.Duration{c.ttl, 2 * c.ttl, 7 * c.ttl})
		c.do(func() { c.renewsAndStops(b, rival, n, ttls) })
	}
}

// renewsAndStops has a backend renew all that it has so many times, like a process that dies then. Before each time it
// locks more keys, one for each of the TTLs.
func (c *check) renewsAndStops(b locker.Backend, rival locker.Locker, times int, ttls []time.Duration) {
	var all, alone []*kept
	for n := range times + 1 {
		if n > 0 {
			time.Sleep(c.ttl * 3 / 10)
			c.renewKept(b, all, 1+n%2)
		}
		if n > 0 && n == times {
			break
		}
		for i, ttl := range ttls {
			k := c.keep(b, ttl)
			all = append(all, k)
			if (n+i)%2 == 0 { // for this one a rival waits all the time
				c.do(func() { c.lastsForItsTTL(k, rival) })
			} else {
				alone = append(alone, k)
			}
		}
	}
	for _, k := range alone {
		c.do(func() { c.lastsForItsTTL(k, rival) })
	}
	for _, k := range all {
		c.tellsExpired(b, k)
	}
}

// tellsExpired tells a backend that wants to know it when a lease has ended that is not renewed any more, as New does.
func (c *check) tellsExpired(b locker.Backend, k *kept) {
	e := expirer(b)
	if e == nil {
		return
	}
	c.do(func() {
		until, _ := k.state()
		time.Sleep(time.Until(until))
		if _, over := k.state(); !over {
			e.Expired([]locker.Grant{k.grant})
		}
	})
}

// renewKept has b renew locks that it holds, by so many calls.
func (c *check) renewKept(b locker.Backend, all []*kept, calls int) {
	due := slices.DeleteFunc(slices.Clone(all), func(k *kept) bool {
		_, over := k.state()
		return over
	})
	if len(due) == 0 {
		return
	}
	c.shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for together := range slices.Chunk(due, (len(due)+calls-1)/calls) {
		gs := make([]locker.Grant, len(together))
		for i, k := range together {
			gs[i] = k.grant
		}
		sent := time.Now()
		results := c.renewAll(b, gs)
		answered := time.Now()
		for i, k := range together {
			c.applyRenewal(k, results[i], sent, answered)
		}
	}
}

func (c *check) applyRenewal(k *kept, results []locker.Renewal, sent, answered time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case len(results) != 1:
		k.answered, k.failure = answered, errors.New("no result")
	case results[0].Err != nil && !errors.Is(results[0].Err, locker.ErrLost):
		k.answered, k.failure = answered, results[0].Err // the store may have renewed it
	case results[0].Err != nil:
		if !k.over && answered.Before(k.until()) {
			c.errorf("after %d renewals the next one, of a TTL of %v, reported %v, %v before the end of the last one",
				k.renewed, k.grant.TTL, results[0].Err, k.until().Sub(answered))
		}
		k.over = true
	default:
		k.renewed++
		k.confirm(sent, results[0].Sent, answered, results[0].TTL)
	}
}

// lateByRenewals is by how much longer than the TTL of its last renewal a lock may last: a backend that knows when New
// will renew a lease next may do so before.
func (c *check) lateByRenewals(ttl time.Duration) time.Duration {
	return max(c.lateBy(ttl), ttl*9/20+c.soon())
}

// lastsForItsTTL waits for the lock as a rival of its holder, and checks when it gets it.
func (c *check) lastsForItsTTL(k *kept, rival locker.Locker) {
	k.mu.Lock()
	end := k.answered.Add(k.ttl + c.lateByRenewals(k.ttl))
	k.mu.Unlock()
	next, err := rival.Lock(c.untilFree(end), k.grant.Key)
	at := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
	if err != nil {
		c.errorf("a key that was renewed %d times for %v each, and then no more, was not free %v after that: %v",
			k.renewed, k.ttl, at.Sub(k.answered), err)
		return
	}
	if early := k.until().Sub(at); early > 0 {
		c.wrongf("after %d renewals, each for %v, a rival had the lock %v too early", k.renewed, k.ttl, early)
	}
	c.took(at.Sub(k.answered), k.ttl+c.lateByRenewals(k.ttl),
		"after %d renewals, each for %v, until a rival had the lock", k.renewed, k.ttl)
	c.unlock(next)
}

func renewedInBatches(c *check) {
	const most, callers = 1000, 32
	b, other := c.h.Backend(c.t), c.h.Backend(c.t)
	start := time.Now()
	locked := make([]*kept, most)
	var asked atomic.Int64
	c.all(callers, func(int) {
		for time.Since(start) < c.ttl/4 {
			i := asked.Add(1) - 1
			if i >= most {
				return
			}
			locked[i] = c.keep(b, c.ttl)
		}
	})
	locked = slices.DeleteFunc(locked, func(k *kept) bool { return k == nil })
	if len(locked) == 0 {
		took := time.Since(start)
		c.nothing(took, c.ttl/4, "Acquire granted none of %d free keys within %v", asked.Load(), took)
		return
	}
	time.Sleep(time.Until(start.Add(c.ttl / 2)))
	c.renewKept(b, locked, 1)
	for _, k := range locked {
		if !k.over && k.renewed == 0 {
			c.errorf("Renew of %d grants: %v", len(locked), k.failure)
		}
	}
	time.Sleep(time.Until(start.Add(c.ttl * 5 / 4)))

	c.shuffle(len(locked), func(i, j int) { locked[i], locked[j] = locked[j], locked[i] })
	var looked atomic.Int64
	c.all(callers, func(int) {
		for {
			i := looked.Add(1) - 1
			if i >= int64(len(locked)) {
				return
			}
			k := locked[i]
			until, over := k.state()
			if over || k.renewed == 0 || time.Until(until) < c.ttl/20 {
				continue
			}
			r := c.request()()
			r.Key = k.grant.Key
			g, err := other.Acquire(c.within(c.ttl), r)
			if err != nil { // ErrLocked, or an answer that did not come
				continue
			}
			if early := time.Until(until); early > 0 {
				c.wrongf("of %d grants that were renewed together, one was given to another owner %v too early",
					len(locked), early)
			}
			g.Request = r
			_ = other.Release(c.within(c.ttl), g)
		}
	})
	for chunk := range slices.Chunk(locked, (len(locked)+callers-1)/callers) {
		c.do(func() {
			for _, k := range chunk {
				_ = b.Release(c.within(c.ttl), k.grant)
			}
		})
	}
}

func lossIsItsOwn(c *check) {
	breaks := c.has(needsBreak, "the same where a lock is taken away in the store")
	if bound := connectionBound.reason(c.h.Features); bound != "" && breaks {
		c.leaves(inPart, "relaxed for locks that are taken away: %s (Features.%s)", bound, connectionBound.name)
		breaks = false
	}
	for _, of := range []loss{{2, true, false}, {2, false, true}, {3, true, true}, {7, true, true}} {
		if !breaks {
			of.unlocked, of.taken = true, false
		}
		for range affordable(1, 4) {
			c.do(func() { c.loseSome(of) })
		}
	}
}

// loss says how many leases there are, and what becomes of some.
type loss struct {
	leases          int
	unlocked, taken bool // one of them
}

func (c *check) loseSome(of loss) {
	count := newRenewals()
	a, b := c.open(count.observe()), c.open()
	leases := make([]*locker.Lease, of.leases)
	for i := range leases {
		leases[i] = c.tryLock(a, c.key())
	}
	if !c.renewed(count, leases[0], 1) {
		return
	}
	c.shuffle(len(leases), func(i, j int) { leases[i], leases[j] = leases[j], leases[i] })
	if of.unlocked {
		gone := leases[0]
		leases = leases[1:]
		c.unlock(gone)
		c.unlock(c.lock(b, gone.Key()))
	}
	if of.taken {
		gone := leases[0]
		leases = leases[1:]
		c.h.Break(c.t, gone.Key())
		next := c.lock(b, gone.Key())
		c.closedWithin(gone, c.ttl*3/4, "after the lock was taken away in the store, time enough for two renewals")
		defer c.unlockHeld(next, "of another Locker, which took a lock that had been taken away")
	}
	time.Sleep(c.ttl + c.ttl/3)
	for _, lease := range leases {
		if err := lease.Err(); err != nil {
			c.errorf("of %d leases (one unlocked: %v, one taken away in the store: %v), another one was lost: %v",
				of.leases, of.unlocked, of.taken, err)
			continue
		}
		c.refused(
			b,
			lease,
			fmt.Sprintf("of the others of %d keys (one unlocked: %v, one taken away in the store: %v)", of.leases,
				of.unlocked, of.taken),
		)
		c.unlock(lease)
	}
}

// unlockHeld unlocks a lease that is to be held.
func (c *check) unlockHeld(lease *locker.Lease, what string) {
	if err := lease.Err(); err != nil {
		c.record(1, "Err of a lease %s: %v; want nil", what, err)
		return
	}
	c.unlock(lease)
}

func neverResurrects(c *check) {
	const each = 4
	var told [2 * each]time.Duration
	c.all(len(told), func(i int) {
		count := newRenewals()
		a, b := c.open(count.observe()), c.open()
		lease := c.tryLock(a, c.key())
		if i%4 >= 2 && !c.renewed(count, lease, i/4+1) {
			return
		}
		c.h.Break(c.t, lease.Key())
		gone := time.Now()
		var next *locker.Lease
		if i%2 == 1 { // taken, not just gone
			next = c.lock(b, lease.Key())
		}
		c.closedWithin(lease, 2*c.ttl, "after the lock was taken away in the store")
		told[i] = time.Since(gone)
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			c.errorf("Err after the lock was taken away in the store: %v; want ErrLost", err)
		}
		if next == nil {
			c.freeWithin(b, lease.Key(), c.ttl/4, "after the lock was taken away in the store")
			return
		}
		time.Sleep(c.ttl / 2)
		c.unlockHeld(next, "of another Locker, which took a lock that had been taken away")
		c.freeWithin(a, lease.Key(), c.ttl/4, "after the next holder unlocked")
	})
	c.tookMedian(told[:], c.ttl*3/4, "until holders whose locks were taken away in the store were told (two renewals)")
}
