// Package pglock keeps locks in Postgres 14 or later, by way of pgx v5: session-level advisory locks with a lease, a
// fencing token, and many locks on one connection. It makes Lockers of package [github.com/lockerkit/locker], which
// tells what all of them promise.
//
//	l := pglock.New(pool)                                        // beside the pool of your program, with connections of its own
//	l, err := pglock.Open(ctx, "postgres://localhost:5432/app")  // or without one
//
// What it takes to run it, and what it costs: https://github.com/lockerkit/locker/blob/main/docs/operating.md.
//
// # The lock
//
// A lock is an advisory lock of a session
// (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS) under a key of 64 bits, see Key. It
// excludes everybody who locks the same key in the same database. pg_locks shows the key, and pg_stat_activity the
// session; the rest is under "Seen, and taken away" below.
//
// All locks that a Locker takes without waiting are on one connection, whatever their number. What goroutines ask for
// at the same time goes to the server in one statement. Each different TTL has a connection of its own; from the fifth
// on, leases share that of the next longer TTL, or make the longest one longer. They still end after their own TTL,
// except those of a process that is frozen or cut off, which the server then frees after the longer one. It takes a
// lock table with room: max_locks_per_transaction times max_connections, for everybody on the server. A connection that
// may have locks takes an entry of its own: a mark, by which others see that it is a Locker's.
//
// # The lease
//
// A session lives as long as its client speaks: idle_session_timeout is the TTL, and package locker renews three times
// per TTL. A lease is valid for a TTL from the moment when the last renewal that was answered had been sent, less 1 %
// and 2 ms. So a holder that is frozen or cut off has stopped trusting its lease when the server ends the session and
// frees the lock; and of a process that dies, the kernel closes the connection, and its locks are free at once, not a
// TTL later.
//
// In return, a lock does not survive its connection. When the server or something in between closes that, all leases on
// it are lost; they are told at once. Whoever waits is granted the lock at the same moment, and has it one more round
// trip later. So the holder is told after its rival has the lock if it is farther away from the server, by the
// difference; if it gets no processor just then, on a machine with too much to do; or if its session was in use within
// the last half millisecond, in which nobody may be reading. If an administrator ends a session, or the server
// restarts, while its client cannot be reached, then there are two holders until the deadline of the first. And a
// server that has been replaced as the primary, and goes on, keeps the leases of those who still reach it alive, beside
// those of the new one. Let the resource check the fencing token:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md.
//
// Postgres measures timeouts by its wall clock: if that is set forward, a session may end early, which its holder is
// told as above.
//
// # Readers and slots
//
// A reader (locker.Shared) has a shared advisory lock of the same key, as by pg_advisory_lock_shared, on the session that
// its TTL has; so has the holder of one of several slots (locker.Slots). So both exclude everybody who locks the key
// alone, LockTx too, and stand with him in the same line. Readers and slots exclude each other by two further keys, one
// of which they have shared, too. A slot is a key of its own, which its holder has alone. The keys are made of that of
// the lock: in SQL, 16 each of the digits of encode(sha256(int8send(key)), 'hex'). Slots(1) is a lock for one holder.
//
// Readers take two entries of the lock table for each session that has any, slots likewise and one more for each. Who
// tries passes a gate, a key that is had for microseconds. Whoever is the first in line for a slot looks for one that
// is free every 8 ms, and 50 µs more for each slot; so that is what it may take to change hands. The others do not.
//
// Postgres lets a session that has a shared lock have it again past somebody who waits. So who comes to others on that
// session is only let in if a session without the lock would be: that takes one more round trip, on the connection for
// hints (below). Of those who wait in one Locker, those that come next get in together, unless somebody else waits.
//
// When somebody leaves who had the lock alone, the readers of several Lockers, and those who wait for slots, that are
// in line behind him go on at the same moment. They are then not in order of arrival among themselves.
//
// # Seen, and taken away
//
// Holders are written down in a table: who has the option locker.Holder 50 ms after the grant, all others when their
// leases are renewed for the first time, in batches, on a connection without locks. Client.Inspect reads the sessions
// that hold a key or wait for it from pg_locks, and their names, tokens and times from that table. Client.List tells of
// the keys in the table that are held; so it leaves out those that were locked less than a third of a TTL ago. Who
// waits is told no name: Error.Holder is empty.
//
// The table is unlogged, and neither locks nor leases depend on it, or wait for it. Who may not write to it, or finds
// it locked by others, locks all the same, and is not to be seen.
//
// Client.Revoke writes into another table, and notifies the Lockers of the holders, on the channel "locker_revoked". A
// Locker listens from the first time on that it renews a lease, or writes a holder down. Behind that it looks into the
// table when it renews, four times per TTL at most, and before that renewal counts. So if a notification is lost, the
// holder is told at the next look. With locker.NoRenew and without a Holder, it may not be told at all. A holder that
// does not unlock keeps its key to the end of its lease; then its Locker gives back that key alone. A session that is
// no Locker's, of LockTx too, cannot be told, and is an errors.ErrUnsupported.
//
// Client.Break does the same, upon which a Locker that listens gives the key back at once, and no other. If it has not
// within a second, or does not listen, Break ends its session (pg_terminate_backend). All leases on that end: so if
// there are others, that takes the option locker.AlsoOthers. Those of them whose Locker is cut off believe in their
// leases until their deadlines.
//
// # Fencing tokens
//
// A token is minted by the statement that takes the lock, from a sequence. A sequence alone may go back in a crash,
// because others may see values that never reach the disk. So there is a ceiling on the disk. It is raised by a
// million at a time, before tokens beyond it are used. A table that Postgres empties in a crash (an unlogged one)
// tells that there was one, or that this is a copy of the database: the sequence then continues above the ceiling, or
// at the server's clock in microseconds, if that is greater. Compared with a row per lock that is updated and
// committed, this needs no wait for the disk, nor for each other, and makes no dead rows.
//
// Each connection that has locks reads the ceiling when it is made, and no table afterwards. So whoever locks these
// tables, for a dump or a VACUUM FULL, keeps new connections waiting, and no leases.
//
// Tokens therefore survive crashes, restarts and failover to a synchronous standby. They can go back only if the
// ceiling is lost (an asynchronous standby takes over, a backup is restored) and the server's clock is behind the
// tokens that were minted before, which only happens when it is set back; or if the tables are dropped.
//
// # The waiting line
//
// Whoever is refused waits in Postgres's own line, by pg_advisory_lock on a connection for that; there are at most
// Config.WaitSessions of them, which are closed when they have been idle for ten seconds. A lock that was got by
// waiting stays on its connection, which counts among them.
//
// A Locker has one place in the line for a key, whatever the number of goroutines that wait for it. Its own are served
// in order of arrival, and Lockers in turn: when its first waiter has been served, the Locker goes to the end of the
// line for the next, behind all who have come meanwhile. Until it is there, others may come before it, by TryLock too;
// nobody overtakes who stands in the line. Where each Locker has one waiter, that is the order of arrival. In terms of
// package conformance, this is OrderedPerLocker. For a place for each waiter, there would have to be a connection for
// each.
//
// Lines beyond the bound poll, about once a second, all of a Locker together. Each gets a connection in its turn. Who
// gives back a lock that somebody polls for sends a notification on the channel "locker", so that it changes hands in
// milliseconds. It sees that by a mark: those that poll have a shared advisory lock of two integers, the halves of the
// key. Marks and notifications are on one further connection, as none that has leases listens or notifies. When a
// holder dies, nobody sends one: the next poll finds its lock free. When the server allows no further connections,
// lines poll, and Observer.Retry is told; the next connection is tried after pauses of up to a minute.
//
// Lock gives up when nothing has told it within the TTL, or within two seconds if that is longer, whether the key is
// locked. Once it knows that the key is held, it waits on while the server is away or restarts, as long as its context
// lasts. Its place in line ends with its session, so it then joins the line at the end. Whoever stands in line notices
// only after half a minute or more that the server does not answer.
//
// A statement that runs keeps VACUUM, everywhere in the database, from removing what has been deleted since it began,
// and CREATE INDEX CONCURRENTLY waiting. A wait therefore takes its place anew, at the end of the line, when it has
// lasted for 30 seconds; to create an index in this way may take longer by as much. The server logs no error when a
// wait ends in this way, or is cancelled: it waits in a block of PL/pgSQL, which catches that. In a database without
// PL/pgSQL, each is an ERROR in its log, and can be told by the code 57014. With log_lock_waits on, the server logs
// each wait that lasts for a second.
//
// # What it needs
//
// A direct connection: poolers such as PgBouncer are refused, since they give each transaction another session.
// (LockTx, which takes a lock for a transaction of one's own, works with them.) The
// primary: a standby is refused. A role with the permissions listed at SchemaSQL, whose objects are created on first
// use unless Config.NoCreate is set. No server setting is changed; those of the role that would harm are overridden in
// the sessions. Nothing is ever done on a connection of the pool given to New. What is missing is told by Open, Ping
// and each Lock, as an error of this package that is a locker.ErrUnfit or a locker.ErrDenied. If another kind of server
// is at the address, the error says so, after about a second.
//
// With a synchronous standby that is down, to raise the ceiling waits like every commit. That happens on the first lock
// after each start of the server, and then once in a million tokens. Meanwhile there are no new locks; leases go on.
package pglock
