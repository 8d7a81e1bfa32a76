package pglock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// checkUnusable checks that no Locker with this configuration works, and that Open says so at once.
func checkUnusable(t *testing.T, c pglock.Config, dsn string, want error, texts ...string) {
	t.Helper()
	key := unique("key")
	failures.CheckAcquires(t, openConfig(t, c, dsn), key, want, texts...)
	l, err := c.Open(t.Context(), dsn)
	if err == nil {
		_ = l.Close()
	}
	checkError(t, err, "open", "", want, texts...)
	for _, class := range []error{locker.ErrDenied, locker.ErrUnfit} {
		if errors.Is(want, class) { // which another attempt will not mend
			never := func(context.Context, *locker.Lease) error { t.Error("Lead has led"); return nil }
			checkError(t, locker.Lead(t.Context(), openConfig(t, c, dsn), key, never), "lock", key, want, texts...)
		}
	}
}

func TestPooler(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	for _, mode := range []string{"transaction", "statement", "session"} {
		t.Run(mode, func(t *testing.T) {
			bouncer := pgtest.NewBouncer(t, server, mode, "default_pool_size=1")
			const of = "SELECT pg_backend_pid()"
			const settings = "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name <> 'application_name'"
			const state = "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_listening_channels())"
			first := connect(t, bouncer.URL())
			pid, before := first.text(of), first.text(settings)
			first.close()
			checkUnusable(t, pglock.Config{}, bouncer.URL(), pglock.ErrPooler, "direct connection")
			second := connect(t, bouncer.URL())
			if now := second.text(of); now != pid {
				t.Errorf("the connection of the pooler is %s, and was %s: this test proves nothing", now, pid)
			}
			if after := second.text(settings); after != before {
				t.Errorf("the settings of the pooled connection have changed\nfrom %s\nto   %s", before, after)
			}
			if n := second.count(state); n != 0 {
				t.Errorf("%d prepared statements and channels were left behind", n)
			}
			second.close()
			if n := admin.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); n != 0 {
				t.Errorf("%d locks were left behind", n)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	version := regexp.MustCompile("server_version\x00[0-9][0-9]")
	dsn := rewrite(t, pgtest.URL(t), nil, func(p []byte) []byte {
		return version.ReplaceAllLiteral(p, []byte("server_version\x0013"))
	})
	checkUnusable(t, pglock.Config{}, dsn, pglock.ErrVersion, "13", "14")
}

func TestSettingWithoutEffect(t *testing.T) {
	t.Parallel()
	for name, instead := range map[string]string{
		"has no effect": "SET idle.session_timeout", // a legal name, which means nothing
		"is refused":    "SET idle_session_timeouX", // equal in length
	} {
		t.Run(name, func(t *testing.T) {
			dsn := rewrite(t, pgtest.URL(t), func(p []byte) []byte {
				return bytes.ReplaceAll(p, []byte("SET idle_session_timeout"), []byte(instead))
			}, nil)
			checkUnusable(t, pglock.Config{}, dsn, pglock.ErrSettings, "idle_session_timeou")
		})
	}
}

func TestNoTables(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := role(t, admin, server.URL())
	ns := namespace(t, admin)
	config := pglock.Config{Namespace: ns}
	t.Run("no right to create the namespace", func(t *testing.T) {
		checkUnusable(t, config, dsn, pglock.ErrNoTables, "permission denied")
	})
	t.Run("no right to create the tables", func(t *testing.T) {
		admin.do("CREATE SCHEMA " + ns)
		admin.do("GRANT USAGE ON SCHEMA " + ns + " TO " + app)
		checkUnusable(t, config, dsn, pglock.ErrNoTables, "permission denied")
	})
	t.Run("not to be created", func(t *testing.T) {
		config := pglock.Config{Namespace: namespace(t, admin), NoCreate: true}
		checkUnusable(t, config, server.URL(), pglock.ErrNoTables)
		if admin.is("SELECT to_regnamespace($1) IS NOT NULL", config.Namespace) {
			t.Error("the namespace was created all the same")
		}
		// As soon as they are there, all is well.
		l := openConfig(t, config, server.URL())
		failures.CheckAcquires(t, l, unique("key"), pglock.ErrNoTables)
		admin.do(pglock.SchemaSQL(config.Namespace))
		works(t, l, l, 0)
	})
	t.Run("a namespace of its own is enough", func(t *testing.T) {
		admin.do("GRANT CREATE ON SCHEMA " + ns + " TO " + app)
		l := openConfig(t, config, dsn)
		works(t, l, openConfig(t, config, dsn), 0)
	})
	t.Run("dropped meanwhile", func(t *testing.T) {
		config := pglock.Config{Namespace: namespace(t, admin), NoCreate: true}
		admin.do(pglock.SchemaSQL(config.Namespace))
		l := openConfig(t, config, server.URL())
		works(t, l, l, 0)
		admin.do("DROP SCHEMA " + config.Namespace + " CASCADE")
		key := unique("key")
		failures.CheckAcquires(t, l, key, pglock.ErrNoTables)
		if n := admin.holders(key); n != 0 {
			t.Error("a failed key is locked")
		}
		admin.do(pglock.SchemaSQL(config.Namespace))
		works(t, l, l, 0)
	})
}

// documentedGrants returns the grants that the documentation of SchemaSQL says are enough.
func documentedGrants(t *testing.T) (grants []string) {
	t.Helper()
	source, err := os.ReadFile("schema.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^//\s+(GRANT .*);$`).FindAllSubmatch(source, -1) {
		grants = append(grants, string(m[1]))
	}
	if len(grants) < 4 {
		t.Fatalf("schema.go documents only %q", grants)
	}
	return grants
}

func TestGrants(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	// Each permission is a grant of its own.
	var grants []string
	for _, grant := range documentedGrants(t) {
		permissions, on, _ := strings.Cut(strings.TrimPrefix(grant, "GRANT "), " ON ")
		for _, permission := range strings.Split(permissions, ", ") {
			grants = append(grants, "GRANT "+permission+" ON "+on)
		}
	}
	// limited returns a Locker of a role with those grants, in a namespace that nobody has used.
	limited := func(t *testing.T, grants []string) (locker.Locker, string) {
		app, dsn := role(t, admin, server.URL())
		ns := namespace(t, admin)
		admin.do(pglock.SchemaSQL(ns))
		for _, grant := range grants {
			grant = strings.Replace(grant, "SCHEMA locker", "SCHEMA "+ns, 1)
			grant = strings.Replace(grant, "locker.", ns+".", 1)
			admin.do(strings.Replace(grant, "TO app", "TO "+app, 1))
		}
		config := pglock.Config{Namespace: ns}
		return openConfig(t, config, dsn), app
	}
	t.Run("those documented are enough", func(t *testing.T) {
		l, _ := limited(t, grants)
		works(t, l, l, 0)
	})
	for i, missing := range grants {
		t.Run("without "+missing, func(t *testing.T) {
			l, app := limited(t, slices.Delete(slices.Clone(grants), i, i+1))
			failures.CheckAcquires(t, l, "k", pglock.ErrPermission, "permission denied")
			left := "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE usename = $1 AND "
			if n := admin.count(left+anyLock, app); n != 0 {
				t.Errorf("%d locks were left behind", n)
			}
		})
	}
}

// TestLockTableFull fills the lock table of a small server.
func TestLockTableFull(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{
		"max_connections": "10", "max_locks_per_transaction": "10", "max_wal_senders": "0", "max_worker_processes": "0", "autovacuum": "off",
	}})
	admin := connect(t, server.URL())
	const ttl = 3 * time.Second // its renewals are in time also when the machine is busy
	l := open(t, server.URL(), locker.TTL(ttl))
	var leases []*locker.Lease
	full := ""
	for i := 0; full == ""; i++ {
		key := fmt.Sprint("key ", i)
		lease, err := l.TryLock(t.Context(), key)
		switch {
		case err == nil && i < 100_000:
			leases = append(leases, lease)
		default:
			checkError(t, err, "trylock", key, pglock.ErrLockTableFull)
			full = key
		}
	}
	t.Logf("the table was full with %d locks", len(leases))
	failures.CheckAcquires(t, l, full, pglock.ErrLockTableFull)
	var wg sync.WaitGroup
	for i := range 50 { // in batches
		wg.Go(func() {
			key := fmt.Sprint("more ", i)
			lease, err := l.TryLock(context.Background(), key)
			checkError(t, err, "trylock", key, pglock.ErrLockTableFull)
			if err == nil {
				_ = lease.Unlock()
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(2 * ttl) // that of each lease, after it was renewed several times
	for _, lease := range leases {
		eventually(t, "the lease is renewed", func() bool { return lease.Err() != nil || lease.Deadline().After(deadline) })
		if err := lease.Err(); err != nil {
			t.Fatalf("a lease was lost: %v", err)
		}
	}
	if n := admin.count("SELECT count(*) FROM pg_locks WHERE " + anyLock); n != len(leases) {
		t.Errorf("%d locks for %d leases", n, len(leases))
	}
	for _, lease := range leases[:len(leases)/2] {
		mustUnlock(t, lease)
	}
	mustUnlock(t, mustTry(t, l, full))
	works(t, l, l, 0)
	for _, lease := range leases[len(leases)/2:] {
		mustUnlock(t, lease)
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := appRole(t, admin, server.URL(), "CONNECTION LIMIT 1")
	l, other := open(t, dsn), open(t, server.URL())
	own := mustTry(t, l, "own")
	checkUnusable(t, pglock.Config{}, dsn, pglock.ErrTooManyConnections)

	// Where no session can be had to wait on, a wait succeeds all the same.
	foreign := mustLock(t, other, "foreign")
	waitsOwn := locktest.Started(func() *locker.Lease { return mustLock(t, l, "own") })
	waitsForeign := locktest.Started(func() *locker.Lease { return mustLock(t, l, "foreign") })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := l.Lock(ctx, "foreign"); !errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, pglock.ErrTooManyConnections) {
		t.Errorf("Lock that was cancelled: %v; want DeadlineExceeded", err)
	}
	if len(waitsOwn.Done)+len(waitsForeign.Done) > 0 {
		t.Fatal("two holders at once")
	}
	mustUnlock(t, own)
	mustUnlock(t, waitsOwn.Get(t))
	mustUnlock(t, foreign)
	mustUnlock(t, waitsForeign.Get(t))
	if n := admin.count("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", app); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := role(t, admin, server.URL())
	t.Run("wrong password", func(t *testing.T) {
		checkUnusable(t, pglock.Config{}, as(t, dsn, app, secret+"x"), pglock.ErrAuth, app)
	})
	t.Run("no password", func(t *testing.T) {
		checkUnusable(t, pglock.Config{}, as(t, dsn, app, ""), pglock.ErrAuth, app)
	})
	t.Run("unknown role", func(t *testing.T) {
		checkUnusable(t, pglock.Config{}, as(t, dsn, "stranger", secret), pglock.ErrAuth, "stranger")
	})
	t.Run("unknown database", func(t *testing.T) {
		dsn := strings.Replace(dsn, "/postgres?", "/no_such_database?", 1)
		checkUnusable(t, pglock.Config{}, dsn, pglock.ErrNoDatabase, `database "no_such_database" does not exist`)
	})
	t.Run("not allowed to log in", func(t *testing.T) {
		admin.do("ALTER ROLE " + app + " NOLOGIN")
		checkUnusable(t, pglock.Config{}, dsn, pglock.ErrAuth, app)
	})
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dsn := fmt.Sprintf("postgres://app:%s@%s/postgres?sslmode=disable", secret, l.Addr())
	l.Close() // nobody else gets the port so soon
	checkUnusable(t, pglock.Config{}, dsn, locker.ErrUnavailable, "refused")
}

func TestStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t, pgtest.Options{})
	standby := primary.Standby(t, pgtest.Options{})
	key := unique("key")
	l := open(t, primary.URL())
	lease := mustLock(t, l, key)
	if err := standby.CatchUp(); err != nil {
		t.Fatal(err)
	}
	stale := open(t, standby.URL())
	failures.CheckAcquires(t, stale, key, pglock.ErrStandby)
	failures.CheckAcquires(t, stale, "free", pglock.ErrStandby)
	checkUnusable(t, pglock.Config{}, standby.URL(), pglock.ErrStandby, "standby")
	mustUnlock(t, lease)
	// With both in the connection string, and what the documentation of the error says, the primary is found.
	both := with(t, strings.Replace(standby.URL(), standby.Addr(), standby.Addr()+","+primary.Addr(), 1),
		"target_session_attrs", "read-write")
	works(t, open(t, both), l, 0)
}

// TestShutdown ends the server in order: all leases are lost, and everybody is told why, except who knows that the key
// was held: he gets it when the server is there again.
func TestShutdown(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	const ttl = locker.DefaultTTL // so long that nothing else ends the leases
	l, other := open(t, server.URL()), open(t, server.URL())
	var leases []*locker.Lease
	for i := range 10 {
		leases = append(leases, mustLock(t, l, fmt.Sprint("key ", i)))
	}
	admin := connect(t, server.URL())
	waiter := locktest.Started(func() *locker.Lease { return mustLock(t, other, "key 0") })
	eventually(t, "somebody waits", func() bool { return admin.inLine("key 0") == 1 })
	start := time.Now()
	stopped := locktest.Started(server.Stop)
	for _, lease := range leases {
		<-lease.Done()
	}
	if took := time.Since(start); took > ttl/2 {
		t.Errorf("the leases were lost %v after the shutdown began", took)
	}
	isDown := func(op string, err error) {
		t.Helper()
		var network *net.OpError
		if !errors.As(err, &network) && !errors.Is(err, pglock.ErrShutdown) {
			t.Errorf("%s while the server shuts down: %v; want ErrShutdown or a refused connection", op, err)
		}
		checkError(t, err, op, "key 0", err)
	}
	for range 3 {
		_, err := l.TryLock(t.Context(), "key 0")
		isDown("trylock", err)
		_, err = l.Lock(t.Context(), "key 0")
		isDown("lock", err)
	}
	for _, lease := range leases {
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, pglock.ErrShutdown) {
			t.Errorf("%v; want ErrLost, because of ErrShutdown", err)
		}
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v; want ErrLost", err)
		}
	}
	if err := stopped.Get(t); err != nil {
		t.Fatal(err)
	}
	failures.CheckAcquires(t, l, "key 0", syscall.ECONNREFUSED)
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if next := waiter.Get(t); next.Token() <= leases[0].Token() {
		t.Errorf("token %d after %d", next.Token(), leases[0].Token())
	} else {
		mustUnlock(t, next)
	}
	works(t, l, other, 0)
}

// hostile makes the settings of a role such that each would break something.
func hostile(admin *session, app, statement, idle string) {
	for _, setting := range []string{
		"statement_timeout = '" + statement + "'", "lock_timeout = '1ms'", "idle_session_timeout = '" + idle + "'",
		"idle_in_transaction_session_timeout = '10ms'", "default_transaction_isolation = 'serializable'",
		"default_transaction_deferrable = on", "default_transaction_read_only = on", "search_path = 'x'", "synchronous_commit = off",
		"client_min_messages = 'debug5'", "row_security = off", "standard_conforming_strings = off", "DateStyle = 'German'",
		"TimeZone = 'Asia/Kathmandu'", "extra_float_digits = 0", "bytea_output = 'escape'", "tcp_user_timeout = 1",
	} {
		admin.do("ALTER ROLE " + app + " SET " + setting)
	}
}

// TestHostileRole has a role whose settings would each break something. Its timeouts are just long enough to connect on
// a machine that is busy, and shorter than the pauses between heartbeats.
func TestHostileRole(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := role(t, admin, server.URL())
	admin.do("GRANT CREATE ON DATABASE postgres TO " + app)
	hostile(admin, app, "4s", "4s")
	l, other := open(t, dsn, locker.TTL(20*time.Second)), open(t, dsn, locker.TTL(20*time.Second))
	works(t, l, other, 0)
	lease := mustTry(t, l, "key")
	waiter := waits(t, other, "key")
	locktest.Outlives(t, lease, 1) // so that one session is idle, and another waits, for longer than the timeouts
	mustUnlock(t, lease)
	mustUnlock(t, waiter.Get(t))
	opened, err := pglock.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	works(t, opened, l, 0)
}

// TestReadOnlyByDefault has nothing to do with standbys.
func TestReadOnlyByDefault(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	dsn := with(t, url, "default_transaction_read_only", "on")
	config := pglock.Config{Namespace: namespace(t, connect(t, url))} // which it has to create
	works(t, openConfig(t, config, dsn), openConfig(t, config, dsn), 0)
}

// untouched returns a pool that fails the test if somebody connects.
func untouched(t *testing.T) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig("postgres://nobody@localhost/none")
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		t.Error("the server was asked")
		return nil, errors.ErrUnsupported
	}
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestInvalidOptions(t *testing.T) {
	t.Parallel()
	t.Run("TTL", func(t *testing.T) {
		l := pglock.New(untouched(t))
		defer l.Close()
		for _, ttl := range []time.Duration{
			time.Second + time.Nanosecond, 20*time.Millisecond + time.Microsecond, 1<<31*time.Millisecond - 1,
			1 << 31 * time.Millisecond, locker.MaxTTL,
		} {
			if _, err := l.TryLock(t.Context(), "k", locker.TTL(ttl)); true {
				checkError(t, err, "trylock", "k", locker.ErrInvalidOption, "TTL")
			}
			if _, err := l.Lock(t.Context(), "k", locker.TTL(ttl)); true {
				checkError(t, err, "lock", "k", locker.ErrInvalidOption, "TTL")
			}
		}
	})
	for _, tc := range []struct {
		config pglock.Config
		field  string
	}{
		{pglock.Config{WaitSessions: -1}, "WaitSessions"},
		{pglock.Config{Namespace: strings.Repeat("x", 64)}, "Namespace"},
		{pglock.Config{Namespace: "x\x00y"}, "Namespace"},
	} {
		t.Run(tc.field, func(t *testing.T) {
			l := tc.config.New(untouched(t))
			defer l.Close()
			failures.CheckAcquires(t, l, "k", locker.ErrInvalidOption, tc.field)
			_, err := tc.config.Open(t.Context(), "postgres://127.0.0.1:1/none") // where nobody listens
			checkError(t, err, "open", "", locker.ErrInvalidOption, tc.field)
		})
	}
}

func TestInvalidConnectionString(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"http://127.0.0.1/", "nonsense", "host=127.0.0.1 port=none password=" + secret, "postgres://app:" + secret + "@127.0.0.1:none/db",
		"postgres://app:" + secret + "@127.0.0.1/db?sslmode=none", "postgres://app:" + secret + "@127.0.0.1/db?pool_max_conns=none",
		"postgres://app@127.0.0.1/db?sslmode=none&password=" + secret, "host=127.0.0.1 sslmode=none password='" + secret + "'",
		"postgres://app:" + secret + "@127.0.0.1/db?connect_timeout=none",
	} {
		_, err := pglock.Open(t.Context(), dsn)
		checkError(t, err, "open", "", locker.ErrInvalidOption, "pglock")
	}
}

func TestOpenIsBounded(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = pglock.Open(ctx, fmt.Sprintf("postgres://app:%s@%s/db?sslmode=disable", secret, l.Addr()))
	if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), secret) {
		t.Errorf("Open: %v; want DeadlineExceeded", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Open with a ctx of 200ms took %v", took)
	}
}

// TestEndedByServer: only when the server has ended a session is it certain what became of its locks.
func TestEndedByServer(t *testing.T) {
	t.Parallel()
	for severity, want := range map[string]bool{"ERROR": false, "FATAL": true, "PANIC": true} {
		err := &pgconn.PgError{Severity: "in any language", SeverityUnlocalized: severity, Code: "57P01"}
		if got := pglock.EndedByServer(err); got != want {
			t.Errorf("%s: %v", severity, got)
		}
	}
	if pglock.EndedByServer(net.ErrClosed) {
		t.Error("the server is said to have ended a session that we have")
	}
}
