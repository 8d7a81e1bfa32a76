package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
)

// open returns the Locker of a URL, or why that would not work. Nothing else in the program knows which store that is.
func open(ctx context.Context, url string, opts ...locker.Option) (locker.Locker, error) {
	scheme, _, _ := strings.Cut(url, "://")
	switch scheme {
	case "memory":
		return memlock.New(opts...), nil
	case "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "redlock", "redlocks":
		return redislock.Open(ctx, url, opts...)
	case "postgres", "postgresql":
		return pglock.Open(ctx, url, opts...)
	case "etcd", "etcds":
		return etcdlock.Open(ctx, url, opts...)
	}
	return nil, fmt.Errorf("%q: not a store of locks: use memory://, redis://, redlock://, postgres:// or etcd://", scheme)
}
