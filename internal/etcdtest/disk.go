package etcdtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// CanSlowDisks reports whether disks can be made slow here: it takes Linux, and strace.
func CanSlowDisks() bool {
	_, err := exec.LookPath("strace")
	return err == nil
}

// slowly are the flags by which strace has each write to the disk take so long at least, and says nothing.
func slowly(fsync time.Duration) []string {
	return []string{
		"-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:delay_enter=%d", fsync.Microseconds()),
	}
}

// slowed returns the command that runs a program with a slow disk, if the cluster has those. The tracer is no parent of
// the server, which can be paused and killed as others. Unlike one that comes later, it stops at nothing but writes.
func (c *Cluster) slowed(program string, args []string) (string, []string) {
	if c.fsync == 0 {
		return program, args
	}
	strace := append(slowly(c.fsync), "-D", "--seccomp-bpf", program)
	return "strace", append(append(strace, args...), "--unsafe-no-fsync=false")
}

// SlowDisk has each write of the member to its disk take so long at least, until end is called. The cluster needs the
// flag --unsafe-no-fsync=false. A member in a container cannot be slowed down.
func (m *Member) SlowDisk(fsync time.Duration) (end func(), err error) {
	pid, err := m.server.Pid()
	if err != nil {
		return nil, err
	}
	strace := exec.Command("strace", append(slowly(fsync), "-p", fmt.Sprint(pid))...)
	if err := strace.Start(); err != nil {
		return nil, err
	}
	end = func() {
		_ = strace.Process.Signal(syscall.SIGTERM) // it lets the member go
		_ = strace.Wait()                          // its status is how it has ended
	}
	for start := time.Now(); !isTraced(pid); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			end()
			return nil, fmt.Errorf("strace does not trace %d", pid)
		}
	}
	return end, nil
}

// isTraced reports whether all threads of a process are traced.
func isTraced(pid int) bool {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, thread.Name()))
		if err == nil && strings.Contains(string(status), "\nTracerPid:\t0\n") {
			return false
		}
	}
	return err == nil
}
