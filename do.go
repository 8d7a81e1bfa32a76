package locker

import (
	"context"
	"errors"
)

// Do locks key, calls f, and unlocks, also if f panics. ctx bounds the wait for the lock, and the work. The context
// passed to f is cancelled when ctx ends or the lease is lost; f must then return, because another process may already
// be at work. Do waits for f. In f, FromContext returns the lease, with its fencing token.
//
// Do returns what Lock returned if the lock was not acquired; else f's error, joined with ErrLost if the lease
// was lost while f ran (also when f returned nil: its work was not protected to the end), or with what kept the
// store from being told of the unlock.
func Do(ctx context.Context, l Locker, key string, f func(context.Context) error, opts ...CallOption) error {
	lease, err := l.Lock(ctx, key, opts...)
	if err != nil {
		return err
	}
	return join(hold(ctx, lease, func(ctx context.Context, _ *Lease) error { return f(ctx) }))
}

// holdable is a lease, or several.
type holdable interface {
	Context(parent context.Context) (ctx context.Context, cancel context.CancelFunc)
	Unlock() error
	begins() (ends func())
}

// hold calls f while held is, and unlocks, also when f panics. It returns the errors of both.
func hold[H holdable](
	ctx context.Context, held H, f func(context.Context, H) error,
) (failure, unlocked error) {
	ctx, cancel := held.Context(ctx)
	ends := held.begins()
	defer func() {
		ends()
		cancel()
		unlocked = held.Unlock()
	}()
	return f(ctx, held), nil
}

// join is errors.Join that leaves a single error as it is.
func join(a, b error) error {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return errors.Join(a, b)
}
