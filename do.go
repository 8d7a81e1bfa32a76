package locker

import (
	"context"
	"errors"
	"time"
)

// Do locks key, calls f, and unlocks, also when f panics. ctx bounds the wait for the lock, and the work: the context that f gets
// ends when ctx does, and when the lease
// is lost: f must then stop, as somebody else may be at work already; Do waits for it to return. An f that needs the
// fencing token calls for Lock instead.
//
// Do returns what Lock returned if the lock was not acquired; else f's error, joined with ErrLost if the lease
// was lost while f ran (also when f returned nil: its work was not protected to the end), or with what kept the
// store from being told of the unlock.
func Do(ctx context.Context, l Locker, key string, f func(context.Context) error, opts ...Option) error {
	lease, err := l.Lock(ctx, key, opts...)
	if err != nil {
		return err
	}
	return join(hold(ctx, lease, func(ctx context.Context, _ *Lease) error { return f(ctx) }))
}

// Lead keeps trying to be the one who holds key until ctx ends, and calls work while it is: the elected leader
// of a fleet in which every process calls Lead with the same key.
//
// The context that work gets ends when ctx does and when the lease is lost; work must then return. Lead never
// overlaps itself: whatever happens, it waits for work to return before it unlocks or campaigns again. On
// shutdown the next leader therefore starts as soon as work has returned, and not sooner.
//
// When the lease is lost, Lead campaigns again, whatever work returns. When work returns nil of itself, Lead
// unlocks, lets others have a turn, and campaigns again. When work returns an error of itself, with the lease held and
// ctx not ended, Lead unlocks and returns it.
//
// Lead rides out a store that fails, trying again after a pause that is jittered, grows to two seconds, and
// starts small again after each success. When ctx ends it returns the cause of that: just that, so that it can be
// compared with ==, if nothing else went wrong, else joined with what did. It also returns errors that trying
// again cannot mend: ErrClosed, ErrInvalidKey, ErrInvalidOption, errors.ErrUnsupported. What it rides out it does not
// report: pass it a Locker that does so, to log or count it.
func Lead(ctx context.Context, l Locker, key string, work func(context.Context, *Lease) error, opts ...Option) error {
	const shortest, longest = 50 * time.Millisecond, 2 * time.Second
	for pause := shortest; ; {
		lease, err := l.Lock(ctx, key, opts...)
		switch {
		case ctx.Err() != nil:
			if err == nil {
				err = lease.Unlock()
			}
			return stopped(ctx, err)
		case err == nil:
			pause = shortest
			failure, unlocked := hold(ctx, lease, work)
			switch {
			case ctx.Err() != nil:
				return stopped(ctx, join(failure, unlocked))
			case failure != nil && !errors.Is(unlocked, ErrLost):
				return join(failure, unlocked)
			}
			// Stepped down, or lost. A store that could not be told of the unlock is ridden out as any other failure.
		case hopeless(err):
			return err
		default:
			pause = min(2*pause, longest)
		}
		select {
		case <-ctx.Done():
			return stopped(ctx, nil)
		case <-time.After(jittered(pause)):
		}
	}
}

// hold calls f while lease is held, and unlocks, also when f panics. It returns the errors of both.
func hold(ctx context.Context, lease *Lease, f func(context.Context, *Lease) error) (failure, unlocked error) {
	ctx, cancel := lease.Context(ctx)
	defer func() {
		cancel()
		unlocked = lease.Unlock()
	}()
	return f(ctx, lease), nil
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

// stopped returns the result of Lead once ctx has ended: its cause, with whatever else went wrong.
func stopped(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || errors.Is(err, cause) || errors.Is(err, ctx.Err()) && !errors.Is(err, ErrLost) {
		return cause
	}
	return errors.Join(cause, err)
}

// hopeless reports whether err is one that the same call will return for ever.
func hopeless(err error) bool {
	return errors.Is(err, ErrClosed) || errors.Is(err, ErrInvalidKey) ||
		errors.Is(err, ErrInvalidOption) || errors.Is(err, errors.ErrUnsupported)
}
