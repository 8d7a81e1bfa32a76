package pglock_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/pglock"
)

// with returns a connection string with further parameters, in pairs.
func with(t testing.TB, dsn string, params ...string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// as returns a connection string for another role.
func as(t testing.TB, dsn, role, password string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

// What the tests of all stores use.
var (
	unique     = locktest.Unique
	lock       = locktest.Lock
	mustLock   = locktest.MustLock
	mustTry    = locktest.MustTry
	mustUnlock = locktest.MustUnlock
	isLocked   = locktest.IsLocked
	works      = locktest.Works
	eventually = locktest.Eventually
	failures   = locktest.Failures{Backend: "postgres", Secret: secret}
	checkError = failures.Check
)

// secret is the password of all roles. It must not be in any error.
const secret = "tell-nobody-8d1f"

// pool returns a pool, closed with the test.
func pool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// open returns a Locker with connections of its own, closed with the test.
func open(t testing.TB, dsn string, opts ...locker.Option) locker.Locker {
	t.Helper()
	return openConfig(t, pglock.Config{}, dsn, opts...)
}

func openConfig(t testing.TB, c pglock.Config, dsn string, opts ...locker.Option) locker.Locker {
	t.Helper()
	l := c.New(pool(t, dsn), opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// session is a plain connection to a server, to look at it and to change it.
type session struct {
	t  testing.TB
	mu sync.Mutex
	*pgx.Conn
}

// connect returns a session, closed with the test.
func connect(t testing.TB, dsn string) *session {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // poolers understand it, too
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, Conn: conn}
	t.Cleanup(s.close)
	return s
}

func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.Close(context.Background())
}

// do executes statements.
func (s *session) do(sql string, args ...any) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Exec(context.Background(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// text returns the one value that a query returns, as text.
func (s *session) text(sql string, args ...any) (value string) {
	s.t.Helper()
	scan(s, &value, "SELECT coalesce(("+sql+")::text, '')", args...)
	return value
}

// count returns the one number that a query returns.
func (s *session) count(sql string, args ...any) (n int) {
	s.t.Helper()
	scan(s, &n, sql, args...)
	return n
}

// is returns the one truth value that a query returns.
func (s *session) is(sql string, args ...any) (yes bool) {
	s.t.Helper()
	scan(s, &yes, sql, args...)
	return yes
}

func scan[T any](s *session, value *T, sql string, args ...any) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.QueryRow(context.Background(), sql, args...).Scan(value); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// connections returns how many connections there are with an application_name.
func (s *session) connections(app string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", app)
}

// anyLock is true of advisory locks, but not of the marks on the sessions of Lockers.
var anyLock = fmt.Sprintf("locktype = 'advisory' AND (objsubid = 1 OR classid NOT IN (%d, %d))",
	pglock.LockerMark, pglock.HearsMark)

const oneKey = `locktype = 'advisory' AND objsubid = 1
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND (classid::bigint << 32 | objid::bigint) = $1`

// holders returns how many sessions have the lock of a name: 0 or 1.
func (s *session) holders(name string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM pg_locks WHERE granted AND "+oneKey, pglock.Key(name))
}

// inLine returns how many sessions wait for the lock of a name.
func (s *session) inLine(name string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM pg_locks WHERE NOT granted AND "+oneKey, pglock.Key(name))
}

// ofName has the advisory locks of what is made of a name: of its key, what is -1, the marks of readers and of slots, 0
// and 1, the gate, 2, and slots, 3.
const ofName = `WITH hash AS (SELECT encode(sha256(int8send($1::bigint)), 'hex') AS digits),
	word AS (SELECT $1::bigint AS key, -1 AS what
		UNION ALL SELECT ('x' || substr(digits, 1 + 16 * i, 16))::bit(64)::bigint, i
			FROM hash, generate_series(0, 3) AS i),
	had AS (SELECT classid::bigint << 32 | objid::bigint AS key, mode = 'ExclusiveLock' AS alone, granted, pid
		FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),
	ours AS (SELECT what, had.* FROM had JOIN word
		ON CASE what WHEN 3 THEN had.key >> 14 = word.key >> 14 ELSE had.key = word.key END)
	`

// locksOf returns how many advisory locks there are of what is made of a name, had or waited for.
func (s *session) locksOf(name string) int {
	s.t.Helper()
	return s.count(ofName+"SELECT count(*) FROM ours", pglock.Key(name))
}

// waitingFor returns how many sessions wait for a lock of any kind.
func (s *session) waitingFor(name string) int {
	s.t.Helper()
	return s.count(ofName+"SELECT count(DISTINCT pid) FROM ours WHERE NOT granted OR alone AND what IN (0, 1)",
		pglock.Key(name))
}

// locks returns how many advisory locks those with an application_name have or wait for.
func (s *session) locks(app string) int {
	s.t.Helper()
	return s.count("SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = $1 AND "+
		anyLock, app)
}

// awaitLockable waits until a key can be locked, by TryLock, and unlocks it.
func awaitLockable(t testing.TB, l locker.Locker, key string) {
	t.Helper()
	eventually(t, "it can be locked again", func() bool {
		lease, err := l.TryLock(t.Context(), key)
		if err == nil {
			mustUnlock(t, lease)
		}
		return err == nil
	})
}

// isFree takes the lock of a name, as anybody can who is not a Locker, and gives it back.
func (s *session) isFree(name string) bool {
	s.t.Helper()
	return s.is(`SELECT CASE WHEN pg_try_advisory_lock($1) THEN pg_advisory_unlock($1) ELSE false END`, pglock.Key(name))
}

// namespace returns the name of a namespace that does not exist yet, and is removed after the test.
func namespace(t testing.TB, admin *session) string {
	t.Helper()
	ns := unique("ns")
	t.Cleanup(func() { admin.do("DROP SCHEMA IF EXISTS " + ns + " CASCADE") }) // before admin is closed
	return ns
}

// appRole makes a role with what is documented for those who use locks, and no more.
func appRole(t *testing.T, admin *session, dsn string, options ...string) (name, url string) {
	t.Helper()
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	name, url = role(t, admin, dsn, options...)
	for _, grant := range documentedGrants(t) {
		admin.do(strings.Replace(grant, "TO app", "TO "+name, 1))
	}
	return name, url
}

// role makes a role with a password, and returns the connection string for it. It is for servers of the test's own.
func role(t testing.TB, admin *session, dsn string, options ...string) (name, url string) {
	t.Helper()
	name = unique("role")
	admin.do(fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s' %s", name, secret, strings.Join(options, " ")))
	return name, as(t, dsn, name, secret)
}
