package redistest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that should happen soon.
const patience = 20 * time.Second

// do sends a command to the server and returns the first line of the reply.
func do(t *testing.T, s *Server, command ...string) string {
	t.Helper()
	reply, err := roundTrip(s.Addr(), time.Now().Add(patience), command...)
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

func connect(t *testing.T, s *Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// expectEnd reads until the connection ends, by FIN or by a reset.
func expectEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection did not end: the server is still there")
	}
}

func expectRefused(t *testing.T, s *Server) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("Dial = %v, want connection refused", err)
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
	if tail := s.LogTail(); !strings.Contains(tail, "Ready to accept connections") {
		t.Errorf("LogTail() = %q", tail)
	}
}

func TestKillAndRestart(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	addr := s.Addr()
	for range 3 {
		expectReply(t, s, "+OK", "SET", "key", "value")
		conn := connect(t, s)
		s.Kill()
		expectEnd(t, conn)
		expectRefused(t, s)
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
	conn := connect(t, s)
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, conn)
	expectReply(t, s, "+PONG", "PING")
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	for range 3 {
		conn := connect(t, s)
		for range 2 { // the second time does nothing
			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if reply, err := exchange(conn, "PING"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused server answered %q, %v", reply, err)
		}
		conn.SetReadDeadline(time.Now().Add(patience))
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
	expectRefused(t, s)
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
	expectRefused(t, s)
}

func TestStateErrors(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	s.Kill()
	if err := s.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Pause after Kill = %v", err)
	}
	if err := s.Resume(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Resume after Kill = %v", err)
	}
	tmp := s.tmp
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
	for name, method := range map[string]func() error{
		"Pause": s.Pause, "Resume": s.Resume, "Restart": s.Restart,
	} {
		if err := method(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close = %v", name, err)
		}
	}
	s.Kill() // does nothing
}

// A server that ends on its own is noticed.
func TestServerEndsItself(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	child := s.child
	conn := connect(t, s)
	exchange(conn, "SHUTDOWN", "NOSAVE")
	select {
	case <-child.done:
	case <-time.After(patience):
		t.Fatal("SHUTDOWN had no effect")
	}
	if err := s.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Pause = %v", err)
	}
	if err := s.Restart(); err != nil {
		t.Error(err)
	}
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

func TestRestartWaitsForThePort(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	s.Kill()
	l, err := net.Listen("tcp4", s.Addr()) // somebody else takes the port
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Restart() }()
	// A connection is Restart asking whether the server is up: it is trying.
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	expectReply(t, s, "+PONG", "PING")
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := New(t, Options{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 3 {
				if err := s.Pause(); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Error("Pause:", err)
				}
				s.Kill()
				if err := s.Restart(); err != nil {
					t.Error("Restart:", err)
				}
				if err := s.Resume(); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Error("Resume:", err)
				}
				s.LogTail()
			}
		})
	}
	wg.Wait()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectReply(t, s, "+PONG", "PING")
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
		err = isUp(l.Addr().String(), time.Now().Add(patience))
		if got := err == nil; got != want {
			t.Errorf("%q: isUp = %v", reply, err)
		}
		l.Close()
		wg.Wait()
	}
}

// await polls for something that has no event to wait for.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
