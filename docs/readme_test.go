package docs_test

import (
	"context"

	"github.com/lockerkit/locker"
)

// What the README shows of package locker, with shorter comments.

type (
	Request = locker.Request
	Grant   = locker.Grant
	Renewal = locker.Renewal
)

type Backend interface {
	Acquire(ctx context.Context, r Request) (Grant, error)              // one attempt; a *Held, or ErrLocked
	Renew(ctx context.Context, gs []Grant, done func(i int, r Renewal)) // each result as it comes; ErrLost if not ours
	Release(ctx context.Context, g Grant) error                         // only if ours; ErrLost otherwise
	Close() error
}

var (
	_ Backend        = locker.Backend(nil)
	_ locker.Backend = Backend(nil)
)
