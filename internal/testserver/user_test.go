package testserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func mustUnprivileged(t *testing.T) *User {
	t.Helper()
	user, err := Unprivileged("no-such-user-here", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func TestUnprivileged(t *testing.T) {
	user := mustUnprivileged(t)
	if root := os.Geteuid() == 0; root != (user != nil) {
		t.Fatalf("root: %v, user: %v", root, user)
	}
	if user == nil {
		t.Skip("the rest is for root")
	}
	if _, err := Unprivileged("no-such-user-here"); err == nil || !strings.Contains(err.Error(), "no-such-user-here") {
		t.Errorf("without any of the users: %v", err)
	}

	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", closed) // where nobody else can look
	dir, err := user.MkdirTemp("", "faketest-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	touch := Command{
		Program: selftest.Program(t, dir, "touch", ">"+filepath.Join(dir, "file")),
		User:    user,
		Dir:     dir,
	}
	if err := user.Own(touch.Program); err != nil {
		t.Fatal(err)
	}
	if err := touch.Run(selftest.Patience); err != nil {
		t.Error(err)
	}
}

func TestOpenToAll(t *testing.T) {
	t.Parallel()
	base := filepath.Dir(t.TempDir())
	dir := filepath.Join(base, "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	expect := func(path string, want bool) {
		t.Helper()
		if got := openToAll(path); got != want {
			t.Errorf("openToAll(%s) = %v", path, got)
		}
	}
	expect(file, false)
	expect(filepath.Join(dir, "missing"), false)
	for mode, want := range map[os.FileMode]bool{0o755: true, 0o711: true, 0o700: false, 0o750: false} {
		if err := os.Chmod(base, mode); err != nil {
			t.Fatal(err)
		}
		expect(dir, want && openToAll(filepath.Dir(base)))
	}
}
