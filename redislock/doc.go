// Package redislock keeps locks in Redis 6.2 or later, or Valkey: on one server, on a master that Sentinel watches
// over, or on a Redis Cluster. It uses go-redis v9, and makes Clients of package [github.com/lockerkit/locker], which
// has the contract. Package [github.com/lockerkit/locker/redislock/redlock] keeps locks on a majority of independent
// servers.
//
//	l := redislock.New(rdb)                                                  // beside the client of your program
//	l, err := redislock.Open(ctx, "redis://localhost:6379/0")                // or with one of its own
//	l, err := redislock.Open(ctx, "redis+sentinel://one,two,three/mymaster")
//	l, err := redislock.Open(ctx, "redis+cluster://one,two,three")
//
// Open connects, and fails if locks cannot be had. New does not connect; Ping of its Client checks the same.
//
// Permissions, settings, what each topology does when servers fail, and what it costs:
// https://github.com/lockerkit/locker/blob/main/docs/redis.md. To come from redsync, bsm/redislock, node-redlock or SET
// NX PX: https://github.com/lockerkit/locker/blob/main/docs/migrating-to-redislock.md.
//
// # The lock
//
// A lock is one plain string at exactly prefix+key. It is set with SET NX PX, and owned by whoever knows its value: the
// layout of the Redis documentation. So it excludes every other client that uses this layout on the same key, such as
// redsync, bsm/redislock or node-redlock. Use Prefix(""), or their prefix; the default is "locker:".
//
// Each operation is one script and one round trip. Those that come while others are under way share a call, if they are
// simple: to take a lock alone, and to give it back; and so do renewals. Nobody waits for others to come. What turns
// out not to be that simple takes a second round trip: to give a lock back the first time that others wait for it, and
// to try one that is kept for those.
//
// # Fencing tokens
//
// The script that grants a lock mints its token: the greater of the previous token plus one, and the server's clock in
// microseconds. The previous token expires an hour after its last use (Config.TokenRetention), so nothing piles up. As
// the clock goes on, tokens also increase when the server has lost everything. Tokens go back in three cases only. The
// server loses its data, and its clock is set back. Or its clock is set back by more than the hour. Or a replica
// without the last token takes over, and its clock is behind by more than the time since then.
//
// # The waiting line
//
// A refused Lock joins the line of its key, in the same script. Unlock frees the key and calls the first in line with a
// message to its process. Only the first in line may then take the key, within a second. Each process with waiters also
// asks once a second, for all of them together. So a lost message costs up to a second, and a waiter that died is
// dropped after three. Clients of other libraries do not know of the line, and overtake it.
//
// Lock goes on waiting when the server fails. It asks again, less and less often, down to every two seconds, and tells
// the Observers. Who was dropped from the line meanwhile gets his old place back; others may have been served until
// then. Wrong credentials, a missing permission and a server of the wrong kind end the wait.
//
// # Readers and slots
//
// A lock that may have several holders (locker.Shared, locker.Slots) is set to a text that says so, "locker:shared" or
// "locker:slots", and expires with the last of them. So clients of other libraries find it taken, and a lock of theirs
// keeps readers out. The holders are in a sorted set, by the expiry of each. Slots are numbered from the lowest that is
// free. All modes stand in one line. Unlock calls all who lead it and get in together, with one message for each
// process, a hundred at a time. A lock without these options costs what it would without them.
//
// # Taken away
//
// Client.Revoke marks the owner in the lock, "locker:revoked:" and then what it was: no renewal succeeds any more, and
// Unlock does. The lock ends with the lease as it was last renewed, and others find it taken until then. The holder is
// told by a message on the channel "locker:revoked", and if that does not arrive, when it renews. For that, a Locker
// has one connection that listens, the same as for its waiters, from when a lock has been held for 50 to 100 ms.
// Client.Break deletes the lock, and mints a token.
//
// # What it does not guarantee
//
// A lock is as durable as the server's data. A server that restarts without its data grants the lock again, while the
// former holder believes in it until its next renewal: a third of a TTL, or at worst until its deadline. So does a
// replica that takes over without having received the lock. A server that evicts keys loses locks: set
// maxmemory-policy to noeviction. Where two holders cost money, let the resource check the fencing token:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md.
//
// Redis keeps expiries as times of day. If its clock is set forward, locks end early. If it is set back, the lock of a
// holder that died lasts longer, by as much.
//
// # Errors
//
// Each error is of one of the classes of package locker. ErrDenied is a matter of credentials or permissions. ErrUnfit
// is a server that will never do, such as Postgres, or a node of a cluster with a client for one server. Everything
// else is ErrUnavailable. Lock and TryLock return an error after three attempts, or when a TTL has passed. How long an
// attempt takes to fail is up to the client: go-redis dials five times by default (DialerRetries); Open sets that to
// one. And when as many dials have failed as its pool has room for (PoolSize), go-redis dials once in a second only:
// at the end of an outage, leases with less than that left are lost. The clients of Open do not do that.
package redislock
