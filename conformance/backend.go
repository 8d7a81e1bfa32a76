package conformance

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/lockerkit/locker"
)

// The rules of locker.Backend that a Locker keeps people from seeing broken, until a lost answer or a pause shows them.
var backendRules = []rule{
	{
		name: "OwnerDecides", body: ownerDecides, needs: needsBackend,
		did: "Release and Renew are called with owners that differ from the holder's in one byte or in all, and then with " +
			"the holder's own, twice.",
		text: "Release and Renew by anybody but the owner, compared whole, return ErrLost and change nothing.",
		hint: hintOwner,
	},
	{
		name: "AcquireAgain", body: acquireAgain, needs: needsBackend,
		did: "Acquire is called a second time for the owner who holds the key, and by another owner when more than a TTL " +
			"has passed since the first time.",
		text: "Acquire by the owner who holds the key already returns the same token, and sets the expiry anew.",
		hint: "Store the token beside the owner, and return it when Request.Owner is the one who holds the key: answers " +
			"get lost, and clients ask again.",
	},
	{
		name: "ExpiredIsGone", body: expiredIsGone, needs: needsBackend,
		did: "Renew is called for a lease that has expired (of which a locker.Expirer has been told); then another owner " +
			"acquires the key, and the first one calls Release. An Expirer is also told late, when another owner may have " +
			"the key.",
		text: "Renew of a lease that has expired returns ErrLost and does not bring it back, though nobody has taken the " +
			"key since.",
		hint: "An expired record is no record, for Renew and Release as for Acquire: compare with the store's clock in " +
			"the same atomic step. Expired frees what Grant.Owner has, and nothing else.",
	},
	{
		name: "UnknownOutcome", body: unknownOutcome, needs: needsBackend,
		did: "Release is called with Token 0, as after an Acquire whose answer got lost: by an owner that has nothing, " +
			"and by the one that has the key.",
		text: "Release with token 0 frees what its owner has, if anything, and nothing else.",
		hint: "Release decides by Grant.Owner alone: the token plays no part in it.",
	},
}

// backend returns the backend under test and a request for a new key; the owner is distinct for each call.
func (c *check) backend() (locker.Backend, func() locker.Request) {
	return c.h.Backend(c.t), c.request()
}

// request returns a function that makes requests for a new key; the owner is distinct for each call.
func (c *check) request() func() locker.Request {
	key := c.key()
	return func() locker.Request {
		r := locker.Request{Key: key, TTL: c.ttl}
		for i := range r.Owner {
			r.Owner[i] = byte(rand.Uint32())
		}
		return r
	}
}

// expirer returns b if New would call its Expired, and nil otherwise.
func expirer(b locker.Backend) locker.Expirer {
	f, ok := b.(interface{ Features() locker.Features })
	if !ok || !f.Features().Expirer {
		return nil
	}
	e, _ := b.(locker.Expirer)
	return e
}

// acquires checks that b grants r.
func (c *check) acquires(b locker.Backend, r locker.Request, when string) locker.Grant {
	g, err := b.Acquire(c.within(c.ttl), r)
	if err != nil {
		c.record(1, "Acquire %s: %v; want a grant", when, err)
		runtime.Goexit()
	}
	g.Request = r
	return g
}

// refuses checks that b refuses r.
func (c *check) refuses(b locker.Backend, r locker.Request, when string) {
	if _, err := b.Acquire(c.within(c.ttl), r); !errors.Is(err, locker.ErrLocked) {
		c.record(1, "Acquire by another owner %s: %v; want ErrLocked", when, err)
	}
}

func (c *check) renew(ctx context.Context, b locker.Backend, g locker.Grant) error {
	results := make(chan error, 2)
	b.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) {
		select {
		case results <- r.Err:
		default:
		}
	})
	if n := len(results); n != 1 {
		c.fatalf("Renew of one grant reported %d results before it returned", n)
	}
	return <-results
}

func ownerDecides(c *check) {
	b, request := c.backend()
	ctx := c.within(10 * c.ttl)
	g := c.acquires(b, request(), "of a free key")
	alike := g
	alike.Owner[len(alike.Owner)-1]++ // differs in the last byte
	other := g
	other.Owner = request().Owner
	for _, stranger := range []locker.Grant{alike, other} {
		if err := b.Release(ctx, stranger); !errors.Is(err, locker.ErrLost) {
			c.errorf("Release by another owner: %v; want ErrLost", err)
		}
		if err := c.renew(ctx, b, stranger); !errors.Is(err, locker.ErrLost) {
			c.errorf("Renew by another owner: %v; want ErrLost", err)
		}
		c.refuses(b, request(), "after another owner tried to release the key")
	}
	if err := c.renew(ctx, b, g); err != nil {
		c.errorf("Renew by the owner: %v", err)
	}
	if err := b.Release(ctx, g); err != nil {
		c.errorf("Release by the owner: %v", err)
	}
	if err := b.Release(ctx, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("second Release: %v; want ErrLost", err)
	}
	if err := c.renew(ctx, b, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("Renew after Release: %v; want ErrLost", err)
	}
	next := c.acquires(b, request(), "of a key that was released")
	if next.Token <= g.Token {
		c.errorf("the second grant has token %d, the first had %d", next.Token, g.Token)
	}
}

func acquireAgain(c *check) {
	b, request := c.backend()
	r := request()
	first := c.acquires(b, r, "of a free key")
	time.Sleep(c.ttl * 6 / 10)
	second := c.acquires(b, r, "by the owner that holds the key")
	greater := greaterTokenAgain.reason(c.h.Features)
	if greater != "" {
		c.leaves(inPart, "relaxed for a greater token: %s (Features.%s)", greater, greaterTokenAgain.name)
	}
	if second.Token < first.Token || second.Token > first.Token && greater == "" || first.Token == 0 {
		c.errorf("the same owner got token %d, and asking again %d", first.Token, second.Token)
	}
	time.Sleep(c.ttl * 6 / 10)
	c.refuses(b, request(), "before the TTL has passed since the owner asked again")
	if err := b.Release(c.within(c.ttl), second); err != nil {
		c.errorf("Release: %v", err)
	}
	c.acquires(b, request(), "of a key that was released")
}

func expiredIsGone(c *check) {
	b, request := c.backend()
	g := c.acquires(b, request(), "of a free key")
	time.Sleep(c.ttl + c.ttl/10)
	e := expirer(b)
	if e != nil {
		e.Expired([]locker.Grant{g})
	}
	if err := c.renew(c.within(c.ttl), b, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("Renew of a lease that has expired: %v; want ErrLost", err)
	}
	next := c.acquiresSoon(b, e, request(), "of a key whose lease has expired")
	if next.Token <= g.Token {
		c.errorf("the grant after an expiry has token %d, the one before had %d", next.Token, g.Token)
	}
	if err := b.Release(c.within(c.ttl), g); !errors.Is(err, locker.ErrLost) {
		c.errorf("Release by the owner whose lease has expired, while another has the key: %v; want ErrLost", err)
	}
	c.refuses(b, request(), "after the former holder tried to release the key")
	if e != nil {
		c.expiresLate(b, e)
	}
}

// expiresLate checks that Expired, when it comes late, takes nothing from the next holder. If the store keeps the lock
// until then, there is none.
func (c *check) expiresLate(b locker.Backend, e locker.Expirer) {
	request := c.request()
	g := c.acquires(b, request(), "of a free key")
	time.Sleep(c.ttl + c.ttl/10)
	r := request()
	_, err := b.Acquire(c.within(c.ttl), r)
	e.Expired([]locker.Grant{g})
	switch {
	case errors.Is(err, locker.ErrLocked):
		c.acquiresSoon(b, e, r, "of a key of whose expiry the backend has just been told")
	case err != nil:
		c.errorf("Acquire of a key whose lease has expired: %v; want a grant, or ErrLocked", err)
	}
	c.settle() // Expired does not wait for the store
	c.refuses(b, request(), "after Expired for the owner before")
}

// acquiresSoon is acquires for a key that an Expirer, which must not wait for the store, may still be about to free.
func (c *check) acquiresSoon(b locker.Backend, e locker.Expirer, r locker.Request, when string) locker.Grant {
	for start := time.Now(); e != nil && time.Since(start) < c.ttl; time.Sleep(c.ttl / 50) {
		g, err := b.Acquire(c.within(c.ttl), r)
		if err == nil {
			g.Request = r
			return g
		}
		if !errors.Is(err, locker.ErrLocked) {
			break
		}
	}
	return c.acquires(b, r, when)
}

func unknownOutcome(c *check) {
	b, request := c.backend()
	ctx := c.within(10 * c.ttl)
	r := request()
	g := c.acquires(b, r, "of a free key")
	if err := b.Release(ctx, locker.Grant{Request: request()}); !errors.Is(err, locker.ErrLost) {
		c.errorf("Release with token 0 by an owner that has nothing: %v; want ErrLost", err)
	}
	c.refuses(b, request(), "after an owner that has nothing released with token 0")
	if err := b.Release(ctx, locker.Grant{Request: g.Request}); err != nil {
		c.errorf("Release with token 0 by the owner that has the key: %v", err)
	}
	c.acquires(b, request(), "of a key that was released with token 0")
}
