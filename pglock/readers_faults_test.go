package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestFailureBesideOthers: the request of somebody fails that would be on the session of others. What is given back is
// not their lock.
func TestFailureBesideOthers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mode    locker.CallOption
		refused []string // what the role may not use
	}{
		"readers": {locker.Shared(), []string{"SEQUENCE locker.token"}},
		"slots":   {locker.Slots(3), []string{"SEQUENCE locker.token", "FUNCTION pg_try_advisory_lock(bigint)"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			admin := connect(t, server.URL())
			app, dsn := appRole(t, admin, server.URL())
			l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Minute))
			others := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
			held := []*locker.Lease{mustTry(t, l, "key", tc.mode), mustTry(t, others, "key", tc.mode)}
			for _, refused := range tc.refused {
				right, role := "EXECUTE", "PUBLIC"
				if strings.HasPrefix(refused, "SEQUENCE") {
					right, role = "USAGE, UPDATE", "PUBLIC, "+app
				}
				admin.do(fmt.Sprintf("REVOKE %s ON %s FROM %s", right, refused, role))
				lease, err := l.TryLock(t.Context(), "key", tc.mode)
				if !errors.Is(err, pglock.ErrPermission) {
					t.Errorf("without the right to use %s: %v, %v; want ErrPermission", refused, lease, err)
				}
				if n := admin.holders("key"); n != len(held) {
					t.Errorf("without the right to use %s, another lock is given back, too: %d sessions have the key",
						refused, n)
				}
				admin.do(fmt.Sprintf("GRANT %s ON %s TO %s", right, refused, role))
			}
			mustUnlock(t, mustTry(t, l, "key", tc.mode)) // for a slot, the last is free
			for _, lease := range held {
				if err := lease.Err(); err != nil {
					t.Error(err)
				}
				mustUnlock(t, lease)
			}
			if n := admin.locksOf("key"); n != 0 {
				t.Errorf("all have left, and %d locks are not free", n)
			}
		})
	}
}

// TestUnlockBesideReadersWithoutRoom: readers leave while the lock table is full, so that the look whether somebody
// wants the lock fails. Each gives back one lock, and no more.
func TestUnlockBesideReadersWithoutRoom(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{
		"max_connections": "10", "max_locks_per_transaction": "10", "max_wal_senders": "0", "max_worker_processes": "0",
		"autovacuum": "off",
	}})
	admin := connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
	var leases []*locker.Lease
	for range 3 {
		leases = append(leases, mustTry(t, l, "key", locker.Shared()))
	}
	_, err := admin.Exec(t.Context(), "SELECT count(pg_advisory_lock(i, 0)) FROM generate_series(1, 1000000) AS i")
	if err == nil {
		t.Fatal("there is room for a million locks")
	}
	holders := func() int { // without a look at tables, for the locks of which there is no room
		return admin.count(`SELECT count(*) FROM pg_locks
			WHERE objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1`, pglock.Key("key"))
	}
	for i, lease := range leases {
		if holders() != 1 {
			t.Fatalf("%d of %d readers have left, and the key is free", i, len(leases))
		}
		mustUnlock(t, lease)
	}
	if holders() != 0 {
		t.Error("the readers have left, and the key is not free")
	}
}

// cancelled calls Lock and waits until it is in line. leave cancels it.
func cancelled(t *testing.T, l watched, key string, opts ...locker.CallOption) (leave func()) {
	t.Helper()
	before := pglock.InLine(l.backend, key)
	ctx, cancel := context.WithCancel(t.Context())
	left := locktest.Started(func() error { _, err := l.Lock(ctx, key, opts...); return err })
	eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == before+1 })
	return func() {
		t.Helper()
		cancel()
		if err := left.Get(t); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// TestPollBesideReadersRests: a line of readers polls, since it has no session to wait on and somebody else's writer
// waits. When the first leaves, it goes on to poll, and not all the time.
func TestPollBesideReadersRests(t *testing.T) {
	t.Parallel()
	url, key, busy := pgtest.URL(t), unique("key"), unique("busy")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{WaitSessions: 1}, url), openWatched(t, pglock.Config{}, url)
	kept := mustTry(t, other, busy)
	occupied := inLineOf(t, l, 1, busy)[0]
	reader := mustTry(t, l, key, locker.Shared())
	writer := waits(t, other, key)
	eventually(t, "the writer is in line", func() bool { return admin.inLine(key) == 1 })
	leave := cancelled(t, l, key, locker.Shared())
	next := inLineOf(t, l, 1, key, locker.Shared())[0]
	eventually(t, "it polls", func() bool { return pglock.Marked(l.backend) == 1 })
	leave()
	time.Sleep(1500 * time.Millisecond) // until it has polled
	before := pglock.Messages(l.backend)
	const second = time.Second
	time.Sleep(second)
	if n := pglock.Messages(l.backend) - before; n > 50 {
		t.Errorf("%d messages in %v", n, second)
	}
	mustUnlock(t, reader)
	mustUnlock(t, writer.Get(t))
	mustUnlock(t, next.Get(t))
	mustUnlock(t, kept)
	mustUnlock(t, occupied.Get(t))
}

// TestJoinOnASilentSession: a reader could get in beside another, and is asked for on a session that does not answer
// but is worth waiting for. Another session is asked.
func TestJoinOnASilentSession(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l, other := openWatched(t, pglock.Config{}, dsn), openWatched(t, pglock.Config{}, url)
	long, longer := locker.TTL(10*time.Minute), locker.TTL(20*time.Minute)
	mustTry(t, l, unique("other"), long) // for which its session is not given up
	silent := proxy.Conns()
	writer := mustTry(t, other, key)
	first := inLineOf(t, l, 1, key, locker.Shared(), longer)[0]
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	next := inLineOf(t, l, 1, key, locker.Shared(), long)[0]
	for _, c := range silent {
		c.Set(faultproxy.Hang())
	}
	mustUnlock(t, writer)
	reader := first.Get(t) // on the session that has waited
	mustUnlock(t, next.Within(t, 15*time.Second, "a reader in line behind another, whose session hangs"))
	mustUnlock(t, reader)
	proxy.Heal()
}

// TestReadersEndWhileOneIsToJoin: a reader is in line that is about to get in beside others, which waits for an answer.
// The session of these ends, and the answer is no lock. It does not wait for ever.
func TestReadersEndWhileOneIsToJoin(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l, other := openWatched(t, pglock.Config{}, dsn), openWatched(t, pglock.Config{}, url)
	short, long := locker.TTL(10*time.Minute), locker.TTL(20*time.Minute)
	mustTry(t, l, unique("other"), long)
	slow := proxy.Conns()
	reader := mustTry(t, l, key, locker.Shared(), short)
	before := mustTry(t, other, unique("other")) // its session is there
	foreign := waits(t, other, key)              // so that the answer is no
	eventually(t, "the foreign writer is in line", func() bool { return admin.inLine(key) == 1 })
	for _, c := range slow {
		c.Set(faultproxy.Delay(700 * time.Millisecond))
	}
	asks := locktest.Started(func() error { _, err := l.TryLock(t.Context(), key, locker.Shared(), long); return err })
	eventually(t, "it is asked for", func() bool { return pglock.Unsettled(l.backend, key) == 1 })
	leave := cancelled(t, l, key)
	next := inLineOf(t, l, 1, key, locker.Shared(), long)[0]
	eventually(t, "the writers are in line", func() bool { return admin.inLine(key) == 2 })
	leave()
	eventually(t, "one is not any more", func() bool { return admin.inLine(key) == 1 })
	time.Sleep(200 * time.Millisecond) // until the Locker knows
	admin.do(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE granted AND `+oneKey, pglock.Key(key))
	locktest.Receive(t, reader.Done())
	if err := asks.Get(t); !errors.Is(err, locker.ErrLocked) {
		t.Logf("TryLock: %v; want ErrLocked", err)
	}
	proxy.Heal()
	mustUnlock(t, foreign.Get(t))
	mustUnlock(t, next.Get(t))
	mustUnlock(t, before)
}

// TestReadersWithTooManyConnections: there is no session by which to see whether a writer waits. A reader waits all the
// same, as who finds no session to wait on does.
func TestReadersWithTooManyConnections(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	_, dsn := appRole(t, admin, server.URL(), "CONNECTION LIMIT 1")
	l := openWatched(t, pglock.Config{}, dsn)
	reader := mustTry(t, l, "key", locker.Shared())
	next := inLineOf(t, l, 2, "key", locker.Shared())
	time.Sleep(3 * time.Second) // it polls
	if n := pglock.InLine(l.backend, "key"); n != 2 {
		t.Errorf("%d in line; want 2", n)
	}
	mustUnlock(t, reader)
	mustUnlock(t, next[0].Get(t))
	mustUnlock(t, next[1].Get(t))
}

// TestPlaceOfWhoHasJoined: a reader gets in beside another when that one has left and so the reader is in Postgres's
// line, too. The place there is not that of a writer who is the next here.
func TestPlaceOfWhoHasJoined(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l, other := openWatched(t, pglock.Config{}, dsn), openWatched(t, pglock.Config{}, url)
	long, longer := locker.TTL(10*time.Minute), locker.TTL(20*time.Minute)
	mustTry(t, l, unique("other"), long)
	slow := proxy.Conns()
	held := mustTry(t, other, key)
	first := inLineOf(t, l, 1, key, locker.Shared(), longer)[0]
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	joins := inLineOf(t, l, 1, key, locker.Shared(), long)[0]
	writer := inLineOf(t, l, 1, key, long)[0]
	for _, c := range slow {
		c.Set(faultproxy.Delay(900 * time.Millisecond))
	}
	mustUnlock(t, held)
	reader := first.Get(t)
	eventually(t, "the next is in, and has yet to hear of it", func() bool { return admin.holders(key) == 2 })
	foreign := waits(t, other, key)
	eventually(t, "a foreign writer is in line", func() bool { return admin.inLine(key) == 1 })
	mustUnlock(t, reader)
	eventually(t, "the Locker is in line", func() bool { return admin.inLine(key) == 2 })
	lease := joins.Get(t)
	eventually(t, "it is for the writer", func() bool {
		return admin.count(`SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'ExclusiveLock' AND `+oneKey,
			pglock.Key(key)) == 2
	})
	proxy.Heal()
	mustUnlock(t, lease)
	var both sync.WaitGroup
	for _, next := range []locktest.Pending[*locker.Lease]{foreign, writer} { // in whichever order they are served
		both.Go(func() { mustUnlock(t, next.Get(t)) })
	}
	both.Wait()
}

// TestProbeThatFails: those who wait go on to do so, and those who do not are told.
func TestProbeThatFails(t *testing.T) {
	t.Parallel()
	for name, occupied := range map[string]bool{"in Postgres's line": false, "by polls": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			admin := connect(t, server.URL())
			_, dsn := appRole(t, admin, server.URL())
			l := openWatched(t, pglock.Config{WaitSessions: 1}, dsn, locker.TTL(time.Minute))
			other := openWatched(t, pglock.Config{}, server.URL())
			kept := mustTry(t, other, "busy")
			var one []locktest.Pending[*locker.Lease]
			if occupied {
				one = inLineOf(t, l, 1, "busy")
			}
			reader := mustTry(t, l, "key", locker.Shared())
			admin.do("REVOKE EXECUTE ON FUNCTION pg_try_advisory_xact_lock_shared(bigint) FROM PUBLIC")
			_, err := l.TryLock(t.Context(), "key", locker.Shared())
			checkError(t, err, "trylock", "key", pglock.ErrPermission)
			r := locker.Request{Key: "key", Mode: locker.ModeShared, Owner: locker.Owner{1}, TTL: time.Minute}
			next := locktest.Started(func() error { _, err := l.backend.(locker.Queue).Wait(t.Context(), r); return err })
			if occupied {
				eventually(t, "it is in line", func() bool { return pglock.InLine(l.backend, "key") == 1 })
				time.Sleep(2 * time.Second) // it polls
				mustUnlock(t, reader)
			}
			if err := next.Get(t); err != nil {
				t.Error(err)
			}
			if !occupied {
				mustUnlock(t, reader)
			}
			mustUnlock(t, kept)
			for _, w := range one {
				mustUnlock(t, w.Get(t))
			}
		})
	}
}

// TestReaderLeavesWhenItIsServed: a reader gives up when the lock has been granted, and has yet to be delivered. The
// next is a writer, who does not get a lock that is for readers.
func TestReaderLeavesWhenItIsServed(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	// Behind so long a delay, the time for which a lease is valid cannot be counted from when the wait began.
	const ttl, delay = 4 * time.Second, 300 * time.Millisecond
	l, other := openWatched(t, pglock.Config{}, dsn, locker.TTL(ttl)), openWatched(t, pglock.Config{}, url)
	locktest.Tries(t, func() error { // on a machine that is busy, it may be delivered before the reader gives up
		key := unique("key")
		held := mustTry(t, other, key)
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		reader := locktest.Started(func() error {
			lease, err := l.Lock(ctx, key, locker.Shared())
			if err == nil {
				mustUnlock(t, lease)
			}
			return err
		})
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		next := inLineOf(t, l, 1, key)[0]
		proxy.Set(faultproxy.Delay(delay))
		mustUnlock(t, held)
		eventually(t, "the reader is served", func() bool { return pglock.InLine(l.backend, key) <= 1 })
		leave()
		err := reader.Get(t)
		proxy.Heal()
		lease := next.Get(t)
		if admin.is(`SELECT pg_try_advisory_lock_shared($1) AND pg_advisory_unlock_shared($1)`, pglock.Key(key)) {
			t.Error("a writer has the key, and others could read")
		}
		mustUnlock(t, lease)
		if err == nil {
			return errors.New("the reader that gave up was served")
		}
		if !errors.Is(err, context.Canceled) {
			return fmt.Errorf("the reader that gave up: %w; want Canceled", err)
		}
		return nil
	})
}

// TestReaderCannotBeGivenBack: the lock of readers on one session cannot be given back when the last of them leaves.
// The session ends, and with it the lock.
func TestReaderCannotBeGivenBack(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	_, dsn := appRole(t, admin, server.URL())
	l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Minute))
	first, last := mustTry(t, l, "key", locker.Shared()), mustTry(t, l, "key", locker.Shared())
	beside := mustTry(t, l, "another key")
	admin.do("REVOKE EXECUTE ON FUNCTION pg_advisory_unlock_shared(bigint) FROM PUBLIC")
	mustUnlock(t, first)
	_ = last.Unlock()
	locktest.Receive(t, beside.Done())
	eventually(t, "the key is free", func() bool { return admin.isFree("key") })
	eventually(t, "nothing is under way", func() bool { return pglock.Left(l.backend) == "" })
}
