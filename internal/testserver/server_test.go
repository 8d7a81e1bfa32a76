package testserver

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestStateErrors(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "good"))
	s.Kill()
	selftest.ExpectRefused(t, s.Addr())
	s.Kill() // does nothing
	if err := s.Stop(syscall.SIGTERM); err != nil {
		t.Errorf("Stop after Kill = %v", err)
	}
	if err := s.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Pause after Kill = %v", err)
	}
	if err := s.Resume(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Resume after Kill = %v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
	for name, method := range map[string]func() error{
		"Pause": s.Pause, "Resume": s.Resume, "Restart": s.Restart,
	} {
		if err := method(); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "faketest: ") {
			t.Errorf("%s after Close = %v", name, err)
		}
	}
	s.Kill() // does nothing
}

// A server that ends on its own is noticed.
func TestServerEndsItself(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "good"))
	child := s.child
	conn := selftest.Connect(t, s.Addr())
	if _, err := conn.Write([]byte("exit\n")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-child.done:
	case <-time.After(selftest.Patience):
		t.Fatal("it did not end")
	}
	if err := s.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Pause = %v", err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectUp(t, s)
}

func TestStop(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "polite"))
	for range 2 { // the second time does nothing
		if err := s.Stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if log := s.LogTail(); !strings.HasSuffix(log, "good bye\n") {
			t.Fatalf("it was not asked to end; its log:\n%s", log)
		}
	}
	selftest.ExpectRefused(t, s.Addr())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	expectUp(t, s)
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(syscall.SIGTERM); err == nil {
		t.Error("Stop of a paused server does not tell that it killed it")
	}
	selftest.ExpectRefused(t, s.Addr())
}

func TestKillSignal(t *testing.T) {
	t.Parallel()
	spec := fakeSpec(t, "polite")
	spec.KillSignal, spec.KillPatience = syscall.SIGTERM, selftest.Patience
	s := startFake(t, spec)
	s.Kill()
	if log := s.LogTail(); !strings.HasSuffix(log, "good bye\n") {
		t.Errorf("it did not get the signal; its log:\n%s", log)
	}
	// A paused process would not notice it.
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	selftest.ExpectRefused(t, s.Addr())
}

func TestServerThatWillNotEnd(t *testing.T) {
	t.Parallel()
	spec := fakeSpec(t, "stubborn")
	spec.KillSignal, spec.KillPatience = syscall.SIGTERM, 20*time.Millisecond
	s := startFake(t, spec)
	s.Kill()
	selftest.ExpectRefused(t, s.Addr())
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}

	s.spec.Patience = 20 * time.Millisecond
	if err := s.Stop(syscall.SIGTERM); err == nil || !strings.Contains(err.Error(), "listening") {
		t.Errorf("Stop = %v, want an error with the log in it", err)
	}
	selftest.ExpectRefused(t, s.Addr())
}

func TestStartFailure(t *testing.T) {
	t.Parallel()
	broken, mute := fakeSpec(t, "broken"), fakeSpec(t, "mute")
	mute.Patience = 20 * time.Millisecond
	missing, unprepared := fakeSpec(t, "good"), fakeSpec(t, "good")
	missing.Command = func(int, string) Command { return Command{Program: filepath.Join(t.TempDir(), "missing")} }
	var dir string
	unprepared.Prepare = func(_ int, d string) error {
		dir = d
		return errors.New("not today")
	}
	for _, tc := range []struct {
		spec Spec
		want []string
	}{
		{broken, []string{"faketest: ", "exit status 7", "this does not work"}},
		{mute, []string{"faketest: ", "not up within 20ms"}},
		{missing, []string{"faketest: ", "no such file"}},
		{unprepared, []string{"faketest: not today"}},
	} {
		s, err := Start(tc.spec)
		if err == nil {
			s.Close()
			t.Errorf("want %q", tc.want)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
}

// A server that finds its port taken gets another one.
func TestStartTriesPorts(t *testing.T) {
	t.Parallel()
	spec := fakeSpec(t, "good")
	tries := 0
	spec.Prepare = func(port int, dir string) error {
		if tries++; tries > 2 {
			return nil
		}
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}
	s := startFake(t, spec)
	expectUp(t, s)
	if tries != 3 {
		t.Errorf("%d tries", tries)
	}
}

func TestRestartWaitsForThePort(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "good"))
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
	expectUp(t, s)
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := startFake(t, fakeSpec(t, "polite"))
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
	expectUp(t, s)
}

func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := Command{Program: selftest.Program(t, dir, "good", "pwd >here"), Dir: dir}
	if err := good.Run(selftest.Patience); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "here")); err != nil {
		t.Error("it ran elsewhere:", err)
	}
	bad := Command{Program: selftest.Program(t, dir, "bad", "echo out; echo err >&2; exit 3")}
	err := bad.Run(selftest.Patience)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "out\nerr\n") {
		t.Errorf("Run = %v", err)
	}
	slow := Command{Program: selftest.Program(t, dir, "slow", "exec sleep 1000")}
	if err := slow.Run(20 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "not done within 20ms") {
		t.Errorf("Run = %v", err)
	}
	missing := Command{Program: filepath.Join(dir, "missing")}
	if err := missing.Run(selftest.Patience); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run = %v", err)
	}
}
