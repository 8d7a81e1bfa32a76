package testserver

import (
	"os"
	"syscall"
)

// Lock waits for its turn with a file, which it makes if it is missing. Only
// on Linux does it keep others waiting. The lock ends with the process, too.
func Lock(path string) (unlock func() error, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
		if err == nil {
			return file.Close, nil
		}
		if err != syscall.EINTR { //nolint:errorlint // as the system call returns it
			file.Close()
			return nil, os.NewSyscallError("flock", err)
		}
	}
}
