package redislock

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
)

// Config is for what New and Open do not ask. Its zero value is what they use. A Config that cannot be honoured makes
// every Lock return ErrInvalidOption, and Open, too.
type Config struct {
	// Replicas is how many replicas of the server have to confirm a lock before it is granted, by way of WAIT. If fewer
	// do so within ReplicasWithin, which counts against the TTL, the lock is given back, and the error is ErrReplicas.
	// It costs one more round trip for each lock, to the replicas and back. Renewals and Unlock do not wait.
	//
	// It narrows the gap that asynchronous replication leaves, and does not close it: see the package documentation.
	//
	// It needs a *redis.Client or a *redis.ClusterClient, or a URL for one, and the permission +wait. A Redlock has no
	// replicas. ReplicasWithin must be at least a millisecond, and shorter than the TTL.
	Replicas       int
	ReplicasWithin time.Duration

	// ChannelPrefix is the prefix of the channels by which waiters are called; "locker:" if it is empty. All processes
	// that share locks must have the same: waiters with another one are served late. The user needs the permission to
	// subscribe and publish to channels that begin with it.
	ChannelPrefix string
}

// New is the function New with this Config.
func (c Config) New(rdb redis.UniversalClient, opts ...locker.Option) *locker.Client {
	b, err := c.newBackend(rdb, newProcess(), nil)
	if err != nil {
		return newClientOf(backends.Unusable{Name: "redis", Err: err}, opts)
	}
	return newClientOf(b, opts)
}

// Open is the function Open with this Config.
func (c Config) Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	if isRedlock(url) {
		return c.openRedlock(ctx, url, opts)
	}
	o, err := ParseURL(url)
	if err != nil {
		return nil, err
	}
	rdb := redis.NewUniversalClient(o)
	b, err := c.newBackend(rdb, newProcess(), rdb.Close)
	if err != nil {
		_ = rdb.Close()
		return nil, fmt.Errorf("redislock: %w", err)
	}
	return begin(ctx, b, b.line.mayListen, opts)
}

// begin returns a Client of b if locks can be had, else closes b. listen checks that waiters can be called.
func begin(ctx context.Context, b locker.Backend, listen func(context.Context) error, opts []locker.Option,
) (*locker.Client, error) {
	l := newClientOf(b, opts)
	err := l.Ping(ctx)
	if err == nil {
		if err = listen(ctx); err != nil {
			err = fmt.Errorf("redislock: subscribing to the channel of the waiters: %w", withClass(ctx, err))
		}
	}
	if err == nil {
		return l, nil
	}
	closed := make(chan struct{})
	go func() {
		_ = l.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done(): // a server that hangs is not waited for
	}
	return nil, err
}

// withClass returns err as one that has a class, or ends with ctx.
func withClass(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ctx.Err(), context.Cause(ctx))
	case passes(err) && !errors.Is(err, locker.ErrUnavailable):
		return fmt.Errorf("%w: %w", locker.ErrUnavailable, err)
	}
	return err
}

// newBackend returns the backend for rdb, or why there can be none.
func (c Config) newBackend(rdb redis.UniversalClient, process string, closeClient func() error) (*backend, error) {
	if err := c.check(rdb); err != nil {
		return nil, err
	}
	prefix := c.ChannelPrefix
	if prefix == "" {
		prefix = defaultChannelPrefix
	}
	b := &backend{
		client: newClient(rdb), scripts: scriptsFor(prefix), closeClient: closeClient,
		replicas: c.Replicas, within: c.ReplicasWithin,
	}
	b.line = newLine(b.client, b.scripts, prefix, process)
	return b, nil
}

// check returns why rdb cannot be used in this way, if so.
func (c Config) check(rdb redis.UniversalClient) error {
	if v := reflect.ValueOf(rdb); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return fmt.Errorf("%w: the redis client is nil", locker.ErrInvalidOption)
	}
	if _, ok := rdb.(*redis.Ring); ok {
		return errRing
	}
	switch {
	case c.Replicas == 0 && c.ReplicasWithin != 0:
		return fmt.Errorf("%w: Config.ReplicasWithin without Replicas", locker.ErrInvalidOption)
	case c.Replicas < 0 || c.Replicas > 0 && c.ReplicasWithin < time.Millisecond:
		return fmt.Errorf("%w: Config: %d replicas within %v; want at least one, and one millisecond",
			locker.ErrInvalidOption, c.Replicas, c.ReplicasWithin)
	case len(c.ChannelPrefix) > locker.MaxKeyLen:
		return fmt.Errorf("%w: Config.ChannelPrefix of %d bytes, at most %d are accepted",
			locker.ErrInvalidOption, len(c.ChannelPrefix), locker.MaxKeyLen)
	}
	switch rdb.(type) {
	case *redis.Client, *redis.ClusterClient:
	default:
		if c.Replicas > 0 {
			return fmt.Errorf("%w: Config.Replicas needs a *redis.Client or a *redis.ClusterClient, not a %T",
				locker.ErrInvalidOption, rdb)
		}
	}
	return nil
}

// errRing is why a Ring cannot keep locks.
var errRing = fmt.Errorf("%w: a redis.Ring cannot keep locks: when a server does not answer for a moment, "+
	"it moves that server's keys to others, which then grant them to a second holder", locker.ErrInvalidOption)
