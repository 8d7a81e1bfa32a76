package pgtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// connect returns a connection that ends with the test.
func connect(t *testing.T, url string) *pgconn.PgConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), locktest.Patience)
	defer cancel()
	conn, err := pgconn.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), locktest.Patience)
		defer cancel()
		conn.Close(ctx)
	})
	return conn
}

// try runs a statement and returns the first value of its result, or "".
func try(t *testing.T, conn *pgconn.PgConn, sql string) (value string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), locktest.Patience)
	defer cancel()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err == nil && len(results) > 0 && len(results[0].Rows) > 0 {
		value = string(results[0].Rows[0][0])
	}
	return value, err
}

func do(t *testing.T, conn *pgconn.PgConn, sql string) (value string) {
	t.Helper()
	value, err := try(t, conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// do1 runs a statement on a connection of its own.
func do1(t *testing.T, url, sql string) (value string) {
	t.Helper()
	conn := connect(t, url)
	defer conn.Close(t.Context())
	return do(t, conn, sql)
}

func expect(t *testing.T, url, sql, want string) {
	t.Helper()
	if got := do1(t, url, sql); got != want {
		t.Fatalf("%s: got %q, want %q", sql, got, want)
	}
}

// expectCode checks the SQLSTATE of an error.
func expectCode(t *testing.T, err error, want string) {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != want {
		t.Fatalf("error %v, want SQLSTATE %s", err, want)
	}
}

// What was committed is there again after a crash, and nothing else; of the server itself, nothing is left.
func TestCrashAndRestart(t *testing.T) {
	t.Parallel()
	s := New(t, Options{Settings: map[string]string{"max_connections": "17"}})
	expect(t, s.URL(), "SHOW max_connections", "17")
	do1(t, s.URL(), "CREATE TABLE t (i int)")
	for i := range 2 {
		do1(t, s.URL(), "INSERT INTO t VALUES (1)")
		conn := connect(t, s.URL())
		do(t, conn, "BEGIN; INSERT INTO t VALUES (100)")
		s.Crash()
		selftest.ExpectRefused(t, s.Addr())
		if _, err := try(t, conn, "COMMIT"); err == nil {
			t.Fatal("a connection has outlived the crash")
		}
		if left := processesIn(t, s.server.Dir()); len(left) > 0 {
			t.Fatalf("processes that have outlived the crash: %v", left)
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		expect(t, s.URL(), "SELECT sum(i) FROM t", strconv.Itoa(i+1))
	}
}

// Stop is no crash: it tells the clients, and there is nothing to recover from.
func TestStop(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	conn := connect(t, s.URL())
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectRefused(t, s.Addr())
	_, err := try(t, conn, "SELECT 1")
	expectCode(t, err, "57P01")
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if log := s.LogTail(); strings.Contains(log, "automatic recovery") {
		t.Errorf("it had to recover; the log:\n%s", log)
	}
}

// All processes of a server end with that of the tests, which is killed.
func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("works on Linux only")
	}
	product.Need(t)
	h := selftest.StartHelper(t, product.TempDir(), EnvURL+"=")
	conn := connect(t, url(h.Addr, "postgres"))
	if len(processesIn(t, h.Tmp)) < 2 {
		t.Fatal("no processes found: the test is broken")
	}
	h.Kill(t)
	locktest.Eventually(t, "the end of all processes of the server",
		func() bool { return len(processesIn(t, h.Tmp)) == 0 })
	if _, err := try(t, conn, "SELECT 1"); err == nil {
		t.Error("a connection has outlived the server")
	}
	selftest.ExpectRefused(t, h.Addr)
}

func TestHelperProcess(t *testing.T) {
	selftest.HelperProcess(t, func() string { return shared.For(t, product).Addr() })
}

// processesIn returns the processes that work in a directory, on Linux. All
// those of a Postgres server work in its data directory.
func processesIn(t *testing.T, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// Those of others cannot be read; they are not ours.
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// Two clients of a pooler in transaction mode share one connection to the server.
func TestBouncer(t *testing.T) {
	t.Parallel()
	b := NewBouncer(t, New(t, Options{}), "transaction", "default_pool_size=1")
	c1, c2 := connect(t, b.URL()), connect(t, b.URL())
	for range 3 {
		const backend = "SELECT pg_backend_pid()"
		if pid1, pid2 := do(t, c1, backend), do(t, c2, backend); pid1 != pid2 {
			t.Fatalf("server connections %s and %s", pid1, pid2)
		}
	}
}

// What is no URL of a running server fails a test, without a password in the log.
func TestURLFromEnvironment(t *testing.T) {
	t.Setenv(EnvURL, "postgresql://user:secret@db.example:1234/x?sslmode=require")
	if got := URL(t); got != os.Getenv(EnvURL) {
		t.Errorf("got %s", got)
	}
	for _, value := range []string{
		"db.example:5432", "host=db.example password=secret", "postgres://user:secret@db.example:port/x",
		"postgres://user:secret@a b/x", "postgres://user:secret@db.example/x?sslmode=perhaps",
	} {
		t.Setenv(EnvURL, value)
		f := selftest.RunFake(func(tb testing.TB) { URL(tb) })
		told := strings.HasPrefix(f.Outcome, "fatal: ") && strings.Contains(f.Outcome, EnvURL)
		if !told || strings.Contains(f.Outcome, "secret") {
			t.Errorf("%s: outcome %q", value, f.Outcome)
		}
	}
}
