package redistest

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestAddressFromEnvironment(t *testing.T) {
	for value, want := range map[string]string{
		"redis.example:1234":           "redis.example:1234",
		"[::1]:1234":                   "[::1]:1234",
		"redis://redis.example:1234":   "redis.example:1234",
		"redis://redis.example:1234/":  "redis.example:1234",
		"redis://redis.example:1234/0": "redis.example:1234",
		"redis://redis.example":        "redis.example:6379",
		"redis://[::1]":                "[::1]:6379",
	} {
		t.Setenv(EnvAddress, value)
		if got := Address(t); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
	for _, value := range []string{
		"redis.example", "rediss://redis.example", "redis://redis.example/3", "redis://",
		"redis://user:secret@redis.example", "redis://redis.example?db=3", "redis://a b",
	} {
		t.Setenv(EnvAddress, value)
		f := selftest.RunFake(func(tb testing.TB) { Address(tb) })
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, EnvAddress) {
			t.Errorf("%s: outcome %q", value, f.Outcome)
		}
		if strings.Contains(f.Outcome, "secret") {
			t.Errorf("the password is in the log: %s", f.Outcome)
		}
	}
}

func TestAddressIsShared(t *testing.T) {
	t.Setenv(EnvAddress, "")
	addr := Address(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := Address(t); got != addr {
				t.Errorf("Address() = %s and %s", addr, got)
			}
		})
	}
	wg.Wait()
	if err := isUp(addr, time.Now().Add(selftest.Patience)); err != nil {
		t.Error(err)
	}
}

func TestNewClosesTheServer(t *testing.T) {
	t.Parallel()
	New(t, Options{}) // skips if there is no server
	var s *Server
	f := selftest.RunFake(func(tb testing.TB) { s = New(tb, Options{}) })
	expectReply(t, s, "+PONG", "PING")
	f.Cleanups()
	if f.Outcome != "" {
		t.Error(f.Outcome)
	}
	selftest.ExpectRefused(t, s.Addr())
}

func TestNewWithoutProgram(t *testing.T) {
	t.Setenv(EnvProgram, filepath.Join(t.TempDir(), "missing"))
	f := selftest.RunFake(func(tb testing.TB) { New(tb, Options{}) })
	if !strings.HasPrefix(f.Outcome, "fatal: ") {
		t.Errorf("outcome %q", f.Outcome)
	}
}

// The rules are tested in testserver; here, that they are about Redis.
func TestWithoutProgram(t *testing.T) {
	t.Setenv(EnvProgram, "")
	for list, want := range map[string]string{"postgres": "skip: NOT TESTED", "postgres, Redis": "fatal: "} {
		t.Setenv(EnvRequire, list)
		f := selftest.RunFake(func(tb testing.TB) { product.Unavailable(tb, ErrNotFound) })
		if !strings.HasPrefix(f.Outcome, want) {
			t.Errorf("%q: outcome %q", list, f.Outcome)
		}
	}
}
