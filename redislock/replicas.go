package redislock

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// replicated is a backend whose locks are confirmed by replicas, around one that knows nothing of them. What was
// granted is renewed at once, on a connection on which WAIT follows: that counts the replicas that have what its own
// connection wrote. As a replica receives all writes of its master in their order, these have the lock.
type replicated struct {
	*server.Server
	replicas int           // how many of them are to confirm a lock
	within   time.Duration // so much time after it was granted
}

func newReplicated(
	b *server.Server, rdb redis.UniversalClient, replicas int, within time.Duration,
) (*replicated, error) {
	switch {
	case replicas == 0:
		return nil, fmt.Errorf("%w: Config.ReplicasWithin without Replicas", locker.ErrInvalidOption)
	case replicas < 0 || within < time.Millisecond:
		return nil, fmt.Errorf("%w: Config: %d replicas within %v; want at least one, and one millisecond",
			locker.ErrInvalidOption, replicas, within)
	}
	switch rdb.(type) {
	case *redis.Client, *redis.ClusterClient:
		return &replicated{b, replicas, within}, nil
	}
	return nil, fmt.Errorf("%w: Config.Replicas needs a *redis.Client or a *redis.ClusterClient, not a %T",
		locker.ErrInvalidOption, rdb)
}

// Acquire implements locker.Backend.
func (b *replicated) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	g, err := b.Server.Acquire(ctx, r)
	if err != nil {
		return locker.Grant{}, err
	}
	return g, b.confirm(ctx, g).result()
}

// Wait implements locker.Queue. A lock that too few replicas have is waited for again, at the same place.
func (b *replicated) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	var place server.Place
	for failures := 1; ; failures++ {
		g, err := b.WaitFrom(ctx, r, &place)
		if err != nil {
			return locker.Grant{}, err
		}
		short := b.confirm(ctx, g)
		if short.err == nil || place.Arrival == "" || !conn.Passes(short.err) {
			return g, short.result()
		}
		r.ReportRetry(short.err)
		if !conn.Sleep(ctx, server.OutagePause(failures)) {
			short.err = context.Cause(ctx)
			return locker.Grant{}, short.result()
		}
	}
}

// check refuses what could not be confirmed in time.
func (b *replicated) check(r locker.Request) error {
	if b.within >= r.TTL {
		return fmt.Errorf("%w: TTL(%v) is not longer than the %v that replicas have",
			locker.ErrInvalidOption, r.TTL, b.within)
	}
	return nil
}

// shortfall is what became of a lock that replicas have not confirmed; its zero value is that they have.
type shortfall struct {
	err       error
	givenBack bool // else package locker releases it, as after every error of unknown outcome
}

func (s shortfall) result() error {
	if s.givenBack {
		return locker.NotAcquired(s.err)
	}
	return s.err
}

// confirm waits until the replicas have a lock, or gives it back.
func (b *replicated) confirm(ctx context.Context, g locker.Grant) shortfall {
	script, words := b.RenewalOf(g)
	reply, confirmed, err := b.Client.RunConfirmed(ctx, script, words, b.replicas, b.within)
	switch {
	case err != nil:
		err, _ = b.Client.MeaningOf(err)
		err = fmt.Errorf("waiting for replicas: %w", err)
	case confirmed >= int64(b.replicas):
		if err = b.RenewedAlone(reply); err == nil {
			return shortfall{}
		}
		err = fmt.Errorf("taken away before replicas had it: %w", err)
	default:
		err = fmt.Errorf("%w: %d of %d within %v", conn.ErrReplicas, confirmed, b.replicas, b.within)
	}
	return shortfall{err, b.Release(ctx, g) == nil}
}
