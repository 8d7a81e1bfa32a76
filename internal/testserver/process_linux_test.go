package testserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// A process of tests that is killed takes its servers with it, with the signal that they need for that and whoever
// runs them, and what it has left in memory goes away with the next one. One that ends in order leaves nothing at
// all.
func TestServersEndWithTheProcess(t *testing.T) {
	t.Setenv("TMPDIR", "")
	if fakes.TempDir() == "" {
		t.Skip("there is no room in memory")
	}
	prefix := fakes.Package + "-"
	for _, killed := range []bool{true, false} {
		h := selftest.StartHelper(t, "", "TMPDIR=")
		conn := selftest.Connect(t, h.Addr)
		server, err := ask(conn, "pwd")
		process := filepath.Dir(server)
		if err != nil || filepath.Dir(process) != memoryDir {
			t.Fatalf("the server is in %q, %v", server, err)
		}
		sweep(prefix)
		log, err := os.Open(filepath.Join(server, "log"))
		if err != nil {
			t.Fatal("the directory of a running process is gone:", err)
		}
		defer log.Close()
		if killed {
			h.Kill(t)
		} else {
			h.Finish(t)
		}
		selftest.ExpectEnd(t, conn)
		if killed {
			locktest.Eventually(t, "good bye in the log", func() bool {
				text := make([]byte, 100)
				n, _ := log.ReadAt(text, 0)
				return strings.HasSuffix(string(text[:n]), "good bye\n")
			})
			sweep(prefix)
		}
		if _, err := os.Stat(process); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("killed: %v: %s is still there: %v", killed, process, err)
		}
		if _, err := os.Stat(fakes.TempDir()); err != nil {
			t.Error("the directory of this process is not:", err)
		}
	}
}

func TestHelperProcess(t *testing.T) {
	selftest.HelperProcess(t, func() string {
		user, err := Unprivileged("no-such-user-here", "nobody")
		if err != nil {
			t.Fatal(err)
		}
		spec := fakeSpec(t, "polite")
		spec.TempDir, spec.User = fakes.TempDir(), user
		command := spec.Command
		copied := func(dir string) string { return filepath.Join(dir, "faked") }
		spec.Prepare = func(port int, dir string) error {
			// go test keeps its programs where the user cannot run them.
			self, err := os.ReadFile(command(port, dir).Program)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(copied(dir), self, 0o700), user.Own(copied(dir)))
		}
		spec.Command = func(port int, dir string) Command {
			c := command(port, dir)
			c.Program, c.User, c.DeathSignal = copied(dir), user, syscall.SIGTERM
			return c
		}
		s, err := Start(spec)
		if err != nil {
			t.Fatal(err)
		}
		return s.Addr()
	})
}
