package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/lockerkit/locker/internal/testserver"
	"github.com/lockerkit/locker/internal/testserver/contained"
)

// envMain makes this test program the command.
const envMain = "CONTAINERS_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(envMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// patience bounds every wait for something that should happen soon.
const patience = 60 * time.Second

func mustDocker(t *testing.T) *docker {
	t.Helper()
	d, err := newDocker(t.Context())
	if err != nil && strings.Contains(os.Getenv(testserver.EnvRequire), "docker") {
		t.Fatal(err)
	}
	if err != nil {
		t.Skipf("NOT TESTED, as there is no Docker: %v", err)
	}
	return d
}

// session is a run of the command.
type session struct {
	cmd    *exec.Cmd
	docker *docker
	lines  chan string // of the output
	socket string
}

// begin runs a shell script with servers, and waits for its first line.
func begin(t *testing.T, script string) *session {
	t.Helper()
	s := &session{docker: mustDocker(t), lines: make(chan string, 100)}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(self, "--", "sh", "-c", "echo $"+contained.EnvSocket+"; "+script)
	s.cmd.Env = append(os.Environ(), envMain+"=1", contained.EnvSocket+"=")
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	go func() {
		defer close(s.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	s.socket = s.line(t)
	return s
}

// line returns the next line of output.
func (s *session) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-s.lines:
		if !ok {
			t.Fatal("the command has ended")
		}
		return line
	case <-time.After(patience):
		t.Fatal("no output")
	}
	return ""
}

// containers returns how many there are.
func (s *session) containers(t *testing.T) (n int) {
	t.Helper()
	list, err := s.docker.client.ContainerList(t.Context(),
		client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", label+"="+s.socket)})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

// expectEnd checks the exit code, and that nothing is left.
func (s *session) expectEnd(t *testing.T, code int) {
	t.Helper()
	for range s.lines { // up to the end of the output, which is that of all processes
	}
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	s.expectNothing(t)
}

func (s *session) expectNothing(t *testing.T) {
	t.Helper()
	eventually(t, "the removal of all containers", func() bool { return s.containers(t) == 0 })
	if _, err := os.Stat(s.socket); err == nil {
		t.Error("the directory is still there")
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !cond() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestServersAndExitCode(t *testing.T) {
	s := begin(
		t,
		"echo $LOCKER_TEST_REDIS; echo $LOCKER_TEST_POSTGRES; echo $LOCKER_TEST_ETCD; echo $LOCKER_TEST_SENTINEL; sleep 1; exit 7",
	)
	redis, postgres, etcd, sentinel := s.line(t), s.line(t), s.line(t), s.line(t)
	for _, addr := range []string{redis, host(postgres), host(etcd), strings.Split(host(sentinel), ",")[0]} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Errorf("%q: %v", addr, err)
			continue
		}
		_ = conn.Close()
	}
	if n := s.containers(t); n != 1+6+1+3 {
		t.Errorf("%d containers", n)
	}
	s.expectEnd(t, 7)
}

// host returns the host and port of a URL.
func host(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	if _, after, ok := strings.Cut(rest, "@"); ok {
		rest = after
	}
	rest, _, _ = strings.Cut(rest, "/")
	return rest
}

// Ctrl-C ends the command, which has its time to clean up, and then the containers.
func TestInterrupt(t *testing.T) {
	s := begin(t, "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done")
	s.line(t)
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for line := s.line(t); line != "interrupted"; line = s.line(t) {
	}
	s.expectEnd(t, 5)
}

// A panic ends a process as SIGABRT does: no deferred function of any other goroutine runs.
func TestPanic(t *testing.T) {
	s := begin(t, "kill -ABRT $PPID; exec sleep 0.5")
	s.expectEnd(t, 2) // as Go has it
}

// Whoever is left cleans up when the one who would do it is killed.
func TestSupervisorKilled(t *testing.T) {
	s := begin(t, "exec sleep 60")
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal of all containers", func() bool { return s.containers(t) == 0 })
}

// The next run removes what nobody else could.
func TestSweep(t *testing.T) {
	d := mustDocker(t)
	socket := t.TempDir() + "/socket"
	b, err := d.start(t.Context(),
		contained.Request{Image: "redis", Program: "redis-server", Args: []string{"--port", "0"}, User: "0:0"}, socket,
		t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	go b.copyOutput(io.Discard)
	s := &session{docker: d, socket: socket}
	if n := s.containers(t); n != 1 {
		t.Fatalf("%d containers", n)
	}
	if err := d.remove(deserted); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal of the container", func() bool { return s.containers(t) == 0 })
}

func TestExitCode(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -TERM $$": 128 + int(syscall.SIGTERM)} {
		cmd := exec.Command("sh", "-c", script)
		if code, err := exitCode(cmd, cmd.Run()); code != want || err != nil {
			t.Errorf("%s: %d, %v", script, code, err)
		}
	}
}
