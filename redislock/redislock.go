// Package redislock keeps locks in Redis 6.2 or later, by way of go-redis v9. One server, for now.
//
// # The lock
//
// A lock is one plain string at exactly prefix+key, set with SET NX PX and owned by whoever knows its value: the layout of
// the Redis documentation. It excludes, and is excluded by, every other client that uses it on the same key, such as
// redsync, bsm/redislock or node-redlock: with Prefix(""), or with the prefix that they use. The default prefix is
// "locker:".
//
// Each operation is one script and one round trip. Operations of many goroutines share a connection by way of
// go-redis's automatic pipelining; renewals of many leases go together.
//
// # Fencing tokens
//
// The script that grants a lock mints its token: the greater of the previous token plus one and the server's clock in
// microseconds. The previous one is kept under a companion key that expires an hour after its last use, so nothing
// piles up; and as the clock goes on, tokens also increase when the server has lost everything. They can only go
// back if the server loses its data and its clock is set back, or if a replica takes over that had not received the last
// token and whose clock is behind by more than the time since then.
//
// # The waiting line
//
// A refused request joins the key's line, in the same script. Unlock frees the key and calls the first in line with
// one message to its process; only the first in line may then take the key. It has a second to do that before it is
// the next one's turn. A message that gets lost costs up to a second, as each process with waiters also asks once a second,
// for all of them together. That also shows that they are alive: a waiter that has not been heard of for three seconds is
// dropped. A process that dies while it waits can therefore delay those behind it by as much. Clients of other libraries
// do not know of the line, and overtake it.
//
// # What it does not guarantee
//
// A lock is as durable as the server's data. A server that restarts without its data, or a replica that takes
// over and had not yet received the lock, grants it anew while the former holder still believes in it: normally until its
// next renewal, a third of a TTL later, at worst until its deadline. A server that evicts keys loses locks: set
// maxmemory-policy to noeviction. Where two holders cost money, let the resource check the fencing token.
//
// # Permissions
//
// A user needs the commands below, the keys that begin with the prefix and with "{" and the prefix, and the channels
// locker:*. Keys that contain a hash tag of their own, as "a{b}c" does, have companions that begin with that tag in
// braces: allow ~{b}:locker:* for them. No server configuration is changed.
//
//	ACL SETUSER app on >secret ~locker:* ~{locker:* &locker:* -@all +hello +auth +select +client +ping
//	+eval +evalsha +subscribe +unsubscribe +set +get +del +exists +pexpire +pttl +time
//	+zadd +zrem +zrange +zrangebyscore +zscore +publish
//
// # A server that cannot be reached
//
// Lock and TryLock return an error after three attempts, or when a TTL has passed. How long an attempt takes to fail is
// up to the client: by default go-redis dials five times, a tenth of a second apart (DialerRetries); Open sets that to one.
package redislock

import (
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker:"

// New returns a Locker that keeps its locks in the Redis that rdb is connected to. The options are the defaults for its
// leases, see locker.New.
//
// The Locker uses the client's connections and never closes them: Close the Locker first, then the client. Its commands
// heed their ctx, and wait for an answer at most two seconds, whatever the client's options say. A single server with
// a *redis.Client is what this version is tested with.
func New(rdb redis.UniversalClient, opts ...locker.Option) locker.Locker {
	return newLocker(newBackend(rdb, newProcess(), nil), opts)
}

// Open is New with a client of its own for the given URL, such as redis://user:password@host:6379/0, rediss://host or
// unix:///run/redis.sock, with the parameters of redis.ParseURL. It does not connect yet. Close closes the client.
func Open(url string, opts ...locker.Option) (locker.Locker, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("redislock: %w: %w", locker.ErrInvalidOption, err)
	}
	if o.DialerRetries == 0 {
		o.DialerRetries = 1 // to dial five times, which is the default, only delays the news
	}
	rdb := redis.NewClient(o)
	return newLocker(newBackend(rdb, newProcess(), rdb.Close), opts), nil
}

func newLocker(b locker.Backend, opts []locker.Option) locker.Locker {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}

func newBackend(rdb redis.UniversalClient, process string, closeClient func() error) *backend {
	b := &backend{client: newClient(rdb), closeClient: closeClient}
	b.line = newLine(b.client, process)
	return b
}

// backend is a locker.Backend and locker.Queue.
type backend struct {
	client      *client
	line        *line
	closeClient func() error // nil if the client is the caller's
}

var (
	_ locker.Backend      = (*backend)(nil)
	_ locker.Queue        = (*backend)(nil)
	_ locker.HeedsContext = (*backend)(nil)
)

// Prompt implements locker.HeedsContext.
func (b *backend) HeedsContext() {}

// String names the backend in errors.
func (b *backend) String() string { return "redis" }

// Close implements locker.Backend.
func (b *backend) Close() error {
	// Both wait for what is under way, for long if the server does not answer. Whoever closes a Locker is in a hurry
	// then; what is left ends by itself.
	closed := make(chan error, 1)
	go func() {
		b.line.close()
		closed <- b.client.close()
	}()
	var err error
	select {
	case err = <-closed:
	case <-time.After(maxTimeout):
	}
	if b.closeClient != nil {
		err = errors.Join(err, b.closeClient())
	}
	return err
}
