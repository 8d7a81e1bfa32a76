package redistest

import (
	"os"
	"os/exec"
)

// child is a running server process.
type child struct {
	process *os.Process
	done    chan struct{} // closed when the process has ended
	err     error         // how it has ended; valid when done is closed
}

// startChild starts a program with its output appended to log.
func startChild(log *os.File, program string, args ...string) (*child, error) {
	cmd := exec.Command(program, args...)
	// A file of ours, not a pipe or the test's own output: "go test" would
	// wait for the child to close that.
	cmd.Stdout, cmd.Stderr = log, log
	if err := startTied(cmd); err != nil {
		return nil, err
	}
	c := &child{process: cmd.Process, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// kill ends the process the hard way and waits until it is gone.
func (c *child) kill() {
	c.process.Kill() // fails only if it has ended already
	<-c.done
}

// ended reports whether the process has ended.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
