//go:build unix && !linux

package child

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is not Linux has neither subreapers nor a signal for the death of a parent. So the command outlives this process
// if that is killed by SIGKILL. A process that leaves the process group of the command (a daemon) is overlooked, as are
// all but the command itself where there is a terminal.

type platform struct{}

func (c *Child) start(path string, args, env []string) error {
	p, err := os.StartProcess(path, args, &os.ProcAttr{
		Env: env, Files: inherited(), Sys: &syscall.SysProcAttr{Setpgid: c.terminal == nil},
	})
	if err != nil {
		return err
	}
	c.pid = p.Pid
	go c.reap(p)
	return nil
}

// reap waits for the command, and then for its process group.
func (c *Child) reap(p *os.Process) {
	state, err := p.Wait()
	status := Status{Code: 1}
	if ws, ok := state.Sys().(syscall.WaitStatus); err == nil && ok {
		status = statusOf(unix.WaitStatus(ws))
	}
	c.end(status)
	for c.terminal == nil && unix.Kill(-c.pid, 0) == nil {
		time.Sleep(20 * time.Millisecond)
	}
	c.leave()
}

// Kill ends the command and its process group, whatever they do against it. It does not wait.
func (c *Child) Kill() { c.send(syscall.SIGKILL) }

// Count returns how many processes of the command there are, as far as that is known.
func (c *Child) Count() int { return 1 }

// replace makes a file descriptor another one, too.
func replace(fd, by int) error { return unix.Dup2(by, fd) }
