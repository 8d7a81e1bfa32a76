package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// envWorker is set in the process that does the work. It has the path of the socket in it, in the directory that the
// containers share with the tests.
const envWorker = "LOCKER_CONTAINERS_SOCKET"

// supervise runs this program once more, to do the work, and cleans up when that has ended, however it did: a goroutine
// that panics takes a process with it before any other can clean up.
func supervise(command []string) (code int, err error) {
	dir, err := sharedDir()
	if err != nil {
		return 0, err
	}
	socket := filepath.Join(dir, "socket")
	defer func() { err = errors.Join(err, cleanUp(dir, socket)) }()

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	worker := exec.Command(self, append([]string{"--"}, command...)...)
	worker.Env = append(os.Environ(), envWorker+"="+socket)
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	if _, err := worker.StdinPipe(); err != nil { // is closed when this process dies
		return 0, err
	}
	// Not the terminal's group: Ctrl-C comes here, once, and is passed on.
	worker.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := worker.Start(); err != nil {
		return 0, err
	}
	go func() {
		for sig := range signals {
			_ = worker.Process.Signal(sig)
		}
	}()
	return exitCode(worker, worker.Wait())
}

// sharedDir makes a directory for the temporary files of this session.
func sharedDir() (string, error) {
	dir := memory.TempDir()
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "containers-"); err != nil {
			return "", err
		}
	}
	return dir, os.Chmod(dir, 0o711) // servers that do not run as root look for their own directories in it
}

// cleanUp removes what is left of a session.
func cleanUp(dir, socket string) error {
	docker, err := newDocker(context.Background())
	if err == nil {
		err = docker.remove(func(other string) bool { return other == socket })
	}
	return errors.Join(err, os.RemoveAll(dir))
}
