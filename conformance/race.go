package conformance

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// atomicAtExpiry has many owners act at the moment when their lease expires, each on a key of its own.
func atomicAtExpiry(c *check) {
	const keys = 180
	b := c.h.Backend(c.t)
	rivals := []locker.Backend{c.h.Backend(c.t), c.h.Backend(c.t)}
	source := c.source()
	races := make([]*expiryRace, keys)
	for i := range races {
		races[i] = &expiryRace{c: c, request: c.request(), owner: b, rivals: rivals, act: i % acts}
		races[i].early = randomPart(c.ttl/5, source)
		for range rivals {
			races[i].rivalsEarly = append(races[i].rivalsEarly, randomPart(c.ttl/50, source))
		}
	}
	c.all(keys, func(i int) {
		time.Sleep(time.Duration(i) * c.ttl / 2 / keys) // the machine is to be on time for each of them
		races[i].run()
		races[i].judge()
	})
}

// randomPart returns a random part of d, down to a ten thousandth. What is not atomic shows if the lease expires
// between two requests. How long that takes, nobody knows: so tens of microseconds are as likely as tens of
// milliseconds.
func randomPart(d time.Duration, random *rand.Rand) time.Duration {
	return time.Duration(float64(d) * math.Pow(10, -4*random.Float64()))
}

// What the owner does.
const (
	actRelease = iota
	actRenew
	actAcquire
	acts
)

// expiryRace is one key, and what happens to it when its lease expires.
type expiryRace struct {
	c           *check
	request     func() locker.Request
	owner       locker.Backend
	rivals      []locker.Backend
	act         int
	early       time.Duration   // by how much the owner acts before the expiry
	rivalsEarly []time.Duration // by how much the rivals begin before that, in addition to a little

	mu   sync.Mutex
	held []possession
}

// possession is a time for which somebody certainly has the key.
type possession struct {
	backend     locker.Backend
	grant       locker.Grant
	rival       bool
	what        string // has said so
	from, until time.Time
}

// has notes that an answer which has just come says that somebody has the key. It counts from when the backend says
// that it sent the request, if that is not zero, else from when it was asked; ttl is what the store has granted, zero
// if that is what was asked for.
func (r *expiryRace) has(h possession, asked, sent time.Time, ttl time.Duration) {
	if ttl <= 0 {
		ttl = h.grant.TTL
	}
	if sent.IsZero() {
		sent = asked
	}
	h.from, h.until = time.Now(), sent.Add(ttl-ttl/100)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, h)
}

// run has the owner act and the rivals acquire, around the moment of expiry.
func (r *expiryRace) run() {
	c := r.c
	sent := time.Now()
	g := c.acquires(r.owner, r.request(), "of a free key")
	expiry := sent.Add(time.Since(sent)/2 + c.ttl)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer c.reportPanic()
		time.Sleep(time.Until(expiry.Add(-r.early)))
		r.actAs(g)
	})
	for i, rival := range r.rivals {
		request := r.request()
		request.Key, request.TTL = g.Key, 4*c.ttl // unlike the owner's, should that be set once more
		wg.Go(func() {
			defer c.reportPanic()
			time.Sleep(time.Until(expiry.Add(-c.ttl/500 - r.rivalsEarly[i]))) // an attempt may take long
			r.compete(rival, request, expiry)
		})
	}
	wg.Wait()
}

// actAs does what the owner does, once: an error that says nothing makes the race worthless, and no defect.
func (r *expiryRace) actAs(g locker.Grant) {
	c := r.c
	ctx, cancel := context.WithTimeout(c.ctx, c.ttl)
	defer cancel()
	asked := time.Now()
	has := false
	switch r.act {
	case actRelease:
		_ = r.owner.Release(ctx, g)
	case actRenew:
		renewal := c.renew(ctx, r.owner, g)
		if has = renewal.Err == nil; has {
			h := possession{backend: r.owner, grant: g, what: "Renew returned nil"}
			r.has(h, asked, renewal.Sent, renewal.TTL)
		}
	case actAcquire:
		again, err := r.owner.Acquire(ctx, g.Request)
		if has = err == nil; has {
			ttl := again.TTL
			again.Request = g.Request
			h := possession{backend: r.owner, grant: again, what: "Acquire by the same owner returned a grant"}
			r.has(h, asked, again.Sent, ttl)
		}
	}
	if e := expirer(r.owner); e != nil && !has {
		time.Sleep(time.Until(asked.Add(r.early + c.ttl/50)))
		e.Expired([]locker.Grant{g})
	}
}

// compete acquires the key when it has expired: as often as it can about that moment, and less often later.
func (r *expiryRace) compete(b locker.Backend, request locker.Request, expiry time.Time) {
	c := r.c
	pause := c.ttl / 20_000
	for time.Until(expiry) > -c.ttl/2 {
		asked := time.Now()
		ctx, cancel := context.WithTimeout(c.ctx, c.ttl)
		g, err := b.Acquire(ctx, request)
		cancel()
		if err == nil {
			ttl := g.TTL
			g.Request = request
			h := possession{backend: b, grant: g, rival: true, what: "Acquire by another owner returned a grant"}
			r.has(h, asked, g.Sent, ttl)
			return
		}
		if queue(b) != nil || !errors.Is(err, locker.ErrLocked) {
			// As New does, but when it polls: of the one before something may still be under way.
			request.Owner = r.request().Owner
		}
		if time.Now().After(expiry) {
			pause = min(pause+pause/4, c.ttl/50)
		}
		time.Sleep(pause)
	}
}

// judge looks for two who have the key at the same time, and whether the one who has it keeps it.
func (r *expiryRace) judge() {
	c := r.c
	for i, a := range r.held {
		for _, b := range r.held[:i] {
			if a.from.Before(b.until) && b.from.Before(a.until) {
				c.wrongf("within %v about the expiry of a lease, %s (token %d), and %s (token %d): both have the key",
					r.early, b.what, b.grant.Token, a.what, a.grant.Token)
				return
			}
		}
	}
	if len(r.held) != 1 || !r.held[0].rival { // nobody has it, or the first owner
		return
	}
	h := r.held[0]
	time.Sleep(time.Until(h.from.Add(c.ttl + c.ttl/5))) // its lease is not that of the owner before
	err := c.askRenew(h.backend, h.grant)
	other := r.request()
	other.Key = h.grant.Key
	_, taken := c.askAcquire(h.backend, other)
	if time.Now().After(h.until) {
		return
	}
	did := [...]string{"released it", "renewed it", "asked for it again"}[r.act]
	switch {
	case errors.Is(err, locker.ErrLost):
		c.wrongf("an owner got the key when the lease of another one had expired, who %s within %v of that moment; Renew by "+
			"the new owner %v later, well before the end of its lease: %v; want nil", did, r.early, time.Since(h.from), err)
	case taken == nil:
		c.wrongf("an owner got the key when the lease of another one had expired, who %s within %v of that moment; a third "+
			"one got it while the second one had it", did, r.early)
	}
}
