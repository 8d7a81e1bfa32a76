// Package child runs a command so that all of its processes can be ended, and none is overlooked.
//
// On Linux the calling process becomes the reaper of all that the command leaves behind, and the command is killed by
// the kernel when the calling process dies. On other systems less is possible: each file says what.
package child

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
)

// Child is a command that was started, with whatever processes it starts itself.
type Child struct {
	pid      int
	terminal *terminal // that it shares with this process; nil if it has a process group of its own
	platform

	ended chan struct{} // closed when the command itself has ended
	gone  chan struct{} // closed when nothing of it is left

	mu     sync.Mutex
	status Status
	reaped bool // the process id of the command may be that of another process by now
	over   bool // so may be that of its group
}

// Status is how a command has ended.
type Status struct {
	Code   int            // what it has returned, if Signal is nil
	Signal syscall.Signal // what has ended it, or 0
}

// ExitCode is the status as shells report it: the exit code, or 128 and the number of the signal.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// Find returns the path of a command, which is looked for as a shell does. The error is for CodeOf.
func Find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil // as shells do: whoever has "." in PATH wants that
	}
	return path, err
}

// CodeOf returns the exit code by which shells say why a command could not be run: 127 if it is not there, else 126.
func CodeOf(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// starts are what Main is to do.
var starts = make(chan func())

// Main is for the main function of a program, which it does not let return: the program is program. On Linux, a command
// dies with the thread that has started it, and the main thread lives as long as the process. So that does it, and
// nothing else.
func Main(program func()) {
	runtime.LockOSThread()
	go program()
	for start := range starts {
		start()
	}
}

// Start starts a command, whose path Find has returned, with the standard streams of this process. One may run at a
// time.
func Start(path string, args, env []string) (*Child, error) {
	c := &Child{ended: make(chan struct{}), gone: make(chan struct{})}
	c.terminal = openTerminal()
	failed := make(chan error)
	starts <- func() { failed <- c.start(path, args, env) }
	if err := <-failed; err != nil {
		c.terminal.close()
		return nil, err
	}
	return c, nil
}

// inherited are the standard streams.
func inherited() []*os.File { return []*os.File{os.Stdin, os.Stdout, os.Stderr} }

// Ended is closed when the command has ended; processes that it has started may still be there.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Gone is closed when the command and all processes that it has started have ended.
func (c *Child) Gone() <-chan struct{} { return c.gone }

// Status returns how the command has ended, when Ended is closed.
func (c *Child) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// end notes how the command has ended.
func (c *Child) end(s Status) {
	c.mu.Lock()
	c.status, c.reaped = s, true
	c.mu.Unlock()
	close(c.ended)
}

// leave notes that nothing is left of the command.
func (c *Child) leave() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.terminal.close()
	close(c.gone)
}

// Relayed returns the signals that are for the command rather than for this process: all that would end it, unless it
// was started so that it ignores them (as by nohup), and those that have a meaning only for the command.
func Relayed() (signals []os.Signal) {
	for _, s := range relayed {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	return signals
}
