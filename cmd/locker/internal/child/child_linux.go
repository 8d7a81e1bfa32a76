package child

import (
	"fmt"
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
			for _, pid := range descendants(os.Getpid()) {
				_ = unix.Kill(pid, unix.SIGKILL)
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
func (c *Child) Count() int { return len(descendants(os.Getpid())) }

// descendants returns the processes below one, by what /proc says, but for those that have ended.
func descendants(of int) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := make(map[int][]int)
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
		if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	for next := children[of]; len(next) > 0; {
		pid := next[0]
		pids = append(pids, pid)
		next = append(next[1:], children[pid]...)
	}
	return pids
}
