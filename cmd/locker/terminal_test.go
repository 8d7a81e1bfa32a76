//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockerkit/locker/internal/locktest"
)

// terminal is a pseudo-terminal with a shell, which knows the program as $locker.
type terminal struct {
	t      *testing.T
	master *os.File
	screen buffer
}

func newTerminal(t *testing.T, store, script string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slave.Close() }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("/bin/sh", "-m", "-c", script)
	shell.Env = append(os.Environ(), "locker=env "+actAs+"=locker "+self, storeVariable+"="+store)
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, master: master}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for part := make([]byte, 4096); ; {
			n, err := master.Read(part)
			if err != nil {
				return
			}
			_, _ = term.screen.Write(part[:n])
		}
	}()
	t.Cleanup(func() {
		_ = shell.Process.Kill()
		_ = shell.Wait()
		_ = master.Close()
		if t.Failed() {
			t.Logf("the screen:\n%s", term.screen.String())
		}
	})
	return term
}

// shows waits for some text, and returns what was found.
func (term *terminal) shows(pattern string) string {
	term.t.Helper()
	r := regexp.MustCompile(pattern)
	if !locktest.Within(locktest.Patience, func() bool { return r.MatchString(term.screen.String()) }) {
		term.t.Fatalf("the terminal does not show %q", pattern)
	}
	return r.FindString(term.screen.String())
}

func (term *terminal) types(keys string) {
	term.t.Helper()
	if _, err := term.master.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
}

// The keyboard is that of the command, and its signals come once. Others that the program gets, it passes on.
func TestTerminal(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	term := newTerminal(t, url, `$locker run `+key+` -- sh -c '
		trap "echo got interrupted" INT; trap "echo got terminated" TERM
		echo parent=$PPID; while ! read x; do :; done; echo "has read $x"; exit 9'
		echo ended=$?`)
	pid := strings.TrimPrefix(term.shows(`parent=\d+`), "parent=")
	term.types("\x03")
	term.shows("got interrupted")
	var n int
	if _, err := fmt.Sscan(pid, &n); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	term.shows("got terminated")
	term.types("some words\n")
	term.shows("has read some words")
	term.shows("ended=9")
	if n := strings.Count(term.screen.String(), "got interrupted"); n != 1 {
		t.Errorf("it was interrupted %d times", n)
	}
}

// The program and its command are one job of the shell: they are stopped together, and go on together.
func TestJobControl(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	term := newTerminal(t, url, `$locker run -ttl 1m `+key+` -- sh -c '
		echo parent=$PPID child=$$; read x; echo "has read $x"; exit 9'
		echo stopped=$?; read x; fg; echo ended=$?`)
	pids := regexp.MustCompile(`\d+`).FindAllString(term.shows(`parent=\d+ child=\d+`), -1)
	term.types("\x1a")
	term.shows("stopped=14[78]") // SIGTSTP
	for _, pid := range pids {
		locktest.Eventually(t, "it is stopped", func() bool { return state(pid) == "T" })
	}
	locktest.IsLocked(t, observer(t, url), key)
	term.types("go on\nsome words\n")
	term.shows("has read some words")
	term.shows("ended=9")
}

// A job that is stopped for longer than the TTL does not outlive that by much when it goes on.
func TestStoppedForTooLong(t *testing.T) {
	t.Parallel()
	url, key := redisURL(t), locktest.Unique("key")
	term := newTerminal(t, url, `$locker run -ttl 3s `+key+` -- sh -c '
		trap "" TERM; echo child=$$; while :; do sleep 0.01; done'
		echo stopped=$?; read x; fg; echo ended=$?`)
	pid := strings.TrimPrefix(term.shows(`child=\d+`), "child=")
	term.types("\x1a")
	term.shows("stopped=14[78]")
	locktest.MustUnlock(t, locktest.MustLock(t, observer(t, url), key))
	term.types("go on\n")
	term.shows(fmt.Sprintf("ended=%d", exitLost))
	if isAlive(pid) {
		t.Error("the command lives on")
	}
}
