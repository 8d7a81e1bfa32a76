package redistest

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// do sends a command to the server and returns the first line of the reply.
func do(t *testing.T, s *Server, command ...string) string {
	t.Helper()
	reply, err := roundTrip(s.Addr(), time.Now().Add(selftest.Patience), command...)
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return reply
}

func expectReply(t *testing.T, s *Server, want string, command ...string) {
	t.Helper()
	if got := do(t, s, command...); got != want {
		t.Fatalf("%v: got %q, want %q", command, got, want)
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	expectReply(t, s, "+PONG", "PING")
	expectReply(t, s, "+OK", "SET", "key", "value")
	expectReply(t, s, ":1", "DBSIZE")
	if want := "redis://" + s.Addr() + "/0"; s.URL() != want {
		t.Errorf("URL() = %q, want %q", s.URL(), want)
	}
	if host, _, err := net.SplitHostPort(s.Addr()); err != nil || host != "127.0.0.1" {
		t.Errorf("Addr() = %q", s.Addr())
	}
	selftest.AwaitLog(t, s, "Ready to accept connections")
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	addr := s.Addr()
	for range 3 {
		expectReply(t, s, "+OK", "SET", "key", "value")
		conn := selftest.Connect(t, s.Addr())
		s.Kill()
		selftest.ExpectEnd(t, conn)
		selftest.ExpectRefused(t, s.Addr())
		s.Kill() // does nothing
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		if s.Addr() != addr {
			t.Fatalf("the address changed from %s to %s", addr, s.Addr())
		}
		expectReply(t, s, ":0", "DBSIZE")
	}

	// Without Kill before.
	conn := selftest.Connect(t, s.Addr())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectEnd(t, conn)
	expectReply(t, s, "+PONG", "PING")
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	for range 3 {
		conn := selftest.Connect(t, s.Addr())
		for range 2 { // the second time does nothing
			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if reply, err := exchange(conn, "PING"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused server answered %q, %v", reply, err)
		}
		conn.SetReadDeadline(time.Now().Add(selftest.Patience))
		for range 2 {
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		// Two answers, the first being that to the PING during the pause.
		buf := make([]byte, len("+PONG\r\n"))
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "+PONG\r\n" {
			t.Fatalf("after Resume: %q, %v", buf, err)
		}
		if reply, err := exchange(conn, "PING"); err != nil || reply != "+PONG" {
			t.Fatalf("after Resume: %q, %v", reply, err)
		}
	}
}

func TestPausedServerCanBeEnded(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	selftest.ExpectRefused(t, s.Addr())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectReply(t, s, "+PONG", "PING") // it is not paused any more
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectRefused(t, s.Addr())
}

func TestOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := New(t, Options{
		Args: []string{"--requirepass", "secret", "--appendonly", "yes"},
		Dir:  dir,
	})
	if reply := do(t, s, "PING"); !strings.HasPrefix(reply, "-NOAUTH") {
		t.Errorf("without a password: %q", reply)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "appendonlydir")); err != nil {
		t.Error("the server did not use Dir, or Close removed it:", err)
	}
}

func TestStartFailureHasTheLog(t *testing.T) {
	t.Parallel()
	New(t, Options{}) // skips if there is no server
	_, err := Start(Options{Args: []string{"--no-such-option", "x"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Fatalf("Start = %v, want an error with the log in it", err)
	}
}

// TestUpEvenIfItComplains checks the replies that a server gives which is up
// but not at our service.
func TestUpEvenIfItComplains(t *testing.T) {
	t.Parallel()
	cases := map[string]bool{
		"+PONG\r\n": true,
		"-LOADING Redis is loading the dataset in memory\r\n": true,
		"-NOAUTH Authentication required.\r\n":                true,
		"HTTP/1.1 400 Bad Request\r\n":                        false,
		"":                                                    false,
	}
	for reply, want := range cases {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 100))
			io.WriteString(conn, reply)
		})
		err = isUp(l.Addr().String(), time.Now().Add(selftest.Patience))
		if got := err == nil; got != want {
			t.Errorf("%q: isUp = %v", reply, err)
		}
		l.Close()
		wg.Wait()
	}
}
