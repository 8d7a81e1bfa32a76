//go:build unix && !linux

package redistest

import (
	"os/exec"
	"syscall"
)

// startTied starts the command. Only Linux can tie a child to its parent; here
// a server survives a test process that ends without Close or Main.
func startTied(cmd *exec.Cmd) error { return cmd.Start() }

// pause stops the process. There is no way to wait for the stop that would not
// get into the way of exec.Cmd; it is a matter of microseconds.
func (c *child) pause() error { return c.process.Signal(syscall.SIGSTOP) }

// resume lets a stopped process go on.
func (c *child) resume() error { return c.process.Signal(syscall.SIGCONT) }
