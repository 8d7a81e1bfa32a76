package pglock_test

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestTablesLocked locks the tables that tokens come from, as a dump, a VACUUM FULL or an ALTER TABLE does, while a
// Locker takes locks: neither its leases nor those that it takes meanwhile are lost, and it goes on.
func TestTablesLocked(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	dsn := pgtest.URL(t)
	admin := connect(t, dsn)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l, other := openConfig(t, config, dsn, locker.TTL(ttl)), openConfig(t, config, dsn, locker.TTL(ttl))
	var leases []*locker.Lease
	for range 10 {
		leases = append(leases, mustLock(t, l, unique("key")))
	}
	waits := unique("key")
	held := mustLock(t, other, waits)
	admin.do("BEGIN; LOCK TABLE " + config.Namespace + ".token_limit, " + config.Namespace + ".token_ceiling")
	for start := time.Now(); time.Since(start) < 2*ttl; time.Sleep(ttl / 20) {
		leases = append(leases, mustTry(t, l, unique("key")))
	}
	waiter := locktest.Started(func() *locker.Lease { return mustLock(t, l, waits) })
	for _, lease := range leases {
		if err := lease.Err(); err != nil {
			t.Fatalf("a lease: %v", err)
		}
	}
	admin.do("ROLLBACK")
	mustUnlock(t, held)
	leases = append(leases, waiter.Get(t))
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
}

// TestSequenceLocked locks the sequence of the tokens, as an ALTER SEQUENCE does, while a Locker wants locks: it gets
// none, and keeps its leases.
func TestSequenceLocked(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	dsn := pgtest.URL(t)
	admin := connect(t, dsn)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l := openConfig(t, config, dsn, locker.TTL(ttl))
	lease := mustLock(t, l, unique("key"))
	admin.do("BEGIN; ALTER SEQUENCE " + config.Namespace + ".token CACHE 1")
	for start := time.Now(); time.Since(start) < 2*ttl; {
		if _, err := l.TryLock(t.Context(), unique("key")); !errors.Is(err, locker.ErrUnavailable) {
			t.Errorf("TryLock: %v; want ErrUnavailable", err)
		}
	}
	if err := lease.Err(); err != nil {
		t.Errorf("a lease: %v", err)
	}
	admin.do("ROLLBACK")
	works(t, l, l, 0)
	mustUnlock(t, lease)
}

// TestCopiedDatabase makes a copy of a database, takes locks in the original, and puts the copy in its place, on the
// same running server: as if a dump were restored. The tokens go on increasing.
func TestCopiedDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do("CREATE DATABASE original")
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/original"
	lastOf := func(locks int) (last uint64) {
		l, err := pglock.Open(t.Context(), u.String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for range locks {
			lease := mustLock(t, l, "k")
			if lease.Token() <= last {
				t.Fatalf("token %d after %d", lease.Token(), last)
			}
			last = lease.Token()
			mustUnlock(t, lease)
		}
		return last
	}
	alone := func() {
		eventually(t, "nobody is connected", func() bool {
			return admin.is("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'original'")
		})
	}
	lastOf(1)
	alone()
	admin.do("CREATE DATABASE copied TEMPLATE original")
	before := lastOf(200)
	alone()
	admin.do("DROP DATABASE original")
	admin.do("ALTER DATABASE copied RENAME TO original")
	if after := lastOf(1); after <= before {
		t.Errorf("token %d, after %d", after, before)
	}
}

// TestSchemaDropped drops what a running Locker needs. As it may create that, it does so, like one that begins.
func TestSchemaDropped(t *testing.T) {
	t.Parallel()
	dsn := pgtest.URL(t)
	admin := connect(t, dsn)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l := openConfig(t, config, dsn)
	before := mustLock(t, l, unique("key"))
	last := before.Token()
	admin.do("DROP SCHEMA " + config.Namespace + " CASCADE")
	eventually(t, "it can be locked again", func() bool {
		lease, err := lock(l, unique("key"))
		if err == nil {
			if lease.Token() <= last {
				t.Errorf("token %d after %d", lease.Token(), last)
			}
			mustUnlock(t, lease)
		}
		return err == nil
	})
	if err := before.Err(); err != nil {
		t.Errorf("a lease of before: %v", err)
	}
	mustUnlock(t, before)
}

// TestSchemaDroppedWhileSomebodyWaits is TestSchemaDropped for a lock that is got by waiting, when what tokens come
// from has gone since the wait began. That is told to who waits, and who waits afterwards gets the lock.
func TestSchemaDroppedWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	dsn, key := pgtest.URL(t), unique("key")
	admin := connect(t, dsn)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l := openConfig(t, config, dsn)
	waits := func() locktest.Pending[error] {
		admin.do("SELECT pg_advisory_lock($1)", pglock.Key(key))
		result := locktest.Started(func() error {
			lease, err := lock(l, key)
			if err == nil {
				mustUnlock(t, lease)
			}
			return err
		})
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		return result
	}
	free := func() { admin.do("SELECT pg_advisory_unlock($1)", pglock.Key(key)) }
	waiter := waits()
	admin.do("DROP SCHEMA " + config.Namespace + " CASCADE")
	free()
	checkError(t, waiter.Get(t), "lock", key, pglock.ErrNoTables)
	awaitLockable(t, l, key)
	waiter = waits() // on the same session
	free()
	if err := waiter.Get(t); err != nil {
		t.Error(err)
	}
}

// TestSchemaDroppedDuringATry is TestSchemaDropped for a statement that has begun before, which the server fails in
// another way.
func TestSchemaDroppedDuringATry(t *testing.T) {
	t.Parallel()
	dsn, key := pgtest.URL(t), unique("key")
	admin, look := connect(t, dsn), connect(t, dsn)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l := openWatched(t, config, dsn, locker.TTL(time.Minute))
	mustUnlock(t, mustTry(t, l, key))
	admin.do("BEGIN; DROP SCHEMA " + config.Namespace + " CASCADE")
	try := locktest.Started(func() error { _, err := l.TryLock(t.Context(), key); return err })
	const blocked = `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'relation'`
	eventually(t, "it takes a token", func() bool { return look.count(blocked, l.app) == 1 })
	admin.do("COMMIT")
	checkError(t, try.Get(t), "trylock", key, pglock.ErrNoTables)
	awaitLockable(t, l, key)
}
