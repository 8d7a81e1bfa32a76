package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/testserver"
	"github.com/lockerkit/locker/internal/testserver/contained"
)

// work runs the command with servers, in the process that supervise has started.
func work(command []string) (code int, err error) {
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // returns when the supervisor has died
		stop <- syscall.SIGTERM
	}()

	socket := os.Getenv(envWorker)
	shared := filepath.Dir(socket)
	docker, err := newDocker(context.Background())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, docker.remove(func(other string) bool { return other == socket })) }()
	if err := docker.remove(deserted); err != nil {
		return 0, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return 0, err
	}
	defer listener.Close() //nolint:errcheck // the process ends
	go (&server{docker, socket, shared}).serve(listener)

	// Tests have their temporary files in $GOTMPDIR rather, if there is one.
	if err := errors.Join(os.Unsetenv("GOTMPDIR"), os.Setenv("TMPDIR", shared), os.Setenv(contained.EnvSocket, socket)); err != nil {
		return 0, err
	}
	servers := new(sharedServers)
	defer func() { err = errors.Join(err, servers.close()) }()
	if err := servers.start(); err != nil {
		return 0, err
	}
	fmt.Fprintf(os.Stderr, "containers: the servers are\n%v\n", servers)
	return run(command, servers.env, stop)
}

// endPatience is how long a command may take to end when asked to.
const endPatience = 10 * time.Second

// run runs the command to its end, which a signal brings about, and returns its exit code.
func run(command, env []string, stop <-chan os.Signal) (code int, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Env = append(cmd.Env, envWorker+"=")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A group of its own, so that all of it can be ended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for patience := time.Duration(0); ; {
		var late <-chan time.Time
		if patience > 0 {
			late = time.After(patience)
		}
		select {
		case err := <-ended:
			return exitCode(cmd, err)
		case sig := <-stop:
			_ = syscall.Kill(-cmd.Process.Pid, sig.(syscall.Signal))
			patience = endPatience
		case <-late:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			patience = 0
		}
	}
}

// exitCode returns the exit code of a command that has ended, as a shell would.
func exitCode(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// memory is for directories in memory, where there is enough of it.
var memory = &testserver.Product{Package: "containers"}
