// Package gocronlock is an example: locks for gocron, as its Locker (one lock per job and run) and as its Elector (one
// scheduler runs all jobs). Copy it; each file is one adapter.
//
// gocron's Locker cannot express two things. The job does not see the lease, so it has no fencing token to pass to what
// it writes. And gocron has no way to stop a run whose lock is lost: the job goes on, and the next tick may start it
// elsewhere beside that. Locker.Lost is called at that moment, before anybody else can have the lock, and is the place
// to end what the job does. Where two runs at once would do harm, use the Elector, whose Lease gives jobs both, or have
// the job call TryLock of the locker.Locker itself.
//
// gocron skips a tick for which it gets no lock, whatever the reason. Its listener AfterLockError gets the error: only
// locker.ErrLocked means that another scheduler has it, everything else that the store did not answer.
package gocronlock
