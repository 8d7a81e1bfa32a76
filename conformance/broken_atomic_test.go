package conformance

import (
	"context"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// atomicDefects are broken in what they take for one owner, and for one step, and in what they do when that fails.
var atomicDefects = slices.Concat(ownerDefects, stepDefects, clockDefects, awayDefects, leakDefects, moreTokenDefects)

// stepDefects look first and act then.
var stepDefects = []defect{
	{
		name:    "release looks first and deletes then",
		backend: func(_ *testing.T, c *client) locker.Backend { return looksFirst{client: c, release: true} },
		caught:  []string{"unlock/ArrivesLate"},
		fine: []string{
			"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "unlock/DuringRenewal", "lease/NeverResurrects",
		},
	},
	{
		name: "release looks first and deletes a while later",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return looksFirst{client: c, release: true, gap: 200 * time.Microsecond}
		},
		caught: []string{"unlock/ArrivesLate", "backend/AtomicAtExpiry"},
		fine:   []string{"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "lease/NeverResurrects"},
	},
	{
		name:    "renewal looks first and sets the expiry then",
		backend: func(_ *testing.T, c *client) locker.Backend { return looksFirst{client: c, renew: extends} },
		caught:  []string{"unlock/ArrivesLate"},
		fine: []string{
			"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL", "lease/NeverResurrects",
		},
	},
	{
		name: "renewal looks first and sets the expiry a while later",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return looksFirst{client: c, renew: extends, gap: 5 * time.Millisecond}
		},
		caught: []string{"unlock/ArrivesLate", "backend/AtomicAtExpiry"},
		fine: []string{
			"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL", "lease/NeverResurrects",
		},
	},
	{
		name:    "renewal looks first and writes the record then",
		backend: func(_ *testing.T, c *client) locker.Backend { return looksFirst{client: c, renew: overwrites} },
		caught:  []string{"unlock/ArrivesLate"},
		fine: []string{
			"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL", "lease/NeverResurrects",
		},
	},
	{
		name: "renewal looks first and writes the record a while later",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return looksFirst{client: c, renew: overwrites, gap: time.Millisecond}
		},
		caught: []string{"unlock/ArrivesLate", "backend/AtomicAtExpiry"},
		fine: []string{
			"backend/OwnerDecides", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL", "lease/NeverResurrects",
		},
	},
	{
		name: "an owner who asks again is looked up first",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return looksFirst{client: c, again: true, gap: 2 * time.Millisecond}
		},
		caught: []string{"backend/AtomicAtExpiry"},
		fine: []string{
			"backend/OwnerDecides", "backend/AcquireAgain", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL",
		},
	},
	{
		name:    "what has expired is deleted first and replaced then",
		store:   func(s *store) { s.keptFor = func(time.Duration) time.Duration { return time.Hour } },
		backend: func(_ *testing.T, c *client) locker.Backend { return sweepsFirst{client: c} },
		caught:  []string{"backend/AtomicAtExpiry"},
		fine:    []string{"backend/OwnerDecides", "exclusion/TryLockHeld", "lease/NoRenew"},
	},
	{
		name:    "acquire looks first and writes then",
		backend: func(_ *testing.T, c *client) locker.Backend { return looksFirst{client: c, acquire: true} },
		caught:  []string{"exclusion/Delayed"},
		fine:    []string{"exclusion/TryLockHeld", "unlock/StaleCannotFreeSuccessor", "lease/NoRenew"},
	},
	{
		name:    "the token is minted before the lock is taken",
		backend: func(_ *testing.T, c *client) locker.Backend { return mintsFirst{c} },
		caught:  []string{"exclusion/Delayed"},
		fine:    []string{"exclusion/OneHolder", "unlock/StaleCannotFreeSuccessor", "fencing/StableDuringHold"},
	},
}

// looksFirst needs two requests for some steps, with a gap between them.
type looksFirst struct {
	*client
	acquire, again, release bool
	renew                   func(s *store, g locker.Grant) // what the second request does; nil for a renewal in one step
	gap                     time.Duration
}

// extends moves the expiry of whatever there is, as EXPIRE does.
func extends(s *store, g locker.Grant) {
	if held := s.held[g.Name()]; held != nil {
		s.expireAfter(held, g.TTL)
	}
}

// overwrites writes the record, as SET does.
func overwrites(s *store, g locker.Grant) {
	if held := s.held[g.Name()]; held != nil {
		held.timer.Stop()
	}
	held := &record{grant: g}
	s.held[g.Name()] = held
	s.expireAfter(held, g.TTL)
}

// owns asks whether an owner has the key, and lets the gap pass. free tells whether nobody has.
func (b looksFirst) owns(ctx context.Context, r locker.Request) (owns, free bool, err error) {
	var owner, holder bool
	err = b.ask(ctx, func(s *store) {
		held := s.held[r.Name()]
		holder = held != nil
		owner = holder && held.grant.Owner == r.Owner
	})
	if err != nil {
		return false, false, err
	}
	time.Sleep(b.gap)
	return owner, !holder, nil
}

func (b looksFirst) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if !b.acquire && !b.again {
		return b.client.Acquire(ctx, r)
	}
	owns, free, err := b.owns(ctx, r)
	switch {
	case err != nil:
		return locker.Grant{}, err
	case owns && b.again, free && b.acquire:
		var g locker.Grant
		err := b.ask(ctx, func(s *store) {
			if held := s.held[r.Name()]; held != nil && owns {
				s.expireAfter(held, r.TTL)
				g = held.grant
				return
			}
			g = s.grant(r)
		})
		return g, err
	}
	return b.client.Acquire(ctx, r)
}

func (b looksFirst) Release(ctx context.Context, g locker.Grant) error {
	if !b.release {
		return b.client.Release(ctx, g)
	}
	owns, _, err := b.owns(ctx, g.Request)
	if err == nil && !owns {
		err = locker.ErrLost
	}
	if err != nil {
		return err
	}
	return b.ask(ctx, func(s *store) { s.free(g.Name()) })
}

func (b looksFirst) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	if b.renew == nil {
		b.client.Renew(ctx, gs, done)
		return
	}
	for i, g := range slices.Clone(gs) {
		owns, _, err := b.owns(ctx, g.Request)
		if err == nil && !owns {
			err = locker.ErrLost
		}
		if err == nil {
			err = b.ask(ctx, func(s *store) { b.renew(s, g) })
		}
		done(i, locker.Renewal{Err: err})
	}
}

// sweepsFirst has a store that keeps what has expired. Who finds such a record deletes it, and then takes the key.
type sweepsFirst struct {
	*client
}

func (b sweepsFirst) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var expired bool
	if err := b.ask(ctx, func(s *store) {
		held := s.held[r.Name()]
		expired = held != nil && time.Since(held.grant.Sent) >= held.grant.TTL
	}); err != nil {
		return locker.Grant{}, err
	}
	if expired {
		time.Sleep(100 * time.Microsecond)
		if err := b.ask(ctx, func(s *store) { s.free(r.Name()) }); err != nil {
			return locker.Grant{}, err
		}
	}
	return b.client.Acquire(ctx, r)
}

func (b sweepsFirst) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.client.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if r.Err == nil {
			_ = b.ask(ctx, func(s *store) {
				if held := s.held[gs[i].Name()]; held != nil {
					held.grant.Sent = time.Now()
				}
			})
		}
		done(i, r)
	})
}

// mintsFirst fetches a token, and takes the lock with it then.
type mintsFirst struct{ *client }

func (b mintsFirst) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var token uint64
	if err := b.ask(ctx, func(s *store) {
		s.token++
		token = s.token
	}); err != nil {
		return locker.Grant{}, err
	}
	var g locker.Grant
	var refusal error
	if err := b.ask(ctx, func(s *store) {
		if g, refusal = s.acquire(r); refusal == nil {
			g.Token = token
			s.held[r.Name()].grant.Token = token
		}
	}); err != nil {
		return locker.Grant{}, err
	}
	return g, refusal
}

// clockDefects go by the wall clocks of clients.
var clockDefects = []defect{
	{
		name:    "tokens by the clock of the client",
		backend: func(_ *testing.T, c *client) locker.Backend { return mintsByClock(c) },
		caught:  []string{"fencing/WrongClock"},
		fine:    []string{"exclusion/OneHolder", "lease/WrongClock", "lease/OutlivesTTL"},
	},
	{
		name:  "expiry written by the clock of the holder",
		store: func(s *store) { s.keptFor = func(time.Duration) time.Duration { return math.MaxInt64 / 2 } },
		backend: func(_ *testing.T, c *client) locker.Backend {
			return expiresByClock{client: c, written: true, read: true}
		},
		caught: []string{"lease/WrongClock"},
		fine: []string{
			"exclusion/OneHolder", "fencing/WrongClock", "lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry",
		},
	},
	{
		name:    "expiry read by the clock of the rival",
		store:   func(s *store) { s.keptFor = func(time.Duration) time.Duration { return math.MaxInt64 / 2 } },
		backend: func(_ *testing.T, c *client) locker.Backend { return expiresByClock{client: c, read: true} },
		caught:  []string{"lease/WrongClock"},
		fine: []string{
			"exclusion/OneHolder", "fencing/WrongClock", "lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry",
		},
	},
	{
		name:    "expiry sent by the clock of the holder",
		store:   func(s *store) { s.keptFor = func(time.Duration) time.Duration { return math.MaxInt64 / 2 } },
		backend: func(_ *testing.T, c *client) locker.Backend { return expiresByClock{client: c, written: true} },
		caught:  []string{"lease/WrongClock"},
		fine: []string{
			"exclusion/OneHolder", "fencing/WrongClock", "lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry",
		},
	},
}

// mintsByClock returns a backend whose tokens are what the clock of the client says, and greater than its last one.
func mintsByClock(c *client) locker.Backend {
	var last atomic.Uint64
	return grantsWith{queued{c}, func(g *locker.Grant) {
		if g.Token == 0 {
			return
		}
		for {
			before := last.Load()
			g.Token = max(before+1, uint64(c.now().UnixNano()))
			if last.CompareAndSwap(before, g.Token) {
				return
			}
		}
	}}
}

// expiresByClock has the moment of expiry written, or read, by the clock of a client; otherwise it is the store's.
type expiresByClock struct {
	*client
	written, read bool
}

func (b expiresByClock) clock(client bool) time.Time {
	if client {
		return b.now()
	}
	return time.Now()
}

func (b expiresByClock) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var g locker.Grant
	var refusal error
	if err := b.ask(ctx, func(s *store) {
		if held := s.held[r.Name()]; held != nil && !b.clock(b.read).Before(held.expires) {
			s.free(r.Name())
		}
		if g, refusal = s.acquire(r); refusal == nil {
			s.held[r.Name()].expires = b.clock(b.written).Add(r.TTL)
		}
	}); err != nil {
		return locker.Grant{}, err
	}
	return g, refusal
}

func (b expiresByClock) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.client.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if r.Err == nil {
			r.Err = b.ask(ctx, func(s *store) {
				if held := s.held[gs[i].Name()]; held != nil {
					held.expires = b.clock(b.written).Add(gs[i].TTL)
				}
			})
		}
		done(i, r)
	})
}
