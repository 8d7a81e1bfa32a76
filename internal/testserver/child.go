package testserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

// Command is a program and how to run it.
type Command struct {
	Program string
	Args    []string
	Dir     string   // the working directory; empty: that of this process
	Env     []string // the environment; nil: that of this process
	User    *User    // who runs it; nil: who runs this process

	// DeathSignal is what the program gets, on Linux, when this process has
	// ended. 0 is SIGKILL, which fits a program without children.
	DeathSignal syscall.Signal
}

// Child is a running program.
type Child struct {
	process process
	done    chan struct{} // closed when the program has ended
	err     error         // how it has ended; valid when done is closed
}

// process is what runs a program: a child process, or a container.
type process interface {
	Signal(sig os.Signal) error // os.ErrProcessDone if it has ended
	Kill() error
	Pause() error
	Resume() error
	Wait() error // called once
}

// Start starts the program with its output appended to log. On Linux it dies
// with this process, however that ends; in a container, everywhere.
func (c Command) Start(log *os.File) (*Child, error) {
	start := c.startProcess
	if contained.Is(c.Program) {
		start = c.startContainer
	}
	process, err := start(log)
	if err != nil {
		return nil, err
	}
	child := &Child{process: process, done: make(chan struct{})}
	go func() {
		child.err = process.Wait()
		close(child.done)
	}()
	return child, nil
}

// hostProcess is a child process.
type hostProcess struct {
	*os.Process
	cmd *exec.Cmd
}

func (c Command) startProcess(log *os.File) (process, error) {
	cmd := exec.Command(c.Program, c.Args...)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	cmd.SysProcAttr = c.attributes()
	// A file of ours, not a pipe or the test's own output: "go test" would
	// wait for the child to close that.
	cmd.Stdout, cmd.Stderr = log, log
	if err := fork(cmd); err != nil {
		return nil, err
	}
	return &hostProcess{cmd.Process, cmd}, nil
}

// Wait hides that of os.Process, which does not care for the exit code.
func (p *hostProcess) Wait() error { return p.cmd.Wait() }

func (c Command) startContainer(log *os.File) (process, error) {
	output, err := os.OpenFile(log.Name(), os.O_WRONLY|os.O_APPEND, 0) // the caller closes his
	if err != nil {
		return nil, err
	}
	user := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	if c.User != nil {
		user = fmt.Sprintf("%d:%d", c.User.UID, c.User.GID)
	}
	return contained.Start(contained.NewRequest(c.Program, c.Args, c.Dir, c.Env, user), output)
}

// Run runs the program to its end, and kills it if that takes longer than
// patience. If it fails, its output is in the error.
func (c Command) Run(patience time.Duration) error {
	log, err := os.CreateTemp("", "testserver-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	child, err := c.Start(log)
	if err != nil {
		return err
	}
	if !child.await(patience) {
		child.Kill()
		err = fmt.Errorf("not done within %v", patience)
	} else {
		err = child.err
	}
	if err != nil {
		return fmt.Errorf("%s: %w; the end of its output:\n%s", c.Program, err, tail(log.Name()))
	}
	return nil
}

// Kill ends the process the hard way and waits until it is gone.
func (c *Child) Kill() {
	c.process.Kill() // fails only if it has ended already
	<-c.done
}

// end asks the process to end, waits until it is gone, and reports whether it
// went in time. If not, it is killed.
func (c *Child) end(sig os.Signal, patience time.Duration) bool {
	err := c.process.Signal(sig)
	if (err == nil || errors.Is(err, os.ErrProcessDone)) && c.await(patience) {
		return true
	}
	c.Kill()
	return false
}

// await waits until the process has ended, or until patience is over.
func (c *Child) await(patience time.Duration) (ended bool) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
		return false
	}
}

// ended reports whether the process has ended.
func (c *Child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
