package testserver

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// What is killed is dead, whatever it was doing, and comes back at the same address.
func TestKill(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(s *Server) error{
		"good":   func(*Server) error { return nil },
		"paused": (*Server).Pause,
		"stubborn": func(s *Server) error {
			s.spec.KillSignal, s.spec.KillPatience = syscall.SIGTERM, 20*time.Millisecond
			return nil
		},
	} {
		s := startFake(t, fakeSpec(t, name)) // of which "paused" is a good one
		addr, conn := s.Addr(), selftest.Connect(t, s.Addr())
		if err := prepare(s); err != nil {
			t.Fatal(err)
		}
		s.Kill()
		selftest.ExpectEnd(t, conn)
		selftest.ExpectRefused(t, addr)
		for _, err := range []error{s.Pause(), s.Resume()} {
			if !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s: after Kill: %v", name, err)
			}
		}
		if err := s.Restart(); err != nil || s.Addr() != addr {
			t.Fatalf("%s: Restart = %v, at %s and %s", name, err, addr, s.Addr())
		}
		expectUp(t, s)
		conn = selftest.Connect(t, s.Addr())
		if err := s.Restart(); err != nil { // without Kill before
			t.Fatal(err)
		}
		selftest.ExpectEnd(t, conn)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		selftest.ExpectRefused(t, addr)
		if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the temporary directory is still there: %v", name, err)
		}
		if err := s.Restart(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Restart after Close = %v", name, err)
		}
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "good"))
	conn := selftest.Connect(t, s.Addr())
	for range 5 {
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if answer, err := ask(conn, "hello"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused server answered %q, %v", answer, err)
		}
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(locktest.Patience))
		if _, err := conn.Read(make([]byte, len("hello\n"))); err != nil {
			t.Fatal(err)
		}
	}
}

// Stop asks a server to end, and tells if it had to be killed.
func TestStop(t *testing.T) {
	t.Parallel()
	for kind, inOrder := range map[string]bool{"polite": true, "stubborn": false} {
		s := startFake(t, fakeSpec(t, kind))
		if !inOrder {
			s.spec.Patience = 20 * time.Millisecond
		}
		err := s.Stop(syscall.SIGTERM)
		if (err == nil) != inOrder || strings.HasSuffix(s.LogTail(), "good bye\n") != inOrder {
			t.Errorf("%s: Stop = %v; the log:\n%s", kind, err, s.LogTail())
		}
		selftest.ExpectRefused(t, s.Addr())
	}
}
