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

// Pause stops the process. There is no way to wait for the stop that would not
// get into the way of exec.Cmd; it is a matter of microseconds.
func (p *hostProcess) Pause() error { return p.Signal(syscall.SIGSTOP) }

// Resume lets a stopped process go on.
func (p *hostProcess) Resume() error { return p.Signal(syscall.SIGCONT) }
