// Package redislock keeps locks in Redis 6.2 or later, or Valkey, by way of go-redis v9: on one server, on a majority
// of independent servers (Redlock), on a master that Sentinel watches over, or on a Redis Cluster. It makes Clients of
// package [github.com/lockerkit/locker], which tells what all of them promise.
//
//	l := redislock.New(rdb)                                                  // beside the client of your program
//	l, err := redislock.Open(ctx, "redis://localhost:6379/0")                // or with one of its own
//	l, err := redislock.Open(ctx, "redis+sentinel://one,two,three/mymaster")
//	l, err := redislock.Open(ctx, "redis+cluster://one,two,three")
//	l, err := redislock.Open(ctx, "redlock://one,two,three")                 // independent servers
//
// Open connects, and fails if locks cannot be had. New does not connect; Ping of the Client that it returns checks the
// same.
//
// What it takes to run it, and what it costs: https://github.com/lockerkit/locker/blob/main/docs/operating.md. To come from
// redsync, bsm/redislock, node-redlock or SET NX PX: https://github.com/lockerkit/locker/blob/main/docs/migrating-to-redislock.md.
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
// Lock goes on waiting when the server fails: it asks again, less and less often, down to every two seconds, and tells
// the Observers. Who was dropped from the line meanwhile comes back to his old place. Others may have been served until
// then. Wrong credentials, a permission that is missing and a server of the wrong kind end the wait. So does the rare
// failure in which the server has taken a request for one that its owner had given up: the Client then joins the line
// anew, at its end.
//
// # What it does not guarantee
//
// A lock is as durable as the server's data. A server that restarts without its data, or a replica that takes
// over and had not yet received the lock, grants it anew while the former holder still believes in it: normally until its
// next renewal, a third of a TTL later, at worst until its deadline. A server that evicts keys loses locks: set
// maxmemory-policy to noeviction. Where two holders cost money, let the resource check the fencing token:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md.
//
// # One server
//
// There is never a second holder while the server keeps its data, and its clock, by which keys expire, is not set
// forward: at most one process is granted a key, and it knows that its lease is over before the server does. A server
// that is down grants nothing, and leases that cannot be renewed end. After a crash, what "appendfsync everysec" has not
// yet written is forgotten, as are all locks of a server that persists nothing.
//
// # Several independent servers: Redlock
//
// NewRedlock, or Open with a URL that begins with redlock://, keeps each lock on a majority of servers that know
// nothing of one another. It goes on, at the same speed, with any minority of them dead, hung or cut off; without a
// majority nothing is locked (ErrNoQuorum), leases end, and those who are in line wait until there is one again. A
// lease that a server of the minority has lost, or had not granted, is brought there with the next renewal; until then
// it is on fewer servers, and ends if so many fail that no majority is left of those. It is what
// https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/ describes, and excludes other
// implementations of it, on the same servers and keys: redsync and node-redlock, for instance. What it does better:
//
//   - Fencing tokens. A token is the greatest that a quorum has minted, and is known to a quorum before the lock is granted:
//     so every later quorum mints a greater one.
//   - A waiting line, over all servers: waiters are called, in order.
//   - No server is waited for that others can do without. A split vote is settled at once.
//
// There is never a second holder as long as no server loses a lock before its time (it restarts without its data, its clock
// jumps ahead, keys are evicted), and clocks run at the same rate, but for 1 %: however long processes are paused, and
// messages delayed, lost or repeated. A server that has lost its data must stay away until the longest TTL in use has passed;
// if it comes back sooner, there can be a second holder where the lock was on a bare majority. (Normally it is on all of
// them.)
//
// Tokens increase whatever the timing, also when locks have been lost and there are two holders: the resource that checks them
// lets nobody back in who was superseded. They need that no server forgets the last token of a key (by losing its data, or as
// an hour has passed since) while its clock is behind that token: so that the servers' clocks must not be further apart than a
// server that has lost its data stays away. Both claims are checked, state by state, by a model of the protocol in
// internal/redlockmodel.
//
// A restart of a majority without data is beyond Redlock: the locks are gone, and the former holders are told at their next
// renewal. Where that must not be, let the servers persist with "appendfsync always".
//
// # Sentinel
//
// Give New what redis.NewFailoverClient returns, or Open a URL that begins with redis+sentinel://. A failover is ridden
// out by leases whose TTL is longer than it takes, if the replica that takes over has received them. Who waits in line
// goes on waiting; who asks meanwhile gets an error.
//
// Redis replicates asynchronously, so that there can be a second holder in two cases. A replica may take over that had
// not received the lock: that is the last moment before the master died, or longer if the link was down. The former
// holder learns of it at its next renewal, as for a server without its data. And a master that was cut off, or hung, goes
// on serving those who can still reach it, until Sentinel has made a replica of it: what it grants meanwhile is
// forgotten. With min-replicas-to-write 1 and a short min-replicas-max-lag in its configuration it refuses that after the
// lag (ErrReplicas). Tokens increase in both cases, unless the new master's clock is behind.
//
// The clocks of master and replicas have to agree, to 1 % of the TTL: a lock is replicated with the time at which it ends, so that a
// replica whose clock is ahead ends it early when it takes over.
//
// # Replicas that confirm
//
// Config.Replicas has each lock confirmed by replicas before it is granted, by way of WAIT. A failover to one of these
// then keeps the lock, if its clock is right. It does not make replication consistent: Sentinel need not choose one of
// these, unless all have to confirm; a renewal is not waited for, so that a replica that was cut off since may have let
// the lock expire; and a master that is cut off with its replicas still grants.
//
// # Redis Cluster
//
// Give New a *redis.ClusterClient, or Open a URL that begins with redis+cluster://. Each lock and its companions are in
// one slot, whatever braces the key has, so that keys spread over the nodes. Each shard is like a master with Sentinel,
// with the same gaps. When a master has died, its replica is found as soon as go-redis has asked a node that knows of it:
// at once, or, if it happens to ask one that hangs, when the client's ReadTimeout has passed.
//
// Slots may move while locks are held, renewed and waited for. While a slot is on its way, Redis refuses scripts with
// several keys (TRYAGAIN), so that Lock, TryLock and Unlock of its keys wait until it has arrived: for a TTL at most, and
// the error is ErrSlot. Leases are renewed all the while. If it takes more than three seconds, those in line may
// lose their order.
//
// A shard that hangs holds up nothing on the others: leases are renewed, unlocked and handed over there as ever.
//
// Messages to waiters are published, and a cluster passes those on: each Unlock for which somebody waits costs a message to
// every node. Sharded channels, which do not cost that, are not used: they came with Redis 7.
//
// # Managed servers
//
// Nothing is asked of the server's configuration: no CONFIG, no INFO, no keyspace notifications, no persistence. EVAL has
// to be allowed (else ErrUnsupported or ErrPermission). A service that fails over to a replica has the gaps that Sentinel
// has, unless it replicates synchronously; a replication between regions that both accept writes gives two holders, so
// lock in one region. Whether the client is redis.NewClient's or redis.NewClusterClient's is what the service says.
//
// A redis.Ring is refused: it moves the keys of a server that does not answer to others.
//
// # Permissions
//
// A user needs the commands below, the keys that begin with the prefix and with "{" and the prefix, and the channels
// locker:*, or those with the prefix of Config.ChannelPrefix. Keys that contain a hash tag of their own, as "a{b}c"
// does, have companions that begin with that tag in braces: allow ~{b}:locker:* for them.
//
//	ACL SETUSER app on >secret ~locker:* ~{locker:* &locker:* -@all +hello +auth +select +client +ping
//	+eval +evalsha +subscribe +unsubscribe +set +get +del +exists +pexpire +pttl +time
//	+zadd +zrem +zrange +zrangebyscore +zscore +publish
//
// On the nodes of a cluster, in addition:
//
//	ACL SETUSER app +cluster|slots +command +asking
//
// And for Config.Replicas:
//
//	ACL SETUSER app +wait
//
// On sentinels, go-redis uses
//
//	ACL SETUSER app +hello +auth +client +ping +sentinel +subscribe &+switch-master &+replica-reconf-done
//
// # A server that cannot be used
//
// Each error is of one of the classes of package locker. ErrDenied is a matter of credentials or permissions (ErrAuth,
// ErrPermission). ErrUnfit is a server that will never do: another kind of server, such as Postgres or an HTTP server;
// one that is too old (ErrUnsupported); a cluster with a client for one server, or the other way round. Everything else
// is ErrUnavailable. A Redlock is denied or unfit only if so many of its servers are that the others are no majority.
//
// Lock and TryLock return an error after three attempts, or when a TTL has passed. How long an attempt takes to fail is
// up to the client: by default go-redis dials five times, a tenth of a second apart (DialerRetries); Open sets that to one.
package redislock

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = "locker:"

// defaultChannelPrefix is Config.ChannelPrefix unless that says otherwise.
const defaultChannelPrefix = "locker:"

// New returns a Client that keeps its locks in the Redis that rdb is connected to. The options are the defaults for its
// leases, see locker.New. It does not connect: a server that cannot be used is reported by the first Lock, or by Ping.
//
// rdb is what redis.NewClient, redis.NewFailoverClient, redis.NewClusterClient or redis.NewUniversalClient returns.
// With a nil client or a *redis.Ring, every Lock returns ErrInvalidOption.
//
// The Client uses the connections of rdb and never closes them: Close the Client first, then rdb. Its commands heed
// their ctx, and wait for an answer at most two seconds, whatever the options of rdb say.
func New(rdb redis.UniversalClient, opts ...locker.Option) *locker.Client {
	return Config{}.New(rdb, opts...)
}

// Open is New with a client of its own for the given URL, see ParseURL, or NewRedlock with a client of its own for each
// server, see ParseRedlockURL. Close closes them.
//
// Open connects, and fails now if locks cannot be had: it locks a key of its own for a moment, and subscribes to the
// channel by which waiters are called. The error is of the class locker.ErrUnavailable, ErrDenied or ErrUnfit, or an
// ErrInvalidOption for a URL or options that cannot be used. Of the servers of a Redlock, a majority has to do. ctx
// bounds Open and nothing else.
func Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	return Config{}.Open(ctx, url, opts...)
}

func newClientOf(b locker.Backend, opts []locker.Option) *locker.Client {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}

// backend is a locker.Backend and locker.Queue.
type backend struct {
	client      *client
	scripts     *scripts
	line        *line
	closeClient func() error // nil if the client is the caller's

	replicas int           // how many of them are to confirm a lock
	within   time.Duration // so much time after it was granted
}

var (
	_ locker.Backend = (*backend)(nil)
	_ locker.Queue   = (*backend)(nil)
)

// Features implements the optional method of locker.Backend.
func (b *backend) Features() locker.Features { return locker.Features{HeedsContext: true, Queue: true} }

// String names the backend in errors.
func (b *backend) String() string { return "redis" }

// Close implements locker.Backend.
func (b *backend) Close() error {
	// All of this waits for what is under way, for long if the server does not answer. Whoever closes a Locker is in a
	// hurry then; what is left ends by itself.
	closed := make(chan error, 1)
	go func() {
		b.line.close()
		err := b.client.close()
		if b.closeClient != nil {
			err = errors.Join(err, b.closeClient())
		}
		closed <- err
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(maxTimeout):
		return nil
	}
}
