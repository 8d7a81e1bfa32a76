//go:build unix

package child

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var relayed = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	syscall.SIGWINCH,
}

// Harmful are signals that would end this process while its command works on: a reader of its messages that goes away.
var Harmful = []os.Signal{syscall.SIGPIPE}

// Ends reports whether a signal ends a program that has no use for it.
func Ends(s os.Signal) bool { return s != syscall.SIGWINCH }

// ShutDownBy reports whether a signal is meant to end the command for good. Others have it read its files again, and
// the like; SIGHUP has, unless it says that the terminal has gone.
func (c *Child) ShutDownBy(s os.Signal) bool {
	switch s {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		return true
	}
	return s == syscall.SIGHUP && c.terminal != nil
}

// terminal is the controlling terminal of this process. A command that is started where there is one stays in the
// process group of this process: so the two are one job of the shell, which is stopped, continued and put into the
// background as a whole, and the signals of the keyboard reach the command by themselves.
type terminal struct{ file *os.File }

// openTerminal returns the controlling terminal, or nil.
func openTerminal() *terminal {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return &terminal{f}
}

func (t *terminal) close() {
	if t != nil {
		_ = t.file.Close()
	}
}

// sends reports whether a signal that has just come is one that the terminal sends to all of the job.
func (t *terminal) sends(s syscall.Signal) bool {
	if t == nil || s != syscall.SIGINT && s != syscall.SIGQUIT && s != syscall.SIGWINCH {
		return false
	}
	foreground, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// Signal sends a signal to the command: to its process group, if it has one of its own. One that the terminal has sent
// to it already is not sent again.
func (c *Child) Signal(s os.Signal) {
	number, ok := s.(syscall.Signal)
	if !ok || c.terminal.sends(number) {
		return
	}
	c.send(number)
}

func (c *Child) send(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.terminal == nil && !c.over:
		_ = unix.Kill(-c.pid, s)
	case c.terminal != nil && !c.reaped:
		_ = unix.Kill(c.pid, s)
	}
}

// Terminate asks the command to end.
func (c *Child) Terminate() { c.send(syscall.SIGTERM) }

func statusOf(ws unix.WaitStatus) Status {
	if ws.Signaled() {
		return Status{Signal: ws.Signal()}
	}
	return Status{Code: ws.ExitStatus()}
}

// LetGo gives up the standard input and output of this process, which the command has: so whoever writes or reads at
// the other end learns it when the command has closed them.
func LetGo() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return // then they learn it later
	}
	defer func() { _ = null.Close() }()
	for _, fd := range []int{syscall.Stdin, syscall.Stdout} {
		_ = replace(fd, int(null.Fd()))
	}
}
