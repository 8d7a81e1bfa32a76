package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// connect returns a connection that ends with the test.
func connect(t *testing.T, url string) *pgconn.PgConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), selftest.Patience)
	defer cancel()
	conn, err := pgconn.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), selftest.Patience)
		defer cancel()
		conn.Close(ctx)
	})
	return conn
}

// expectEnd checks that a connection ends.
func expectEnd(t *testing.T, conn *pgconn.PgConn) {
	t.Helper()
	if err := conn.Conn().SetDeadline(time.Now().Add(selftest.Patience)); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn.Conn())
}

// try runs a statement and returns the first value of its result, or "".
func try(t *testing.T, conn *pgconn.PgConn, sql string) (value string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), selftest.Patience)
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

// sharedServer returns the server of URL, for tests that do it no harm.
func sharedServer(t *testing.T) *Server {
	t.Helper()
	need(t)
	s, err := shared.Get()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// need skips a test where there is no Postgres, or has it fail.
func need(t *testing.T) {
	t.Helper()
	if _, err := Find(); err != nil {
		product.Unavailable(t, err)
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	s := New(t, Options{Settings: map[string]string{"max_connections": "17", "application_name": "it's me"}})
	if host, _, err := net.SplitHostPort(s.Addr()); err != nil || host != "127.0.0.1" {
		t.Errorf("Addr() = %q", s.Addr())
	}
	if want := "postgres://postgres@" + s.Addr() + "/postgres?sslmode=disable"; s.URL() != want {
		t.Errorf("URL() = %q, want %q", s.URL(), want)
	}
	for setting, want := range map[string]string{
		"is_superuser":     "on",
		"listen_addresses": "127.0.0.1",
		"max_connections":  "17",
		"application_name": "it's me",
		"fsync":            "off",
		"wal_level":        "replica",
		"server_encoding":  "UTF8",
		"lc_collate":       "C",
		"data_directory":   dataDir(s.server.Dir()),
	} {
		if setting == "lc_collate" { // not a setting any more since version 16
			expect(t, s.URL(), "SELECT datcollate FROM pg_database WHERE datname = 'postgres'", want)
			continue
		}
		expect(t, s.URL(), "SHOW "+setting, want)
	}
	selftest.AwaitLog(t, s, "database system is ready to accept connections")
}

// The superuser needs no password, but all others do.
func TestPassword(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	do1(t, s.URL(), "CREATE ROLE somebody LOGIN PASSWORD 'secret'")
	defer do1(t, s.URL(), "DROP ROLE somebody")
	url := func(password string) string {
		return "postgres://somebody:" + password + "@" + s.Addr() + "/postgres?sslmode=disable"
	}
	expect(t, url("secret"), "SELECT current_user", "somebody")
	_, err := pgconn.Connect(t.Context(), url("wrong"))
	expectCode(t, err, "28P01")
}

func TestCrashAndRestart(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	addr := s.Addr()
	do1(t, s.URL(), "CREATE TABLE t (i int)")
	for i := range 3 {
		do1(t, s.URL(), "INSERT INTO t VALUES (1)")
		conn := connect(t, s.URL())
		do(t, conn, "BEGIN; INSERT INTO t VALUES (100)") // not committed
		s.Crash()
		selftest.ExpectRefused(t, s.Addr())
		if _, err := try(t, conn, "COMMIT"); err == nil {
			t.Fatal("a connection has outlived the crash")
		}
		if left := processesIn(t, s.server.Dir()); len(left) > 0 {
			t.Fatalf("processes that have outlived the crash: %v", left)
		}
		s.Crash() // does nothing
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		if s.Addr() != addr {
			t.Fatalf("the address changed from %s to %s", addr, s.Addr())
		}
		expect(t, s.URL(), "SELECT sum(i) FROM t", strconv.Itoa(i+1))
	}

	// Without Crash before.
	conn := connect(t, s.URL())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, conn, "SELECT 1"); err == nil {
		t.Error("Restart did not end the server before")
	}
	expect(t, s.URL(), "SELECT sum(i) FROM t", "3")
}

// Somebody who has connected and says nothing does not hold up the end.
func TestCrashWithSilentClients(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	for range 2 {
		for range 3 {
			selftest.Connect(t, s.Addr())
		}
		begin := time.Now()
		s.Crash()
		if took := time.Since(begin); took > 2*crashPatience {
			t.Errorf("the crash took %v", took)
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	do1(t, s.URL(), "CREATE TABLE t (i int)")
	conn := connect(t, s.URL())
	for range 2 { // the second time does nothing
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	selftest.ExpectRefused(t, s.Addr())
	_, err := try(t, conn, "SELECT 1")
	expectCode(t, err, "57P01")
	if log := s.LogTail(); !strings.Contains(log, "received fast shutdown request") {
		t.Errorf("the log:\n%s", log)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, s.URL(), "SELECT count(*) FROM t", "0")
	if log := s.LogTail(); strings.Contains(log, "automatic recovery") {
		t.Errorf("it had to recover; the log:\n%s", log)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(s.server.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
	if err := s.Restart(); !errors.Is(err, ErrClosed) {
		t.Errorf("Restart = %v", err)
	}
	s.Crash() // does nothing
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func TestManyServers(t *testing.T) {
	t.Parallel()
	need(t)
	var wg sync.WaitGroup
	servers := make([]*Server, 5)
	for i := range servers {
		wg.Go(func() {
			var err error
			if servers[i], err = Start(Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range servers {
		if s != nil {
			defer s.Close()
		}
	}
	if t.Failed() {
		return
	}
	for i, s := range servers {
		do1(t, s.URL(), fmt.Sprintf("CREATE TABLE t AS SELECT %d AS i", i))
	}
	for _, s := range servers {
		wg.Go(func() {
			s.Crash()
			if err := s.Restart(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, s := range servers {
		expect(t, s.URL(), "SELECT i FROM t", strconv.Itoa(i))
	}
}

func TestStartFailureHasTheLog(t *testing.T) {
	t.Parallel()
	need(t)
	_, err := Start(Options{Settings: map[string]string{"no_such_setting": "x"}})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Fatalf("Start = %v, want an error with the log in it", err)
	}
}

func TestRestartWaitsForThePort(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	s.Crash()
	restartWithPortTaken(t, s.Addr(), s.Restart)
	expect(t, s.URL(), "SELECT 1", "1")
}

// restartWithPortTaken restarts a server while another one has its port, until
// it has tried.
func restartWithPortTaken(t *testing.T, addr string, restart func() error) {
	t.Helper()
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- restart() }()
	// A connection is Restart asking whether the server is up: it is trying.
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A server whose main process was killed has left others behind, which do not
// let a new one start before they have noticed.
func TestRestartAfterHardKill(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	do1(t, s.URL(), "CREATE TABLE t (i int)")
	connect(t, s.URL())
	text, err := os.ReadFile(filepath.Join(dataDir(s.server.Dir()), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, s.URL(), "SELECT count(*) FROM t", "0")
}

// What the environment says to Postgres programs is not for these servers.
func TestEnvironment(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for name, value := range map[string]string{
		"PGDATA": missing, "PGPORT": "1", "PGUSER": "nobody",
		"LC_ALL": "xx_XX.UTF-8", "LANG": "xx_XX.UTF-8",
	} {
		t.Setenv(name, value)
	}
	need(t)
	in, err := findInstallation()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.makeTemplate(); err != nil {
		t.Error(err)
	}
	s, err := Start(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expect(t, s.URL(), "SELECT current_user", "postgres")
}

// await polls the server until a query has the wanted result.
func await(t *testing.T, url, sql, want string) {
	t.Helper()
	conn := connect(t, url)
	selftest.Await(t, fmt.Sprintf("%q from %s", want, sql), func() bool {
		return do(t, conn, sql) == want
	})
}
