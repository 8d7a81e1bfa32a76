package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// source returns a source of random numbers for one goroutine.
func (c *check) source() *rand.Rand {
	return rand.New(rand.NewPCG(uint64(c.draw(1<<62)), 0)) //nolint:gosec // to be repeatable is the point
}

// requestsAtATime is how many requests a rule makes at the same time that makes very many.
const requestsAtATime = 16

// each calls f(0) to f(n-1), several at a time.
func (c *check) each(n int, f func(i int)) {
	var next atomic.Int64
	c.all(min(n, requestsAtATime), func(int) {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	})
}

func ownersAlike(c *check) {
	b := c.h.Backend(c.t)
	pairs := allTwins(c.source())
	lasting := 20 * c.ttl // none is to expire meanwhile
	held := make([]locker.Grant, len(pairs))
	alike := make([]locker.Grant, len(pairs))
	var failed atomic.Bool
	c.each(len(pairs), func(i int) {
		// The name plays no part in ownership.
		r := locker.Request{Key: c.key(), TTL: lasting, Owner: pairs[i].holder, Holder: "conformance-holder"}
		g, err := c.askAcquire(b, r)
		if err != nil {
			failed.Store(true)
			c.errorf("Acquire of a free key: %v; want a grant", err)
			return
		}
		held[i], alike[i] = g, g
		alike[i].Owner = pairs[i].stranger
	})
	if failed.Load() {
		return
	}
	lost := func(err error, what string, i int) {
		switch {
		case err == nil:
			c.wrongf("%s by an owner who %s (%v, %v): nil; want ErrLost", what, pairs[i].how, held[i].Owner, alike[i].Owner)
		case !errors.Is(err, locker.ErrLost):
			c.errorf("%s by an owner who %s: %v; want ErrLost", what, pairs[i].how, err)
		}
	}
	for i, err := range c.renewOnce(b, alike) {
		lost(err, "Renew", i)
	}
	c.each(len(pairs), func(i int) {
		r := alike[i].Request
		if g, err := c.askAcquire(b, r); err == nil {
			c.errorf("Acquire by an owner who %s: a grant, with token %d; want ErrLocked", pairs[i].how, g.Token)
		}
		lost(c.askRelease(b, locker.Grant{Request: r}), "Release with token 0", i)
		lost(c.askRelease(b, alike[i]), "Release", i)
	})
	if !c.wasWrong() {
		c.crowd(b, held)
	}
	for i, err := range c.renewOnce(b, held) {
		if err != nil {
			c.errorf("Renew by the owner of a key that an owner has tried to release who %s: %v; want nil", pairs[i].how, err)
		}
	}
	c.each(len(pairs), func(i int) { c.releases(b, held[i], "by the owner") })
	if q := queue(b); q != nil {
		pairs = allTwins(c.source()) // as these are others who acquire
		c.all(len(pairs), func(i int) {
			if !pairs[i].fixed && (i%8 == 0 || i >= 8*ownerSize) { // one bit of each byte, and all that is not about bits
				c.leavesLineOf(b, q, pairs[i])
			}
		})
	}
}

// renewOnce renews grants by one call, as New does, and those whose result is not the store's again.
func (c *check) renewOnce(b locker.Backend, gs []locker.Grant) []error {
	results := make([]error, len(gs))
	for i, of := range c.renewAll(b, slices.Clone(gs)) {
		if len(of) == 1 && isAnswer(of[0].Err) {
			results[i] = of[0].Err
		} else {
			results[i] = c.askRenew(b, gs[i])
		}
	}
	return results
}

// crowd has very many strangers renew and release what is held: as many as it takes to meet one whom a hash of 16 bits
// takes for the holder, or as can be asked for in half a TTL.
func (c *check) crowd(b locker.Backend, held []locker.Grant) {
	const most = 3 << 16
	start := time.Now()
	inTime := func() bool { return time.Since(start) < c.ttl/2 }
	random := c.source()
	strangers := slices.Clone(held)
	for asked := 0; asked < most && inTime(); asked += len(held) {
		for i := range strangers {
			strangers[i].Owner = drawOwner(random)
		}
		ctx, cancel := context.WithTimeout(c.ctx, c.ttl)
		var mu sync.Mutex // done may come from any goroutine
		b.Renew(ctx, strangers, func(i int, r locker.Renewal) {
			mu.Lock()
			defer mu.Unlock()
			if r.Err == nil {
				c.wrongf("Renew of what %v has, by %v: nil; want ErrLost", held[i].Owner, strangers[i].Owner)
			}
		})
		cancel()
	}
	start = time.Now()
	var asked atomic.Int64
	ctx, cancel := context.WithTimeout(c.ctx, 5*c.ttl)
	defer cancel()
	c.all(requestsAtATime, func(int) {
		random := c.source()
		for i := int(asked.Add(1)); i < most && inTime(); i = int(asked.Add(1)) {
			g := held[i%len(held)]
			g.Owner = drawOwner(random)
			if err := b.Release(ctx, g); err == nil {
				c.wrongf("Release of what %v has, by %v: nil; want ErrLost", held[i%len(held)].Owner, g.Owner)
			}
		}
	})
}

// queue returns b if New would call its Wait, and nil otherwise.
func queue(b locker.Backend) locker.Queue {
	f, ok := b.(interface{ Features() locker.Features })
	if !ok || !f.Features().Queue {
		return nil
	}
	q, _ := b.(locker.Queue)
	return q
}

// leavesLineOf checks that an owner in line stays there when one like him leaves it.
func (c *check) leavesLineOf(b locker.Backend, q locker.Queue, pair twins) {
	request := c.request()
	holder := request()
	holder.TTL = 20 * c.ttl
	g := c.acquires(b, holder, "of a free key")
	waiting := holder
	waiting.Owner = pair.holder
	ctx, cancel := context.WithTimeout(c.ctx, 4*c.ttl)
	defer cancel()
	served := make(chan error, 1)
	var next locker.Grant
	c.do(func() {
		var err error
		next, err = q.Wait(ctx, waiting)
		next.Request = waiting
		served <- err
	})
	c.getInLine()
	leaving := waiting
	leaving.Owner = pair.stranger
	if err := c.askRelease(b, locker.Grant{Request: leaving}); !errors.Is(err, locker.ErrLost) {
		c.errorf("Release with token 0 by an owner who %s, of whom somebody waits in line: %v; want ErrLost", pair.how, err)
	}
	c.releases(b, g, "by the owner")
	released := time.Now()
	err := <-served
	switch {
	case errors.Is(err, locker.ErrLost), errors.Is(err, context.DeadlineExceeded):
		c.errorf("Wait: %v, %v after the key was released; an owner had released it meanwhile with token 0 who %s",
			err, time.Since(released), pair.how)
	case err == nil:
		c.took(time.Since(released), c.soon(), "from Release until Wait had returned")
		c.releases(b, next, "by the owner that has waited")
	}
}

// getInLine gives a Wait that was started the time to reach the store. In fake time it takes none: if Wait waits for
// what was made outside of the bubble, too, such as a channel of a backend that several tests share, time does not
// pass.
func (c *check) getInLine() {
	if !inFakeTime() {
		c.settle()
		return
	}
	for range 1000 {
		runtime.Gosched()
	}
}
