//go:build unix && !linux

package testserver

import (
	"os/exec"
	"syscall"
)

func (c Command) attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: c.User.credential()}
}

// fork starts the command. Only Linux can tie a child to its parent; here a
// server survives a test process that ends without closing it.
func fork(cmd *exec.Cmd) error { return cmd.Start() }

// pause stops the process. There is no way to wait for the stop that would not
// get into the way of exec.Cmd; it is a matter of microseconds.
func (c *Child) pause() error { return c.process.Signal(syscall.SIGSTOP) }

// resume lets a stopped process go on.
func (c *Child) resume() error { return c.process.Signal(syscall.SIGCONT) }
