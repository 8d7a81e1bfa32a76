package pglock_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// records returns how many holders of a name are written down, by Lockers with the namespace that is the default.
func (s *session) records(name string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM locker.holder WHERE name = $1::bytea", []byte(name))
}

// named returns those who hold a key, as their name, mode and slot.
func named(info locker.LockInfo) (holders []string) {
	for _, h := range info.Holders {
		holders = append(holders, fmt.Sprintf("%s %v %d", h.Name, h.Mode, h.Slot))
	}
	slices.Sort(holders)
	return holders
}

func list(t testing.TB, l locker.Locker, prefix string) (keys []string) {
	t.Helper()
	for info, err := range l.(*locker.Client).List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List(%q): %v", prefix, err)
		}
		if len(info.Holders) == 0 {
			t.Errorf("List yields %q, which nobody holds", info.Key)
		}
		keys = append(keys, info.Key)
	}
	slices.Sort(keys)
	return keys
}

// TestRecords: those who give their name have it read by others soon, all others when they have renewed their leases.
func TestRecords(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	url := pgtest.URL(t)
	admin := connect(t, url)
	called := open(t, url, locker.TTL(time.Hour), locker.Holder("Zoë"))
	others, look := open(t, url, locker.TTL(ttl)), open(t, url)
	for name, tc := range map[string]struct {
		mode  locker.CallOption
		again int // how many more locks there are
		want  []string
	}{
		"exclusive": {locker.Slots(1), 0, []string{" exclusive 0"}},
		"shared":    {locker.Shared(), 1, []string{" shared 0", " shared 0"}},
		"slots":     {locker.Slots(3), 1, []string{" slots 0", " slots 1"}},
	} {
		for _, l := range []locker.Locker{called, others} {
			key, who := unique(name)+"\xff'\\", ""
			if l == called {
				who = "Zoë"
			}
			var leases []*locker.Lease
			var want []string
			before := admin.text("SELECT extract(epoch FROM clock_timestamp())")
			for i := range 1 + tc.again {
				leases = append(leases, mustTry(t, l, key, tc.mode))
				want = append(want, who+tc.want[i])
			}
			var info locker.LockInfo
			eventually(t, name+", they are known", func() bool {
				info = inspect(t, look, key)
				return len(info.Holders) == len(leases) &&
					!slices.ContainsFunc(info.Holders, func(h locker.HolderInfo) bool { return h.Token == 0 })
			})
			if got := named(info); !slices.Equal(got, want) {
				t.Errorf("%q hold it; want %q", got, want)
			}
			for _, lease := range leases {
				is := func(h locker.HolderInfo) bool { return h.Token == lease.Token() }
				if !slices.ContainsFunc(info.Holders, is) {
					t.Errorf("%+v; want one with the token %d", info, lease.Token())
				}
			}
			least := "0"
			if l == others { // known when it was renewed, but since before that
				least = fmt.Sprint((ttl / 4).Seconds())
			}
			for _, h := range info.Holders {
				if !admin.is(`SELECT $1::timestamptz BETWEEN to_timestamp($2)
					AND clock_timestamp() - $3 * interval '1 s'`, h.Since, before, least) {
					t.Errorf("%s: held since %v", name, h.Since)
				}
				if !strings.HasPrefix(h.Session, "pid ") {
					t.Errorf("the session is %q", h.Session)
				}
			}
			for _, lease := range leases {
				mustUnlock(t, lease)
			}
			if info := inspect(t, look, key); len(info.Holders) > 0 {
				t.Errorf("%+v; want nobody", info)
			}
			eventually(t, "the records are removed", func() bool { return admin.records(key) == 0 })
		}
	}
}

// TestNoRecordOfAShortLock: who gives no name, and does not renew, needs no further connection and writes nothing.
func TestNoRecordOfAShortLock(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Hour))
	most := sample(t, server.URL(), l.app)
	kept := mustTry(t, l, "kept")
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for range 100 {
				mustUnlock(t, mustTry(t, l, fmt.Sprint("key ", i)))
			}
		})
	}
	wg.Wait()
	if n := most(); n != 1 {
		t.Errorf("%d connections; want 1", n)
	}
	if n := admin.count("SELECT count(*) FROM locker.holder"); n != 0 {
		t.Errorf("%d records; want none", n)
	}
	// The wrong Holder is not told either: who was in between is gone.
	if h := inspect(t, l.Locker, "kept").Holders[0]; h.Token != 0 || h.Name != "" || !h.Since.IsZero() {
		t.Errorf("%+v; want a session, and nothing else", h)
	}
	mustUnlock(t, kept)
}

// TestList lists more keys than are asked for together, under prefixes that mean something to Postgres, and not those
// that were given back, or are held by somebody who is no Locker.
func TestList(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	raw := connect(t, server.URL())
	l, look := open(t, server.URL(), locker.Holder("who"), locker.TTL(time.Hour)), open(t, server.URL())
	var leases []*locker.Lease
	take := func(key string, opts ...locker.CallOption) {
		leases = append(leases, mustTry(t, l, key, opts...))
	}
	var many []string
	for i := range 1200 {
		many = append(many, fmt.Sprintf("many/%04d", i))
		take(many[i])
	}
	odd := []string{"%_\\'\"$1{}\x00", "\xff", "\xff\xff", "\xff\xff\x00", "\xfe", "é", "É", "a", "a\x00"}
	for _, key := range odd {
		take(key)
	}
	for range 3 {
		take("readers", locker.Shared())
		take("slots", locker.Slots(3))
	}
	gone := mustTry(t, l, "many/gone")
	raw.do("SELECT pg_advisory_lock($1)", pglock.Key("many/raw"))
	eventually(t, "all are known", func() bool {
		return raw.count("SELECT count(*) FROM locker.holder") == len(leases)+1
	})
	mustUnlock(t, gone)
	is := func(prefix string, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := list(t, look, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) yields %d keys, %.200q; want %d, %.200q", prefix, len(got), got, len(want), want)
		}
	}
	is("many/", many...)
	is("", slices.Concat(many, odd, []string{"readers", "slots"})...)
	is("many/00", many[:100]...)
	is("\xff", "\xff", "\xff\xff", "\xff\xff\x00")
	is("\xff\xff", "\xff\xff", "\xff\xff\x00")
	is("%", odd[0])
	is("a", "a", "a\x00")
	is("a\x00\x00")
	is("\xc3", "é", "É")
	for info, err := range look.(*locker.Client).List(t.Context(), "readers") {
		if err != nil || len(info.Holders) != 3 || info.Holders[0].Name != "who" {
			t.Errorf("%+v, %v; want three", info, err)
		}
	}
	n := 0
	for range look.(*locker.Client).List(t.Context(), "many/") {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d keys before the loop was left", n)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	is("")
}

// TestRecordsOfTheDead: the records of a session that has ended count no more, and are swept away by other Lockers.
func TestRecordsOfTheDead(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	dead := openWatched(t, pglock.Config{}, server.URL(), locker.Holder("dead"))
	mustTry(t, dead, "key")
	eventually(t, "it is known", func() bool { return admin.records("key") == 1 })
	look := open(t, server.URL())
	admin.do("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1", dead.app)
	if keys := list(t, look, ""); len(keys) > 0 {
		t.Errorf("%q are listed; want none", keys)
	}
	admin.do("SELECT pg_advisory_lock($1)", pglock.Key("key"))
	if h := inspect(t, look, "key").Holders[0]; h.Name != "" {
		t.Errorf("%+v; want somebody who is not known", h)
	}
	mustTry(t, open(t, server.URL(), locker.Holder("alive")), "other")
	eventually(t, "the record is swept away", func() bool { return admin.records("key") == 0 })
	eventually(t, "the record of who lives is there", func() bool { return admin.records("other") == 1 })
}

// TestRecordsInTheWay: somebody keeps the tables for himself. Who locks and renews does not notice; who inspects sees
// sessions; and the records are made up for afterwards.
func TestRecordsInTheWay(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	server := pgtest.New(t, pgtest.Options{})
	admin, look := connect(t, server.URL()), open(t, server.URL(), locker.TTL(time.Minute))
	l := open(t, server.URL(), locker.TTL(ttl), locker.Holder("me"))
	mustUnlock(t, mustTry(t, l, "key"))
	tx, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE locker.holder, locker.revocation"); err != nil {
		t.Fatal(err)
	}
	lease := mustTry(t, l, "key")
	locktest.Outlives(t, lease, 2)
	mustUnlock(t, mustTry(t, l, "other"))
	if info := inspect(t, look, "key"); len(info.Holders) != 1 || info.Holders[0].Name != "" {
		t.Errorf("%+v; want a session", info)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the holder is known", func() bool { return inspect(t, look, "key").Holders[0].Name == "me" })
	mustUnlock(t, lease)
}

// TestRecordsWithoutTables: as the tables for it are missing, nobody is known. Locks are as they were.
func TestRecordsWithoutTables(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	admin.do("DROP TABLE locker.holder, locker.revocation")
	l := open(t, server.URL(), locker.TTL(6*time.Second), locker.Holder("me")).(*locker.Client)
	lease := mustTry(t, l, "key")
	locktest.Outlives(t, lease, 2)
	if info := inspect(t, l, "key"); len(info.Holders) != 1 || info.Holders[0].Name != "" {
		t.Errorf("%+v; want a session", info)
	}
	// Not an error in the log at each renewal, of which there are three or more.
	if n := strings.Count(server.LogTail(), `"locker.revocation" does not exist`); n > 2 {
		t.Errorf("%d errors in the log of the server", n)
	}
	for _, err := range l.List(t.Context(), "") {
		checkError(t, err, "list", "", pglock.ErrNoTables)
	}
	checkError(t, l.Revoke(t.Context(), "key", ""), "revoke", "key", pglock.ErrNoTables)
	checkError(t, l.Break(t.Context(), "key"), "break", "key", pglock.ErrNoTables)
	if err := lease.Err(); err != nil {
		t.Error(err)
	}
	mustUnlock(t, lease)
}

// TestOperateInANamespace: the name of the namespace has signs that mean something, to Postgres and to fmt.
func TestOperateInANamespace(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	config := pglock.Config{Namespace: `a "%d" $1 '%s'`}
	l := openConfig(t, config, server.URL(), locker.TTL(time.Hour), locker.Holder("worker"))
	by := openConfig(t, config, server.URL(), locker.Holder("operator")).(*locker.Client)
	revoked, broken := mustTry(t, l, "revoked"), mustTry(t, l, "broken")
	eventually(t, "both are listed", func() bool { return len(list(t, by, "")) == 2 })
	if h := inspect(t, by, "broken").Holders[0]; h.Name != "worker" || h.Token != broken.Token() {
		t.Errorf("%+v; want the worker", h)
	}
	mustRevoke(t, by, "revoked")
	wasRevoked(t, revoked)
	unlockTaken(t, revoked)
	if err := by.Break(t.Context(), "broken"); err != nil {
		t.Errorf("Break: %v", err)
	}
	ends(t, broken, locker.ErrBroken)
	eventually(t, "none is listed", func() bool { return len(list(t, by, "")) == 0 })
}
