package redislock

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// Config is for what New and Open do not ask. Its zero value is what they use. A Config that cannot be honoured makes
// every Lock return ErrInvalidOption, and Open, too.
type Config struct {
	// Replicas is how many replicas of the server have to confirm a lock before it is granted, by way of WAIT. If fewer
	// do so within ReplicasWithin, which counts against the TTL, the lock is given back, and the error is ErrReplicas.
	// It costs one more round trip for each lock, to the replicas and back. Renewals and Unlock do not wait.
	//
	// It narrows the gap that asynchronous replication leaves, and does not close it: see docs/redis.md.
	//
	// It needs a *redis.Client or a *redis.ClusterClient, or a URL for one, and the permission +wait.
	// ReplicasWithin must be at least a millisecond, and shorter than the TTL.
	Replicas       int
	ReplicasWithin time.Duration

	// ChannelPrefix is the prefix of the channels by which waiters are called; "locker:" if it is empty. All processes
	// that share locks must have the same: waiters with another one are served late. The user needs the permission to
	// subscribe and publish to channels that begin with it.
	ChannelPrefix string

	// TokenRetention is how long the server keeps the last fencing token of a key after the key was last locked: one
	// hour if it is zero, and never less than the TTL of the lock. Meanwhile, each key that was ever locked takes some
	// 200 bytes of the server's memory. A shorter time saves that, where many different keys are locked. At least one
	// second.
	//
	// What a shorter one risks: once the token is forgotten, it is the server's clock alone that makes the next one
	// greater. So tokens can go back if that clock is set back by more than TokenRetention, or if a replica takes over
	// whose clock is behind by more. On a Redlock they can if the servers' clocks are further apart. (A clock that is
	// set back, or is behind, by less costs nothing: the token is kept by the same clock.) Processes that share locks
	// should have the same: for each key, the one that locked it last decides.
	TokenRetention time.Duration
}

// New is the function New with this Config.
func (c Config) New(rdb redis.UniversalClient, opts ...locker.Option) *locker.Client {
	b, err := c.newBackend(rdb, nil)
	if err != nil {
		return server.ClientOf(backends.Unusable{Name: "redis", Err: err}, opts)
	}
	return server.ClientOf(b, opts)
}

// Open is the function Open with this Config.
func (c Config) Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	o, err := ParseURL(url)
	if err != nil {
		return nil, err
	}
	rdb := redis.NewUniversalClient(o)
	conn.Redialing(rdb)
	b, err := c.newBackend(rdb, rdb.Close)
	if err != nil {
		_ = rdb.Close()
		return nil, fmt.Errorf("redislock: %w", err)
	}
	return server.Open(ctx, b, opts)
}

// newBackend returns the backend for rdb, or why there can be none.
func (c Config) newBackend(rdb redis.UniversalClient, closeClient func() error) (server.Listening, error) {
	config := server.Config{ChannelPrefix: c.ChannelPrefix, TokenRetention: c.TokenRetention}
	b, err := config.New(rdb, server.NewProcess(), closeClient)
	if err != nil || c.Replicas == 0 && c.ReplicasWithin == 0 {
		return b, err
	}
	return newReplicated(b, rdb, c.Replicas, c.ReplicasWithin)
}
