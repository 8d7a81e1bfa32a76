package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// inspect returns what a Locker says of a key.
func inspect(t testing.TB, l locker.Locker, key string) locker.LockInfo {
	t.Helper()
	info, err := l.(*locker.Client).Inspect(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// asked returns those who hold a key, as their mode, slot and application_name.
func asked(info locker.LockInfo) (holders []string) {
	for _, h := range info.Holders {
		holders = append(holders, fmt.Sprintf("%v %d %s", h.Mode, h.Slot, app(h.Session)))
	}
	slices.Sort(holders)
	return holders
}

// app returns the last part of what is told of a session, without the part that is unique.
func app(session string) string {
	name, _, _ := strings.Cut(session[strings.LastIndex(session, " ")+1:], "_")
	return name
}

func openNamed(t *testing.T, url, name string, opts ...locker.Option) locker.Locker {
	return open(t, with(t, url, "application_name", unique(name)), opts...)
}

// TestInspectHolders tells of those who hold a key in each mode, Lockers and others.
func TestInspectHolders(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "1"}})
	url := server.URL()
	a, b, look := openNamed(t, url, "a"), openNamed(t, url, "b"), openNamed(t, url, "look")
	raw := connect(t, with(t, url, "application_name", "raw"))
	mustBe := func(key string, want ...string) {
		t.Helper()
		if info := inspect(t, look, key); !slices.Equal(asked(info), want) || info.Waiting != 0 || info.Key != key {
			t.Errorf("%+v; want %q", info, want)
		}
	}
	key := unique("key")
	mustBe(key)
	lease := mustTry(t, a, key)
	mustBe(key, "exclusive 0 a")
	if h := inspect(t, a, key).Holders[0]; h.Token != 0 || h.Name != "" || h.Left != 0 || !h.Since.IsZero() ||
		!regexp.MustCompile(`^pid \d+, 127\.0\.0\.1, a_`).MatchString(h.Session) {
		t.Errorf("%+v; want a session, and nothing else", h)
	}
	mustUnlock(t, lease)
	mustBe(key)
	// Readers on one session are one; on another one of the same Locker, they are another.
	leases := []*locker.Lease{
		mustTry(t, a, key, locker.Shared()), mustTry(t, a, key, locker.Shared()),
		mustTry(t, a, key, locker.Shared(), locker.TTL(time.Minute)), mustTry(t, b, key, locker.Shared()),
	}
	mustBe(key, "shared 0 a", "shared 0 a", "shared 0 b")
	raw.do("SELECT pg_advisory_lock_shared($1)", pglock.Key(key)) // by somebody who knows no marks
	mustBe(key, "shared 0 a", "shared 0 a", "shared 0 b", "shared 0 raw")
	raw.do("SELECT pg_advisory_unlock_shared($1)", pglock.Key(key))
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	mustBe(key)
	const most = locker.MaxSlots
	leases = []*locker.Lease{
		mustTry(t, a, key, locker.Slots(most)), mustTry(t, b, key, locker.Slots(most)),
		mustTry(t, a, key, locker.Slots(most)),
	}
	mustBe(key, "slots 0 a", "slots 1 b", "slots 2 a")
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	first := raw.count(ofName+"SELECT key >> 14 << 14 FROM word WHERE what = 3", pglock.Key(key))
	raw.do("SELECT pg_advisory_lock_shared($1), pg_advisory_lock($2)", pglock.Key(key), int64(first)+most-1)
	mustBe(key, fmt.Sprintf("slots %d raw", most-1))
	raw.do("SELECT pg_advisory_unlock_all()")
	// A transaction, also one that is prepared, of which there is no session.
	raw.do("BEGIN")
	raw.do("SELECT pg_advisory_xact_lock($1)", pglock.Key(key))
	mustBe(key, "exclusive 0 raw")
	raw.do("PREPARE TRANSACTION 'p'")
	mustBe(key, "exclusive 0 transaction")
	raw.do("ROLLBACK PREPARED 'p'")
	mustBe(key)
}

// TestInspectAttempt: who has some of what a lock is made of, as for a moment in an attempt, has no lock.
func TestInspectAttempt(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	l := open(t, url)
	for name, has := range map[string]string{
		"a reader in the gate":      "-1 t, 0 t, 2 f",
		"for a slot in the gate":    "-1 t, 0 f, 1 t, 2 f",
		"a probe in the gate":       "0 f, 2 f",
		"for a slot, that has none": "-1 t, 1 t",
		"a slot, without the key":   "3 f",
		"marks, without the key":    "0 t, 1 t",
	} {
		raw := connect(t, url)
		for _, part := range strings.Split(has, ", ") {
			what, shared, _ := strings.Cut(part, " ")
			take := map[string]string{"t": "pg_advisory_lock_shared", "f": "pg_advisory_lock"}[shared]
			raw.do(ofName+"SELECT "+take+"(key) FROM word WHERE what = "+what, pglock.Key(key))
		}
		if info := inspect(t, l, key); len(info.Holders)+len(info.Waiters)+info.Waiting > 0 {
			t.Errorf("%s: %+v; want nobody", name, info)
		}
		raw.close()
		admin := connect(t, url)
		eventually(t, "it is gone", func() bool { return admin.locksOf(key) == 0 })
	}
}

// TestInspectWaiters tells of those who wait, in the order of the line, and since when.
func TestInspectWaiters(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	holder, look := openNamed(t, url, "holder"), open(t, url)
	clock := func() (now time.Time) {
		scan(admin, &now, "SELECT clock_timestamp()")
		return now
	}
	type inLine struct {
		mode locker.CallOption
		want string
	}
	behindOne := []inLine{ // by the key, which readers and those who want a slot wait for alike
		{locker.Shared(), "shared"}, {locker.Slots(1), "exclusive"}, {locker.Slots(2), "shared"},
	}
	behindSlots := []inLine{ // the first looks for one that is free
		{locker.Slots(2), "slots"}, {locker.Slots(2), "slots"}, {locker.Shared(), "shared"}, {locker.Slots(1),
			"exclusive"},
	}
	behindReaders := []inLine{{locker.Slots(2), "slots"}, {locker.Slots(1), "exclusive"}, {locker.Shared(), "shared"}}
	for name, tc := range map[string]struct {
		held   locker.CallOption
		line   []inLine
		unseen int // of how many it is not known since when they wait
		holds  string
	}{
		"alone":     {locker.Slots(1), behindOne, 0, "exclusive 0 holder"},
		"all slots": {locker.Slots(2), behindSlots, 1, "slots 0 holder,slots 1 holder"},
		"to read":   {locker.Shared(), behindReaders, 0, "shared 0 holder"},
	} {
		var leases []*locker.Lease
		for range 2 {
			if lease, err := holder.TryLock(t.Context(), key, tc.held); err == nil {
				leases = append(leases, lease)
			}
		}
		times := []time.Time{clock()}
		var waiting []locktest.Pending[*locker.Lease]
		for i, w := range tc.line {
			waiting = append(waiting, waits(t, openNamed(t, url, fmt.Sprint("w", i)), key, w.mode))
			eventually(t, "one more waits", func() bool { return inspect(t, look, key).Waiting == i+1 })
			times = append(times, clock())
		}
		info := inspect(t, look, key)
		if info.Waiting != len(tc.line) || len(info.Waiters) != len(tc.line) {
			t.Fatalf("%s: %+v; want %d who wait", name, info, len(tc.line))
		}
		if holds := strings.Join(asked(info), ","); holds != tc.holds {
			t.Errorf("%s: it is held by %s; want %s", name, holds, tc.holds)
		}
		for i, w := range info.Waiters {
			if w.Mode.String() != tc.line[i].want || app(w.Session) != fmt.Sprint("w", i) || w.Name != "" {
				t.Errorf("%s: waiter %d: %+v; want %s", name, i, w, tc.line[i].want)
			}
			if i < tc.unseen {
				if !w.Since.IsZero() {
					t.Errorf("%s: waiter %d: since %v; want zero", name, i, w.Since)
				}
			} else if w.Since.Before(times[i].Truncate(time.Microsecond)) || w.Since.After(times[i+1]) {
				t.Errorf("%s: waiter %d: since %v; want %v to %v", name, i, w.Since, times[i], times[i+1])
			}
		}
		for _, lease := range leases {
			mustUnlock(t, lease)
		}
		for _, w := range waiting {
			mustUnlock(t, w.Get(t))
		}
	}
}

// TestInspectPastTheKey: who has got past the line for the key is before those who are in it, though he has waited for
// the mark since later.
func TestInspectPastTheKey(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	look := open(t, url)
	lease := mustTry(t, open(t, url), key)
	leave := make(chan struct{})
	var wg sync.WaitGroup
	for i, mode := range []locker.CallOption{locker.Shared(), locker.Slots(2), locker.Slots(1)} {
		l := open(t, url)
		wg.Go(func() {
			lease, err := lock(l, key, mode)
			if err != nil {
				t.Error(err)
				return
			}
			<-leave
			mustUnlock(t, lease)
		})
		eventually(t, "one more waits", func() bool { return inspect(t, look, key).Waiting == i+1 })
	}
	mustUnlock(t, lease)
	var info locker.LockInfo
	eventually(t, "the reader has it, or who wants a slot, and the other one waits for the mark", func() bool {
		info = inspect(t, look, key)
		return len(info.Waiters) == 2 && len(info.Holders) == 1 && !info.Waiters[0].Since.IsZero()
	})
	if first, last := info.Waiters[0], info.Waiters[1]; first.Mode == locker.ModeExclusive ||
		last.Mode != locker.ModeExclusive || !first.Since.After(last.Since) {
		t.Errorf("%+v; want the other one of those, and then him who wants it alone", info)
	}
	close(leave)
	wg.Wait()
}

// TestInspectPolling counts a Locker that has no session to wait on.
func TestInspectPolling(t *testing.T) {
	t.Parallel()
	url, busy, key := pgtest.URL(t), unique("key"), unique("key")
	admin := connect(t, url)
	holder := open(t, url)
	leases := []*locker.Lease{mustTry(t, holder, busy), mustTry(t, holder, key)}
	l := openConfig(t, pglock.Config{WaitSessions: 1}, url)
	first := waits(t, l, busy)
	eventually(t, "it waits", func() bool { return admin.inLine(busy) == 1 })
	second := waits(t, l, key)
	eventually(t, "it polls, and is counted", func() bool { return inspect(t, holder, key).Waiting == 1 })
	if info := inspect(t, holder, key); len(info.Holders) != 1 || len(info.Waiters) != 0 {
		t.Errorf("%+v; want a holder, and nothing else of those who poll", info)
	}
	if info := inspect(t, holder, busy); info.Waiting != 1 || len(info.Waiters) != 1 {
		t.Errorf("%+v; want one who waits, and is no other key's", info)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	mustUnlock(t, first.Get(t))
	mustUnlock(t, second.Get(t))
}

// TestInspectPermissions has a role with what is documented see locks of others, and not from where they are.
func TestInspectPermissions(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	_, url := appRole(t, admin, server.URL())
	_, others := appRole(t, admin, server.URL())
	l := open(t, with(t, url, "application_name", "ours"))
	other := open(t, with(t, others, "application_name", "theirs"))
	mustTry(t, l, "ours")
	mustTry(t, other, "theirs")
	waits := locktest.Started(func() error {
		_, err := lock(other, "ours")
		return err
	})
	eventually(t, "one waits", func() bool { return inspect(t, l, "ours").Waiting == 1 })
	ours, theirs := inspect(t, l, "ours"), inspect(t, l, "theirs")
	for session, want := range map[string]string{
		ours.Holders[0].Session:   `^pid \d+, 127\.0\.0\.1, ours$`,
		theirs.Holders[0].Session: `^pid \d+, theirs$`,
		ours.Waiters[0].Session:   `^pid \d+, theirs$`,
	} {
		if !regexp.MustCompile(want).MatchString(session) {
			t.Errorf("a session is %q; want %s", session, want)
		}
	}
	_ = other.Close()
	if err := waits.Get(t); !errors.Is(err, locker.ErrClosed) {
		t.Errorf("%v; want ErrClosed", err)
	}
}

// TestInspectOtherDatabase: the same key of another database is another lock.
func TestInspectOtherDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	connect(t, server.URL()).do("CREATE DATABASE other")
	mustTry(t, open(t, strings.Replace(server.URL(), "/postgres?", "/other?", 1)), "key")
	if info := inspect(t, open(t, server.URL()), "key"); len(info.Holders) != 0 {
		t.Errorf("%+v; want no holder", info)
	}
}

// TestInspectSession: many who inspect share one session, which has no locks, and is closed when it is not needed.
func TestInspectSession(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Minute)) // or it would be used to look at renewals
	pglock.Parked(l.backend, time.Second)
	lease := mustTry(t, l, key)
	var pending []locktest.Pending[locker.LockInfo]
	for range 20 {
		pending = append(pending, locktest.Started(func() locker.LockInfo { return inspect(t, l.Locker, key) }))
	}
	for _, p := range pending {
		if info := p.Get(t); len(info.Holders) != 1 {
			t.Errorf("%+v; want a holder", info)
		}
	}
	if n := admin.connections(l.app); n > 2 { // the one to inspect may be closed already, on a machine that is busy
		t.Errorf("%d connections; want one for the lock, and one to inspect", n)
	}
	eventually(t, "the one to inspect is closed", func() bool { return admin.connections(l.app) == 1 })
	inspect(t, l.Locker, key)
	admin.do(`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1
		AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1)`, l.app)
	eventually(t, "there is another one", func() bool {
		info, err := l.Locker.(*locker.Client).Inspect(t.Context(), key)
		return err == nil && len(info.Holders) == 1
	})
	mustUnlock(t, lease)
}

// TestInspectHangs has somebody lock what it takes to inspect. Inspect heeds its ctx, fails after a while, and works
// afterwards, on the same session.
func TestInspectHangs(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin, look := connect(t, server.URL()), connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL())
	lease := mustTry(t, l, "key")
	inspect(t, l.Locker, "key")
	sessions := func() string {
		return look.text("SELECT string_agg(DISTINCT pid::text, ' ') FROM pg_stat_get_activity(NULL) "+
			"WHERE application_name = $1", l.app)
	}
	before := sessions()
	tx, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE pg_authid"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waits := locktest.Started(func() error {
		_, err := l.Locker.(*locker.Client).Inspect(ctx, "key")
		return err
	})
	eventually(t, "it waits", func() bool {
		return look.count("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass") > 0
	})
	cancel()
	if err := waits.Get(t); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want that ctx has ended", err)
	}
	_, err = l.Locker.(*locker.Client).Inspect(t.Context(), "key")
	if !errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("%v; want ErrUnavailable", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := inspect(t, l.Locker, "key"); len(info.Holders) != 1 {
		t.Errorf("%+v; want a holder", info)
	}
	if after := sessions(); after != before {
		t.Errorf("the sessions were %s, and are %s", before, after)
	}
	mustUnlock(t, lease)
}

// TestInspectErrors: what cannot be had is an error of the same kind as for who locks.
func TestInspectErrors(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	l := open(t, url).(*locker.Client)
	_ = l.Close()
	_, err := l.Inspect(t.Context(), "key")
	checkError(t, err, "inspect", "key", locker.ErrClosed)
	for _, err := range l.List(t.Context(), "p") {
		checkError(t, err, "list", "p", locker.ErrClosed)
	}
	wrong := open(t, as(t, url, "nobody", secret)).(*locker.Client)
	_, err = wrong.Inspect(t.Context(), "key")
	checkError(t, err, "inspect", "key", locker.ErrDenied)
}

// manyLocks has a Locker hold 10,000 locks, which take a server of their own.
func manyLocks(b *testing.B, opts ...locker.Option) (look locker.Locker, server *pgtest.Server) {
	const locks = 10_000
	server = pgtest.New(b, pgtest.Options{Settings: map[string]string{"max_locks_per_transaction": "256"}})
	holder := open(b, server.URL(), append(opts, locker.TTL(time.Minute))...)
	var wg sync.WaitGroup
	for worker := range 50 {
		wg.Go(func() {
			for i := worker; i < locks; i += 50 {
				mustTry(b, holder, strconv.Itoa(i))
			}
		})
	}
	wg.Wait()
	return open(b, server.URL()), server
}

// BenchmarkList lists 10,000 locks of which the names are known.
func BenchmarkList(b *testing.B) {
	look, server := manyLocks(b, locker.Holder("worker"))
	admin := connect(b, server.URL())
	eventually(b, "all are known", func() bool { return admin.count("SELECT count(*) FROM locker.holder") == 10_000 })
	for b.Loop() {
		if n := len(list(b, look, "")); n != 10_000 {
			b.Fatalf("%d locks are listed", n)
		}
	}
}

// BenchmarkInspect inspects a key again and again, on a server with 10,000 locks, and says how long it takes others to
// lock and unlock meanwhile.
func BenchmarkInspect(b *testing.B) {
	look, server := manyLocks(b)
	other := open(b, server.URL())
	info := inspect(b, look, "0")
	lockWhile := func(while func() bool) (took []time.Duration) {
		for i := 0; while(); i++ {
			start := time.Now()
			mustUnlock(b, mustTry(b, other, fmt.Sprint("other ", i)))
			took = append(took, time.Since(start))
			time.Sleep(time.Millisecond)
		}
		slices.Sort(took)
		return took
	}
	report := func(when string, took []time.Duration) {
		for _, percent := range []int{50, 99} {
			b.ReportMetric(float64(took[len(took)*percent/100].Microseconds()), fmt.Sprintf("p%d-lock-us-%s", percent,
				when))
		}
	}
	until := time.Now().Add(2 * time.Second)
	before := lockWhile(func() bool { return time.Now().Before(until) })
	done := make(chan struct{})
	inspected := make(chan []time.Duration)
	go func() {
		inspected <- lockWhile(func() bool {
			select {
			case <-done:
				return false
			default:
				return true
			}
		})
	}()
	for b.Loop() {
		info = inspect(b, look, "0")
	}
	close(done)
	if len(info.Holders) != 1 {
		b.Errorf("%+v; want a holder", info)
	}
	report("before", before)
	report("meanwhile", <-inspected)
}
