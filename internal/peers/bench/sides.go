package main

import (
	"context"
	"errors"
	"time"

	"github.com/go-redsync/redsync/v4"
	rsredis "github.com/go-redsync/redsync/v4/redis"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/redlock"
)

// ttl is redsync's default.
const ttl = 8 * time.Second

// lock acquires a key and returns what releases it.
type lock func(ctx context.Context, key string) (unlock func() error, err error)

// side is one of those who are compared.
type side struct {
	name string
	open func(addrs []string) (lock, closer)
}

type closer func()

// redlocks are those who can lock on several servers.
func redlocks() []side {
	return []side{
		{"redsync", redsyncSide(redis.Options{})},
		{"redsync, retry after 2-10 ms", redsyncSide(redis.Options{},
			redsync.WithTries(10000), redsync.WithRetryDelayFunc(func(int) time.Duration { return delay(2, 10) }))},
		{
			"redsync, FailFast, ContextTimeoutEnabled",
			redsyncSide(redis.Options{ContextTimeoutEnabled: true}, redsync.WithFailFast(true)),
		},
		{"redlock.New", ours(redis.Options{}, redlock.New)},
	}
}

func redsyncSide(o redis.Options, opts ...redsync.Option) func([]string) (lock, closer) {
	return func(addrs []string) (lock, closer) {
		clients, closeAll := connect(addrs, o)
		var pools []rsredis.Pool
		for _, client := range clients {
			pools = append(pools, goredis.NewPool(client))
		}
		rs := redsync.New(pools...)
		return func(ctx context.Context, key string) (func() error, error) {
			m := rs.NewMutex(key, opts...)
			if err := m.LockContext(ctx); err != nil {
				return nil, err
			}
			return func() error {
				if ok, err := m.UnlockContext(context.WithoutCancel(ctx)); !ok {
					return errors.Join(errors.New("redsync: not unlocked"), err)
				}
				return nil
			}, nil
		}, closeAll
	}
}

func ours(
	o redis.Options, open func([]redis.UniversalClient, ...locker.Option) *locker.Client,
) func([]string) (lock, closer) {
	return func(addrs []string) (lock, closer) {
		clients, closeAll := connect(addrs, o)
		l := open(clients, locker.Prefix(""), locker.TTL(ttl))
		return func(ctx context.Context, key string) (func() error, error) {
			lease, err := l.Lock(ctx, key)
			if err != nil {
				return nil, err
			}
			return lease.Unlock, nil
		}, func() { _ = l.Close(); closeAll() }
	}
}

func connect(addrs []string, o redis.Options) (clients []redis.UniversalClient, closeAll func()) {
	for _, addr := range addrs {
		o.Addr = addr
		clients = append(clients, redis.NewClient(&o))
	}
	return clients, func() {
		for _, client := range clients {
			_ = client.Close()
		}
	}
}
