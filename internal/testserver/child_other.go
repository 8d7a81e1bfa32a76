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

func (p *hostProcess) Pause() error  { return errors.ErrUnsupported }
func (p *hostProcess) Resume() error { return errors.ErrUnsupported }
