package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/lockerkit/locker"
)

// The exit codes, most of them of sysexits.h, are listed in docs/command.md.
const (
	exitProblem     = 1  // doctor has found something; nobody holds what is to be revoked
	exitUsage       = 64 // EX_USAGE: arguments, options or a URL that cannot be used
	exitUnavailable = 69 // EX_UNAVAILABLE: the store does not answer
	exitLost        = 70 // EX_SOFTWARE: the lock was lost, and the command ended therefore
	exitLocked      = 75 // EX_TEMPFAIL: somebody else has the lock
	exitDenied      = 77 // EX_NOPERM: the store does not let this user do it
	exitUnfit       = 78 // EX_CONFIG: the store is of the wrong kind, or has a setting that makes locks impossible
)

// exit is an error that says with which code to exit.
type exit struct {
	code int
	err  error // what to tell; nil if there is nothing to say, or it was said
}

func (e *exit) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }

func (e *exit) Unwrap() error { return e.err }

// usage returns an error about arguments that cannot be used.
func usage(format string, args ...any) error {
	return &exit{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// caught is the signal that has ended a wait.
type caught struct{ signal os.Signal }

func (c *caught) Error() string { return "ended by the signal " + c.signal.String() }

// exitCode returns the exit code for an error, which it reports unless that was done.
func (a *app) exitCode(err error) int {
	var e *exit
	if errors.As(err, &e) {
		if e.err != nil {
			a.failed(e.err, e.code)
		}
		return e.code
	}
	if err == nil {
		return 0
	}
	code := codeOf(err)
	a.failed(err, code)
	return code
}

// codeOf returns the exit code for an error of the library.
func codeOf(err error) int {
	var s *caught
	if errors.As(err, &s) {
		if number, ok := s.signal.(syscall.Signal); ok {
			return 128 + int(number)
		}
	}
	for _, c := range []struct {
		is   error
		code int
	}{
		{locker.ErrLost, exitLost},
		{locker.ErrUnavailable, exitUnavailable}, // also if that was ridden out until the time was up
		{locker.ErrLocked, exitLocked},
		{context.DeadlineExceeded, exitLocked},
		{locker.ErrNotHeld, exitProblem},
		{locker.ErrDenied, exitDenied},
		{locker.ErrUnfit, exitUnfit},
		{locker.ErrInvalidKey, exitUsage},
		{locker.ErrInvalidOption, exitUsage},
		{errors.ErrUnsupported, exitUsage},
		{fs.ErrPermission, exitDenied},
	} {
		if errors.Is(err, c.is) {
			return c.code
		}
	}
	return exitProblem
}
