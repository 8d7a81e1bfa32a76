package testserver

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestFind(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	t.Setenv(EnvRequire, "")
	tmp := t.TempDir()
	p := product()
	p.Banner, p.Oldest, p.Beside = "fake ", [2]int{3, 6}, "helper"
	// version makes a directory with a program that says it is of a version.
	version := func(dir, version string) string {
		dir = filepath.Join(tmp, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		selftest.Program(t, dir, "helper", "")
		return selftest.Program(t, dir, p.Program, "echo "+version)
	}
	named, onPath := version("named", "fake 3.10-rc"), version("path", "fake 3.6.1")
	old, other := version("old", "fake 3.5"), version("other", "hello")
	usual, built := version("usual/15/bin", "fake 15.3"), version("built", "fake 4")
	version("usual/14/bin", "fake 14.9")
	half := version("half", "fake 18")
	if err := os.Remove(filepath.Join(filepath.Dir(half), "helper")); err != nil {
		t.Fatal(err)
	}
	links := t.TempDir() // to a program that has another one beside it
	if err := os.Symlink(onPath, filepath.Join(links, p.Program)); err != nil {
		t.Fatal(err)
	}
	pattern := filepath.Join(tmp, "usual", "*", "bin", p.Program)
	missing := filepath.Join(tmp, "missing")
	for name, tc := range map[string]struct {
		env            string
		servers        string   // EnvServers; empty: programs
		path           []string // programs, in directories on the PATH
		usual, built   string
		want, wantText string
	}{
		"named":              {env: named, path: []string{onPath}, want: named},
		"directory is named": {env: filepath.Dir(named), path: []string{onPath}, want: named},
		"on the PATH":        {path: []string{half, old, missing, onPath}, usual: pattern, built: built, want: onPath},
		"link on the PATH":   {path: []string{filepath.Join(links, p.Program)}, want: onPath},
		"in the usual place": {path: []string{old}, usual: pattern, built: built, want: usual},
		"built":              {path: []string{other}, built: built, want: built},
		"none":               {wantText: "set $TESTSERVER_PROGRAM"},
		"not asked for":      {servers: "none", path: []string{onPath}, usual: pattern, built: built, wantText: "scripts/test"},
		"old":                {path: []string{old}, wantText: "has version 3.5; want 3.6 or later"},
		// What the environment names is not replaced by something else.
		"named but missing": {env: missing, path: []string{onPath}, built: built, wantText: "no such file"},
		"named but old":     {env: old, path: []string{onPath}, built: built, wantText: "has version 3.5"},
		"named but other":   {env: other, path: []string{onPath}, built: built, wantText: "hello"},
		"named but half":    {env: half, path: []string{onPath}, built: built, wantText: "helper"},
	} {
		t.Setenv(p.EnvProgram, tc.env)
		t.Setenv(EnvServers, cmp.Or(tc.servers, "programs"))
		var dirs []string
		for _, program := range tc.path {
			dirs = append(dirs, filepath.Dir(program))
		}
		t.Setenv("PATH", strings.Join(dirs, string(os.PathListSeparator)))
		p.Usual = tc.usual
		p.Build = func() (string, error) {
			if tc.built == "" {
				return "", errors.New("no way")
			}
			return tc.built, nil
		}
		got, err := p.Find()
		if got != tc.want || errors.Is(err, errNotFound) != (tc.want == "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
		if tc.wantText != "" && !strings.Contains(fmt.Sprint(err), tc.wantText) {
			t.Errorf("%s: %v; want %q in it", name, err, tc.wantText)
		}
	}
}

// A test without its server says so, or fails.
func TestUnavailable(t *testing.T) {
	t.Setenv(contained.EnvSocket, "")
	t.Setenv("PATH", "")
	for _, tc := range []struct {
		program, require string
		want             string
	}{
		{"", "", "skip: NOT TESTED"},
		{"", "other", "skip: NOT TESTED"},
		{"", "fake", "fatal: "},
		{"", "other, Fake", "fatal: "},
		{"", "all", "fatal: "},
		{"", "1", "fatal: "},
		{"/missing", "", "fatal: "},
	} {
		t.Setenv(fakes.EnvProgram, tc.program)
		t.Setenv(EnvRequire, tc.require)
		f := selftest.RunFake(func(tb testing.TB) {
			New(tb, fakes, func() (*Server, error) {
				_, err := fakes.Find()
				return nil, err
			})
		})
		if !strings.HasPrefix(f.Outcome, tc.want) || !strings.Contains(f.Outcome, errNotFound.Error()) {
			t.Errorf("%+v: outcome %q", tc, f.Outcome)
		}
	}
	// A server that is there but does not start is never skipped.
	t.Setenv(fakes.EnvProgram, "")
	t.Setenv(EnvRequire, "")
	f := selftest.RunFake(func(tb testing.TB) {
		New(tb, fakes, func() (*Server, error) { return Start(fakeSpec(t, "broken")) })
	})
	for _, want := range []string{"fatal: ", "exit status 7", "this does not work"} {
		if !strings.Contains(f.Outcome, want) {
			t.Errorf("outcome %q; want %q in it", f.Outcome, want)
		}
	}
}

func TestNewClosesTheServer(t *testing.T) {
	t.Parallel()
	for _, failed := range []bool{false, true} {
		var s *Server
		f := selftest.RunFake(func(tb testing.TB) {
			s = New(tb, fakes, func() (*Server, error) { return Start(fakeSpec(t, "good")) })
			if failed {
				tb.Errorf("failed")
			}
		})
		expectUp(t, s)
		f.Cleanups()
		if (f.Outcome == "error: failed") != failed || (f.Logged != "") != failed {
			t.Errorf("outcome %q, log %q", f.Outcome, f.Logged)
		}
		selftest.ExpectRefused(t, s.Addr())
	}
}

func TestAddress(t *testing.T) {
	for value, want := range map[string]string{
		"fake.example:99":          "fake.example:99",
		"[::1]:99":                 "[::1]:99",
		"fake://fake.example:99":   "fake.example:99",
		"fake://fake.example/":     "fake.example:1234",
		"fake://fake.example:99/0": "fake.example:99",
		"fake://[::1]":             "[::1]:1234",
		"":                         "",
	} {
		t.Setenv(fakes.EnvAddress, value)
		if got := fakes.Address(t); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
	for _, value := range []string{
		"fake.example", "other://fake.example", "fake://fake.example/3", "fake://",
		"fake://user:secret@fake.example", "fake://fake.example?password=secret",
		"fake://user:secret@a b", "user:secret@fake.example:99", "fake://fake.example:secret",
	} {
		t.Setenv(fakes.EnvAddress, value)
		f := selftest.RunFake(func(tb testing.TB) { fakes.Address(tb) })
		if !strings.HasPrefix(f.Outcome, "fatal: ") || !strings.Contains(f.Outcome, fakes.EnvAddress) {
			t.Errorf("%s: outcome %q", value, f.Outcome)
		}
		if strings.Contains(f.Outcome, "secret") {
			t.Errorf("the password is in the log: %s", f.Outcome)
		}
	}
}
