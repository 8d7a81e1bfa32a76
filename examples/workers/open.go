package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
)

// open returns the program for the backend of cfg. A further store takes one more case here and a queue of its own;
// everything else knows only locker.Locker and Queue.
func open(cfg config, out io.Writer) (program, error) {
	scheme, _, _ := strings.Cut(cfg.backend, "://")
	switch scheme {
	case memory:
		return newFleet(cfg, out), nil
	case "redis", "rediss", "unix":
		s, err := openRedis(cfg)
		if err != nil {
			return nil, fmt.Errorf("-backend: %w", withoutURL(err))
		}
		return newProcess(cfg, s, out), nil
	}
	return nil, fmt.Errorf("-backend: %q is not a known kind of store; use memory, or a URL that begins with redis://, rediss:// or unix://", scheme)
}

// store is what the workers of a fleet share.
type store struct {
	locks locker.Locker
	queue Queue
	close func() error // to be called when locks is closed
}

func openRedis(cfg config) (store, error) {
	o, err := redis.ParseURL(cfg.backend)
	if err != nil {
		return store{}, err
	}
	o.ContextTimeoutEnabled = true // else go-redis ignores the end of a context while it waits for an answer
	logging.Disable()              // every failure reaches us as an error, and is reported
	rdb := redis.NewClient(o)      // does not connect yet
	return store{
		locks: redislock.New(rdb, locker.TTL(cfg.ttl)),
		queue: newRedisQueue(rdb, cfg.key),
		close: rdb.Close,
	}, nil
}

// withoutURL takes the URL out of an error of package url, as it may have a password in it.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("not a valid URL: %w", u.Err)
	}
	return err
}
