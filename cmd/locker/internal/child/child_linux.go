package child

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// start makes this process the reaper of all that the command leaves behind, see prctl(2), and starts it so that it
// dies with this process. (The kernel forgets that when a command has more privileges than its caller, by a set-user-ID
// bit.) It is no os.Process: package os would wait for it, and begins with a process of its own to see how.
func (c *Child) start(path string, args, env []string) (err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	c.strangers = strangers()
	attr := &syscall.ProcAttr{
		Env: env, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: c.terminal == nil},
	}
	for _, f := range inherited() {
		attr.Files = append(attr.Files, f.Fd())
	}
	if c.pid, err = syscall.ForkExec(path, args, attr); err != nil {
		return &os.PathError{Op: "exec", Path: path, Err: err}
	}
	go c.reap()
	return nil
}

// platform is what a Child has on this system only.
type platform struct {
	strangers map[int]bool // the children that this process had before the command
}

// strangers returns the children that this process has already: those of a shell that has become this process, such as
// what it writes to in "exec > >(logger); exec locker ...". They are no part of a command, and may end after it.
func strangers() map[int]bool {
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == unix.ECHILD { // as nearly always
		return nil
	}
	all := make(map[int]bool)
	for _, p := range processes()[os.Getpid()] {
		all[p.pid] = true
	}
	return all
}

// strangersOnly reports whether nobody else is left.
func (c *Child) strangersOnly() bool {
	if !c.reaped || len(c.strangers) == 0 {
		return false
	}
	for _, p := range processes()[os.Getpid()] {
		if !c.strangers[p.pid] { // also if it has ended since: then it will be collected
			return false
		}
	}
	return true
}

// reap waits for the command and for all processes that it has left to this one.
func (c *Child) reap() {
	for {
		// One that has ended keeps its process id until it is waited for: so nobody else is sent a signal.
		var info unix.Siginfo
		switch err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err {
		case nil:
		case unix.EINTR:
			continue
		default: // ECHILD: there is none left
			c.leave()
			return
		}
		c.collect()
		if c.strangersOnly() {
			c.leave()
			return
		}
	}
}

// collect takes away what has ended.
func (c *Child) collect() {
	for {
		c.mu.Lock()
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if pid == c.pid {
			c.reaped = true
		}
		delete(c.strangers, pid)
		c.mu.Unlock()
		switch {
		case err == unix.EINTR:
		case err != nil || pid <= 0:
			return
		case pid == c.pid:
			c.end(statusOf(ws))
		}
	}
}

// Kill ends the command and all processes that it has started, whatever they do against it. It does not wait.
func (c *Child) Kill() {
	c.send(syscall.SIGKILL)
	go func() { // some may be about to start others
		for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
			for _, p := range c.descendants() {
				_ = unix.Kill(p.pid, unix.SIGKILL)
			}
			select {
			case <-c.gone:
				return
			case <-time.After(pause):
			}
		}
	}()
}

// replace makes a file descriptor another one, too.
func replace(fd, by int) error { return unix.Dup3(by, fd, 0) }

// Count returns how many processes of the command there are.
func (c *Child) Count() (n int) {
	for _, p := range c.descendants() {
		if !p.ended {
			n++
		}
	}
	return n
}

// descendants returns the processes of the command.
func (c *Child) descendants() (all []process) {
	c.mu.Lock()
	strangers := maps.Clone(c.strangers)
	c.mu.Unlock()
	below := processes()
	for next := below[os.Getpid()]; len(next) > 0; next = next[1:] {
		p := next[0]
		if strangers[p.pid] {
			continue
		}
		all = append(all, p)
		next = append(next, below[p.pid]...)
	}
	return all
}

// process is one of the machine.
type process struct {
	pid   int
	ended bool // its first thread has ended, and nobody has waited for it: others may be at work
}

// processes returns all processes by that of their parent, by what /proc says.
func processes() map[int][]process {
	if self, err := os.Readlink("/proc/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil // there is none, or it is that of another container, with other numbers
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	below := make(map[int][]process)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state parent ...: the name may have any signs in it
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			below[parent] = append(below[parent], process{pid, fields[0] == "Z" || fields[0] == "X"})
		}
	}
	return below
}
