// Package locker is a distributed lock with a fencing token on every store: one small interface, [Locker], in front of
// Redis, Postgres, etcd or memory, with a contract that package conformance proves for each of them, and for backends of your
// own.
//
//	l := redislock.New(rdb)                         // or pglock.New(pool), etcdlock.New(client), memlock.New()
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
// [Do] runs a function under a lock. [Lead] makes one process of a fleet the leader, for as long as it lives.
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
// say what a restart or a failover can do. Leases expire after a TTL unless they are renewed, which happens by
// itself, so a holder that dies blocks nobody for longer than that. A holder that loses its lease learns of it,
// by [Lease.Done], before anybody else can get the key: the deadline counts from when the last confirmed request was sent,
// on the monotonic clock, and ends 1 % and 2 ms before the store's.
//
// No lock with a timeout can promise that a holder does nothing after its time: a process can be paused between
// looking at the lease and writing. That is what the fencing token is for. It increases with every holder of the key;
// a resource that refuses a token smaller than the greatest it has seen is safe from every former holder. (M. Kleppmann,
// How to do distributed locking, 2016, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.)
// How such a resource is written, in Postgres, Redis, S3 and behind HTTP:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md
//
// # Errors
//
// Every error of a Locker or a Lease is an *Error around its reason, so that a caller can tell apart, with errors.Is:
// somebody holds the key (ErrLocked); the wait ended (the cause of ctx); the lease was held and is lost (ErrLost); and
// anything else, which is what the store said, or that it did not answer. Do returns the error of its function as it is,
// and Lead the bare cause of its ctx. What each error means, also those of the stores, and what to do then:
// https://github.com/lockerkit/locker/blob/main/docs/operating.md
//
// # Concurrency
//
// Everything is safe for concurrent use. A Locker has no goroutine while nothing is due; renewals of however many
// leases that are due together go to the store together. Locks are not reentrant.
//
// # Backends
//
// [New] makes a Locker of a [Backend], which has to do little more than one attempt to acquire, to renew and to release. Package
// [github.com/lockerkit/locker/conformance] has the tests for it.
package locker
