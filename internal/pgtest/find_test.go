package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// fakeBin makes a directory with programs that claim to be a version of
// Postgres. Version 0 is none.
func fakeBin(t *testing.T, dir string, version int) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "exit 7"
	if version > 0 {
		script = fmt.Sprintf("echo 'postgres (PostgreSQL) %d.3 (Fake)'", version)
	}
	selftest.Program(t, dir, "postgres", script)
	selftest.Program(t, dir, "initdb", "exit 7")
	return dir
}

func TestFind(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	tmp := t.TempDir()
	named := fakeBin(t, filepath.Join(tmp, "named"), 15)
	old := fakeBin(t, filepath.Join(tmp, "old"), 13)
	broken := fakeBin(t, filepath.Join(tmp, "broken"), 0)
	onPath := fakeBin(t, filepath.Join(tmp, "path"), 14)
	half := fakeBin(t, filepath.Join(tmp, "half"), 18)
	if err := os.Remove(filepath.Join(half, "initdb")); err != nil {
		t.Fatal(err)
	}
	// Not the last one in the order of names.
	fakeBin(t, filepath.Join(tmp, "usual", "9.6", "bin"), 9)
	fakeBin(t, filepath.Join(tmp, "usual", "99", "bin"), 0)
	usual := filepath.Join(tmp, "usual", "*", "bin")
	const none = ""
	check := func(usual, want string, inError ...string) {
		t.Helper()
		got, err := find(usual)
		if got != want || (err == nil) != (want != none) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("Find = %q, %v; want %q", got, err, want)
		}
		for _, text := range inError {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("Find: %v; want %q in it", err, text)
			}
		}
	}
	path := func(dirs ...string) { t.Setenv("PATH", strings.Join(dirs, string(os.PathListSeparator))) }

	t.Setenv(EnvBin, named)
	path(onPath)
	check(usual, named)
	t.Setenv(EnvBin, "")
	check(usual, onPath)
	path(half, old, broken, "", onPath)
	check(usual, onPath)
	links := t.TempDir()
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.Symlink(filepath.Join(onPath, name), filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	path(links)
	check(usual, onPath)
	t.Setenv(EnvBin, links)
	check(usual, onPath)
	t.Setenv(EnvBin, "")
	path(half, old)
	check(usual, none, "old/postgres has version 13", EnvBin)
	fakeBin(t, filepath.Join(tmp, "usual", "15", "bin"), 15)
	newest := fakeBin(t, filepath.Join(tmp, "usual", "16", "bin"), 100)
	fakeBin(t, filepath.Join(tmp, "usual", "17", "bin"), 17)
	check(usual, newest)
	path()
	check(usual, newest)
	check(filepath.Join(tmp, "nowhere", "*"), none)

	// What the environment names is not replaced by something else.
	path(onPath)
	for _, bad := range []string{old, broken, half, filepath.Join(tmp, "missing")} {
		t.Setenv(EnvBin, bad)
		check(usual, none, EnvBin, bad)
		if _, err := Start(Options{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("Start = %v", err)
		}
	}
}

func TestStartOfSomethingElse(t *testing.T) {
	t.Setenv(EnvBin, fakeBin(t, t.TempDir(), 15))
	_, err := Start(Options{})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") && !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("Start = %v, want to read how the program ended", err)
	}
}

// TestFindHere tells which Postgres the tests have used.
func TestFindHere(t *testing.T) {
	dir, err := Find()
	if err != nil {
		product.Unavailable(t, err)
	}
	if contained.Is(dir) {
		t.Skip("the programs are in an image, and no version is refused")
	}
	version, err := versionIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("version %d in %s", version, dir)
}
