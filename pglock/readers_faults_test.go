package pglock_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// asApp returns the connection string of a role on a server of the test's own that has what is documented, and no more.
func asApp(t *testing.T, admin *session, url string, options ...string) string {
	t.Helper()
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	app, dsn := role(t, admin, url, options...)
	for _, grant := range documentedGrants(t) {
		admin.do(strings.Replace(grant, "TO app", "TO "+app, 1))
	}
	return dsn
}

// TestFailureBesideReaders: the request of a reader fails that would be on the session of another one. What is given
// back is not that one's lock.
func TestFailureBesideReaders(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, asApp(t, admin, server.URL()), locker.TTL(time.Minute))
	reader := mustTry(t, l, "key", locker.Shared())
	for _, refused := range []string{"FUNCTION pg_try_advisory_lock_shared(bigint)", "SEQUENCE locker.token"} {
		right, role := "EXECUTE", "PUBLIC"
		if strings.HasPrefix(refused, "SEQUENCE") {
			right, role = "USAGE, UPDATE", "PUBLIC, "+appOf(admin)
		}
		admin.do(fmt.Sprintf("REVOKE %s ON %s FROM %s", right, refused, role))
		lease, err := l.TryLock(t.Context(), "key", locker.Shared())
		if !errors.Is(err, pglock.ErrPermission) {
			t.Errorf("without the right to use %s: %v, %v; want ErrPermission", refused, lease, err)
		}
		if admin.isFree("key") {
			t.Errorf("without the right to use %s, a reader's lock is given back with another one", refused)
		}
		admin.do(fmt.Sprintf("GRANT %s ON %s TO %s", right, refused, role))
	}
	mustUnlock(t, mustTry(t, l, "key", locker.Shared()))
	if err := reader.Err(); err != nil {
		t.Error(err)
	}
	mustUnlock(t, reader)
	if !admin.isFree("key") {
		t.Error("the readers have left, and the key is not free")
	}
}

func appOf(admin *session) string {
	return admin.text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'role\\_%' LIMIT 1")
}

// TestUnlockBesideReadersWithoutRoom: readers leave while the lock table is full, so that the look whether somebody wants
// the lock fails. Each gives back one lock, and no more.
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
		return admin.count("SELECT count(*) FROM pg_locks WHERE objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = $1",
			pglock.Key("key"))
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
