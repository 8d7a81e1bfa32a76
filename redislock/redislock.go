package redislock

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = server.DefaultPrefix

// New returns a Client that keeps its locks in the Redis that rdb is connected to. The options are the defaults for its
// leases, see locker.New. It does not connect: a server that cannot be used is reported by the first Lock, or by Ping.
//
// rdb is what redis.NewClient, redis.NewFailoverClient, redis.NewClusterClient or redis.NewUniversalClient returns.
// With a nil client or a *redis.Ring, every Lock returns ErrInvalidOption.
//
// The Client uses the connections of rdb and never closes them: Close the Client first, then rdb. Its commands heed
// their ctx, and wait for an answer at most two seconds, whatever the options of rdb say. Hooks
// that rdb has when New is called see its commands; of a ClusterClient, those that OnNewNode adds to the nodes do.
func New(rdb redis.UniversalClient, opts ...locker.Option) *locker.Client {
	return Config{}.New(rdb, opts...)
}

// Open is New with a client of its own for the given URL, see ParseURL. Close closes it.
//
// Open connects, and fails now if locks cannot be had: it locks a key of its own for a moment, and subscribes to the
// channel by which waiters are called. The error is of the class locker.ErrUnavailable, ErrDenied or ErrUnfit, or an
// ErrInvalidOption for a URL or options that cannot be used. ctx bounds Open and nothing else.
func Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	return Config{}.Open(ctx, url, opts...)
}
