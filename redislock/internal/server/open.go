package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
)

// ClientOf returns a Client of a backend, with the default prefix.
func ClientOf(b locker.Backend, opts []locker.Option) *locker.Client {
	return locker.New(b, append([]locker.Option{locker.Prefix(DefaultPrefix)}, opts...)...)
}

// Listening is a backend that can tell whether waiters could be called.
type Listening interface {
	locker.Backend
	MayListen(ctx context.Context) error
}

// Open returns a Client of b if locks can be had, and waiters called. Else it closes b.
func Open(ctx context.Context, b Listening, opts []locker.Option) (*locker.Client, error) {
	l := ClientOf(b, opts)
	err := l.Ping(ctx)
	if err == nil {
		if err = b.MayListen(ctx); err != nil {
			err = fmt.Errorf("redis: subscribing to the channel of the waiters: %w", withClass(ctx, err))
		}
	}
	if err == nil {
		return l, nil
	}
	closed := make(chan struct{})
	go func() {
		_ = l.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done(): // a server that hangs is not waited for
	}
	return nil, err
}

// withClass returns err as one that has a class, or ends with ctx.
func withClass(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ctx.Err(), context.Cause(ctx))
	case conn.Passes(err) && !errors.Is(err, locker.ErrUnavailable):
		return fmt.Errorf("%w: %w", locker.ErrUnavailable, err)
	}
	return err
}
