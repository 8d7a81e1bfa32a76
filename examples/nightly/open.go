package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// open returns the Locker of a URL, or why that would not work. Nothing else in the program knows which store that is.
func open(ctx context.Context, url string, opts ...locker.Option) (locker.Locker, error) {
	scheme, _, found := strings.Cut(url, "://")
	switch scheme {
	case "memory":
		return memlock.New(opts...), nil
	case "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster":
		return redislock.Open(ctx, url, opts...)
	case "redlock", "redlocks":
		return redlock.Open(ctx, url, opts...)
	case "postgres", "postgresql":
		return pglock.Open(ctx, url, opts...)
	case "etcd", "etcds":
		return etcdlock.Open(ctx, url, opts...)
	}
	const use = "use memory://, redis://, redlock://, postgres:// or etcd://"
	if !found { // and it is not shown: it may have a password in it
		return nil, errors.New("that is not a URL: " + use)
	}
	return nil, fmt.Errorf("%q: not a store of locks: %s", scheme, use)
}
