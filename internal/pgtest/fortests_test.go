package pgtest

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestURLFromEnvironment(t *testing.T) {
	for _, value := range []string{
		"postgres://db.example/x", "postgresql://user:secret@db.example:1234/x?sslmode=require",
	} {
		t.Setenv(EnvURL, value)
		if got := URL(t); got != value {
			t.Errorf("%s: got %s", value, got)
		}
	}
	for _, value := range []string{
		"db.example:5432", "host=db.example password=secret", "redis://user:secret@db.example",
		"postgres://user:secret@db.example:port/x", "postgres://user:secret@a b/x",
		"postgres://user:secret@db.example/x?sslmode=perhaps",
	} {
		t.Setenv(EnvURL, value)
		f := selftest.RunFake(func(tb testing.TB) { URL(tb) })
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, EnvURL) {
			t.Errorf("%s: outcome %q", value, f.Outcome)
		}
		if strings.Contains(f.Outcome, "secret") {
			t.Errorf("the password is in the log: %s", f.Outcome)
		}
	}
}

func TestURLIsShared(t *testing.T) {
	t.Setenv(EnvURL, "")
	url := URL(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := URL(t); got != url {
				t.Errorf("URL() = %s and %s", url, got)
			}
		})
	}
	wg.Wait()
	expect(t, url, "SELECT 1", "1")
}

func TestNewClosesTheServer(t *testing.T) {
	t.Parallel()
	need(t)
	var s, standby *Server
	f := selftest.RunFake(func(tb testing.TB) {
		s = New(tb, Options{})
		standby = s.Standby(tb, Options{})
	})
	expect(t, s.URL(), "SELECT 1", "1")
	expect(t, standby.URL(), "SELECT 1", "1")
	f.Cleanups()
	if f.Outcome != "" {
		t.Error(f.Outcome)
	}
	selftest.ExpectRefused(t, s.Addr())
	selftest.ExpectRefused(t, standby.Addr())
}

func TestNewWithoutPrograms(t *testing.T) {
	t.Setenv(EnvBin, filepath.Join(t.TempDir(), "missing"))
	f := selftest.RunFake(func(tb testing.TB) { New(tb, Options{}) })
	if !strings.HasPrefix(f.Outcome, "fatal: ") {
		t.Errorf("outcome %q", f.Outcome)
	}
}

// The rules are tested in testserver; here, what the servers are called.
func TestWithoutPrograms(t *testing.T) {
	t.Setenv(EnvBin, "")
	t.Setenv(EnvBouncer, "")
	for list, want := range map[string][2]string{
		"redis":               {"skip: NOT TESTED", "skip: NOT TESTED"},
		"redis,postgres":      {"fatal: ", "skip: NOT TESTED"},
		"pgbouncer":           {"skip: NOT TESTED", "fatal: "},
		"Postgres, PgBouncer": {"fatal: ", "fatal: "},
	} {
		t.Setenv(EnvRequire, list)
		got := [2]string{
			selftest.RunFake(func(tb testing.TB) { product.Unavailable(tb, ErrNotFound) }).Outcome,
			selftest.RunFake(func(tb testing.TB) { bouncerProduct.Unavailable(tb, ErrNoBouncer) }).Outcome,
		}
		for i := range got {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("%q: outcomes %q", list, got)
			}
		}
	}
}
