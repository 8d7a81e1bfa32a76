//go:build unix

package main

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/cmd/locker/internal/child"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/memlock"
)

// A command is not started under a lock that was lost before: this process may have been stopped just then.
func TestLostBeforeTheStart(t *testing.T) {
	t.Parallel()
	c := memlock.New()
	lease := locktest.MustLock(t, c, "k")
	if err := c.Break(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	<-lease.Done()
	var said buffer
	r := &runner{app: &app{stderr: &said}, keys: []string{"k"}, path: "/no/such/program"}
	signals := &signals{ctx: t.Context()}
	if _, err := r.work(signals, locker.Leases{lease}); !errors.Is(err, locker.ErrLost) || codeOfExit(err) != exitLost {
		t.Errorf("it returned %v, and said %q", err, said.String())
	}
}

// A signal that comes when the lock was granted, but the command not started yet, keeps it from being started.
func TestSignalJustBeforeTheStart(t *testing.T) {
	t.Parallel()
	s := &signals{}
	s.ctx, s.end = context.WithCancelCause(t.Context())
	s.take(syscall.SIGWINCH)
	if s.ctx.Err() != nil {
		t.Error("SIGWINCH has ended it")
	}
	s.take(syscall.SIGTERM)
	_, err := s.start(func() (*child.Child, error) {
		t.Error("the command was started")
		return nil, nil
	})
	if code := codeOf(err); code != 128+int(syscall.SIGTERM) {
		t.Errorf("it returned %v, with exit code %d", err, code)
	}
}

// At its end, the program waits for the store once, however much there is to ask it.
func TestWithin(t *testing.T) {
	t.Parallel()
	a, never := &app{}, make(chan struct{})
	hang := func() error { <-never; return nil }
	start := time.Now()
	if err := a.within(hang); !errors.Is(err, locker.ErrUnavailable) {
		t.Error(err)
	}
	first := time.Since(start)
	if err := a.within(hang); !errors.Is(err, locker.ErrUnavailable) {
		t.Error(err)
	}
	if both := time.Since(start); first < unlockWithin || both > first+first/2 {
		t.Errorf("it waited for %v, and for %v in all", first, both)
	}
}

// codeOfExit is the exit code of an error that has one.
func codeOfExit(err error) int {
	var e *exit
	if !errors.As(err, &e) {
		return -1
	}
	return e.code
}
