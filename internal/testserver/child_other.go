//go:build !unix

package testserver

import (
	"errors"
	"os/exec"
	"syscall"
)

func (c Command) attributes() *syscall.SysProcAttr { return nil }

// fork starts the command, which is not tied to this process.
func fork(cmd *exec.Cmd) error { return cmd.Start() }

func (c *Child) pause() error  { return errors.ErrUnsupported }
func (c *Child) resume() error { return errors.ErrUnsupported }
