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
// Whoever wants a lock makes a key for it, see Key; the oldest one (with the smallest create revision) holds the lock, and the
// others wait for those before them, each watching only its predecessor
// (https://etcd.io/docs/v3.6/learning/why/#using-etcd-for-distributed-coordination). Each acquisition has a key of its own, so
// a Locker excludes itself as it excludes others. The locks of package concurrency (go.etcd.io/etcd/client/v3/concurrency) have
// other keys: the two do not exclude one another.
//
// Lock and Unlock are one proposal each to the members of the cluster, also with a line. A TryLock that is refused is none, and what
// many goroutines ask for at the same time shares transactions: a proposal is an entry in every member's log, and a wait for their disks.
//
// # The lease
//
// All keys of a Locker with the same TTL are attached to one etcd lease, which one request per third of the TTL keeps alive, however many there
// are. A lock is valid for a TTL from the moment when the last such request that was answered had been sent, less 1 % and 2 ms. So
// a lock that was just granted may have up to two fifths of its TTL behind it (not with the option locker.NoRenew); Lease.Deadline
// tells. etcd counts the lease from when it answered, on its own monotonic clock, and makes it longer at times: a new leader gives each
// lease a whole TTL again. That, and half a second until the server notices that a lease is over, is what a rival waits in addition.
//
// TTLs are whole seconds; others are refused as locker.ErrInvalidOption. etcd grants no shorter ones than one and a half of its election timeout,
// which makes 2 s by default: then the lease has the TTL that was granted, and Lease.Deadline tells.
//
// A lock survives broken connections, the restart of all members, and the loss of a minority of them. While there is no majority, nothing can be
// locked or unlocked, leases end for their holders at their deadlines, and rivals get in a TTL after the majority is back at the earliest.
// A key that somebody deletes, or a lease that somebody revokes, is a lost lock. The holder is told within a third of the TTL, and at once
// if it has held the lock for longer than that. If the connection that would carry the news has died silently, it takes up to two thirds of
// the TTL plus a second. With locker.NoRenew, the holder is told at its deadline.
//
// # A leader that stands still
//
// There is one case in which etcd ends a lease that is alive, and a second holder is possible before the first one knows. A leader that
// stands still for longer than the TTL (its machine is paused or swaps, its disk does not write) is replaced, and the new one keeps the lease
// alive. If the old one goes on, all leases are over by its clock. Until it has heard of the new leader, for some
// milliseconds, it may have them deleted, and those requests reach the new leader and are carried out. etcd checks against that since
// 3.5.13, but not if its raft clock has just ticked, as it has when a process is continued
// (https://github.com/etcd-io/etcd/pull/16822, https://github.com/etcd-io/etcd/issues/12528; with 3.6.16, it happened after 3 of
// 12 pauses). A client can do nothing about it: the holder is told as of any lock that is deleted, see above. What protects the
// data is the fencing token, and Guard for what is in the same etcd. A TTL that is longer than members stand still avoids it.
//
// In the same milliseconds, the old leader confirms keep-alives, of which the new one knows nothing. That is detected: an answer that is
// overdue only counts if a read shows that there is no newer leader. In due time, answers are not checked; for one of them to do harm, the
// holder has to be cut off from the cluster right after, for half of the TTL.
//
// # Fencing tokens
//
// The token is the create revision of the key: the revision of the whole store, which each change increases, and which the log that the members
// agree upon makes last. It increases over restarts, changes of the leader and of the members. It can go back
// if the cluster is restored from a backup (restore with --bump-revision then).
//
// For what is in the same etcd there is something better: Guard makes a transaction conditional on the lock.
//
// # The waiting line
//
// Waiters are served in the order in which their keys were made, across all Lockers. TryLock never overtakes them.
// Unlock deletes the key, the next waiter's watch tells it so, and it looks whether it is the first now. All watches of
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
// that is refused at the first contact is reported at once.
//
// # What could leave a lock behind
//
// An acquire that was cancelled, or got no answer, is undone in the background, by deleting its key. If the request may still arrive after that, the
// deletion raises a fence in the same transaction, by which requests sent before are refused; locks that are held do not
// notice. Should the key not be deleted within another TTL, the lease is given up: all that is attached to it is reported lost, and goes.
// (Not for want of space: there is enough to delete.)
//
// # What it needs
//
// etcd 3.5.13 or later; before, a leader that had been deposed could confirm and delete leases for seconds. One member is asked, at first use (ErrVersion). With authentication, a role with
// readwrite permission for the prefix of the keys:
//
//	etcdctl role grant-permission app --prefix=true readwrite locker/
//
// A role that has it for less, such as locker/orders/, needs a Locker whose prefix (locker.Prefix) is that.
//
// Several endpoints, if the cluster has several members, and a client that notices dead connections (DialKeepAliveTime; Open sees to that):
// the client goes on to use one that has died without a word, in turn with the others. Locks are not lost by that: what is not answered is
// asked of another one, and an endpoint that did not answer is passed over for a second, and for up to half a minute if it still does not.
//
// An interval between compactions (--auto-compaction-retention) that is not too long, as for all that changes often: etcd keeps two
// revisions for each lock that was held since.
//
// The members themselves: etcd's own grpc-proxy is not supported. It may answer keep-alives itself, with what is left of the TTL. Those
// answers do not count, and leases end.
//
// Close gives the lease back, for which it waits two seconds at most, or a second more for one that is granted just then.
//
// The Locker talks to the connection of the client: wrappers such as package namespace that were put into the client's fields are not
// used; the option locker.Prefix does the same.
package etcdlock
