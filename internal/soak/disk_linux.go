package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/etcdtest"
)

// slowDiskMissing says why disks cannot be made slow, or "".
func slowDiskMissing() string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "there is no strace"
	}
	return ""
}

// slowDisks has each write to the disks of members take from 60 to 150 ms.
func slowDisks(members []*etcdtest.Member, rng *rand.Rand) (end func() error, err error) {
	delay := 60*time.Millisecond + below(rng, 90*time.Millisecond)
	var ends []func() error
	end = func() error {
		var errs []error
		for _, end := range ends {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}
	for _, m := range members {
		one, err := slowDisk(m, delay)
		if err != nil {
			return end, errors.Join(err, end())
		}
		ends = append(ends, one)
	}
	return end, nil
}

func slowDisk(m *etcdtest.Member, delay time.Duration) (end func() error, err error) {
	pid, err := m.Pid()
	if err != nil {
		return nil, err
	}
	strace := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
		"-e", fmt.Sprintf("inject=fsync,fdatasync:delay_enter=%d", delay.Microseconds()), "-p", fmt.Sprint(pid))
	if err := strace.Start(); err != nil {
		return nil, err
	}
	end = func() error {
		_ = strace.Process.Signal(syscall.SIGTERM) // it lets the member go
		_ = strace.Wait()                          // its status is how it has ended
		return nil
	}
	for start := time.Now(); !isTraced(pid); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			_ = end()
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
