// Package locker provides distributed locks over Redis, Postgres, etcd or memory, each with a fencing token: one small
// interface, [Locker], and a contract that package conformance proves for each store, and for backends of your own.
//
//	l, err := redislock.Open(ctx, url)              // or pglock.Open, etcdlock.Open, memlock.New()
//	if err != nil {
//		return err                              // wrong address, password, server: said now
//	}
//	defer l.Close()
//
//	lease, err := l.Lock(ctx, "orders/42")          // waits its turn; ctx bounds the wait
//	if err != nil {
//		return err
//	}
//	defer lease.Unlock()
//
//	write(lease.Token(), ...)                       // the resource refuses a smaller token
//
// [Do] runs a function under a lock, and [DoAll] under several, without deadlock. [Lead] makes one process of a fleet
// the leader, for as long as it lives.
//
// The stores, each with what it promises, what it does not, and what it needs:
//
//   - [github.com/lockerkit/locker/redislock]: one Redis server, Sentinel, Cluster, or Redlock on several independent servers
//   - [github.com/lockerkit/locker/pglock]: Postgres, by advisory locks
//   - [github.com/lockerkit/locker/etcdlock]: etcd, by its leases
//   - [github.com/lockerkit/locker/memlock]: memory, for one process, for development and for tests
//
// Which of them to take: https://github.com/lockerkit/locker/blob/main/docs/choosing-a-backend.md
//
// # What a lock promises
//
// At most one lease of a key is held at any time, as long as the store keeps its promises: the packages of the backends
// say what a restart or a failover can do. Leases expire after a TTL unless they are renewed, which happens by itself,
// so a holder that dies blocks nobody for longer than that. A holder that loses its lease learns of it, by
// [Lease.Done], before anybody else can get the key: the deadline counts from when the last confirmed request was sent,
// on the monotonic clock, and ends 1 % and 2 ms before the store's.
//
// No lock with a timeout can promise that a holder does nothing after its time: a process can be paused between looking
// at the lease and writing. That is what the fencing token is for. It increases with every holder of the key; a
// resource that refuses a token smaller than the greatest it has seen is safe from every former holder. (M. Kleppmann,
// How to do distributed locking, 2016, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.) How
// such a resource is written, in Postgres, Redis, S3 and behind HTTP:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md
//
// # Errors
//
// Every error of a Locker or a Lease is an *Error around its reason. A caller can tell apart, with errors.Is: somebody
// holds the key (ErrLocked); the wait ended (context.Canceled, context.DeadlineExceeded, and the cause of ctx); the
// lease was held and is lost (ErrLost); and what is wrong with the store: ErrUnavailable passes by itself, ErrDenied
// and ErrUnfit need somebody who mends it. The packages of the stores have sentinels that say more, each of which is of
// one of these classes. What each error means, and what to do then:
// https://github.com/lockerkit/locker/blob/main/docs/operating.md
//
// Lock fails fast if the store cannot be reached when it begins. Once it waits for a holder, it rides out what passes
// for as long as ctx lasts: a restart or a failover does not end the waits of a fleet.
//
// # To be seen
//
// The option [Log] gives a Client a logger. The option [Observe] gives it functions that are told of each Lock, lease,
// renewal and retry; package [github.com/lockerkit/locker/otellocker] has some for OpenTelemetry. Without them nothing
// is written, and nothing is spent on it.
//
// # Concurrency
//
// Everything is safe for concurrent use. A Client has no goroutine while nothing is due; renewals of however many
// leases that are due together go to the store together, up to a thousand at a time. However long a store hangs, the
// number of goroutines does not grow with the number of calls. Locks are not reentrant.
//
// # Backends
//
// [New] makes a [Client] of a [Backend], which has to do little more than one attempt to acquire, to renew and to
// release. Package [github.com/lockerkit/locker/conformance] has the tests for it.
package locker
