//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/cmd/locker/internal/child"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// actAs makes a process of the tests the program itself, or a command that it runs.
const actAs = "LOCKER_TEST_ACT_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(actAs) {
	case "locker":
		child.Main(func() { os.Exit(run(os.Args[1:])) })
	case "stamps":
		stamps()
	case "heirs":
		heirs()
	}
	os.Exit(redistest.Main(m))
}

// process is one of the program.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    chan string // the lines on standard output, which end with the process and its command
	stdin  io.WriteCloser
	stderr buffer
	quiet  chan struct{} // closed when nothing more comes on standard error

	ended  chan struct{}
	failed error
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// command prepares the program with a store, so that it has a process group of its own, and no terminal.
func command(t *testing.T, store string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(self, args...), out: make(chan string, 1000), ended: make(chan struct{}),
		quiet: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), actAs+"=locker", storeVariable+"="+store, "LOCKER_PREFIX=")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return p
}

// start starts it. The test ends it, if it has not ended before, and all of its command.
func (p *process) start() *process {
	p.t.Helper()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if p.cmd.Stderr == nil {
		messages, err := p.cmd.StderrPipe()
		if err != nil {
			p.t.Fatal(err)
		}
		go func() { defer close(p.quiet); _, _ = io.Copy(&p.stderr, messages) }()
	} else {
		close(p.quiet)
	}
	if p.stdin == nil {
		if p.stdin, err = p.cmd.StdinPipe(); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(p.out)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.out <- lines.Text()
		}
	}()
	go func() {
		defer close(p.ended)
		// Not cmd.Wait: what a command leaves behind keeps the pipes open.
		p.cmd.ProcessState, p.failed = p.cmd.Process.Wait()
	}()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if p.t.Failed() {
			p.t.Logf("%v: %v, and said:\n%s", p.cmd.Args[1:], p.cmd.ProcessState, p.stderr.String())
		}
	})
	return p
}

// locker starts the program with a store.
func lockerOn(t *testing.T, store string, args ...string) *process {
	t.Helper()
	return command(t, store, args...).start()
}

// line returns the next line of its output.
func (p *process) line() string {
	p.t.Helper()
	select {
	case line, ok := <-p.out:
		if !ok {
			p.t.Fatalf("%v has no further line of output; it said:\n%s", p.cmd.Args[1:], p.stderr.String())
		}
		return line
	case <-time.After(locktest.Patience):
		p.t.Fatalf("%v writes nothing; it said:\n%s", p.cmd.Args[1:], p.stderr.String())
	}
	return ""
}

// says waits for a line.
func (p *process) says(want string) {
	p.t.Helper()
	if line := p.line(); line != want {
		p.t.Fatalf("%v wrote %q, want %q", p.cmd.Args[1:], line, want)
	}
}

// tells waits for some text on standard error.
func (p *process) tells(want string) {
	p.t.Helper()
	if !locktest.Within(locktest.Patience, func() bool { return strings.Contains(p.stderr.String(), want) }) {
		p.t.Fatalf("%v did not say %q, but:\n%s", p.cmd.Args[1:], want, p.stderr.String())
	}
}

// exits waits for its end, with some exit code.
func (p *process) exits(want int) {
	p.t.Helper()
	if code := p.code(); code != want {
		p.t.Fatalf("%v: exit code %d, want %d; it said:\n%s", p.cmd.Args[1:], code, want, p.stderr.String())
	}
}

// code waits for its end, and returns the exit code.
func (p *process) code() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(locktest.Patience):
		p.t.Fatalf("%v does not end; it said:\n%s", p.cmd.Args[1:], p.stderr.String())
	}
	if p.failed != nil {
		p.t.Fatal(p.failed)
	}
	select { // what it said last
	case <-p.quiet:
	case <-time.After(time.Second): // somebody else has it open
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// redisURL is that of a Redis server for all.
func redisURL(t *testing.T) string {
	t.Helper()
	return "redis://" + redistest.Address(t)
}

// observer returns a Client for a look at what the program does.
func observer(t *testing.T, url string) *locker.Client {
	t.Helper()
	c, err := redislock.Open(t.Context(), url, locker.Holder("the test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// waiting waits until so many are in line for a key.
func waiting(t *testing.T, c *locker.Client, key string, want int) {
	t.Helper()
	var info locker.LockInfo
	if !locktest.Within(locktest.Patience, func() bool {
		var err error
		info, err = c.Inspect(context.Background(), key)
		return err == nil && info.Waiting == want
	}) {
		t.Fatalf("%d wait for %q, want %d", info.Waiting, key, want)
	}
}

// held reports whether anybody holds a key.
func held(t *testing.T, c *locker.Client, key string) bool {
	t.Helper()
	info, err := c.Inspect(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	return len(info.Holders) > 0
}

// state is the letter by which /proc says what a process does, or "" if there is no such process.
func state(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[0]
}

// isAlive reports whether there is such a process, which has not ended.
func isAlive(pid string) bool {
	s := state(pid)
	return s != "" && s != "Z" && s != "X"
}

// stamps is a command that writes to the file of its argument when it was alive for the last time, and ends neither at
// SIGTERM nor at SIGHUP. It writes "up" when that has begun.
func stamps() {
	ignore()
	f, err := os.OpenFile(os.Args[1], os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for first := true; ; first = false {
		if _, err := f.WriteAt(fmt.Appendf(nil, "%020d", now()), 0); err != nil {
			os.Exit(1)
		}
		if first {
			fmt.Println("up")
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// forCommands are the signals that a command gets.
var forCommands = []syscall.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGWINCH,
}

// heirs is a command with a process below it. Each writes the first signal that it gets. Then they end, with code 5.
func heirs() {
	signals := make(chan os.Signal, 10)
	for _, s := range forCommands {
		signal.Notify(signals, s)
	}
	name, below := "below", (*exec.Cmd)(nil)
	if len(os.Args) == 1 {
		name, below = "above", exec.Command(os.Args[0], "below")
		below.Stdout = os.Stdout
		if err := below.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println(name, "up")
	fmt.Println(name, <-signals)
	if below != nil {
		_ = below.Wait()
	}
	os.Exit(5)
}
