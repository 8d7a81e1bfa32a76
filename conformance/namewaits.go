package conformance

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

var nameWaitRules = []rule{
	{
		name: "EachNameWakes", body: eachNameWakes, relaxes: sharesKeys, since: "v0.1.0", expires: true,
		did: "A hundred names and more, of which many look alike, are held, beneath two prefixes and without one, and " +
			"waited for by another Locker. They are unlocked one by one, in an order drawn at random. Who got them by waiting " +
			"holds them beyond a TTL. The holder of others vanishes.",
		text: "A release, or the end of a TTL, serves those who wait for that very name, whatever bytes it has, and nobody " +
			"else.",
		hint: "Whatever a wait needs (a channel, a line, a watch, a key in a map) is to be named by all of Request.Name(), " +
			"in the same way by who waits and by who releases. Where several names share one, whoever is called by it has to " +
			"look for his own, and must not take the turn of others.",
	},
}

// contested is a name that is held and waited for.
type contested struct {
	name
	holder   *locker.Lease
	unlocked atomic.Bool // or about to be
	wait     *wait
	granted  time.Time
}

const (
	holding = 0 // the process that holds
	waiting = 1 // and the one that waits
)

func eachNameWakes(c *check) {
	small, big, expiring := c.key()+":a:", c.key()+":A:", c.key()+":x:"
	ps := c.openPeers(2, small, big, expiring, "")
	ctx, giveUp := context.WithTimeout(c.ctx, 15*c.ttl)
	defer giveUp()

	names, toExpire := c.namesToWaitFor(small, big), c.namesToWaitFor(expiring)
	each := c.pace(ps[small][waiting])
	switch {
	case c.polls():
		// Who polls asks every 40 ms or so: for a quarter of the time, if the store does one thing after the other.
		names = c.someOf(names, asMany(6*time.Millisecond, each, 24, min(200, len(names))))
		toExpire = c.someOf(toExpire, asMany(4*time.Millisecond, each, 12, min(100, len(toExpire))))
	case !inFakeTime(): // where a slow store is no reason to ask for fewer
		names = c.someOf(names, asMany(c.ttl/2, each, 24, len(names)))
		toExpire = c.someOf(toExpire, asMany(c.ttl/4, each, 12, len(toExpire))) // nearly all at the same time
	}
	expired := make(chan struct{})
	c.do(func() {
		defer close(expired)
		if c.h.Features.RenewsItself != "" {
			c.leaves(inPart, "not looked at: whether each name expires (Features.RenewsItself)")
			return
		}
		c.eachNameExpires(ctx, ps, toExpire)
	})
	defer func() { <-expired }()

	all := c.contest(ctx, ps, names, anew)
	if c.failed() {
		return
	}
	slow := c.wakeEach(all)
	if c.failed() {
		return
	}
	leases := make([]*locker.Lease, len(all))
	for i, n := range all {
		names[i], leases[i] = n.name, n.wait.lease
	}
	c.beyondTTL()
	c.livesOn(ps, holding, names[:len(all)], leases, "by who had waited for it")
	c.wakeAgain(ctx, ps, all, slow)
}

// polls reports whether a Lock asks the store again and again while it waits, as far as that can be known.
func (c *check) polls() bool {
	if c.h.Backend == nil {
		return true
	}
	f, ok := c.h.Backend(c.t).(interface{ Features() locker.Features })
	return !ok || !f.Features().Queue
}

// namesToWaitFor returns names beneath prefixes, and without one: the common ones, and some of the others. In fake
// time, which none of that takes, they are all of them: so many that 16 bits of a hash are not enough.
func (c *check) namesToWaitFor(prefixes ...string) (names []name) {
	const some = 16
	prefix := prefixes[0]
	rest := c.allNames()[len(commonNames):]
	for _, key := range commonNames {
		names = append(names, name{prefix, key})
	}
	for i, key := range rest {
		if inFakeTime() || c.draw(len(rest)) < some {
			names = append(names, name{prefix, key})
			if !inFakeTime() && i > 0 { // with its neighbour, which may look like it
				names = append(names, name{prefix, rest[i-1]})
			}
		}
	}
	for _, prefix := range prefixes[1:] { // next to those that are the same but for the prefix
		for i, key := range commonNames[:16] {
			key += fmt.Sprint("/", i)
			names = append(names, name{prefixes[0], key}, name{prefix, key})
		}
	}
	own := c.key()
	for _, tw := range knownTwins {
		names = append(names, name{"", tw.first + own}, name{"", tw.second + own})
	}
	return distinct(names)
}

// someOf returns n of some names, two and two next to one another.
func (c *check) someOf(names []name, n int) (some []name) {
	if n >= len(names) {
		return names
	}
	pairs := make([]int, len(names)/2)
	for i := range pairs {
		pairs[i] = 2 * i
	}
	c.shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	for _, at := range pairs[:(n+1)/2] {
		some = append(some, names[at:at+2]...)
	}
	return some
}

// contest has one process hold the names and another wait for them. Those that are next to one another are waited for
// one after the other.
func (c *check) contest(
	ctx context.Context, ps peers, names []name, before bool, opts ...locker.CallOption,
) (all []*contested) {
	leases := c.lockAll(ps, holding, names, before, opts...)
	for i, lease := range leases {
		if lease != nil {
			all = append(all, &contested{name: names[i], holder: lease, granted: time.Now()})
		}
	}
	for wave := range waves {
		for i := wave; i < len(all); i += waves {
			c.await(ctx, ps, all[i])
		}
		c.settle()
	}
	return all
}

const waves = 4

// await has a process wait for a name that another one holds.
func (c *check) await(ctx context.Context, ps peers, n *contested) {
	n.wait = &wait{done: make(chan struct{})}
	c.do(func() {
		n.wait.lock(ctx, ps[n.prefix][waiting], n.key)
		if n.wait.lease != nil && !n.unlocked.Load() && n.holder.Err() == nil {
			c.wrongf("Lock(%v) returned while its holder held it: it was called in place of another", n.name)
		}
	})
}

// wakeEach unlocks the names one by one, those first that are waited for last, and otherwise in random order; if that
// takes long, the rest of them at once. It returns how long it took the waiters of some to get them that were slow.
func (c *check) wakeEach(all []*contested) (slow map[name]time.Duration) {
	slow = make(map[name]time.Duration)
	var inTurn []*contested
	for wave := waves - 1; wave >= 0; wave-- {
		var together []*contested
		for i := wave; i < len(all); i += waves {
			together = append(together, all[i])
		}
		c.shuffle(len(together), func(i, j int) { together[i], together[j] = together[j], together[i] })
		inTurn = append(inTurn, together...)
	}
	missing := 0
	start := time.Now()
	for i, n := range inTurn {
		if time.Since(start) > 2*c.ttl {
			c.several(len(inTurn)-i, func(j int) { _, _ = c.wake(inTurn[i+j]) })
			return slow
		}
		took, ok := c.wake(n)
		switch {
		case !ok:
			missing++
		case took > c.h.Features.WakeWithin:
			slow[n.name] = took
		}
		if missing == 3 || c.failed() && missing == 0 {
			return nil
		}
	}
	return slow
}

// wake unlocks a name and waits until its waiter has it, and returns how long that took.
func (c *check) wake(n *contested) (took time.Duration, ok bool) {
	n.unlocked.Store(true)
	released := time.Now()
	if err := n.holder.Unlock(); err != nil {
		c.errorf("Unlock of %v, while others wait for other names: %v; want nil", n.name, err)
	}
	select {
	case <-n.wait.done:
	case <-time.After(2 * c.ttl):
		c.errorf("Lock(%v): nothing %v after its holder unlocked, while others wait for other names", n.name, 2*c.ttl)
		return 0, false
	}
	if n.wait.err != nil {
		c.errorf("Lock(%v), which others hold for a while: %v", n.name, n.wait.err)
		return 0, false
	}
	return n.wait.at.Sub(released), true
}

// wakeAgain has names waited for and unlocked again whose waiters were slow to get them, along with those next to them,
// which may look like them: a machine may be busy for a moment, but what has to do with names is slow each time.
func (c *check) wakeAgain(ctx context.Context, ps peers, all []*contested, slow map[name]time.Duration) {
	const most, near, times = 8, waves, 3
	for round := 1; round < times && len(slow) > 0 && !inFakeTime(); round++ {
		wanted := make([]bool, len(all))
		left := most
		for i, n := range all {
			if _, ok := slow[n.name]; ok && left > 0 {
				left--
				for j := max(0, i-near); j <= min(len(all)-1, i+near); j++ {
					wanted[j] = true
				}
			}
		}
		var names []name
		for i, n := range all {
			if wanted[i] {
				names = append(names, n.name)
			}
		}
		relocked := c.contest(ctx, ps, names, again)
		slowAgain := c.wakeEach(relocked)
		if c.failed() {
			return
		}
		for _, n := range relocked {
			c.unlock(n.wait.lease)
		}
		for n, took := range slowAgain {
			if before, ok := slow[n]; ok {
				slowAgain[n] = min(took, before)
			} else {
				delete(slowAgain, n)
			}
		}
		slow = slowAgain
	}
	for n, took := range slow {
		c.took(took, c.h.Features.WakeWithin,
			"from Unlock of %v until its waiter had it, each time, while others wait for other names,", n)
	}
}

// eachNameExpires has the holder of names vanish. The waiters are to get them when its TTL has passed.
func (c *check) eachNameExpires(ctx context.Context, ps peers, names []name) {
	all := c.contest(ctx, ps, names, anew, locker.NoRenew())
	for _, n := range all {
		select {
		case <-n.wait.done:
		case <-time.After(time.Until(n.holder.Deadline().Add(2 * c.ttl))):
			c.errorf("Lock(%v), whose holder has vanished: nothing %v after the end of its lease", n.name, 2*c.ttl)
			return
		}
		if n.wait.err != nil {
			c.errorf("Lock(%v), whose holder has vanished: %v", n.name, n.wait.err)
			return
		}
		c.took(n.wait.at.Sub(n.granted.Add(c.ttl)), c.soon(), "from the end of the TTL of %v until its waiter had it", n.name)
	}
	c.several(len(all), func(i int) { c.unlock(all[i].wait.lease) })
}
