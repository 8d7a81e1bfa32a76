package redistest

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func expectReply(t *testing.T, s *Server, want string, command ...string) {
	t.Helper()
	reply, err := roundTrip(s.Addr(), time.Now().Add(locktest.Patience), command...)
	if reply != want || err != nil {
		t.Fatalf("%v: got %q, %v; want %q", command, reply, err, want)
	}
}

// A server that was killed is gone with its data.
func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	expectReply(t, s, "+OK", "SET", "key", "value")
	expectReply(t, s, ":1", "DBSIZE")
	conn := selftest.Connect(t, s.Addr())
	s.Kill()
	selftest.ExpectEnd(t, conn)
	selftest.ExpectRefused(t, s.Addr())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectReply(t, s, ":0", "DBSIZE")
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	conn := selftest.Connect(t, s.Addr())
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if reply, err := exchange(conn, "PING"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a paused server answered %q, %v", reply, err)
	}
	conn.SetReadDeadline(time.Now().Add(locktest.Patience))
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("+PONG\r\n"))
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "+PONG\r\n" {
		t.Fatalf("after Resume: %q, %v", buf, err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	selftest.ExpectRefused(t, s.Addr())
}

// Arguments override the defaults: here, a server that keeps its data.
func TestArgs(t *testing.T) {
	t.Parallel()
	s := New(t, Options{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	expectReply(t, s, "+OK", "SET", "key", "value")
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	locktest.Eventually(t, "the data is loaded", func() bool {
		reply, err := roundTrip(s.Addr(), time.Now().Add(locktest.Patience), "DBSIZE")
		return reply == ":1" && err == nil
	})
	_, err := Start(Options{Args: []string{"--no-such-option", "x"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("Start = %v, want an error with the log in it", err)
	}
}
