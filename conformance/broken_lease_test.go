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

// ownershipDefects are broken in whose lock they release, and when.
var ownershipDefects = []defect{
	{
		name:  "no owner check on release",
		store: func(s *store) { s.mayRelease = func(_, _ locker.Request) bool { return true } },
		caught: []string{
			"unlock/StaleCannotFreeSuccessor", "waiting/LostReply", "backend/OwnerDecides", "backend/UnknownOutcome",
		},
		fine: []string{"unlock/FreesAtOnce", "lease/NeverResurrects", "lease/DoneBeforeRival", "backend/AcquireAgain"},
	},
	{
		name: "release by prefix compare",
		store: func(s *store) {
			s.mayRelease = func(holder, caller locker.Request) bool { return inColumn(holder) == inColumn(caller) }
		},
		caught: []string{"unlock/StaleCannotFreeSuccessor"},
		fine:   []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/NeverResurrects", "lease/DoneBeforeRival"},
	},
	{
		name: "unlock in the background",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &releasesLater{queued: queued{c}}
		},
		caught: []string{"unlock/FreesAtOnce", "unlock/Twice", "exclusion/Relock"},
		fine:   []string{"exclusion/OneHolder", "unlock/ReportsLoss", "lease/DoneBeforeRival", "close/UnlocksHeld"},
	},
	{
		name:    "a renewal in the background meets the release",
		backend: func(_ *testing.T, c *client) locker.Backend { return &renewsLater{queued: queued{c}} },
		caught:  []string{"unlock/DuringRenewal"},
		fine:    []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "waiting/WakesOnRelease"},
	},
	{
		name:    "a keep-alive goes on after release",
		backend: func(_ *testing.T, c *client) locker.Backend { return newKeepsAlive(c) },
		caught:  []string{"unlock/NoRenewalAfter"},
		fine:    []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "waiting/WakesOnRelease", "lease/OutlivesTTL"},
	},
	{
		name:    "release always says that the lock was lost",
		backend: func(_ *testing.T, c *client) locker.Backend { return releaseSaysLost{queued{c}} },
		caught:  []string{"lease/CleanUnlockIsNotLoss", "unlock/FreesAtOnce", "errors/Typed"},
		fine:    []string{"unlock/ReportsLoss", "lease/ErrSaysLost"},
	},
}

// inColumn is what a holder's name and owner leave in a column too narrow for both.
func inColumn(r locker.Request) string {
	s := r.Holder + "/" + r.Owner.String()
	return s[:min(64, len(s))]
}

// releasesLater does not wait for the answer to a release.
type releasesLater struct {
	queued
	releasing sync.WaitGroup
}

func (b *releasesLater) Release(_ context.Context, g locker.Grant) error {
	b.releasing.Go(func() {
		time.Sleep(50 * time.Millisecond)
		_ = b.queued.Release(context.Background(), g)
	})
	return nil
}

func (b *releasesLater) Close() error {
	b.releasing.Wait()
	return b.queued.Close()
}

// renewsLater does not wait for the answer to a renewal, which sets the owner as well as the expiry.
type renewsLater struct {
	queued
	renewing sync.WaitGroup
}

func (b *renewsLater) Renew(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	gs = slices.Clone(gs)
	b.renewing.Go(func() {
		time.Sleep(50 * time.Millisecond)
		_ = b.ask(context.Background(), func(s *store) {
			for _, g := range gs {
				if s.renew(g) != nil {
					s.grant(g.Request)
				}
			}
		})
	})
	for i := range gs {
		done(i, locker.Renewal{})
	}
}

func (b *renewsLater) Close() error {
	b.renewing.Wait()
	return b.queued.Close()
}

// keepsAlive renews by itself what was once acquired, until Close.
type keepsAlive struct {
	*client
	keeping sync.WaitGroup
	closed  chan struct{}
}

func newKeepsAlive(c *client) *keepsAlive { return &keepsAlive{client: c, closed: make(chan struct{})} }

func (b *keepsAlive) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	if err == nil {
		b.keeping.Go(func() { b.keep(r) })
	}
	return g, err
}

func (b *keepsAlive) keep(r locker.Request) {
	for {
		select {
		case <-b.closed:
			return
		case <-time.After(r.TTL / 3):
		}
		b.store.mu.Lock()
		if held := b.store.held[r.Name()]; held != nil {
			b.store.expireAfter(held, r.TTL)
		}
		b.store.mu.Unlock()
	}
}

func (b *keepsAlive) Close() error {
	close(b.closed)
	b.keeping.Wait()
	return b.client.Close()
}

// releaseSaysLost releases, but says otherwise.
type releaseSaysLost struct{ queued }

func (b releaseSaysLost) Release(ctx context.Context, g locker.Grant) error {
	if err := b.queued.Release(ctx, g); err != nil {
		return err
	}
	return locker.ErrLost
}

// leaseDefects are broken in how long a lock lasts, and in what its holder is told of that.
var leaseDefects = []defect{
	{
		name:  "TTL ignored",
		store: func(s *store) { s.keptFor = func(time.Duration) time.Duration { return time.Hour } },
		caught: []string{
			"waiting/WakesOnExpiry", "lease/ExpiresWhenAbandoned", "lease/NoRenew", "lease/TTLGranularity",
		},
		fine: []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/OutlivesTTL", "lease/NeverResurrects"},
	},
	{
		name:    "TTL set in a second step",
		backend: func(_ *testing.T, c *client) locker.Backend { return expiryLater{c} },
		caught:  []string{"lease/ExpiresWhenAbandoned"},
		fine:    []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/NoRenew", "lease/DoneBeforeRival"},
	},
	{
		name: "TTL in whole tenths of a second",
		store: func(s *store) {
			s.keptFor = func(ttl time.Duration) time.Duration { return ttl.Truncate(time.Second / 10) }
		},
		caught: []string{"lease/TTLGranularity"},
		fine:   []string{"waiting/WakesOnExpiry", "lease/NoRenew", "lease/DoneBeforeRival", "lease/OutlivesTTL"},
	},
	{
		name:   "the store's clock is fast",
		store:  func(s *store) { s.keptFor = func(ttl time.Duration) time.Duration { return ttl * 9 / 10 } },
		caught: []string{"waiting/WakesOnExpiry", "lease/TTLGranularity", "lease/DoneBeforeRival"},
		fine:   []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/OutlivesTTL"},
	},
	{
		name:    "renewals do nothing",
		backend: func(_ *testing.T, c *client) locker.Backend { return renewsNothing{queued{c}} },
		caught:  []string{"lease/OutlivesTTL", "waiting/WaitDoesNotBoundHold"},
		fine:    []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/NoRenew"},
	},
	{
		name:    "renewals told when all are known",
		backend: func(_ *testing.T, c *client) locker.Backend { return newOneHangs(c, false) },
		caught:  []string{"lease/RenewedSeparately"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone",
		},
	},
	{
		name:    "renewals one after the other",
		backend: func(_ *testing.T, c *client) locker.Backend { return renewsInTurn{queued{c}, make(chan struct{}, 1)} },
		caught:  []string{"lease/RenewedSeparately"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone",
		},
	},
	{
		name: "renewals told of another grant",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return tellsRenewals{
				queued{c}, func(i, n int, r locker.Renewal, done func(int, locker.Renewal)) { done(n-1-i, r) },
			}
		},
		caught: []string{"lease/RenewalResults"},
		fine:   []string{"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone"},
	},
	{
		name: "renewals told of some grants only",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return tellsRenewals{queued{c}, func(i, n int, r locker.Renewal, done func(int, locker.Renewal)) {
				if r.Err == nil || n == 1 {
					done(i, r)
				}
			}}
		},
		caught: []string{"lease/RenewalResults"},
		fine:   []string{"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone"},
	},
	{
		name: "renewals told twice",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return tellsRenewals{queued{c}, func(i, n int, r locker.Renewal, done func(int, locker.Renewal)) {
				done(i, r)
				if n > 1 {
					done(i, r)
				}
			}}
		},
		caught: []string{"lease/RenewalResults"},
		fine:   []string{"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone"},
	},
	{
		name:    "renewals change what they were given",
		backend: func(_ *testing.T, c *client) locker.Backend { return sortsGrants{queued{c}} },
		caught:  []string{"lease/RenewalResults"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "backend/OwnerDecides", "backend/ExpiredIsGone",
		},
	},
	{
		name:    "an expiry told frees the key of the next holder",
		backend: func(_ *testing.T, c *client) locker.Backend { return freesExpired{queued{c}} },
		caught:  []string{"backend/ExpiredIsGone"},
		fine:    []string{"backend/OwnerDecides", "backend/UnknownOutcome", "lease/NoRenew", "unlock/FreesAtOnce"},
	},
	{
		name:    "renewals resurrect",
		backend: func(_ *testing.T, c *client) locker.Backend { return resurrects{queued{c}} },
		caught:  []string{"lease/NeverResurrects", "backend/ExpiredIsGone"},
		fine:    []string{"exclusion/OneHolder", "unlock/FreesAtOnce", "lease/OutlivesTTL", "lease/NoRenew"},
	},
	{
		name:   "renewals ignore the owner",
		store:  func(s *store) { s.mayRenew = func(_, _ locker.Request) bool { return true } },
		caught: []string{"lease/NeverResurrects", "backend/OwnerDecides"},
		fine: []string{
			"exclusion/OneHolder", "unlock/StaleCannotFreeSuccessor", "lease/OutlivesTTL", "lease/NoRenew",
		},
	},
	{
		name: "a failed renewal is final",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsWith{queued{c}, func(error) error { return locker.ErrLost }}
		},
		caught: []string{"lease/RidesOutOneFailedRenewal"},
		fine:   []string{"lease/OutlivesTTL", "lease/DoneBeforeRival", "lease/NeverResurrects"},
	},
	{
		name: "loss signalled by the return of a renewal",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsWith{queued{c}, func(err error) error {
				if errors.Is(err, locker.ErrLost) {
					return err
				}
				return nil
			}}
		},
		caught: []string{"lease/DoneBeforeRival"},
		fine: []string{
			"lease/OutlivesTTL", "lease/NeverResurrects", "lease/RidesOutOneFailedRenewal", "lease/NoRenew",
		},
	},
	{
		name: "loss never signalled",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return renewsWith{queued{c}, func(error) error { return nil }}
		},
		caught: []string{"lease/DoneBeforeRival", "lease/NeverResurrects", "lease/ExpiresWhenAbandoned"},
		fine:   []string{"lease/OutlivesTTL", "lease/RidesOutOneFailedRenewal", "lease/NoRenew"},
	},
	{
		name: "validity counted from later than the request",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return grantsWith{queued{c}, func(g *locker.Grant) { g.Sent = g.Sent.Add(g.TTL / 4) }}
		},
		caught: []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/TTLGranularity"},
		fine:   []string{"exclusion/OneHolder", "waiting/Cancelled", "lease/RidesOutOneFailedRenewal"},
	},
	{
		name: "a longer TTL reported than granted",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return grantsWith{queued{c}, func(g *locker.Grant) { g.TTL *= 10 }}
		},
		caught: []string{
			"unlock/ReportsLoss", "lease/ErrSaysLost", "lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/TTLGranularity",
		},
		fine: []string{"exclusion/OneHolder", "waiting/Cancelled", "unlock/FreesAtOnce"},
	},
	{
		name: "deadlines by the wall clock",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return grantsWith{queued{c}, func(g *locker.Grant) { g.Sent = g.Sent.Round(0) }}
		},
		caught: []string{"lease/WallClockIndependent"},
		fine:   []string{"lease/DoneBeforeRival", "lease/OutlivesTTL", "lease/NoRenew"},
	},
}

// expiryLater needs two requests for one step.
type expiryLater struct{ *client }

func (b expiryLater) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	forGood := r
	forGood.TTL = time.Hour
	g, err := b.client.Acquire(ctx, forGood)
	if err != nil {
		return locker.Grant{}, err
	}
	if err := b.ask(ctx, func(s *store) { s.expireAfter(s.held[r.Name()], r.TTL) }); err != nil {
		return locker.Grant{}, err
	}
	g.TTL = r.TTL
	return g, nil
}

// renewsNothing says that it renews.
type renewsNothing struct{ queued }

func (b renewsNothing) Renew(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i := range gs {
		done(i, locker.Renewal{})
	}
}

// oneHangs asks for each renewal by a request of its own. For a while, one request of each call is not answered for
// almost a TTL, whatever ctx says: another lease's each time.
type oneHangs struct {
	queued
	separately bool // report each result as soon as it is known
	until      time.Time
	mu         sync.Mutex
	hung       map[locker.Owner]bool
}

func newOneHangs(c *client, separately bool) *oneHangs {
	return &oneHangs{
		queued: queued{c}, separately: separately,
		until: time.Now().Add(1200 * time.Millisecond), hung: make(map[locker.Owner]bool),
	}
}

// hangs returns the index of the grant whose request hangs, -1 if none does.
func (b *oneHangs) hangs(gs []locker.Grant) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(gs) <= 4 || time.Now().After(b.until) { // so few are those that the suite itself has renewed
		return -1
	}
	i := slices.IndexFunc(gs, func(g locker.Grant) bool { return !b.hung[g.Owner] })
	if i >= 0 {
		b.hung[gs[i].Owner] = true
	}
	return i
}

func (b *oneHangs) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	gs = slices.Clone(gs)
	hung := b.hangs(gs)
	results := make([]locker.Renewal, len(gs))
	var requests sync.WaitGroup
	for i := range gs {
		requests.Go(func() {
			if i == hung {
				time.Sleep(900 * time.Millisecond)
				results[i].Err = errReset
			} else {
				b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) { results[i] = r })
			}
			if b.separately {
				done(i, results[i])
			}
		})
	}
	requests.Wait()
	if !b.separately {
		for i, r := range results {
			done(i, r)
		}
	}
}

// TestRenewedSeparately is about the same store with a backend that does it right: that a request hangs is no defect.
func TestRenewedSeparately(t *testing.T) {
	t.Parallel()
	d := defect{backend: func(_ *testing.T, c *client) locker.Backend { return newOneHangs(c, true) }}
	for _, p := range d.problems(t, "lease/RenewedSeparately") {
		t.Error(p)
	}
}

// renewsInTurn has one connection for renewals, and asks for the next when it has the answer to the one before.
type renewsInTurn struct {
	queued
	turn chan struct{} // has room for one: unlike a mutex, one can wait for it in fake time
}

func (b renewsInTurn) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-b.turn }()
	for i := range gs {
		if len(gs) > 1 {
			select {
			case <-time.After(30 * time.Millisecond):
			case <-ctx.Done():
				return // or the test would be over before it
			}
		}
		b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) { done(i, r) })
	}
}

// tellsRenewals reports the results of n grants in a way of its own.
type tellsRenewals struct {
	queued
	tell func(i, n int, r locker.Renewal, done func(int, locker.Renewal))
}

func (b tellsRenewals) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) { b.tell(i, len(gs), r, done) })
}

// sortsGrants renews in an order of its own.
type sortsGrants struct{ queued }

func (b sortsGrants) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	at := make(map[locker.Owner]int)
	for i, g := range gs {
		at[g.Owner] = i
	}
	slices.SortFunc(gs, func(a, b locker.Grant) int { return cmp.Compare(b.Token, a.Token) })
	sorted := slices.Clone(gs)
	b.queued.Renew(ctx, sorted, func(i int, r locker.Renewal) { done(at[sorted[i].Owner], r) })
}

// freesExpired is told of leases that have ended, and does not look who has the key by then.
type freesExpired struct{ queued }

func (freesExpired) Features() locker.Features { return locker.Features{Queue: true, Expirer: true} }

func (b freesExpired) Expired(gs []locker.Grant) {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for _, g := range gs {
		b.store.free(g.Name())
	}
}

// resurrects sets a lock anew that it finds gone.
type resurrects struct{ queued }

func (b resurrects) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if errors.Is(r.Err, locker.ErrLost) {
			_, r.Err = b.Acquire(ctx, gs[i].Request)
		}
		done(i, r)
	})
}

// renewsWith reports what became of a renewal that failed in a way of its own.
type renewsWith struct {
	queued
	report func(error) error
}

func (b renewsWith) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if r.Err != nil {
			r.Err = b.report(r.Err)
		}
		done(i, r)
	})
}

// grantsWith changes its grants after the store has given them.
type grantsWith struct {
	queued
	change func(*locker.Grant)
}

func (b grantsWith) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	b.change(&g)
	return g, err
}

func (b grantsWith) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	b.change(&g)
	return g, err
}

// tokenDefects are broken in their fencing tokens.
var tokenDefects = []defect{
	{
		name:  "token constant",
		store: func(s *store) { s.mint = func(uint64) uint64 { return 1 } },
		caught: []string{
			"fencing/StrictlyIncreasing", "fencing/StableDuringHold", "fencing/SurvivesRestart", "fencing/StaleWriterIsRefused",
		},
		fine: []string{"exclusion/OneHolder", "lease/OutlivesTTL"},
	},
	{
		name: "token repeating",
		store: func(s *store) {
			var minted uint64
			s.mint = func(uint64) uint64 { minted++; return (minted + 1) / 2 }
		},
		caught: []string{"fencing/StrictlyIncreasing"},
		fine:   []string{"exclusion/OneHolder", "lease/OutlivesTTL"},
	},
	{
		name:   "token starting again after a while",
		store:  func(s *store) { s.mint = func(last uint64) uint64 { return last%16 + 1 } },
		caught: []string{"fencing/StrictlyIncreasing"},
		fine:   []string{"exclusion/OneHolder", "lease/OutlivesTTL"},
	},
	{
		name:    "token bumped by renewals",
		backend: func(_ *testing.T, c *client) locker.Backend { return rewindsTokens{queued{c}} },
		caught:  []string{"fencing/StableDuringHold"},
		fine:    []string{"exclusion/OneHolder", "lease/OutlivesTTL", "lease/NeverResurrects"},
	},
	{
		name:    "token counted by each client",
		backend: func(_ *testing.T, c *client) locker.Backend { return ownTokens(c) },
		caught:  []string{"fencing/StrictlyIncreasing", "fencing/SurvivesRestart", "fencing/StaleWriterIsRefused"},
		fine:    []string{"exclusion/OneHolder", "lease/OutlivesTTL"},
	},
}

// rewindsTokens puts the count of tokens back to what it was when the lease began. (That renewals change the token of
// the lease itself is out of the power of a backend.)
type rewindsTokens struct{ queued }

func (b rewindsTokens) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		token := gs[i].Token - 1
		_ = b.ask(ctx, func(s *store) { s.token = token })
		done(i, r)
	})
}

// ownTokens returns a backend that mints tokens without asking the store.
func ownTokens(c *client) locker.Backend {
	var last atomic.Uint64
	return grantsWith{queued{c}, func(g *locker.Grant) { g.Token = last.Add(1) }}
}
