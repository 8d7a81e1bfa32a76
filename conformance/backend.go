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
		name: "OwnersAlike", body: ownersAlike, needs: needsBackend, since: "v0.1.0",
		did: "Some 200 keys are held. Owners that are like the holders try to renew, acquire and release them: with one " +
			"bit changed, the same up to a NUL or without case, with the same bytes in another order, with the same " +
			"checksum; and very many that are drawn at random. With locker.Queue, they also leave a line in which the other " +
			"one waits.",
		text: "An owner is all of its 16 bytes, of any value: whoever differs in one bit is somebody else.",
		hint: hintOwner + " Store them as bytes, or in hexadecimal; in a database, not as text.",
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
		name: "ExpiredIsGone", body: expiredIsGone, needs: needsBackend, expires: true, relaxes: renewsItself,
		did: "Renew is called for a lease that has expired (of which a locker.Expirer has been told); then another owner " +
			"acquires the key, and the first one calls Release. An Expirer is also told late, when another owner may have " +
			"the key.",
		text: "Renew of a lease that has expired returns ErrLost and does not bring it back, though nobody has taken the " +
			"key since.",
		hint: "An expired record is no record, for Renew and Release as for Acquire: compare with the store's clock in " +
			"the same atomic step. Expired frees what Grant.Owner has, and nothing else.",
	},
	{
		name: "AtomicAtExpiry", body: atomicAtExpiry, needs: needsBackend, expires: true, since: "v0.1.0",
		did: "180 leases expire, each of a key of its own. A moment before that, from microseconds to a fifth of the TTL, " +
			"their owners call Release, Renew or Acquire again. Two others call Acquire all the time from then on.",
		text: "To look whether the owner still has the key, and to change something, is one step of the store. So is to " +
			"see that a key is free, and to take it.",
		hint: "Between two requests a lease may expire, and another owner get the key. Put both into one: a script, a " +
			"transaction, a conditional update (UPDATE ... WHERE owner = ... AND expires > now()), a mutex that is kept.",
	},
	{
		name: "UnknownOutcome", body: unknownOutcome, needs: needsBackend,
		did: "Release is called with Token 0, as after an Acquire whose answer got lost: by an owner that has nothing, " +
			"and by the one that has the key.",
		text: "Release with token 0 frees what its owner has, if anything, and nothing else.",
		hint: "Release decides by Grant.Owner alone: the token plays no part in it.",
	},
}

// rivalOf returns a Locker for the names that a backend of Harness.Backend has. That is one of Harness.Open, unless it
// adds a prefix.
func (c *check) rivalOf(b locker.Backend) locker.Locker {
	l := c.open()
	g := c.acquires(b, c.request()(), "of a free key")
	lease, err := l.TryLock(c.within(10*c.ttl), g.Key)
	if err == nil {
		c.unlock(lease)
	}
	_ = b.Release(c.within(c.ttl), g)
	if errors.Is(err, locker.ErrLocked) {
		return l
	}
	// It does not wait in line, but polls: the hook may have made it outside of the bubble of fake time that this is
	// in.
	l = locker.New(bare{c.h.Backend(c.t)}, locker.TTL(c.ttl))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = append(c.opened, l)
	return l
}

// bare is a backend of which not everything is used, and which the harness closes.
type bare struct{ locker.Backend }

func (bare) Close() error { return nil }

// Features implements what is optional in a locker.Backend.
func (b bare) Features() locker.Features {
	f, ok := b.Backend.(interface{ Features() locker.Features })
	if !ok {
		return locker.Features{}
	}
	return locker.Features{HeedsContext: f.Features().HeedsContext, Expirer: f.Features().Expirer}
}

// Expired implements locker.Expirer, which is stated if the backend states it.
func (b bare) Expired(gs []locker.Grant) { b.Backend.(locker.Expirer).Expired(gs) }

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

// notRenewed returns r for a lease that is to end with its TTL.
func notRenewed(r locker.Request) locker.Request {
	r.NoRenew = true
	return r
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

// isAnswer reports whether err, which a backend has returned, is what the store has said, or what will not pass by
// itself. Any other error may happen, and be another one when the store is asked again.
func isAnswer(err error) bool {
	for _, answer := range []error{
		locker.ErrLocked, locker.ErrLost, locker.ErrInvalidKey, locker.ErrInvalidOption, locker.ErrDenied, locker.ErrUnfit,
		errors.ErrUnsupported,
	} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return err == nil
}

// ask has a method of a backend called until the store has answered: a few times, and for a while.
func (c *check) ask(call func(ctx context.Context) error) error {
	const few = 5
	start := time.Now()
	for i := 1; ; i++ {
		ctx, cancel := context.WithTimeout(c.ctx, c.ttl)
		err := call(ctx)
		cancel()
		if isAnswer(err) || i >= few && time.Since(start) > 2*c.ttl {
			return err
		}
		time.Sleep(time.Duration(i) * c.ttl / 50)
	}
}

// askAcquire is Acquire until the store has answered.
func (c *check) askAcquire(b locker.Backend, r locker.Request) (g locker.Grant, err error) {
	err = c.ask(func(ctx context.Context) error {
		g, err = b.Acquire(ctx, r)
		return err
	})
	g.Request = r
	return g, err
}

// askRenew is Renew of one grant until the store has answered.
func (c *check) askRenew(b locker.Backend, g locker.Grant) error {
	return c.ask(func(ctx context.Context) error { return c.renew(ctx, b, g).Err })
}

// askRelease is Release by a stranger until the store has answered.
func (c *check) askRelease(b locker.Backend, g locker.Grant) error {
	return c.ask(func(ctx context.Context) error { return b.Release(ctx, g) })
}

// releases checks that b releases g, which its owner has. One whose answer got lost may have done it.
func (c *check) releases(b locker.Backend, g locker.Grant, when string) {
	doubt := false
	err := c.ask(func(ctx context.Context) error {
		err := b.Release(ctx, g)
		if doubt && errors.Is(err, locker.ErrLost) {
			return nil
		}
		doubt = doubt || !isAnswer(err)
		return err
	})
	if err != nil {
		c.record(1, "Release %s: %v; want nil", when, err)
	}
}

// acquires checks that b grants r.
func (c *check) acquires(b locker.Backend, r locker.Request, when string) locker.Grant {
	g, err := c.askAcquire(b, r)
	if err != nil {
		c.record(1, "Acquire %s: %v; want a grant", when, err)
		runtime.Goexit()
	}
	return g
}

// refuses checks that b refuses r.
func (c *check) refuses(b locker.Backend, r locker.Request, when string) {
	if _, err := c.askAcquire(b, r); !errors.Is(err, locker.ErrLocked) {
		c.record(1, "Acquire by another owner %s: %v; want ErrLocked", when, err)
	}
}

func (c *check) renew(ctx context.Context, b locker.Backend, g locker.Grant) locker.Renewal {
	results := make(chan locker.Renewal, 2)
	b.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) {
		select {
		case results <- r:
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
	g := c.acquires(b, request(), "of a free key")
	alike := g
	alike.Owner[len(alike.Owner)-1]++ // differs in the last byte
	other := g
	other.Owner = request().Owner
	for _, stranger := range []locker.Grant{alike, other} {
		if err := c.askRelease(b, stranger); !errors.Is(err, locker.ErrLost) {
			c.errorf("Release by another owner: %v; want ErrLost", err)
		}
		if err := c.askRenew(b, stranger); !errors.Is(err, locker.ErrLost) {
			c.errorf("Renew by another owner: %v; want ErrLost", err)
		}
		c.refuses(b, request(), "after another owner tried to release the key")
	}
	if err := c.askRenew(b, g); err != nil {
		c.errorf("Renew by the owner: %v", err)
	}
	c.releases(b, g, "by the owner")
	if err := c.askRelease(b, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("second Release: %v; want ErrLost", err)
	}
	if err := c.askRenew(b, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("Renew after Release: %v; want ErrLost", err)
	}
	next := c.acquires(b, request(), "of a key that was released")
	if next.Token <= g.Token {
		c.errorf("the second grant has token %d, the first had %d", next.Token, g.Token)
	}
}

func acquireAgain(c *check) {
	b := c.h.Backend(c.t)
	for range 3 {
		if c.askAgain(b) {
			return
		}
	}
	c.errorf("the backend took so long each time that the TTL had passed before anything could be seen")
}

// askAgain has an owner ask for a key that it has. It reports false if the TTL may have passed when that was looked at:
// then the owner has been granted the key anew, and rightly, or another one has.
func (c *check) askAgain(b locker.Backend) (judged bool) {
	request := c.request()
	r := request()
	asked := time.Now()
	first := c.acquires(b, r, "of a free key")
	time.Sleep(time.Until(asked.Add(c.ttl * 6 / 10)))
	again := time.Now()
	second := c.acquires(b, r, "by the owner that holds the key")
	if time.Since(asked) >= c.ttl {
		return false
	}
	greater := greaterTokenAgain.reason(c.h.Features)
	if greater != "" {
		c.leaves(inPart, "relaxed for a greater token: %s (Features.%s)", greater, greaterTokenAgain.name)
	}
	if second.Token < first.Token || second.Token > first.Token && greater == "" || first.Token == 0 {
		c.errorf("the same owner got token %d, and asking again %d", first.Token, second.Token)
	}
	time.Sleep(time.Until(asked.Add(c.ttl * 12 / 10)))
	other, err := c.askAcquire(b, request())
	if time.Since(again) >= c.ttl {
		return false
	}
	if !errors.Is(err, locker.ErrLocked) {
		c.errorf("Acquire by another owner before the TTL has passed since the owner asked again: %v; want ErrLocked", err)
	}
	if err == nil {
		c.releases(b, other, "by the owner")
		return true
	}
	c.releases(b, second, "by the owner who asked again")
	c.acquires(b, request(), "of a key that was released")
	return true
}

func expiredIsGone(c *check) {
	b, request := c.backend()
	g := c.acquires(b, notRenewed(request()), "of a free key")
	time.Sleep(c.ttl + c.ttl/10)
	e := expirer(b)
	if e != nil {
		e.Expired([]locker.Grant{g})
	}
	if err := c.askRenew(b, g); !errors.Is(err, locker.ErrLost) {
		c.errorf("Renew of a lease that has expired: %v; want ErrLost", err)
	}
	next := c.acquiresSoon(b, e, request(), "of a key whose lease has expired")
	if next.Token <= g.Token {
		c.errorf("the grant after an expiry has token %d, the one before had %d", next.Token, g.Token)
	}
	if err := c.askRelease(b, g); !errors.Is(err, locker.ErrLost) {
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
	g := c.acquires(b, notRenewed(request()), "of a free key")
	time.Sleep(c.ttl + c.ttl/10)
	r := request()
	_, err := c.askAcquire(b, r)
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
		g, err := c.askAcquire(b, r)
		if err == nil {
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
	g := c.acquires(b, request(), "of a free key")
	if err := c.askRelease(b, locker.Grant{Request: request()}); !errors.Is(err, locker.ErrLost) {
		c.errorf("Release with token 0 by an owner that has nothing: %v; want ErrLost", err)
	}
	c.refuses(b, request(), "after an owner that has nothing released with token 0")
	c.releases(b, locker.Grant{Request: g.Request}, "with token 0 by the owner that has the key")
	c.acquires(b, request(), "of a key that was released with token 0")
}
