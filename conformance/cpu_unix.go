//go:build unix

package conformance

import (
	"syscall"
	"time"
)

// cpuTime returns what this process has used so far.
func cpuTime() (t time.Duration, known bool) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}
