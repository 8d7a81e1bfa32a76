//go:build unix

package main

import (
	"errors"
	"testing"

	"github.com/lockerkit/locker"
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

// codeOfExit is the exit code of an error that has one.
func codeOfExit(err error) int {
	var e *exit
	if !errors.As(err, &e) {
		return -1
	}
	return e.code
}
