package peers

import (
	"context"
	"errors"
	"testing"
	"time"

	bsm "github.com/bsm/redislock"
)

type bsmPeer struct{ *bsm.Client }

func openBsm(_ *testing.T, s *site) peer { return bsmPeer{bsm.New(s.clients[0])} }

func (p bsmPeer) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return bsmHoldOf(p.Obtain(ctx, key, ttl, &bsm.Options{Metadata: "who, since when"}))
}

func (p bsmPeer) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	// Without a deadline, it would wait no longer than the TTL.
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return bsmHoldOf(
		p.Obtain(ctx, key, ttl, &bsm.Options{RetryStrategy: bsm.LinearBackoff(retry), Metadata: "who, since when"}),
	)
}

type bsmHold struct{ *bsm.Lock }

func bsmHoldOf(l *bsm.Lock, err error) (hold, error) {
	if errors.Is(err, bsm.ErrNotObtained) {
		return nil, errHeld
	}
	return bsmHold{l}, err
}

func (h bsmHold) extend(ctx context.Context, ttl time.Duration) error {
	return bsmResult(h.Refresh(ctx, ttl, nil))
}
func (h bsmHold) unlock(ctx context.Context) error { return bsmResult(h.Release(ctx)) }

func bsmResult(err error) error {
	if errors.Is(err, bsm.ErrNotObtained) || errors.Is(err, bsm.ErrLockNotHeld) {
		return errNotHeld
	}
	return err
}
