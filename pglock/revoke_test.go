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
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

const why = "to see what it does"

// operator returns a Client that takes locks away, and holds none.
func operator(t testing.TB, dsn string) *locker.Client {
	t.Helper()
	return open(t, dsn, locker.Holder("operator")).(*locker.Client)
}

func mustRevoke(t testing.TB, l *locker.Client, key string) {
	t.Helper()
	if err := l.Revoke(t.Context(), key, why); err != nil {
		t.Fatalf("Revoke of a key that is held: %v", err)
	}
}

// ends waits until a lease has ended, for the given reasons.
func ends(t testing.TB, lease *locker.Lease, reasons ...error) {
	t.Helper()
	select {
	case <-lease.Done():
	case <-time.After(locktest.Patience):
		t.Fatal("the holder is not told")
	}
	for _, reason := range append(reasons, locker.ErrLost) {
		if err := lease.Err(); !errors.Is(err, reason) {
			t.Errorf("the lease ended for %v; want %v", err, reason)
		}
	}
}

func wasRevoked(t testing.TB, lease *locker.Lease) {
	t.Helper()
	ends(t, lease, locker.ErrRevoked)
	r := (*locker.Revocation)(nil)
	if errors.As(lease.Err(), &r); r == nil || r.By != "operator" || r.Reason != why {
		t.Errorf("the lease ended for %v; want that it was revoked by the operator, and why", lease.Err())
	}
}

// unlockTaken unlocks a lease that was taken away.
func unlockTaken(t testing.TB, lease *locker.Lease) {
	t.Helper()
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock of what was taken away: %v; want ErrLost", err)
	}
}

// hearing returns how many sessions there are, with an application_name, to which it is told what was revoked.
func (s *session) hearing(app string) int {
	s.t.Helper()
	return s.count(fmt.Sprintf(`SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE application_name = $1 AND locktype = 'advisory' AND objsubid = 2 AND classid = %d`, pglock.HearsMark),
		app)
}

// awaitHearing waits until it is told to a Locker what was revoked.
func (s *session) awaitHearing(l watched) {
	s.t.Helper()
	eventually(s.t, "the Locker listens", func() bool { return s.hearing(l.app) == 1 })
}

// revocations returns how many there are of a key.
func (s *session) revocations(key string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM locker.revocation WHERE key = $1", pglock.Key(key))
}

// modesToRevoke are the ways to lock a key, with as many slots as the tests have holders.
var modesToRevoke = map[string]locker.CallOption{
	"exclusive": locker.Slots(1), "shared": locker.Shared(), "slots": locker.Slots(2),
}

// TestRevokeTellsAtOnce: the TTL is an hour, so no renewal could tell. The key is not free before the holder has
// unlocked; then it is, and nothing is left.
func TestRevokeTellsAtOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Hour), locker.Holder("worker"))
	spared := mustTry(t, l, unique("spared"))
	for name, mode := range modesToRevoke {
		key := unique(name)
		leases := []*locker.Lease{mustTry(t, l, key, mode)}
		if mode := leases[0].Mode(); mode != locker.ModeExclusive && name != "exclusive" {
			leases = append(leases, mustTry(t, l, key, []locker.CallOption{locker.Shared(), locker.Slots(2)}[mode-1]))
		}
		admin.awaitHearing(l)
		waiter := waits(t, open(t, url), key, mode)
		if name == "shared" { // readers are let in
			mustUnlock(t, waiter.Get(t))
			waiter = waits(t, open(t, url), key)
		}
		eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
		mustRevoke(t, by, key)
		for _, lease := range leases {
			wasRevoked(t, lease)
		}
		if err := by.Revoke(t.Context(), key, why); !errors.Is(err, locker.ErrNotHeld) {
			t.Errorf("Revoke of what is revoked: %v; want ErrNotHeld", err)
		}
		if admin.waitingFor(key) != 1 {
			t.Errorf("%s: somebody else has the key before it was unlocked", name)
		}
		for _, lease := range leases {
			unlockTaken(t, lease)
		}
		mustUnlock(t, waiter.Get(t))
		eventually(t, "the revocation is removed", func() bool { return admin.revocations(key) == 0 })
	}
	if err := spared.Err(); err != nil {
		t.Errorf("another lease of the same holder: %v", err)
	}
}

// TestRevokedWithoutAMessage: it is noted in the table that a lock was revoked, and nobody is notified. The renewal
// that comes next is refused, unless what is in the table is not known within a sixteenth of the TTL.
func TestRevokedWithoutAMessage(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	url := pgtest.URL(t)
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(ttl))
	locktest.Tries(t, func() error {
		key := unique("key")
		lease := mustTry(t, l, key)
		at := lease.Deadline()
		eventually(t, "it is renewed", func() bool { return lease.Deadline().After(at) })
		admin.awaitHearing(l)
		admin.note(key, lease.Token())
		noted := time.Now()
		ends(t, lease, locker.ErrRevoked)
		unlockTaken(t, lease)
		if sent := lease.Deadline().Add(-ttl); sent.After(noted) {
			return fmt.Errorf("a renewal succeeded that was sent %v after the lock was revoked", sent.Sub(noted))
		}
		return nil
	})
}

// note notes that all holders of a key with tokens up to the given one are revoked, without a notification.
func (s *session) note(key string, token uint64) {
	s.t.Helper()
	s.do(fmt.Sprintf(`INSERT INTO locker.revocation (key, pid, locker, token, broken, by_whom, reason)
		SELECT $1, locks.pid, marks.objid::bigint, $2, false, '', ''
		FROM pg_locks AS locks JOIN pg_locks AS marks USING (pid)
		WHERE locks.locktype = 'advisory' AND locks.objsubid = 1 AND locks.granted
			AND locks.classid::bigint << 32 | locks.objid::bigint = $1
			AND marks.locktype = 'advisory' AND marks.objsubid = 2 AND marks.classid = %d`, pglock.LockerMark),
		pglock.Key(key), int64(token))
}

// TestRevokedWhileTheLookoutIsCut: the connection over which the holder would be told is cut off, and another one is
// made. The lease itself goes on, and ends at a renewal.
func TestRevokedWhileTheLookoutIsCut(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	for name, cut := range map[string]func(*faultproxy.Conn){
		"cut off": func(c *faultproxy.Conn) { c.Set(faultproxy.BlackHole()) },
		"closed":  func(c *faultproxy.Conn) { c.Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := key + name
			proxy, dsn := behind(t, url)
			l := openWatched(t, pglock.Config{}, dsn, locker.TTL(ttl), locker.Holder("worker"))
			lease := mustTry(t, l, key)
			admin.awaitHearing(l)
			cut(proxy.Conns()[1])
			mustRevoke(t, by, key)
			wasRevoked(t, lease)
			if left := time.Until(lease.Deadline()); left <= 0 {
				t.Errorf("it is told %v after the end of the lease", -left)
			}
			unlockTaken(t, lease)
		})
	}
}

// TestRevokeComesLate: what notes a revocation is held up until the holder has unlocked and locked anew, on the same
// session. The new lease is not touched.
func TestRevokeComesLate(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	server := pgtest.New(t, pgtest.Options{})
	admin, by := connect(t, server.URL()), operator(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(ttl), locker.Holder("worker"))
	mustUnlock(t, mustTry(t, l, "key"))
	for try := 0; ; try++ {
		lease := mustTry(t, l, "key")
		admin.awaitHearing(l)
		tx, err := admin.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Others can read it, and not write into it.
		if _, err := tx.Exec(t.Context(), "LOCK TABLE locker.revocation IN SHARE MODE"); err != nil {
			t.Fatal(err)
		}
		late := locktest.Started(func() error { return by.Revoke(t.Context(), "key", why) })
		look := connect(t, server.URL())
		eventually(t, "it waits", func() bool {
			return look.is(`SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid)
				WHERE NOT granted AND relation = 'locker.revocation'::regclass AND query LIKE '%INSERT%'`)
		})
		mustUnlock(t, lease)
		next := mustTry(t, l, "key")
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		err = late.Get(t)
		if err != nil && errors.Is(err, locker.ErrUnavailable) && try < 10 { // it has waited for too long
			mustUnlock(t, next)
			continue
		}
		if err != nil {
			t.Errorf("Revoke: %v", err)
		}
		locktest.Outlives(t, next, 2)
		mustRevoke(t, by, "key") // and this one is about him
		wasRevoked(t, next)
		unlockTaken(t, next)
		return
	}
}

// TestRevokeNextOnTheSameSession: who gets a key anew that was revoked, on the same session, can be revoked again.
func TestRevokeNextOnTheSameSession(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Hour), locker.Holder("worker"))
	reader := mustTry(t, l, key, locker.Shared())
	admin.awaitHearing(l)
	for range 3 {
		mustRevoke(t, by, key)
		wasRevoked(t, reader)
		next := mustTry(t, l, key, locker.Shared()) // beside the one that was revoked
		eventually(t, "it is known", func() bool {
			return admin.is("SELECT count(*) > 0 FROM locker.holder WHERE token = $1", int64(next.Token()))
		})
		unlockTaken(t, reader)
		if err := next.Err(); err != nil {
			t.Fatalf("a reader who has come later: %v", err)
		}
		reader = next
	}
	mustUnlock(t, reader)
	eventually(t, "the revocations are removed", func() bool { return admin.revocations(key) == 0 })
}

// TestRevokeGotByWaiting: a lock that was got by waiting, on a session on which a wait was cancelled before.
func TestRevokeGotByWaiting(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{WaitSessions: 1}, url, locker.TTL(time.Hour), locker.Holder("worker"))
	other := open(t, url)
	lease := mustTry(t, other, key)
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := locktest.Started(func() error {
		_, err := l.Lock(ctx, key)
		return err
	})
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	cancel()
	if err := cancelled.Get(t); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want that it was cancelled", err)
	}
	eventually(t, "it waits no more", func() bool { return admin.inLine(key) == 0 })
	waiter := waits(t, l, key)
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	mustUnlock(t, lease)
	got := waiter.Get(t)
	admin.awaitHearing(l)
	mustRevoke(t, by, key)
	wasRevoked(t, got)
	unlockTaken(t, got)
}

// TestRevokeStrangers: whoever is no Locker cannot be told. Break ends his session, also with a transaction, but not
// what has none.
func TestRevokeStrangers(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "1"}})
	url := server.URL()
	by, l := operator(t, url), open(t, url)
	notTold := func(key string) {
		t.Helper()
		checkError(t, by.Revoke(t.Context(), key, why), "revoke", key, errors.ErrUnsupported)
	}
	for name, take := range map[string]string{
		"session": "SELECT pg_advisory_lock($1)", "reader": "SELECT pg_advisory_lock_shared($1)",
		"transaction": "BEGIN; SELECT pg_advisory_xact_lock($1)",
	} {
		connect(t, url).do(take, pglock.Key(name))
		if name == "reader" { // one of two is
			mustTry(t, l, name, locker.Shared())
		}
		notTold(name)
		if err := by.Break(t.Context(), name, locker.AlsoOthers()); err != nil {
			t.Errorf("Break of the lock of a %s: %v", name, err)
		}
		mustUnlock(t, mustTry(t, l, name))
	}
	raw := connect(t, url)
	raw.do("BEGIN; SELECT pg_advisory_xact_lock($1)", pglock.Key("prepared"))
	raw.do("PREPARE TRANSACTION 'p'")
	notTold("prepared")
	checkError(t, by.Break(t.Context(), "prepared"), "break", "prepared", errors.ErrUnsupported)
	raw.do("ROLLBACK PREPARED 'p'")
	mustUnlock(t, mustTry(t, l, "prepared"))
}

// TestBreakAmongOthers: a Locker that lives lets go of that key, and of no other, and keeps its session.
func TestBreakAmongOthers(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Hour), locker.Holder("worker"))
	spared := mustTry(t, l, unique("spared"))
	for name, mode := range modesToRevoke {
		key := unique(name)
		lease := mustTry(t, l, key, mode)
		admin.awaitHearing(l)
		waiter := waits(t, open(t, url), key)
		eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
		if name == "slots" { // it may have been revoked before
			mustRevoke(t, by, key)
			wasRevoked(t, lease)
		}
		if err := by.Break(t.Context(), key, locker.Reason(why)); err != nil {
			t.Errorf("Break: %v", err)
		}
		next := waiter.Get(t)
		if name != "slots" {
			ends(t, lease, locker.ErrBroken)
			if !strings.Contains(lease.Err().Error(), "by operator: "+why) {
				t.Errorf("the lease ended for %v", lease.Err())
			}
		}
		if next.Token() <= lease.Token() {
			t.Errorf("token %d after %d", next.Token(), lease.Token())
		}
		unlockTaken(t, lease)
		if err := next.Err(); err != nil {
			t.Errorf("the next lease: %v", err)
		}
		mustUnlock(t, next)
		eventually(t, "the revocation is removed", func() bool { return admin.revocations(key) == 0 })
	}
	if err := spared.Err(); err != nil {
		t.Errorf("another lease of the same holder: %v", err)
	}
	mustUnlock(t, spared)
}

// TestBreakCutOff: the holder is cut off, and has two other locks on the same session. Without AlsoOthers, nothing is
// done; with it, all of them end.
func TestBreakCutOff(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Hour), locker.Holder("worker"))
	lease := mustTry(t, l, key)
	others := []*locker.Lease{mustTry(t, l, key+"1"), mustTry(t, l, key+"2", locker.Shared())}
	admin.awaitHearing(l)
	proxy.Set(faultproxy.Hang())
	err := by.Break(t.Context(), key)
	checkError(t, err, "break", key, errors.ErrUnsupported, "AlsoOthers")
	if o := (*locker.OthersError)(nil); !errors.As(err, &o) || o.Others != 2 {
		t.Errorf("%v; want two others", err)
	}
	if admin.revocations(key) != 0 || admin.holders(key) != 1 {
		t.Error("something was done")
	}
	proxy.Heal()
	mustUnlock(t, mustTry(t, l, key+"3")) // it has heard what there was to be heard
	for _, lease := range append(others, lease) {
		if err := lease.Err(); err != nil && !errors.Is(err, locker.ErrBroken) {
			t.Fatalf("a lease has ended: %v", err)
		}
	}
	if lease.Err() != nil {
		return // it was told in time, on a machine that is very busy
	}
	proxy.Set(faultproxy.Hang())
	waiter := waits(t, open(t, url), key)
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	if err := by.Break(t.Context(), key, locker.AlsoOthers()); err != nil {
		t.Errorf("Break: %v", err)
	}
	next := waiter.Get(t)
	if next.Token() <= lease.Token() {
		t.Errorf("token %d after %d", next.Token(), lease.Token())
	}
	proxy.Heal()
	for _, lease := range append(others, lease) {
		ends(t, lease)
	}
	mustUnlock(t, next)
}

// TestBreakYoung: a lease that is not renewed yet, of a Locker that does not listen, is broken without waiting for it.
func TestBreakYoung(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Hour))
	lease := mustTry(t, l, key)
	if err := by.Break(t.Context(), key); err != nil {
		t.Errorf("Break: %v", err)
	}
	ends(t, lease)
	other := mustTry(t, l, key+"other")
	mustTry(t, l, key)
	checkError(t, by.Break(t.Context(), key), "break", key, errors.ErrUnsupported)
	if err := other.Err(); err != nil || admin.revocations(key) != 0 {
		t.Errorf("%v, or something was done", err)
	}
}

// TestRevokeErrors: what cannot be had.
func TestRevokeErrors(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	wrong := open(t, as(t, url, "nobody", secret)).(*locker.Client)
	checkError(t, wrong.Revoke(t.Context(), "key", ""), "revoke", "key", locker.ErrDenied)
	checkError(t, wrong.Break(t.Context(), "key"), "break", "key", locker.ErrDenied)
	by := operator(t, url)
	_ = by.Close()
	checkError(t, by.Revoke(t.Context(), "key", ""), "revoke", "key", locker.ErrClosed)
}

// TestRevokeStubborn: a holder who does not unlock, on a session with other locks, keeps the key until its time is
// over, and no longer. The other locks go on.
func TestRevokeStubborn(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	url, key := pgtest.URL(t), unique("key")
	admin, by := connect(t, url), operator(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(ttl))
	lease, spared := mustTry(t, l, key), mustTry(t, l, key+"spared")
	locktest.Outlives(t, lease, 1)
	admin.awaitHearing(l)
	waiter := waits(t, open(t, url), key)
	mustRevoke(t, by, key)
	wasRevoked(t, lease)
	next := waiter.Get(t)
	if early := time.Until(lease.Deadline()); early > 0 {
		t.Errorf("the next holder had the key %v before the end of the lease", early)
	}
	locktest.Outlives(t, spared, 2)
	unlockTaken(t, lease)
	if err := next.Err(); err != nil {
		t.Errorf("the next lease: %v", err)
	}
	mustUnlock(t, next)
	mustUnlock(t, spared)
}

// TestRevokeStorm has Lockers contend for a key that is revoked all the time. Some holders let go at once, others do
// not. There are never two, and whoever is told that it was revoked had it at that time.
func TestRevokeStorm(t *testing.T) {
	t.Parallel()
	const lockers, ttl, lasting = 4, 2 * time.Second, 5 * time.Second
	url, key := pgtest.URL(t), unique("key")
	by := operator(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	var mu sync.Mutex
	var holder *locker.Lease
	var token uint64
	var revoked, kept int
	var wg sync.WaitGroup
	for i := range lockers {
		l := open(t, url, locker.TTL(ttl), locker.Holder(fmt.Sprint("worker ", i)))
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				lease, err := l.Lock(ctx, key)
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				if holder != nil && holder.Err() == nil {
					t.Error("two holders")
				}
				if lease.Token() <= token {
					t.Errorf("token %d after %d", lease.Token(), token)
				}
				holder, token = lease, lease.Token()
				mu.Unlock()
				select {
				case <-lease.Done():
				case <-time.After(100 * time.Millisecond):
				}
				mu.Lock()
				if errors.Is(lease.Err(), locker.ErrRevoked) {
					revoked++
				} else { // or the machine was too busy to renew it
					kept++
				}
				mu.Unlock()
				if n%8 == 0 && lease.Err() != nil { // it does not let go
					left := time.Until(lease.Deadline())
					mu.Lock()
					if holder != lease && left > 0 {
						t.Errorf("somebody else had the key %v before the end of the lease", left)
					}
					mu.Unlock()
					continue
				}
				mu.Lock()
				if holder == lease {
					holder = nil
				}
				mu.Unlock()
				_ = lease.Unlock()
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := by.Revoke(ctx, key, why); err != nil && !errors.Is(err, locker.ErrNotHeld) && ctx.Err() == nil {
				t.Error(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	wg.Wait()
	t.Logf("%d leases were revoked, %d were not", revoked, kept)
	if revoked == 0 {
		t.Error("no lease was revoked")
	}
}

// TestRevokeTimes measures how long it takes from Revoke to the next holder, of holders that let go at once, that do
// not unlock, and that are cut off.
func TestRevokeTimes(t *testing.T) {
	wires.Long(t)
	server := pgtest.New(t, pgtest.Options{})
	locktest.RevokeTimes(t, func(t *testing.T) (l *locker.Client, cut func() (heal func())) {
		proxy, dsn := behind(t, server.URL())
		return open(t, dsn, locker.TTL(locktest.RevokedTTL)).(*locker.Client), func() (heal func()) {
			proxy.Set(faultproxy.BlackHole())
			return proxy.Heal
		}
	})
}
