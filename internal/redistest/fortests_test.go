package redistest

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeTB notes how a test helper ends its test.
type fakeTB struct {
	testing.TB
	outcome  string // "", or how the test ended, and why
	cleanups []func()
}

func (f *fakeTB) Helper()                        {}
func (f *fakeTB) Cleanup(c func())               { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Error(args ...any)              { f.outcome = "error: " + fmt.Sprint(args...) }
func (f *fakeTB) Fatal(args ...any)              { f.end("fatal: " + fmt.Sprint(args...)) }
func (f *fakeTB) Fatalf(form string, a ...any)   { f.end("fatal: " + fmt.Sprintf(form, a...)) }
func (f *fakeTB) Skipf(form string, args ...any) { f.end("skip: " + fmt.Sprintf(form, args...)) }

// stopTest is what a fake test panics with where a real one ends its goroutine.
type stopTest struct{}

func (f *fakeTB) end(outcome string) {
	f.outcome = outcome
	panic(stopTest{})
}

// runFake runs a test helper and returns how it ended.
func runFake(helper func(tb testing.TB)) (f *fakeTB) {
	f = new(fakeTB)
	defer func() {
		if r := recover(); r != nil && r != (stopTest{}) {
			panic(r)
		}
	}()
	helper(f)
	return f
}

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
		f := runFake(func(tb testing.TB) { Address(tb) })
		if !strings.HasPrefix(f.outcome, "fatal: ") || !strings.Contains(f.outcome, EnvAddress) {
			t.Errorf("%s: outcome %q", value, f.outcome)
		}
		if strings.Contains(f.outcome, "secret") {
			t.Errorf("the password is in the log: %s", f.outcome)
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
	if err := isUp(addr, time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
}

func TestLazyServer(t *testing.T) {
	t.Parallel()
	var l lazyServer
	if err := l.close(); err != nil {
		t.Error("close of what was never needed:", err)
	}
	var wg sync.WaitGroup
	servers := make([]*Server, 4)
	for i := range servers {
		wg.Go(func() {
			var err error
			if servers[i], err = l.get(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	defer l.close()
	for _, s := range servers {
		if s != servers[0] {
			t.Error("more than one server was started")
		}
	}
	if t.Failed() {
		return
	}
	for range 2 {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
	expectRefused(t, servers[0])
}

func TestNewClosesTheServer(t *testing.T) {
	t.Parallel()
	New(t, Options{}) // skips if there is no server
	var s *Server
	f := runFake(func(tb testing.TB) { s = New(tb, Options{}) })
	expectReply(t, s, "+PONG", "PING")
	for _, c := range f.cleanups {
		c()
	}
	if f.outcome != "" {
		t.Error(f.outcome)
	}
	expectRefused(t, s)
}

func TestUnavailable(t *testing.T) {
	notFound := fmt.Errorf("%w: not even here", ErrNotFound)
	for _, tc := range []struct {
		err              error
		program, require string
		want             string
	}{
		{notFound, "", "", "skip: NOT TESTED"},
		{notFound, "", "postgres", "skip: NOT TESTED"},
		{notFound, "", "redis", "fatal: "},
		{notFound, "", "postgres, Redis", "fatal: "},
		{notFound, "", "all", "fatal: "},
		{notFound, "", "1", "fatal: "},
		{notFound, "/missing", "", "fatal: "},
		{errPortTaken, "", "", "fatal: "},
	} {
		t.Setenv(EnvProgram, tc.program)
		t.Setenv(EnvRequire, tc.require)
		f := runFake(func(tb testing.TB) { unavailable(tb, tc.err) })
		if !strings.HasPrefix(f.outcome, tc.want) || !strings.Contains(f.outcome, tc.err.Error()) {
			t.Errorf("%+v: outcome %q", tc, f.outcome)
		}
	}
}

func TestNewWithoutProgram(t *testing.T) {
	t.Setenv(EnvProgram, filepath.Join(t.TempDir(), "missing"))
	f := runFake(func(tb testing.TB) { New(tb, Options{}) })
	if !strings.HasPrefix(f.outcome, "fatal: ") {
		t.Errorf("outcome %q", f.outcome)
	}
}
