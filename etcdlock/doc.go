// Package etcdlock keeps locks in etcd, by way of its client v3: with a lease, a fencing token, etcd's own waiting
// line, and any number of locks on one etcd lease. It makes Clients of package [github.com/lockerkit/locker], which
// tells what all of them promise.
//
//	l := etcdlock.New(client)                                      // beside the client of your program
//	l, err := etcdlock.Open(ctx, "etcd://one:2379,two:2379,three") // or with one of its own; it connects
//
// What it takes to run it, and what it costs: https://github.com/lockerkit/locker/blob/main/docs/operating.md.
//
// # The lock
//
// Whoever wants a lock makes a key for it, see Key; the oldest one (with the smallest create revision) holds the lock,
// and the others wait for those before them, each watching only its predecessor
// (https://etcd.io/docs/v3.6/learning/why/#using-etcd-for-distributed-coordination). Each acquisition has a key of its
// own, so a Locker excludes itself as it excludes others. The locks of package concurrency
// (go.etcd.io/etcd/client/v3/concurrency) have other keys: the two do not exclude one another.
//
// Lock and Unlock are one proposal each to the members of the cluster, also with a line. A TryLock that is refused is
// none, and what many goroutines ask for at the same time shares transactions: a proposal is an entry in every member's
// log, and a wait for their disks.
//
// The option locker.Shared makes readers, whose keys are apart from the others in the line, see Key. A reader has the
// lock when no older key is another's, and waits for the last of those alone; a writer waits for all older keys. So
// readers that come next get in together, and nobody is overtaken.
//
// The keys for slots (locker.Slots) are apart, too. One of n has got a slot when no older key is another's, and fewer
// than n older ones are for slots. It then writes its number, which no other holder has, into the value of its key:
// that is one proposal more after a wait. Of many who wait, only the next few look when a slot is given back. Where
// there is not enough space in the database to write a number (ErrNoSpace), who waits for a slot goes on waiting.
//
// # The lease
//
// All keys of a Locker with the same TTL (and prefix, see locker.Adopt) are attached to one etcd lease, which one
// request per third of the TTL keeps alive, however many there are. A lock is valid for a TTL from the moment when the
// last such request that was answered had been sent, less 1 % and 2 ms. So a lock that was just granted may have up to
// two fifths of its TTL behind it (not with the option locker.NoRenew); Lease.Deadline tells. etcd counts the lease
// from when it answered, on its own monotonic clock, and makes it longer at times: a new leader gives each lease a
// whole TTL again. That, and half a second until the server notices that a lease is over, is what a rival waits in
// addition.
//
// TTLs are whole seconds; others are refused as locker.ErrInvalidOption. etcd grants no shorter ones than one and a
// half of its election timeout, which makes 2 s by default: then the lease has the TTL that was granted, and
// Lease.Deadline tells. Keep TTLs below five minutes: of longer leases, etcd writes down what is left of them
// (--experimental-enable-lease-checkpoint, or since 3.6 the feature gate LeaseCheckpoint). If that is turned off after
// it was on, a member that is restarted may count such a lease from what was written, however often it is kept alive:
// of 600 s, 299 were left.
//
// A lock survives broken connections, the restart of all members, and the loss of a minority of them. While there is no
// majority, nothing can be locked or unlocked, leases end for their holders at their deadlines, and rivals get in a TTL
// after the majority is back at the earliest. A key that somebody deletes, or a lease that somebody revokes, is a lost
// lock. The holder is told within a third of the TTL, and at once if it has held the lock for longer than that. If the
// connection that would carry the news has died silently, it takes up to two thirds of the TTL plus a second. With
// locker.NoRenew, the holder is told at its deadline.
//
// # A leader that stands still
//
// A leader that stands still for longer than two thirds of the TTL (its machine is paused or swaps, its disk does not
// write) is replaced, and the new one keeps the lease alive. If the old one goes on, all leases that it knew are over
// by its clock. Until it has heard of the new leader, for some milliseconds, it may have them revoked, and those
// requests reach the new leader and are carried out. etcd checks against that since 3.5.13, but not if its raft clock
// has just ticked, as it has when a process is continued (https://github.com/etcd-io/etcd/pull/16822,
// https://github.com/etcd-io/etcd/issues/12528; with 3.6.16, it happened after a quarter of the pauses).
//
// So as soon as an answer shows that there is a new leader, a Locker takes another etcd lease, of which the old leader
// has never heard, and puts all its keys again under that. Places in line and tokens stay. Keep-alives only count when
// that is done. In the same milliseconds, the old leader confirms keep-alives, of which the new one knows nothing: so
// each keep-alive only counts if a read that a majority confirms shows that there is no newer leader.
//
// What remains is a Locker that hears nothing of the new leader before the old one goes on, as it was cut off or
// paused, too, or while the database has reached its quota, so that no key can be put; and an administrator who revokes
// the lease. Then the locks are lost, as if somebody had deleted their keys, see above. What protects the data is the
// fencing token, and Guard for what is in the same etcd.
//
// # Fencing tokens
//
// The token is the create revision of the key: the revision of the whole store, which each change increases, and which
// the log that the members agree upon makes last. It increases over restarts, changes of the leader and of the members.
// It can go back if the cluster is restored from a backup (restore with --bump-revision then).
//
// For what is in the same etcd there is something better: Guard makes a transaction conditional on the lock.
//
// # The waiting line
//
// Waiters are served in the order in which their keys were made, across all Lockers. TryLock never overtakes them.
// Unlock deletes the key, the next waiter's watch tells it so, and it looks whether it is its turn now. Of the waiters
// of one Locker, only the first watches and looks: to etcd, a look is as much work as the line is long. All watches of
// a Locker share one stream. Should the news get lost, the waiter looks by itself after a TTL. A waiter that dies
// leaves the line when its lease ends.
//
// A waiter keeps its place through failures for as long as its etcd lease lives. If that ends too (ErrLeaseExpired), or
// if somebody deletes its key, it goes to the end of the line. Lock goes on waiting in all these cases, until its ctx
// ends.
//
// If the servers do not answer when Lock or TryLock begins, it gives up (ErrNoAnswer). With one endpoint, a request
// gets a third of the TTL, but at most 3 s; with several endpoints, up to three times that. Config.RequestTimeout
// changes it. The first request without an answer is mostly the last one of a call. Where very many call at once, they
// wait for each other: until their etcd lease has ended, and for one more request after that, at most. A connection
// that is refused, or breaks twice, is reported at once (ErrUnreachable).
//
// # Seeing, and taking away
//
// Inspect and List read the keys of who has a lock and who waits for it, of each lock as of one moment, and ask etcd
// for how long the leases of the holders last. They do not know since when a lock is held: etcd keeps no time, and the
// clock of a client is no better than a guess. What is left of a lease that was revoked may be less: see below. A key
// of another program in a line is told of, as the session; elsewhere it is passed over.
//
// Revoke puts a mark into the value of the holder's key, which keeps its place, token and etcd lease. Its Locker learns
// of that by the watch, as of a deletion, and renews the lock no more. As the etcd lease lives on for other locks, the
// Locker itself deletes the key: at Unlock, or when the lease of the lock is over. If it is frozen or cut off, the key
// goes with the etcd lease. Break puts a mark, too, and deletes the key then. A holder that learns of it by a renewal
// finds no key any more, and cannot be told why.
//
// # Keeping, and handing on
//
// A key that is kept beyond Unlock (locker.MinHold) is put under an etcd lease of its own, which nobody keeps alive.
// That is two proposals, and another when it is free. While its Locker is open, the Locker deletes the key as soon as
// the time is over. Otherwise it goes with that etcd lease. That may be late by a second and a half: etcd leases last
// for whole seconds, and up to half a second passes until the server notices that one is over. They last for 2 s at
// least, as those of locks. A new leader gives them their whole time again: then the key is kept for up to twice as
// long, and more if the leader changes again.
//
// A lease is handed on (Lease.Detach, locker.Adopt) by putting its key under the etcd lease of the other Locker, with
// the new owner in its value, if nothing has changed it since that Locker has read it. Its create revision stays, and
// so do token and place in line. That is a read and one proposal. Before a lease is adopted for the first time, etcd
// does not know its owner: then it is the token by which a ticket is known. When a Locker is closed, it puts the keys
// of leases that were detached under an etcd lease that lasts as long as they do, or a second longer: for them, Close
// is two proposals more. If that fails, Close leaves its own etcd lease to its end, with all keys that are still
// attached to it.
//
// # What could leave a lock behind
//
// An acquire that was cancelled, or got no answer, is undone in the background, by deleting its key. If the request may
// still arrive after that, the deletion raises a fence in the same transaction, by which requests sent before are
// refused; locks that are held do not notice. Should the key not be deleted within another TTL, the lease is given up:
// all that is attached to it is reported lost, and goes. (Not for want of space: there is enough to delete.)
//
// # What it needs
//
// etcd 3.5.13 or later; before, a leader that had been deposed could confirm and delete leases for seconds. One member
// is asked, at first use (ErrVersion). With authentication, a role with readwrite permission for the prefix of the
// keys:
//
//	etcdctl role grant-permission app --prefix=true readwrite locker/
//
// To inspect, read is enough. A role that has it for less, such as locker/orders/, needs a Locker whose prefix
// (locker.Prefix) is that.
//
// Several endpoints, if the cluster has several members. A Locker then has a connection of its own to the endpoint that
// it asks, made by the client and with its options (clientv3.Client.Dial), and goes to the next when that does not
// answer: it may be dead, stop, be a learner, or have no leader. One that did not answer is passed over for a second,
// and for up to half a minute if it still does not. An endpoint that answers when it is asked how it is, and knows of a
// leader, is only slow, and waited for: to write again would make a slow disk slower. With one endpoint, the Locker
// uses the connection of the client. It should notice dead connections (DialKeepAliveTime; Open sees to that).
//
// With user and password, the client logs in for each stream, of which a Locker has two, and when the server has
// forgotten its token. All requests that are refused for that share one login.
//
// The endpoints of the client may be changed at any time. (clientv3.Client.Dial reads the first of them without its
// lock, as of 3.6.16, which the race detector may report beside SetEndpoints or AutoSync.)
//
// An interval between compactions (--auto-compaction-retention) that is not too long, as for all that changes often:
// etcd keeps two revisions for each lock that was held since.
//
// The members themselves: etcd's own grpc-proxy is not supported. It may answer keep-alives itself, with what is left
// of the TTL. Those answers do not count, and leases end.
//
// Close gives the lease back, for which it waits two seconds at most, or a second more for one that is granted just
// then.
//
// The Locker talks to connections of the client: wrappers such as package namespace that were put into the client's
// fields are not used; the option locker.Prefix does the same.
package etcdlock
