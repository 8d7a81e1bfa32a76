package peers

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-redsync/redsync/v4"
	rsredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
)

type redsyncPeer struct{ *redsync.Redsync }

func openRedsync(_ *testing.T, s *site) peer {
	var pools []rsredis.Pool
	for _, client := range s.clients {
		pools = append(pools, goredis.NewPool(client))
	}
	return redsyncPeer{redsync.New(pools...)}
}

func (p redsyncPeer) mutex(key string, ttl time.Duration) *redsync.Mutex {
	return p.NewMutex(
		key,
		redsync.WithExpiry(ttl),
		redsync.WithTimeoutFactor(
			0.5,
		), // of the TTL, for each server: by default a twentieth, which is little on a busy machine
		redsync.WithTries(math.MaxInt32),
		redsync.WithRetryDelayFunc(func(int) time.Duration { return retry/2 + rand.N(retry) }),
	)
}

func (p redsyncPeer) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	m := p.mutex(key, ttl)
	return p.hold(m, m.TryLockContext(ctx))
}

func (p redsyncPeer) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	m := p.mutex(key, ttl)
	return p.hold(m, m.LockContext(ctx))
}

type redsyncHold struct {
	peer redsyncPeer
	*redsync.Mutex
}

func (p redsyncPeer) hold(m *redsync.Mutex, err error) (hold, error) {
	if isTaken(err) {
		return nil, errHeld
	}
	return redsyncHold{p, m}, err
}

// isTaken reports whether a server has said that somebody else has the lock.
func isTaken(err error) bool {
	var taken *redsync.ErrTaken
	var node *redsync.ErrNodeTaken
	return errors.As(err, &taken) || errors.As(err, &node)
}

// extend needs another Mutex, as one always extends by the expiry that it was made with.
func (h redsyncHold) extend(ctx context.Context, ttl time.Duration) error {
	m := h.peer.NewMutex(h.Name(), redsync.WithExpiry(ttl), redsync.WithValue(h.Value()))
	return redsyncResult(m.ExtendContext(ctx))
}

func (h redsyncHold) unlock(ctx context.Context) error { return redsyncResult(h.UnlockContext(ctx)) }

func redsyncResult(ok bool, err error) error {
	switch {
	case ok:
		return nil
	case err == nil || isTaken(err) || errors.Is(err, redsync.ErrLockAlreadyExpired):
		return errNotHeld
	default:
		return err
	}
}
