package peers

import (
	"context"
	"errors"
	"time"

	bsm "github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// Libraries on Redis that make one attempt, extend when they are told to, and leave the waiting to others: package
// locker polls for them, renews, and keeps the deadlines. None of them has a line, or a token.

// redsyncLibrary has the owner as its value, so that what a failed attempt has left can be unlocked. Each request has a
// Mutex of its own, as their fields are not safe for concurrent use.
type redsyncLibrary struct{ redsyncPeer }

func newRedsyncLibrary(rdb *redis.Client) library {
	return redsyncLibrary{redsyncPeer{redsync.New(goredis.NewPool(rdb))}}
}

func (l redsyncLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	value := r.Owner.String()
	m := l.NewMutex(r.Name(), redsync.WithExpiry(r.TTL), redsync.WithTimeoutFactor(0.5), redsync.WithValue(value),
		redsync.WithGenValueFunc(func() (string, error) { return value, nil }))
	return l.hold(m, m.TryLockContext(ctx))
}

func (l redsyncLibrary) close() error { return nil }

// bsmLibrary has the owner as its token: all tokens are of one length, so that none is the beginning of another one.
type bsmLibrary struct{ *bsm.Client }

func newBsmLibrary(rdb *redis.Client) library { return bsmLibrary{bsm.New(rdb)} }

func (l bsmLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	h := bsmUnknown{l.Client, r.Name(), r.TTL, &bsm.Options{Token: r.Owner.String(), Metadata: r.Holder}}
	lock, err := l.Obtain(ctx, h.key, h.ttl, h.options)
	if err != nil && !errors.Is(err, bsm.ErrNotObtained) {
		return h, err
	}
	return bsmHoldOf(lock, err)
}

func (l bsmLibrary) close() error { return nil }

// bsmUnknown is what an attempt may have left of which no Lock came back. Who has the token can obtain it again.
type bsmUnknown struct {
	client  *bsm.Client
	key     string
	ttl     time.Duration
	options *bsm.Options
}

func (h bsmUnknown) extend(context.Context, time.Duration) error { return errNotHeld }

func (h bsmUnknown) unlock(ctx context.Context) error {
	lock, err := h.client.Obtain(ctx, h.key, h.ttl, h.options)
	if err != nil {
		return bsmResult(err)
	}
	return bsmResult(lock.Release(ctx))
}

// byHandLibrary is SET NX PX, and scripts that compare, as in the documentation of Redis. It does one thing more:
// go-redis repeats a request whose answer got lost, so whoever is refused looks whether the lock is its own.
type byHandLibrary struct{ byHand }

func newByHandLibrary(rdb *redis.Client) library { return byHandLibrary{byHand{rdb}} }

func (l byHandLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	h := byHandHold{l.rdb, r.Name(), r.Owner.String()}
	err := l.rdb.SetArgs(ctx, h.key, h.value, redis.SetArgs{Mode: "NX", TTL: r.TTL}).Err()
	if errors.Is(err, redis.Nil) {
		if err = h.extend(ctx, r.TTL); errors.Is(err, errNotHeld) {
			return nil, errHeld
		}
	}
	return h, err
}

func (l byHandLibrary) close() error { return nil }

// naive is what people write who have not read on: SET NX PX, PEXPIRE, DEL, and no look at whose lock it is.
type naive struct{ rdb *redis.Client }

func newNaive(rdb *redis.Client) library { return naive{rdb} }

func (l naive) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	h := naiveHold{l.rdb, r.Name()}
	err := l.rdb.SetArgs(ctx, h.key, "locked", redis.SetArgs{Mode: "NX", TTL: r.TTL}).Err()
	if errors.Is(err, redis.Nil) {
		return nil, errHeld
	}
	return h, err
}

func (l naive) close() error { return nil }

type naiveHold struct {
	rdb *redis.Client
	key string
}

func (h naiveHold) extend(ctx context.Context, ttl time.Duration) error {
	was, err := h.rdb.PExpire(ctx, h.key, ttl).Result()
	if err == nil && !was {
		return errNotHeld
	}
	return err
}

func (h naiveHold) unlock(ctx context.Context) error {
	n, err := h.rdb.Del(ctx, h.key).Result()
	return oneIfOurs(int(n), err)
}
