package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// cpuTime returns what this process has used so far.
func cpuTime() time.Duration {
	var created, exited, kernel, user syscall.Filetime
	self, err := syscall.GetCurrentProcess()
	if err == nil {
		err = syscall.GetProcessTimes(self, &created, &exited, &kernel, &user)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: GetProcessTimes:", err)
	}
	return ticks(kernel) + ticks(user)
}

// ticks returns a span of time, of which the system counts tenths of a microsecond.
func ticks(t syscall.Filetime) time.Duration {
	return 100 * time.Duration(
		uint64(t.HighDateTime)<<32|uint64(t.LowDateTime),
	) //nolint:gosec // of a process: far from overflow
}
