package conformance

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// awayDefects are broken in what they do when the store cannot be reached.
var awayDefects = []defect{
	{
		name: "a release that fails is one that succeeds",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(locker.Grant, error) error { return nil }}
		},
		caught: []string{"unlock/StoreAway", "close/StoreAway", "unlock/RepeatsCleanUp"},
		fine: []string{
			"unlock/FreesAtOnce", "unlock/ReportsLoss", "unlock/StaleCannotFreeSuccessor", "waiting/LostReply", "errors/Typed",
		},
	},
	{
		name: "a release that fails is one of a lock that was lost",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(locker.Grant, error) error { return locker.ErrLost }}
		},
		caught: []string{"unlock/StoreAway", "close/StoreAway", "unlock/RepeatsCleanUp"},
		fine: []string{
			"unlock/FreesAtOnce", "unlock/ReportsLoss", "unlock/StaleCannotFreeSuccessor", "waiting/LostReply", "errors/Typed",
		},
	},
	{
		name: "a release that is not answered has succeeded",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &triesBriefly{queued{c}, nil}
		},
		caught: []string{"unlock/StoreAway", "close/StoreAway"},
		fine:   []string{"unlock/FreesAtOnce", "unlock/ReportsLoss", "unlock/StaleCannotFreeSuccessor", "errors/Typed"},
	},
	{
		name: "a release that is not answered is one of a lock that was lost",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return &triesBriefly{queued{c}, locker.ErrLost}
		},
		caught: []string{"unlock/StoreAway", "close/StoreAway"},
		fine:   []string{"unlock/FreesAtOnce", "unlock/ReportsLoss", "unlock/StaleCannotFreeSuccessor", "errors/Typed"},
	},
	{
		name: "a release that fails is refused for good",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(_ locker.Grant, err error) error { return errors.Join(locker.ErrDenied, err) }}
		},
		caught: []string{"unlock/StoreAway"},
		fine: []string{
			"unlock/FreesAtOnce", "unlock/ReportsLoss", "close/StoreAway", "unlock/RepeatsCleanUp", "errors/Typed",
		},
	},
	{
		name: "a release that fails is not tried again",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(_ locker.Grant, err error) error { return locker.Final(err) }}
		},
		caught: []string{"unlock/StoreAway", "unlock/RepeatsCleanUp"},
		fine:   []string{"unlock/FreesAtOnce", "unlock/ReportsLoss", "close/StoreAway", "errors/Typed"},
	},
	{
		name:    "a release is asked for once",
		backend: func(_ *testing.T, c *client) locker.Backend { return &asksOnce{queued: queued{c}} },
		caught:  []string{"unlock/StoreAway", "unlock/RepeatsCleanUp", "close/StoreAway"},
		fine:    []string{"unlock/FreesAtOnce", "unlock/ReportsLoss", "errors/Typed", "backend/UnknownOutcome"},
	},
	{
		name:    "a keep-alive goes on until a release succeeds",
		backend: func(_ *testing.T, c *client) locker.Backend { return &aliveUntilReleased{keepsAlive: newKeepsAlive(c)} },
		caught:  []string{"unlock/StoreAway"},
		fine:    []string{"unlock/FreesAtOnce", "unlock/Twice", "unlock/DuringRenewal", "lease/OutlivesTTL"},
	},
	{
		name:    "a release goes on when its ctx has ended",
		backend: func(_ *testing.T, c *client) locker.Backend { return releasesAtLength{queued{c}} },
		caught:  []string{"unlock/StoreAway"},
		fine:    []string{"unlock/FreesAtOnce", "unlock/ReportsLoss", "errors/Typed"},
	},
	{
		name:   "Close does not say what it could not unlock",
		locker: func(_ *testing.T, l locker.Locker) locker.Locker { return closesSilently{l} },
		caught: []string{"close/StoreAway"},
		fine:   []string{"close/UnlocksHeld", "close/Idempotent", "close/FailsWaiters", "unlock/StoreAway"},
	},
	{
		name: "what an acquire has left is released once, if at all",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(g locker.Grant, err error) error {
				if g.Token == 0 {
					return locker.Final(err)
				}
				return err
			}}
		},
		caught: []string{"unlock/RepeatsCleanUp"},
		fine: []string{
			"unlock/StoreAway", "close/StoreAway", "waiting/LostReply", "waiting/CancelStorm", "backend/UnknownOutcome",
		},
	},
	{
		name: "what an acquire has left counts as released",
		backend: func(_ *testing.T, c *client) locker.Backend {
			return releasesWith{queued{c}, func(g locker.Grant, err error) error {
				if g.Token == 0 {
					return nil
				}
				return err
			}}
		},
		caught: []string{"unlock/RepeatsCleanUp"},
		fine: []string{
			"unlock/StoreAway", "close/StoreAway", "waiting/LostReply", "waiting/CancelStorm", "backend/UnknownOutcome",
		},
	},
	{
		name:    "an acquire that fails cleans up by itself, once",
		backend: func(_ *testing.T, c *client) locker.Backend { return cleansUp{queued: queued{c}, acquire: true} },
		caught:  []string{"unlock/RepeatsCleanUp"},
		fine:    []string{"unlock/StoreAway", "waiting/CancelStorm", "backend/UnknownOutcome", "errors/Typed"},
	},
	{
		name:    "a wait that fails cleans up by itself, once",
		backend: func(_ *testing.T, c *client) locker.Backend { return cleansUp{queued: queued{c}, wait: true} },
		caught:  []string{"unlock/RepeatsCleanUp"},
		fine:    []string{"unlock/StoreAway", "waiting/CancelStorm", "backend/UnknownOutcome", "errors/Typed"},
	},
}

// releasesWith says what became of a release that the store did not answer in a way of its own.
type releasesWith struct {
	queued
	report func(locker.Grant, error) error
}

func (b releasesWith) Release(ctx context.Context, g locker.Grant) error {
	err := b.queued.Release(ctx, g)
	if err != nil && !errors.Is(err, locker.ErrLost) {
		return b.report(g, err)
	}
	return err
}

// triesBriefly waits for the answer to a release for a while, and then says what it thinks of it.
type triesBriefly struct {
	queued
	otherwise error
}

func (b *triesBriefly) Release(ctx context.Context, g locker.Grant) error {
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	err := b.queued.Release(soon, g)
	if errors.Is(err, context.DeadlineExceeded) {
		return b.otherwise
	}
	return err
}

// asksOnce forgets what it has been asked to release.
type asksOnce struct {
	queued
	mu    sync.Mutex
	asked map[locker.Owner]bool
}

func (b *asksOnce) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	again := b.asked[g.Owner]
	if b.asked == nil {
		b.asked = make(map[locker.Owner]bool)
	}
	b.asked[g.Owner] = true
	b.mu.Unlock()
	if again && g.Token != 0 {
		return locker.ErrLost
	}
	if again {
		return nil
	}
	return b.queued.Release(ctx, g)
}

// aliveUntilReleased renews by itself until a release has succeeded.
type aliveUntilReleased struct {
	*keepsAlive
	mu       sync.Mutex
	released map[locker.Owner]chan struct{}
}

func (b *aliveUntilReleased) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	if err != nil {
		return g, err
	}
	released := make(chan struct{})
	b.mu.Lock()
	if b.released == nil {
		b.released = make(map[locker.Owner]chan struct{})
	}
	b.released[r.Owner] = released
	b.mu.Unlock()
	if !r.NoRenew {
		b.keeping.Go(func() {
			for {
				select {
				case <-b.closed:
					return
				case <-released:
					return
				case <-time.After(r.TTL / 3):
					_ = b.store.renewNow(g) // by a connection of its own
				}
			}
		})
	}
	return g, nil
}

func (b *aliveUntilReleased) Release(ctx context.Context, g locker.Grant) error {
	err := b.client.Release(ctx, g)
	b.mu.Lock()
	defer b.mu.Unlock()
	if released := b.released[g.Owner]; released != nil && (err == nil || errors.Is(err, locker.ErrLost)) {
		close(released)
		delete(b.released, g.Owner)
	}
	return err
}

// renewNow is renew for who does not hold mu.
func (s *store) renewNow(g locker.Grant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renew(g)
}

// releasesAtLength does not heed the ctx of a release, though it says so.
type releasesAtLength struct{ queued }

func (releasesAtLength) Features() locker.Features {
	return locker.Features{Queue: true, HeedsContext: true}
}

func (b releasesAtLength) Release(_ context.Context, g locker.Grant) error {
	for start := time.Now(); ; time.Sleep(g.TTL / 10) {
		ctx, cancel := context.WithTimeout(context.Background(), g.TTL)
		err := b.queued.Release(ctx, g)
		cancel()
		if err == nil || errors.Is(err, locker.ErrLost) || g.Token == 0 || time.Since(start) > 3*g.TTL {
			return err
		}
	}
}

// closesSilently is a Locker whose Close always succeeds.
type closesSilently struct{ locker.Locker }

func (l closesSilently) Close() error {
	_ = l.Locker.Close()
	return nil
}

// cleansUp undoes what it has failed at, and says that nothing is left.
type cleansUp struct {
	queued
	acquire, wait bool
}

func (b cleansUp) undo(r locker.Request, err error) error {
	if err == nil || errors.Is(err, locker.ErrLocked) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.TTL/10)
	defer cancel()
	_ = b.Release(ctx, locker.Grant{Request: r})
	return locker.NotAcquired(err)
}

func (b cleansUp) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if b.acquire {
		err = b.undo(r, err)
	}
	return g, err
}

func (b cleansUp) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if b.wait {
		err = b.undo(r, err)
	}
	return g, err
}
