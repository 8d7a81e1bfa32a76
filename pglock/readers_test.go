package pglock_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// waits calls Lock on a goroutine of its own.
func waits(t *testing.T, l locker.Locker, key string, opts ...locker.CallOption) locktest.Pending[*locker.Lease] {
	return locktest.Started(func() *locker.Lease { return mustLock(t, l, key, opts...) })
}

// inLineOf has so many call Lock, and returns them when all are in line.
func inLineOf(t *testing.T, l watched, n int, key string, opts ...locker.CallOption) (all []locktest.Pending[*locker.Lease]) {
	t.Helper()
	before := pglock.InLine(l.backend, key)
	for i := range n {
		all = append(all, waits(t, l, key, opts...))
		eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == before+i+1 })
	}
	return all
}

// TestManyReadersShareSessions has more readers of one Locker wait for a writer than there may be sessions: they get in
// together, and nearly all of them on the session for leases.
func TestManyReadersShareSessions(t *testing.T) {
	t.Parallel()
	const readers = 100
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	writer := mustTry(t, other, key)
	waiting := inLineOf(t, l, readers, key, locker.Shared())
	mustUnlock(t, writer)
	var leases []*locker.Lease
	for _, w := range waiting {
		leases = append(leases, w.Get(t))
	}
	if n := pglock.WaitSessions(l.backend); n > 2 {
		t.Errorf("%d sessions to wait on, for %d readers; want 2 at most", n, readers)
	}
	if n := admin.holders(key); n > 3 {
		t.Errorf("%d sessions have the lock; want 3 at most", n)
	}
	// What stacks has to be given back as often.
	next := waits(t, other, key)
	eventually(t, "a writer is in line", func() bool { return admin.inLine(key) == 1 })
	for i, lease := range leases {
		if admin.isFree(key) {
			t.Fatalf("%d of %d readers have unlocked, and the key is free", i, readers)
		}
		mustUnlock(t, lease)
	}
	mustUnlock(t, next.Get(t))
}

// TestReadersAreNotLetPastAWriter: readers of a Locker that reads already wait behind somebody else's writer, whether
// that is a Locker or a transaction, and take turns with it.
func TestReadersAreNotLetPastAWriter(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	for name, wait := range map[string]func() (free func()){
		"a Locker": func() func() {
			w := waits(t, other, key)
			return func() { mustUnlock(t, w.Get(t)) }
		},
		"a transaction": func() func() {
			conn := connect(t, url)
			done := locktest.Started(func() error {
				tx, err := conn.Begin(t.Context())
				if err == nil {
					_, err = pglock.LockTx(t.Context(), tx, key)
				}
				return errors.Join(err, tx.Rollback(t.Context()))
			})
			return func() {
				if err := done.Get(t); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		reader := mustTry(t, l, key, locker.Shared())
		another := mustTry(t, l, key, locker.Shared()) // as long as nobody waits
		free := wait()
		eventually(t, name+" is in line", func() bool { return admin.inLine(key) == 1 })
		for range 3 {
			if _, err := l.TryLock(t.Context(), key, locker.Shared()); !errors.Is(err, locker.ErrLocked) {
				t.Errorf("TryLock by a reader while %s waits: %v; want ErrLocked", name, err)
			}
		}
		late := inLineOf(t, l, 3, key, locker.Shared())
		eventually(t, "the readers are in line", func() bool { return admin.inLine(key) == 2 })
		mustUnlock(t, reader)
		mustUnlock(t, another)
		free()
		for _, w := range late {
			mustUnlock(t, w.Get(t))
		}
	}
}

// TestReadersWithoutSessions: a Locker that has no session to wait on polls, for readers, too, and they get in.
func TestReadersWithoutSessions(t *testing.T) {
	t.Parallel()
	url, key, busy := pgtest.URL(t), unique("key"), unique("busy")
	l, other := openWatched(t, pglock.Config{WaitSessions: 1}, url), openWatched(t, pglock.Config{}, url)
	kept := mustTry(t, other, busy)
	occupied := inLineOf(t, l, 1, busy)[0] // the one session
	writer := mustTry(t, other, key)
	readers := inLineOf(t, l, 5, key, locker.Shared())
	eventually(t, "it polls", func() bool { return pglock.Marked(l.backend) == 1 })
	last := inLineOf(t, l, 1, key)[0]
	mustUnlock(t, writer)
	var leases []*locker.Lease
	for _, w := range readers {
		leases = append(leases, w.Get(t))
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	mustUnlock(t, last.Get(t))
	mustUnlock(t, kept)
	mustUnlock(t, occupied.Get(t))
}

// TestSessionOfReadersEnds: the server ends one of two sessions that readers have. Those on it are told, and nobody else.
func TestSessionOfReadersEnds(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url)
	gone := []*locker.Lease{
		mustTry(t, l, key, locker.Shared(), locker.TTL(10*time.Second)),
		mustTry(t, l, key, locker.Shared(), locker.TTL(10*time.Second)),
	}
	pid := admin.count(`SELECT pid FROM pg_locks WHERE granted AND `+oneKey, pglock.Key(key))
	stays := mustTry(t, l, key, locker.Shared(), locker.TTL(20*time.Second))
	admin.do(`SELECT pg_terminate_backend($1)`, pid)
	for _, lease := range gone {
		locktest.Receive(t, lease.Done())
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v; want ErrLost", err)
		}
	}
	if err := stays.Err(); err != nil {
		t.Error(err)
	}
	if admin.isFree(key) {
		t.Error("a reader has the key, and it is free")
	}
	mustUnlock(t, stays)
}
