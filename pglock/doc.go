// Package pglock keeps locks in Postgres 14 or later, by way of pgx v5: session-level advisory locks with a lease, a
// fencing token, and many locks on one connection. See package [github.com/lockerkit/locker] for the contract.
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
// excludes everybody who locks the same key in the same database.
//
// All locks that a Locker takes without waiting are on one connection, whatever their number. What goroutines ask for
// at the same time goes to the server in one statement. Each different TTL has a connection of its own. A fifth TTL
// shares the connection of the next longer one, or lengthens the longest. Its leases still end after their own TTL,
// except when a process is frozen or cut off: then the server frees them after the longer one. The lock table needs
// room: max_locks_per_transaction times max_connections, for everybody on the server.
//
// # The lease
//
// A session lives as long as its client speaks: idle_session_timeout is the TTL, and package locker renews three times
// per TTL. A lease is valid for TTL - 1 % - 2 ms, counted from when the last confirmed renewal was sent. So a holder
// that is frozen or cut off has stopped trusting its lease when the server ends the session. When a process dies, the
// kernel closes the connection, and its locks are free at once.
//
// In return, a lock does not survive its connection. When the server or something in between closes that, all leases on
// it are lost, and told at once. Whoever waits is granted the lock at the same moment, and has it a round trip later at
// most. The holder may be told after that: if it is farther away from the server; if it gets no processor just then; or
// if its session was in use within the last half millisecond, in which nobody may be reading.
//
// Two holders are possible in two cases. An administrator ends a session, or the server restarts, while its client
// cannot be reached: until the deadline of the first. Or a server that was replaced as the primary goes on, and renews
// the leases of who still reaches it: for as long as it does. Let the resource check the fencing token:
// https://github.com/lockerkit/locker/blob/main/docs/fencing.md.
//
// # Readers and slots
//
// A reader (locker.Shared) has the key shared, as by pg_advisory_lock_shared, and so has the holder of a slot
// (locker.Slots). Both exclude everybody who locks the key alone, LockTx too, and stand in the same line. Readers and
// slots exclude each other by two further keys. A slot is a key of its own. These keys are made of the lock's key: in
// SQL, 16 each of the digits of encode(sha256(int8send(key)), 'hex'). Slots(1) is a lock for one holder.
//
// Readers take two entries of the lock table for each session that has any, slots one more for each. Who tries passes a
// gate, a key that is had for microseconds. The first in line for a slot looks for a free one every 8 ms, and 50 µs
// more for each slot.
//
// Postgres lets a session that has a shared lock have it again past somebody who waits. So who comes to readers on that
// session is only let in if a session without the lock would be. That takes one more round trip. When somebody leaves
// who had the lock alone, readers and slots of several Lockers behind him go on at the same moment, and are not in
// order of arrival among themselves.
//
// # Seen, and taken away
//
// Holders are written down in a table, in batches, on a connection without locks: with the option locker.Holder 50 ms
// after the grant, else when the lease is renewed for the first time. Client.Inspect reads sessions from pg_locks, and
// names, tokens and times from that table. Client.List tells of keys in the table. Who waits is told no name. No lock
// depends on the table, or waits for it: who may not write to it is not to be seen, and locks all the same.
//
// Client.Revoke writes into another table, and notifies Lockers on the channel "locker_revoked". A Locker listens once
// it has renewed a lease, or has written a holder down. Behind that it looks into the table when it renews, four times
// per TTL at most. With locker.NoRenew and without a Holder, it may not be told at all. A holder that does not unlock
// keeps its key to the end of its lease; then its Locker gives that key back. A session that is no Locker's cannot be
// told: errors.ErrUnsupported.
//
// Client.Break does the same, upon which a Locker that listens gives the key back at once. If it has not within a
// second, or does not listen, Break ends its session (pg_terminate_backend), and all leases on that. If there are
// others, that takes the option locker.AlsoOthers.
//
// # Fencing tokens
//
// A token is minted by the statement that takes the lock, from a sequence. A sequence alone may go back in a crash, as
// others may see values that never reach the disk. So there is a ceiling on the disk, which is raised by a million at a
// time, before tokens beyond it are used. A table that Postgres empties in a crash (an unlogged one) tells that there
// was one, or that this is a copy of the database. The sequence then continues above the ceiling, or at the server's
// clock in microseconds, if that is greater.
//
// Each connection that has locks reads the ceiling when it is made, and no table afterwards. Whoever locks these tables
// keeps new connections waiting, and no leases.
//
// Tokens therefore survive crashes, restarts and failover to a synchronous standby. They can go back in two cases only.
// The tables are dropped. Or the ceiling is lost (an asynchronous standby takes over, a backup is restored), and the
// server's clock has been set back.
//
// # The waiting line
//
// Whoever is refused waits in Postgres's own line, by pg_advisory_lock on a connection for that. There are at most
// Config.WaitSessions of them, which are closed when they have been idle for ten seconds. A lock that was got by
// waiting stays on its connection.
//
// A Locker has one place in the line for a key, whatever the number of goroutines that wait for it. It serves its own
// in order of arrival. When its first waiter has been served, it goes to the end of the line for the next. Until it is
// there, others may come before it, by TryLock too. In terms of package conformance, this is OrderedPerLocker.
//
// Further lines poll, about once a second, all of a Locker together. Who gives back a lock that somebody polls for, as
// a mark shows, sends a notification on the channel "locker". When the server allows no further connections, lines
// poll, and Observer.Retry is told.
//
// Lock gives up when nothing has told it within the TTL, or within two seconds if that is longer, whether the key is
// locked. Once it knows that the key is held, it waits on while the server is away or restarts, and then joins the line
// at its end. Whoever stands in line notices only after half a minute or more that the server does not answer. A wait
// takes its place anew after 30 s, as a statement that runs keeps VACUUM from its work.
//
// # What it needs
//
// A direct connection to the primary: poolers such as PgBouncer are refused (except for LockTx), and so are standbys. A
// role with the permissions listed at SchemaSQL. No server setting is changed. Nothing is ever done on a connection of
// the pool given to New. What is missing is told by Open, Ping and each Lock. With a synchronous standby that is down,
// the first lock after each start of the server waits for it, and so does one in a million. Who gives up leaves a
// connection behind, which the server ends when the standby is back.
package pglock
