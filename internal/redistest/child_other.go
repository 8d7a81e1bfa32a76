//go:build !unix

package redistest

import (
	"errors"
	"os/exec"
)

// startTied starts the command, which is not tied to this process.
func startTied(cmd *exec.Cmd) error { return cmd.Start() }

func (c *child) pause() error  { return errors.ErrUnsupported }
func (c *child) resume() error { return errors.ErrUnsupported }
