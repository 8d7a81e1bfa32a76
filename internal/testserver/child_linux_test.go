package testserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// Pdeathsig must not strike when just the thread ends that called Start.
func TestServerOutlivesTheThread(t *testing.T) {
	t.Parallel()
	var s *Server
	var err error
	tid := make(chan int)
	start := func() {
		// A goroutine that ends without unlocking takes its thread with it.
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			s, err = Start(fakeSpec(t, "good"))
		}
		tid <- syscall.Gettid()
	}
	go start()
	id := <-tid
	if id == os.Getpid() {
		// It got the main thread, which Go never ends, but does not use again.
		go start()
		id = <-tid
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	task := fmt.Sprintf("/proc/self/task/%d", id)
	selftest.Await(t, "the end of the thread", func() bool {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist)
	})
	expectUp(t, s)
}

func TestHelperProcess(t *testing.T) {
	selftest.HelperProcess(t, func() string {
		spec := fakeSpec(t, "polite")
		spec.TempDir = memoryProduct.TempDir()
		spec.User = mustUnprivileged(t)
		command := spec.Command
		copied := func(dir string) string { return filepath.Join(dir, "faked") }
		spec.Prepare = func(port int, dir string) error {
			// go test keeps its programs where the user cannot run them.
			self, err := os.ReadFile(command(port, dir).Program)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(copied(dir), self, 0o700), spec.User.Own(copied(dir)))
		}
		spec.Command = func(port int, dir string) Command {
			c := command(port, dir)
			c.Program = copied(dir)
			c.User, c.DeathSignal = spec.User, syscall.SIGTERM
			return c
		}
		s, err := Start(spec)
		if err != nil {
			t.Fatal(err)
		}
		return s.Addr()
	})
}

// The signal is the one asked for, and a change of user does not undo it.
func TestDeathSignal(t *testing.T) {
	t.Parallel()
	h := selftest.StartHelper(t, "")
	conn := selftest.Connect(t, h.Addr)
	if err := echo(conn); err != nil {
		t.Fatal(err)
	}
	if err := h.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn)
	selftest.Await(t, "good bye in the log", func() bool {
		logs, _ := filepath.Glob(filepath.Join(h.Tmp, "faketest-*", "log"))
		return len(logs) == 1 && strings.HasSuffix(tail(logs[0]), "good bye\n")
	})
}

func TestPauseHasStoppedIt(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "good"))
	for range 20 {
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.child.process.(*hostProcess).Pid))
		if err != nil {
			t.Fatal(err)
		}
		// The state is the field after the name, which is in parentheses.
		_, rest, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(rest, "T ") {
			t.Fatalf("a paused server is in state %.1q", rest)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}
