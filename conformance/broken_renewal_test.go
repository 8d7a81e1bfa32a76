package conformance

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// renewalDefects are broken in for how long a lock lasts once it has been renewed, or waited for, or has a TTL that is
// unusual, and in what they say of renewals.
var renewalDefects = slices.Concat(renewedWronglyDefects, batchDefects, ttlDefects, waitedDefects, lateDefects,
	timeoutDefects)

// renewsAs renews in a way of its own, in one step of the store.
type renewsAs struct {
	queued
	renew func(s *store, gs []locker.Grant) []error
}

func (b renewsAs) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	requested := slices.Clone(gs)
	var answers []error
	err := b.ask(ctx, func(s *store) { answers = b.renew(s, requested) })
	for i := range gs {
		if err != nil {
			done(i, locker.Renewal{Err: err})
		} else {
			done(i, locker.Renewal{Err: answers[i]})
		}
	}
}

// renewing returns a backend that renews grants for another time than their TTL.
func renewing(lasts func(s *store, gs []locker.Grant, i int) time.Duration) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend {
		return renewsAs{queued{c}, func(s *store, gs []locker.Grant) []error {
			answers := make([]error, len(gs))
			for i, g := range gs {
				g.TTL = lasts(s, gs, i)
				answers[i] = s.renew(g)
			}
			return answers
		}}
	}
}

// renewingTTL is renewing by what becomes of the TTL alone.
func renewingTTL(lasts func(time.Duration) time.Duration) func(*testing.T, *client) locker.Backend {
	return renewing(func(_ *store, gs []locker.Grant, i int) time.Duration { return lasts(gs[i].TTL) })
}

// skipping returns a backend that confirms all renewals of grants that are held, and leaves some out: n counts, from 1,
// those of a lease, or, if all is set, the calls.
func skipping(all bool, skip func(n int) bool) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend {
		calls := make(map[locker.Owner]int) // guarded by the store's mutex
		return renewsAs{queued{c}, func(s *store, gs []locker.Grant) []error {
			calls[locker.Owner{}]++
			answers := make([]error, len(gs))
			for i, g := range gs {
				n := calls[locker.Owner{}]
				if !all {
					calls[g.Owner]++
					n = calls[g.Owner]
				}
				held := s.held[s.nameOf(g.Request)]
				if skip(n) && held != nil && held.grant.Owner == g.Owner {
					continue
				}
				answers[i] = s.renew(g)
			}
			return answers
		}}
	}
}

// renewedWronglyDefects renew for the wrong time.
var renewedWronglyDefects = []defect{
	{
		name:    "renewals for half of the TTL",
		backend: renewingTTL(func(ttl time.Duration) time.Duration { return ttl / 2 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL", "lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewalResults", "lease/WaitedForExpires"},
	},
	{
		name:    "renewals for three TTLs",
		backend: renewingTTL(func(ttl time.Duration) time.Duration { return 3 * ttl }),
		caught:  []string{"lease/ExpiresWhenAbandoned", "lease/RenewedForItsTTL", "lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name:    "renewals for good",
		backend: renewingTTL(func(time.Duration) time.Duration { return 1000 * time.Hour }),
		caught:  []string{"lease/ExpiresWhenAbandoned", "lease/RenewedForItsTTL", "lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/LossIsItsOwn", "lease/WaitedForExpires"},
	},
	{
		name: "renewals add to what is left",
		backend: renewing(func(s *store, gs []locker.Grant, i int) time.Duration {
			ttl := gs[i].TTL
			if held := s.held[s.nameOf(gs[i].Request)]; held != nil {
				ttl += time.Until(held.expires)
			}
			return ttl
		}),
		caught: []string{"lease/ExpiresWhenAbandoned", "lease/RenewedForItsTTL"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/WaitedForExpires"},
	},
	{
		name:    "every second renewal of a lease left out",
		backend: skipping(false, func(n int) bool { return n%2 == 0 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/OutlivesTTL", "lease/WaitedForExpires", "lease/LossIsItsOwn", "lease/NoRenew"},
	},
	{
		name:    "the first renewal of a lease left out, and every second after it",
		backend: skipping(false, func(n int) bool { return n%2 == 1 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/OutlivesTTL", "lease/WaitedForExpires", "lease/LossIsItsOwn", "lease/NoRenew"},
	},
	{
		name:    "every third renewal of a lease left out",
		backend: skipping(false, func(n int) bool { return n%3 == 0 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/OutlivesTTL", "lease/WaitedForExpires", "lease/LossIsItsOwn", "lease/NoRenew"},
	},
	{
		name:    "the first renewal of a lease left out",
		backend: skipping(false, func(n int) bool { return n == 1 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL", "lease/RenewedInBatches"},
		fine:    []string{"lease/OutlivesTTL", "lease/WaitedForExpires", "lease/LossIsItsOwn", "lease/NoRenew"},
	},
	{
		name:    "every second call of Renew left out",
		backend: skipping(true, func(n int) bool { return n%2 == 0 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewalResults"},
	},
	{
		name:    "every third call of Renew left out",
		backend: skipping(true, func(n int) bool { return n%3 == 2 }),
		caught:  []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewalResults"},
	},
	{
		name:    "no more renewals after twenty",
		backend: skipping(false, func(n int) bool { return n > 20 }),
		caught:  []string{"lease/OutlivesTTL"},
		fine:    []string{"lease/DoneBeforeRival", "lease/ExpiresWhenAbandoned", "lease/RenewedForItsTTL"},
	},
	{
		name: "a longer TTL reported by renewals than was set",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return tellsRenewals{queued{c}, func(i, _ int, r locker.Renewal, done func(int, locker.Renewal)) {
				r.TTL = 1500 * time.Millisecond
				done(i, r)
			}}
		},
		caught: []string{"lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:   []string{"lease/NoRenew", "lease/RenewalResults", "waiting/WakesOnExpiry"},
	},
	{
		name:    "who waits gets the lock when it would have ended without renewals",
		backend: func(_ *testing.T, c *client) locker.Backend { return waitsForFirstExpiry{queued{c}} },
		caught:  []string{"lease/OutlivesTTL", "lease/DoneBeforeRival", "lease/RenewedForItsTTL"},
		fine:    []string{"lease/NoRenew", "lease/LossIsItsOwn", "waiting/WakesOnExpiry", "lease/WaitedForExpires"},
	},
}

// waitsForFirstExpiry reckons when it is its turn when it joins the line.
type waitsForFirstExpiry struct{ queued }

func (b waitsForFirstExpiry) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.ask(ctx, func(s *store) {
		held := s.held[s.nameOf(r)]
		if held == nil {
			return
		}
		time.AfterFunc(time.Until(held.expires), func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.held[s.nameOf(r)] == held && len(s.lines[s.nameOf(r)]) > 0 {
				s.free(s.nameOf(r))
			}
		})
	}); err != nil {
		return locker.Grant{}, err
	}
	return b.queued.Wait(ctx, r)
}

// telling returns a backend that reports the results of a call in a way of its own.
func telling(
	tell func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)),
) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend { return tellsBatch{queued{c}, tell} }
}

type tellsBatch struct {
	queued
	tell func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal))
}

func (b tellsBatch) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	results := make([]locker.Renewal, len(gs))
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) { results[i] = r })
	b.tell(gs, results, done)
}

// upTo returns a backend that renews so many grants of a call only, and says the same of the others.
func upTo(most int) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend {
		return renewsAs{queued{c}, func(s *store, gs []locker.Grant) []error {
			answers := make([]error, len(gs))
			for i, g := range gs {
				held := s.held[s.nameOf(g.Request)]
				switch {
				case i < most:
					answers[i] = s.renew(g)
				case held == nil || held.grant.Owner != g.Owner:
					answers[i] = locker.ErrLost
				}
			}
			return answers
		}}
	}
}

// ofAll returns the TTL of one of some grants.
func ofAll(
	choose func([]locker.Grant, func(a, b locker.Grant) int) locker.Grant,
) func(*testing.T, *client) locker.Backend {
	return renewing(func(_ *store, gs []locker.Grant, _ int) time.Duration {
		return choose(gs, func(a, b locker.Grant) int { return cmp.Compare(a.TTL, b.TTL) }).TTL
	})
}

// batchDefects are broken in what they do with several grants.
var batchDefects = []defect{
	{
		name:    "only the first of a batch renewed",
		backend: upTo(1),
		caught: []string{
			"lease/RenewedSeparately", "lease/RenewedForItsTTL", "lease/RenewedInBatches", "lease/DoneBeforeRival",
			"lease/LossIsItsOwn",
		},
		fine: []string{"lease/OutlivesTTL", "lease/RenewalResults", "lease/NeverResurrects"},
	},
	{
		name:    "a hundred of a batch renewed",
		backend: upTo(100),
		caught:  []string{"lease/RenewedInBatches"},
		fine: []string{
			"lease/OutlivesTTL", "lease/RenewalResults", "lease/RenewedSeparately", "lease/RenewedForItsTTL",
		},
	},
	{
		name:    "999 of a batch renewed",
		backend: upTo(999),
		caught:  []string{"lease/RenewedInBatches"},
		fine: []string{
			"lease/OutlivesTTL", "lease/RenewalResults", "lease/RenewedSeparately", "lease/RenewedForItsTTL",
		},
	},
	{
		name: "large batches refused",
		backend: telling(func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			for i, r := range results {
				if len(gs) > 500 {
					r.Err = errors.New("too many parameters")
				}
				done(i, r)
			}
		}),
		caught: []string{"lease/RenewedInBatches"},
		fine: []string{
			"lease/OutlivesTTL", "lease/RenewalResults", "lease/RenewedSeparately", "lease/RenewedForItsTTL",
		},
	},
	{
		name: "a batch of more than one always fails",
		backend: telling(func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			for i, r := range results {
				if len(gs) > 1 {
					r.Err = errReset
				}
				done(i, r)
			}
		}),
		caught: []string{
			"lease/RenewedSeparately", "lease/RenewalResults", "lease/RenewedInBatches", "lease/LossIsItsOwn",
		},
		fine: []string{"lease/OutlivesTTL", "lease/NeverResurrects", "lease/NoRenew"},
	},
	{
		name: "one loss is that of all",
		backend: telling(func(_ []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			all := slices.ContainsFunc(results, func(r locker.Renewal) bool { return errors.Is(r.Err, locker.ErrLost) })
			for i, r := range results {
				if all {
					r.Err = locker.ErrLost
				}
				done(i, r)
			}
		}),
		caught: []string{"lease/RenewalResults", "lease/LossIsItsOwn"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewedSeparately", "lease/DoneBeforeRival",
		},
	},
	{
		name: "no loss unless it is that of all",
		backend: telling(func(_ []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			some := slices.ContainsFunc(results, func(r locker.Renewal) bool { return r.Err == nil })
			for i, r := range results {
				if some {
					r.Err = nil
				}
				done(i, r)
			}
		}),
		caught: []string{"lease/RenewalResults", "lease/LossIsItsOwn"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewedSeparately", "lease/RenewedInBatches",
		},
	},
	{
		name: "results reversed",
		backend: telling(func(_ []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			slices.Reverse(results)
			for i, r := range results {
				done(i, r)
			}
		}),
		caught: []string{"lease/RenewalResults", "lease/LossIsItsOwn"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewedSeparately", "lease/RenewedInBatches",
		},
	},
	{
		name: "results without those that were lost, which come last",
		backend: telling(func(_ []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			slices.SortStableFunc(results, func(a, b locker.Renewal) int {
				switch {
				case a.Err == nil && b.Err != nil:
					return -1
				case a.Err != nil && b.Err == nil:
					return 1
				}
				return 0
			})
			for i, r := range results {
				done(i, r)
			}
		}),
		caught: []string{"lease/RenewalResults"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewedSeparately", "lease/RenewedInBatches",
		},
	},
	{
		name: "results by key",
		backend: telling(func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			of := make(map[string]locker.Renewal)
			for i, r := range results {
				of[gs[i].Name()] = r
			}
			for i, g := range gs {
				done(i, of[g.Name()])
			}
		}),
		caught: []string{"lease/RenewalResults"},
		fine:   []string{"lease/OutlivesTTL", "lease/NeverResurrects", "lease/LossIsItsOwn", "lease/RenewedForItsTTL"},
	},
	{
		name: "a loss told to the next one",
		backend: telling(func(_ []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			for i := range results {
				done(i, results[(i+len(results)-1)%len(results)])
			}
		}),
		caught: []string{"lease/RenewalResults", "lease/LossIsItsOwn"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewedSeparately", "lease/RenewedInBatches",
		},
	},
	{
		name: "a loss told to all leases at once",
		backend: telling(func(gs []locker.Grant, results []locker.Renewal, done func(int, locker.Renewal)) {
			for i, r := range results {
				if errors.Is(r.Err, locker.ErrLost) {
					for _, g := range gs {
						g.ReportLost(errReset)
					}
				}
				done(i, r)
			}
		}),
		caught: []string{"lease/LossIsItsOwn"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RenewalResults", "lease/RenewedInBatches",
		},
	},
	{
		name: "the least TTL of a batch for all",
		backend: ofAll(
			func(gs []locker.Grant, by func(a, b locker.Grant) int) locker.Grant { return slices.MinFunc(gs, by) },
		),
		caught: []string{"lease/RenewedForItsTTL"},
		fine: []string{
			"lease/OutlivesTTL", "lease/DoneBeforeRival", "lease/RenewedInBatches", "lease/RenewalResults",
		},
	},
	{
		name: "the greatest TTL of a batch for all",
		backend: ofAll(
			func(gs []locker.Grant, by func(a, b locker.Grant) int) locker.Grant { return slices.MaxFunc(gs, by) },
		),
		caught: []string{"lease/RenewedForItsTTL"},
		fine: []string{
			"lease/OutlivesTTL", "lease/DoneBeforeRival", "lease/RenewedInBatches", "lease/RenewalResults",
		},
	},
	{
		name:    "the first TTL of a batch for all",
		backend: ofAll(func(gs []locker.Grant, _ func(a, b locker.Grant) int) locker.Grant { return gs[0] }),
		caught:  []string{"lease/RenewedForItsTTL"},
		fine: []string{
			"lease/OutlivesTTL", "lease/DoneBeforeRival", "lease/RenewedInBatches", "lease/RenewalResults",
		},
	},
	{
		name:    "no renewals any more after a release",
		backend: func(_ *testing.T, c *client) locker.Backend { return &endsWithRelease{queued: queued{c}} },
		caught:  []string{"lease/LossIsItsOwn"},
		fine:    []string{"lease/OutlivesTTL", "lease/NeverResurrects", "unlock/FreesAtOnce"},
	},
}

// endsWithRelease ends its session, and so all leases, when it releases one of several.
type endsWithRelease struct {
	queued
	mu   sync.Mutex
	gone map[locker.Owner]bool // of what was granted before a release
	held map[locker.Owner]bool
}

func (b *endsWithRelease) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held, b.gone = make(map[locker.Owner]bool), make(map[locker.Owner]bool)
	}
	if err == nil {
		b.held[r.Owner] = true
	}
	return g, err
}

func (b *endsWithRelease) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	delete(b.held, g.Owner)
	for owner := range b.held {
		b.gone[owner] = true
	}
	b.mu.Unlock()
	return b.queued.Release(ctx, g)
}

func (b *endsWithRelease) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		b.mu.Lock()
		if b.gone[gs[i].Owner] {
			r.Err = locker.ErrLost
		}
		b.mu.Unlock()
		done(i, r)
	})
}

// keeping returns a store that keeps locks for another time than their TTL.
func keeping(lasts func(time.Duration) time.Duration) func(*store) {
	return func(s *store) { s.keptFor = lasts }
}

// of32Bits returns what is left of a TTL in a signed or an unsigned number of 32 bits.
func of32Bits(unit time.Duration, signed bool) func(time.Duration) time.Duration {
	return func(ttl time.Duration) time.Duration {
		if signed {
			return time.Duration(int32(ttl/unit)) * unit //nolint:gosec // that is the defect
		}
		return time.Duration(uint32(ttl/unit)) * unit //nolint:gosec // likewise
	}
}

func atMost(most time.Duration) func(time.Duration) time.Duration {
	return func(ttl time.Duration) time.Duration { return min(ttl, most) }
}

func atLeast(least time.Duration) func(time.Duration) time.Duration {
	return func(ttl time.Duration) time.Duration { return max(ttl, least) }
}

func inWhole(unit time.Duration) func(time.Duration) time.Duration {
	return func(ttl time.Duration) time.Duration { return ttl.Truncate(unit) }
}

// beyond returns another time for TTLs that are longer than a limit.
func beyond(limit, instead time.Duration) func(time.Duration) time.Duration {
	return func(ttl time.Duration) time.Duration {
		if ttl > limit {
			return instead
		}
		return ttl
	}
}

// waitingTTL returns a backend that grants by waiting with another TTL.
func waitingTTL(lasts func(time.Duration) time.Duration) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend {
		return waitsAs{queued{c}, func(_ *record, _ time.Time, r locker.Request) time.Duration { return lasts(r.TTL) }}
	}
}

// ttlDefects are broken for TTLs that are unusual.
var ttlDefects = []defect{
	{
		name:   "TTLs of 32 bits of milliseconds, signed",
		store:  keeping(of32Bits(time.Millisecond, true)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of 32 bits of microseconds",
		store:  keeping(of32Bits(time.Microsecond, false)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of 32 bits of microseconds, signed",
		store:  keeping(of32Bits(time.Microsecond, true)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of 32 bits of nanoseconds",
		store:  keeping(of32Bits(time.Nanosecond, false)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/TTLGranularity"},
	},
	{
		name:   "TTLs of 32 bits of nanoseconds, signed",
		store:  keeping(of32Bits(time.Nanosecond, true)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/TTLGranularity"},
	},
	{
		name:    "renewals of 32 bits of milliseconds",
		backend: renewingTTL(of32Bits(time.Millisecond, true)),
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:    "waits of 32 bits of milliseconds",
		backend: waitingTTL(of32Bits(time.Millisecond, true)),
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of over a day are none",
		store:  keeping(beyond(24*time.Hour, 0)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of over a day are for good",
		store:  keeping(beyond(24*time.Hour, 100*locker.MaxTTL)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs of at most 30 s",
		store:  keeping(atMost(30 * time.Second)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:    "renewals for at most 30 s",
		backend: renewingTTL(atMost(30 * time.Second)),
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs in whole hundredths of a second",
		store:  keeping(inWhole(10 * time.Millisecond)),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name:    "renewals for whole hundredths of a second",
		backend: renewingTTL(inWhole(10 * time.Millisecond)),
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name:   "TTLs in whole seconds",
		store:  keeping(inWhole(time.Second)),
		caught: []string{"lease/TTLRange", "lease/TTLGranularity"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name: "short TTLs replaced",
		store: keeping(func(ttl time.Duration) time.Duration {
			if ttl < 100*time.Millisecond {
				return locker.DefaultTTL
			}
			return ttl
		}),
		caught: []string{"lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name:    "renewals for at least a second",
		backend: renewingTTL(atLeast(time.Second)),
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "lease/DoneBeforeRival", "lease/WaitedForExpires"},
	},
	{
		name:    "what is left of a long lease told wrong",
		backend: func(_ *testing.T, c *client) locker.Backend { return tellsLess{c} },
		caught:  []string{"lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "exclusion/TryLockHeld"},
	},
}

// tellsLess counts what is left of a lease with 32 bits.
type tellsLess struct{ *client }

func (b tellsLess) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	var held *locker.Held
	if errors.As(err, &held) {
		held.Remaining = max(of32Bits(time.Microsecond, true)(held.Remaining), 1)
	}
	return g, err
}

// waitsAs keeps a lock that was waited for as long as it sees fit.
type waitsAs struct {
	queued
	lasts func(before *record, joined time.Time, r locker.Request) time.Duration
}

func (b waitsAs) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	var before *record
	if err := b.ask(ctx, func(s *store) { before = s.held[s.nameOf(r)] }); err != nil {
		return locker.Grant{}, err
	}
	joined := time.Now()
	g, err := b.queued.Wait(ctx, r)
	if err != nil || before == nil {
		return g, err
	}
	return g, b.ask(ctx, func(s *store) {
		if held := s.held[s.nameOf(r)]; held != nil && held.grant.Owner == r.Owner {
			s.expireAfter(held, b.lasts(before, joined, r))
		}
	})
}

func waitedLasts(
	lasts func(before *record, joined time.Time, r locker.Request) time.Duration,
) func(*testing.T, *client) locker.Backend {
	return func(_ *testing.T, c *client) locker.Backend { return waitsAs{queued{c}, lasts} }
}

// renewsNoWaits renews what was not waited for.
type renewsNoWaits struct {
	queued
	mu     sync.Mutex
	waited map[locker.Owner]bool
}

func (b *renewsNoWaits) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	begun := time.Now()
	g, err := b.queued.Wait(ctx, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waited[r.Owner] = time.Since(begun) > 0
	return g, err
}

func (b *renewsNoWaits) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i, g := range gs {
		b.mu.Lock()
		waited := b.waited[g.Owner]
		b.mu.Unlock()
		if waited {
			done(i, locker.Renewal{Err: locker.ErrLost})
			continue
		}
		b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) { done(i, r) })
	}
}

// waitedDefects are broken in for how long a lock lasts that was waited for.
var waitedDefects = []defect{
	{
		name:    "a lock that was waited for has no TTL",
		backend: waitedLasts(func(*record, time.Time, locker.Request) time.Duration { return 1000 * time.Hour }),
		caught:  []string{"lease/WaitedForExpires", "lease/TTLRange"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for has the TTL of the holder before",
		backend: waitedLasts(
			func(before *record, _ time.Time, _ locker.Request) time.Duration { return before.grant.TTL },
		),
		caught: []string{"lease/WaitedForExpires", "lease/TTLRange"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for has the longer TTL of its holder and the one before",
		backend: waitedLasts(func(before *record, _ time.Time, r locker.Request) time.Duration {
			return max(before.grant.TTL, r.TTL)
		}),
		caught: []string{"lease/WaitedForExpires"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for lasts from when its holder got in line",
		backend: waitedLasts(func(_ *record, joined time.Time, r locker.Request) time.Duration {
			return max(time.Until(joined.Add(r.TTL)), r.TTL/10)
		}),
		caught: []string{"lease/WaitedForExpires", "lease/DoneBeforeRival"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for lasts as long as the one before would have, if its holder unlocks",
		backend: waitedLasts(func(before *record, _ time.Time, r locker.Request) time.Duration {
			if left := time.Until(before.expires); left > 0 {
				return left
			}
			return r.TTL
		}),
		caught: []string{"lease/WaitedForExpires"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for has no TTL if the one before expired",
		backend: waitedLasts(func(before *record, _ time.Time, r locker.Request) time.Duration {
			if time.Until(before.expires) <= 0 {
				return 1000 * time.Hour
			}
			return r.TTL
		}),
		caught: []string{"lease/WaitedForExpires"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "waiting/FIFO"},
	},
	{
		name: "a lock that was waited for is not renewed",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &renewsNoWaits{queued: queued{c}, waited: make(map[locker.Owner]bool)}
		},
		caught: []string{"lease/DoneBeforeRival"},
		fine:   []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "lease/WaitedForExpires"},
	},
	{
		name:    "a lock that was waited for has no TTL if the holder before was closed",
		backend: func(_ *testing.T, c *client) locker.Backend { return &closesForGood{queued: queued{c}} },
		caught:  []string{"lease/WaitedForExpires"},
		fine:    []string{"lease/OutlivesTTL", "lease/NoRenew", "waiting/WakesOnExpiry", "close/UnlocksHeld"},
	},
}

// closesForGood leaves to the next one what it has when it is closed, and not for how long.
type closesForGood struct {
	queued
	mu       sync.Mutex
	released []locker.Grant
}

func (b *closesForGood) Release(ctx context.Context, g locker.Grant) error {
	err := b.queued.Release(ctx, g)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.released = append(b.released, g)
	return err
}

func (b *closesForGood) Close() error {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for _, g := range b.released {
		if held := b.store.held[b.store.nameOf(g.Request)]; held != nil && held.grant.Token > g.Token {
			b.store.expireAfter(held, 1000*time.Hour)
		}
	}
	return b.queued.Close()
}

// lateDefects are wrong about when a request was sent.
var lateDefects = []defect{
	{
		name:    "an acquire counts from its answer",
		backend: func(_ *testing.T, c *client) locker.Backend { return countsFromAnswer{queued{c}, true, false} },
		caught:  []string{"lease/DoneBeforeRivalIfLate"},
		fine:    []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/NoRenew", "lease/RenewedForItsTTL"},
	},
	{
		name:    "a wait counts from its answer",
		backend: func(_ *testing.T, c *client) locker.Backend { return countsFromAnswer{queued{c}, false, true} },
		caught:  []string{"lease/DoneBeforeRivalIfLate"},
		fine:    []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/NoRenew", "lease/WaitedForExpires"},
	},
	{
		name:    "a renewal counts from the answer to the one before",
		backend: func(_ *testing.T, c *client) locker.Backend { return newRenewsAhead(c) },
		caught:  []string{"lease/DoneBeforeRivalIfLate"},
		fine:    []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/ExpiresWhenAbandoned"},
	},
}

// countsFromAnswer takes the time when the answer has come.
type countsFromAnswer struct {
	queued
	acquires, waits bool
}

func (b countsFromAnswer) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if b.acquires {
		g.Sent = time.Now()
	}
	return g, err
}

func (b countsFromAnswer) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if b.waits {
		g.Sent = time.Now()
	}
	return g, err
}

// renewsAhead renews all that it has by itself, and says so when it is asked.
type renewsAhead struct {
	queued
	running  sync.WaitGroup
	closed   chan struct{}
	fromSent atomic.Bool // it counts from when a renewal was sent, as is right

	mu      sync.Mutex
	asked   map[locker.Owner]time.Time
	renewed map[locker.Owner]time.Time
}

func newRenewsAhead(c *client) *renewsAhead {
	return &renewsAhead{
		queued: queued{c}, closed: make(chan struct{}),
		asked: make(map[locker.Owner]time.Time), renewed: make(map[locker.Owner]time.Time),
	}
}

// keep renews a lease for as long as it is asked to.
func (b *renewsAhead) keep(g locker.Grant) {
	for {
		select {
		case <-time.After(g.TTL / 4):
		case <-b.closed:
			return
		}
		b.mu.Lock()
		kept := time.Since(b.asked[g.Owner]) < g.TTL*2/5
		if !kept {
			delete(b.asked, g.Owner)
		}
		b.mu.Unlock()
		if !kept {
			return
		}
		sent := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), g.TTL/3)
		b.queued.Renew(ctx, []locker.Grant{g}, func(_ int, r locker.Renewal) { b.note(g, r, sent) })
		cancel()
	}
}

func (b *renewsAhead) note(g locker.Grant, r locker.Renewal, sent time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.Err != nil:
		delete(b.renewed, g.Owner)
	case b.fromSent.Load():
		b.renewed[g.Owner] = sent
	default:
		b.renewed[g.Owner] = time.Now()
	}
}

func (b *renewsAhead) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i, g := range gs {
		b.mu.Lock()
		renewed := b.renewed[g.Owner]
		if b.asked[g.Owner].IsZero() {
			b.running.Go(func() { b.keep(g) })
		}
		b.asked[g.Owner] = time.Now()
		b.mu.Unlock()
		if time.Since(renewed) < g.TTL*3/10 {
			done(i, locker.Renewal{Sent: renewed})
			continue
		}
		sent := time.Now()
		b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) {
			b.note(g, r, sent)
			done(i, r)
		})
	}
}

func (b *renewsAhead) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	b.asked[g.Owner] = time.Unix(0, 0) // long ago
	delete(b.renewed, g.Owner)
	b.mu.Unlock()
	return b.queued.Release(ctx, g)
}

func (b *renewsAhead) Close() error {
	close(b.closed)
	b.running.Wait()
	return b.queued.Close()
}

// timeoutDefects do not bear that a renewal takes longer than it may.
var timeoutDefects = []defect{
	{
		name: "a renewal without an answer taken for a loss",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsWith{queued{c}, func(err error) error {
				if errors.Is(err, context.DeadlineExceeded) {
					return locker.ErrLost
				}
				return err
			}}
		},
		caught: []string{"lease/RidesOutTimeout"},
		fine:   []string{"lease/RidesOutOneFailedRenewal", "lease/DoneBeforeRival", "lease/OutlivesTTL"},
	},
	{
		name:    "renewals with a timeout of their own, which is too short",
		backend: func(_ *testing.T, c *client) locker.Backend { return impatient{queued{c}} },
		caught:  []string{"lease/RidesOutTimeout"},
		fine:    []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/RenewedSeparately"},
	},
	{
		name:    "a client that is broken when an answer has not come in time",
		backend: func(_ *testing.T, c *client) locker.Backend { return &breaksForGood{queued: queued{c}} },
		caught:  []string{"lease/RidesOutTimeout"},
		fine:    []string{"lease/RidesOutOneFailedRenewal", "lease/DoneBeforeRival", "lease/OutlivesTTL"},
	},
	{
		name:    "the third renewal in a row that fails taken for a loss",
		backend: func(_ *testing.T, c *client) locker.Backend { return newGivesUpSoon(c, 3) },
		caught:  []string{"lease/RidesOutTimeout"},
		fine:    []string{"lease/DoneBeforeRival", "lease/OutlivesTTL"},
	},
}

// impatient gives a renewal a tenth of a second.
type impatient struct{ queued }

func (b impatient) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	ctx, cancel := context.WithTimeout(ctx, time.Second/10)
	defer cancel()
	b.queued.Renew(ctx, gs, done)
}

// breaksForGood has one connection, which it closes when an answer is overdue, and makes no other.
type breaksForGood struct {
	queued
	mu     sync.Mutex
	broken bool
}

func (b *breaksForGood) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.mu.Lock()
	broken := b.broken
	b.mu.Unlock()
	if broken {
		for i := range gs {
			done(i, locker.Renewal{Err: errReset})
		}
		return
	}
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if errors.Is(r.Err, context.DeadlineExceeded) {
			b.mu.Lock()
			b.broken = true
			b.mu.Unlock()
		}
		done(i, r)
	})
}

// givesUpSoon counts failures of each lease, and loses patience.
type givesUpSoon struct {
	queued
	most   int
	mu     sync.Mutex
	failed map[locker.Owner]int
}

func newGivesUpSoon(c *client, most int) *givesUpSoon {
	return &givesUpSoon{queued: queued{c}, most: most, failed: make(map[locker.Owner]int)}
}

func (b *givesUpSoon) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		b.mu.Lock()
		b.failed[gs[i].Owner]++
		if r.Err == nil {
			b.failed[gs[i].Owner] = 0
		} else if b.failed[gs[i].Owner] >= b.most {
			r.Err = locker.ErrLost
		}
		b.mu.Unlock()
		done(i, r)
	})
}
