// Package etcdlock keeps locks in etcd, by way of its client v3: with a lease, a fencing token, etcd's own waiting
// line, and any number of locks on one etcd lease. See package [github.com/lockerkit/locker] for the contract.
//
//	l := etcdlock.New(client)                                      // beside the client of your program
//	l, err := etcdlock.Open(ctx, "etcd://one:2379,two:2379,three") // or with one of its own; it connects
//
// What it takes to run it, and what it costs: https://github.com/lockerkit/locker/blob/main/docs/operating.md.
//
// # The lock
//
// Whoever wants a lock makes a key for it, see Key. The oldest one, with the smallest create revision, holds the lock.
// Each of the others watches only its predecessor
// (https://etcd.io/docs/v3.6/learning/why/#using-etcd-for-distributed-coordination). Each acquisition has a key of its
// own, so a Locker excludes itself as it excludes others. The locks of package concurrency
// (go.etcd.io/etcd/client/v3/concurrency) have other keys: the two do not exclude one another.
//
// Lock and Unlock are one proposal each to the members of the cluster, also with a line. A TryLock that is refused is
// none. What many goroutines ask for at the same time shares transactions: a proposal is an entry in every member's
// log, and a wait for their disks.
//
// The keys of readers (locker.Shared) are apart from the others in the line. A reader has the lock when no older key is
// another's, and waits for the last of those alone. A writer waits for all older keys. So readers that come next get in
// together, and nobody is overtaken.
//
// The keys for slots (locker.Slots) are apart, too. One of n has got a slot when no older key is another's, and fewer
// than n older ones are for slots. It then writes its number, which no other holder has, into the value of its key:
// that is one proposal more after a wait. While there is no space for that (ErrNoSpace), it goes on waiting.
//
// # The lease
//
// All keys of a Locker with the same TTL are attached to one etcd lease. One request per third of the TTL keeps it
// alive, however many there are. A lock is valid for TTL - 1 % - 2 ms, counted from when the last confirmed request was
// sent. So a lock that was just granted may have up to two fifths of its TTL behind it (not with locker.NoRenew);
// Lease.Deadline tells. etcd counts from when it answered, on its own monotonic clock. It makes a lease longer at
// times: a new leader gives each a whole TTL again. A rival waits for that, and for half a second until the server
// notices that a lease is over.
//
// TTLs are whole seconds; others are refused as locker.ErrInvalidOption. etcd grants no shorter ones than one and a
// half of its election timeout, which makes 2 s by default. A lease then has the TTL that was granted.
//
// A lock survives broken connections, the restart of all members, and the loss of a minority of them. While there is no
// majority, nothing can be locked or unlocked, and leases end at their deadlines. A key that somebody deletes, or a
// lease that somebody revokes, is a lost lock. The holder is told at once: by a watch, which is made when it has had
// the lock for 50 to 100 ms, and begins at the revision of the grant. So locks that are held for a moment cost no
// watch. If the connection breaks that would carry the news, the holder looks a second later, and at its next renewal
// at the latest, a third of the TTL later. If it has died silently, it takes a second more. With locker.NoRenew, there
// is no renewal: then it may learn of it at its deadline.
//
// # A leader that stands still
//
// A leader that stands still for longer than two thirds of the TTL is replaced: its machine is paused or swaps, or its
// disk does not write. If it goes on, all leases that it knew are over by its clock. Until it has heard of the new
// leader, for some milliseconds, it may have them revoked, and the new leader carries that out. etcd's check against
// that (https://github.com/etcd-io/etcd/pull/16822) does not help a process that was paused: with 3.6.16, leases were
// lost after a quarter of the pauses. In the same milliseconds, the old leader confirms keep-alives that do not count.
//
// So as soon as an answer shows that there is a new leader, a Locker takes another etcd lease, of which the old leader
// has never heard, and puts all its keys again under that. Places in line and tokens stay. A keep-alive only counts if
// a read that a majority confirms shows no newer leader.
//
// Three cases remain. The Locker hears nothing of the new leader before the old one goes on. No key can be put, as the
// database has reached its quota. Or an administrator revokes the lease. Then the locks are lost. The fencing token
// protects the data, and Guard what is in the same etcd.
//
// # Fencing tokens
//
// The token is the create revision of the key: the revision of the whole store, which each change increases, and which
// the members agree upon. It can go back if the cluster is restored from a backup: restore with --bump-revision.
//
// # The waiting line
//
// Waiters are served in the order in which their keys were made, across all Lockers. TryLock never overtakes them.
// Of the waiters of one Locker, only the first watches and looks: to etcd, a look is as much work as the line is long.
// Should the news get lost, the waiter looks by itself after a TTL. A waiter that dies leaves the line when its etcd
// lease ends. A waiter that loses its etcd lease (ErrLeaseExpired), or its key, goes to the end of the line, and waits.
//
// If the servers do not answer when Lock or TryLock begins, it gives up (ErrNoAnswer), however long ctx lasts: without
// an answer, a server that is slow looks like one that is gone. Once Lock stands in line, it lasts as long as ctx. With
// one endpoint, a request gets a third of the TTL, but at most 3 s; with several endpoints, up to three times that.
// Config.RequestTimeout changes it. Where very many call at once, it may take until their etcd lease has ended, and one
// request more. A connection that is refused, or breaks twice, is reported at once (ErrUnreachable).
//
// # Seeing, taking away, keeping, handing on
//
// Inspect and List read the keys of each lock as of one moment, and ask etcd for how long the leases of the holders
// last. They do not know since when a lock is held, as etcd keeps no time.
//
// Revoke puts a mark into the value of the holder's key, which keeps its place, token and etcd lease. Its Locker learns
// of that by the watch, renews the lock no more, and deletes the key at Unlock, or when the lease of the lock is over.
// If it is frozen or cut off, the key goes with the etcd lease. Break marks the key, too, and deletes it. A holder that
// learns of it by a renewal finds no key any more, and cannot be told why.
//
// A key that is kept beyond Unlock (locker.MinHold) is put under an etcd lease of its own, which nobody keeps alive.
// Its Locker, while it is open, deletes the key as soon as the time is over. Otherwise it may be late by a second and a
// half, and it lasts for 2 s at least. A new leader gives it its whole time again.
//
// A lease is handed on (Lease.Detach, locker.Adopt) by putting its key under the etcd lease of the other Locker, with
// the new owner in its value, if nothing has changed it meanwhile. Token and place stay. Before the first adoption, a
// ticket is known by its token alone. A Locker that is closed puts the keys of detached leases under an etcd lease that
// lasts as long as they do.
//
// # What could leave a lock behind
//
// An acquire that was cancelled, or got no answer, is undone in the background, by deleting its key. If the request may
// still arrive after that, the deletion raises a fence, by which requests that were sent before are refused. Should the
// key not be deleted within another TTL, its etcd lease is given up, and all that is attached to it is reported lost.
//
// # What it needs
//
// etcd 3.5.13 or later, which is checked at first use (ErrVersion). With authentication, a role with the prefix of the
// keys, locker/ unless locker.Prefix says otherwise:
//
//	etcdctl role grant-permission app --prefix=true readwrite locker/
//
// Name all members as endpoints: a Locker asks one of them, on a connection of its own, and goes to the next when that
// does not answer. It talks to connections of the client: wrappers such as package namespace are not used. Close takes
// a second or two at most. What else matters to operators is in docs/operating.md.
package etcdlock
