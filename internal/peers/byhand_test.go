package peers

import (
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// poll is how those wait who have no library.
func poll(ctx context.Context, try func() (hold, error)) (hold, error) {
	for {
		h, err := try()
		if !errors.Is(err, errHeld) {
			return h, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(retry/2 + rand.N(retry)):
		}
	}
}

// byHand is what the Redis documentation tells people to do: SET NX PX, and scripts that compare.
type byHand struct{ rdb redis.UniversalClient }

func openByHand(_ *testing.T, s *site) peer { return byHand{s.clients[0]} }

func (p byHand) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	value := crand.Text()
	err := p.rdb.SetArgs(ctx, key, value, redis.SetArgs{Mode: "NX", TTL: ttl}).Err()
	if errors.Is(err, redis.Nil) {
		return nil, errHeld
	}
	return byHandHold{p.rdb, key, value}, err
}

func (p byHand) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return poll(ctx, func() (hold, error) { return p.tryLock(ctx, key, ttl) })
}

type byHandHold struct {
	rdb        redis.UniversalClient
	key, value string
}

var (
	compareAndExpire = redis.NewScript(
		`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) else return 0 end`)
	compareAndDelete = redis.NewScript(
		`if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end`)
)

func (h byHandHold) extend(ctx context.Context, ttl time.Duration) error {
	return oneIfOurs(compareAndExpire.Run(ctx, h.rdb, []string{h.key}, h.value, ttl.Milliseconds()).Int())
}

func (h byHandHold) unlock(ctx context.Context) error {
	return oneIfOurs(compareAndDelete.Run(ctx, h.rdb, []string{h.key}, h.value).Int())
}

func oneIfOurs(n int, err error) error {
	if err == nil && n != 1 {
		return errNotHeld
	}
	return err
}

// getThenDel locks as node-distributed-lock does: EX in seconds, one value per process, and first a GET, then an EXPIRE
// or DEL.
type getThenDel struct {
	rdb     redis.UniversalClient
	process string
}

func openGetThenDel(_ *testing.T, s *site) peer { return getThenDel{s.clients[0], crand.Text()} }

func (p getThenDel) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	// go-redis makes EX of whole seconds.
	err := p.rdb.SetArgs(ctx, key, p.process, redis.SetArgs{Mode: "NX", TTL: ttl.Truncate(time.Second)}).Err()
	if errors.Is(err, redis.Nil) {
		return nil, errHeld
	}
	return getThenDelHold{p, key}, err
}

func (p getThenDel) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return poll(ctx, func() (hold, error) { return p.tryLock(ctx, key, ttl) })
}

type getThenDelHold struct {
	getThenDel
	key string
}

func (h getThenDelHold) check(ctx context.Context) error {
	value, err := h.rdb.Get(ctx, h.key).Result()
	if errors.Is(err, redis.Nil) || err == nil && value != h.process {
		return errNotHeld
	}
	return err
}

func (h getThenDelHold) extend(ctx context.Context, ttl time.Duration) error {
	if err := h.check(ctx); err != nil {
		return err
	}
	return h.rdb.Expire(ctx, h.key, ttl.Truncate(time.Second)).Err()
}

func (h getThenDelHold) unlock(ctx context.Context) error {
	if err := h.check(ctx); err != nil {
		return err
	}
	return h.rdb.Del(ctx, h.key).Err()
}
