// Package redlock keeps each lock on a majority of independent Redis servers: Redlock, with fencing tokens and a
// waiting line. It makes Clients of package [github.com/lockerkit/locker], which has the contract. See package
// [github.com/lockerkit/locker/redislock] for the lock itself, its errors and permissions: each server has them.
//
//	l := redlock.New(clients)                                     // beside the clients of your program
//	l, err := redlock.Open(ctx, "redlock://one,two,three")        // or with some of its own
//
// Any minority of the servers may be dead, hung or cut off: a Client goes on, at the same speed. Without a majority
// nothing is locked (ErrNoQuorum), leases end, and waiters wait until there is one again. The next renewal restores a
// lease on servers that lack it. Until then, it is lost if a majority of the servers that do hold it fails.
//
// It is what https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/ describes. So it excludes other
// implementations on the same servers and keys, such as redsync and node-redlock. It adds:
//
//   - Fencing tokens. A token is the greatest that a quorum has minted, and a quorum knows it before the lock is
//     granted. So every later quorum mints a greater one.
//   - A waiting line over all servers: waiters are called, in order.
//   - No server is waited for that others can do without. A split vote is settled at once.
//
// # What it guarantees
//
// There is never a second holder while two things hold. No server loses a lock before its time: by restarting without
// its data, by a clock that jumps ahead, or by eviction. And clocks run at the same rate, to 1 %. Processes may be
// paused and messages delayed, lost or repeated, for any time.
//
// A server that has lost its data must stay away until the longest TTL in use has passed. If it comes back sooner,
// there can be a second holder where the lock was on a bare majority; normally it is on all servers. If a majority
// restarts without data, the locks are gone, and the former holders are told at their next renewal. Where that must
// not be, let the servers persist with "appendfsync always".
//
// Tokens increase whatever the timing, also when locks were lost and there are two holders. A resource that checks them
// lets nobody back in who was superseded. For this, no server may forget the last token of a key while its clock is
// behind that token. A server forgets it with its data, or when Config.TokenRetention has passed. So keep the
// differences between the servers' clocks smaller than that, and than the time an emptied server stays down.
//
// A model of the protocol checks both claims, state by state: redlock/internal/redlockmodel.
//
// # Readers and slots
//
// There are none: the options locker.Shared and locker.Slots get errors.ErrUnsupported. Slots cannot be counted by a
// majority: of two slots on three servers, three holders each find a free one on two of them.
//
// # Errors
//
// An ErrNoQuorum wraps what each failed server said. It is a locker.ErrDenied or ErrUnfit only if so many servers say
// that, that the others are no majority.
package redlock
