package pgtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

const backend = "SELECT pg_backend_pid()"

// Two clients at the same time share one connection to the server.
func TestTransactionMode(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	b := NewBouncer(t, s, "transaction", "default_pool_size=1")
	c1, c2 := connect(t, b.URL()), connect(t, b.URL())
	for range 3 {
		if pid1, pid2 := do(t, c1, backend), do(t, c2, backend); pid1 != pid2 {
			t.Fatalf("server connections %s and %s", pid1, pid2)
		}
	}
	// What a session has set is there for another one.
	do(t, c1, "SET work_mem = '5MB'")
	if got := do(t, c2, "SHOW work_mem"); got != "5MB" {
		t.Errorf("work_mem = %s in the other session", got)
	}
	// In a transaction, a client has the connection for itself.
	do(t, c1, "BEGIN")
	done := make(chan error, 1)
	go func() {
		_, err := try(t, c2, "SELECT 1")
		done <- err
	}()
	awaitWaiting(t, b)
	do(t, c1, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSessionMode(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	b := NewBouncer(t, s, "session")
	c1, c2 := connect(t, b.URL()), connect(t, b.URL())
	pid1, pid2 := do(t, c1, backend), do(t, c2, backend)
	if pid1 == pid2 || do(t, c1, backend) != pid1 || do(t, c2, backend) != pid2 {
		t.Errorf("server connections %s and %s", pid1, pid2)
	}
}

func TestStatementMode(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	b := NewBouncer(t, s, "statement")
	c := connect(t, b.URL())
	do(t, c, "SELECT 1")
	if _, err := try(t, c, "BEGIN"); err == nil {
		t.Error("there are transactions in statement mode")
	}
}

func TestBouncerOutlivesTheServer(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	b := NewBouncer(t, s, "transaction", "query_wait_timeout=1")
	expect(t, b.URL(), "SELECT 1", "1")
	s.Crash()
	if err := b.Restart(); err != nil { // without a server
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, b.URL(), "SELECT 1", "1")
	b.Kill()
	selftest.ExpectRefused(t, b.Addr())
	restartWithPortTaken(t, b.Addr(), b.Restart)
	expect(t, b.URL(), "SELECT 1", "1")
}

func TestBouncerIsClosed(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	needBouncer(t)
	var b *Bouncer
	f := selftest.RunFake(func(tb testing.TB) { b = NewBouncer(tb, s, "session") })
	conn := connect(t, b.URL())
	f.Cleanups()
	if f.Outcome != "" {
		t.Error(f.Outcome)
	}
	expectEnd(t, conn)
	selftest.ExpectRefused(t, b.Addr())
	if _, err := os.Stat(b.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
}

func TestBouncerErrors(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	needBouncer(t)
	for _, tc := range []struct{ mode, setting, want string }{
		{"no_such_mode", "max_db_connections=1", "no_such_mode"},
		{"session", "no_such_setting", "want name=value"},
	} {
		f := selftest.RunFake(func(tb testing.TB) { NewBouncer(tb, s, tc.mode, tc.setting) })
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, tc.want) {
			t.Errorf("%s, %s: outcome %q", tc.mode, tc.setting, f.Outcome)
		}
	}
}

func TestFindBouncer(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	onPath := selftest.Program(t, t.TempDir(), "pgbouncer", "")
	t.Setenv("PATH", filepath.Dir(onPath))
	t.Setenv(EnvBouncer, "")
	if got, err := FindBouncer(); got != onPath || err != nil {
		t.Errorf("with the program on the PATH: %q, %v", got, err)
	}
	t.Setenv(EnvBouncer, filepath.Join(t.TempDir(), "missing"))
	if got, err := FindBouncer(); !errors.Is(err, ErrNoBouncer) {
		t.Errorf("with a missing $%s: %q, %v", EnvBouncer, got, err)
	}
	f := selftest.RunFake(func(tb testing.TB) { NewBouncer(tb, nil, "session") })
	if !strings.HasPrefix(f.Outcome, "fatal: ") {
		t.Errorf("outcome %q", f.Outcome)
	}
}

// awaitWaiting waits until a client waits for a connection to the server.
func awaitWaiting(t *testing.T, b *Bouncer) {
	t.Helper()
	admin := connect(t, url(b.Addr(), "pgbouncer"))
	selftest.Await(t, "a waiting client", func() bool {
		results, err := admin.Exec(t.Context(), "SHOW CLIENTS").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range results[0].Rows {
			for i, field := range results[0].FieldDescriptions {
				if field.Name == "state" && string(row[i]) == "waiting" {
					return true
				}
			}
		}
		return false
	})
}

// needBouncer skips a test where there is no PgBouncer, or has it fail.
func needBouncer(t *testing.T) {
	t.Helper()
	if _, err := FindBouncer(); err != nil {
		bouncerProduct.Unavailable(t, err)
	}
}
