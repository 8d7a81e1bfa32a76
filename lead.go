package locker

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Lead keeps trying to be the one who holds key until ctx ends, and calls work while it is: the elected leader
// of a fleet in which every process calls Lead with the same key.
//
// The context passed to work is cancelled when ctx ends and when the lease is lost; work must then return. Lead never
// overlaps itself: whatever happens, it waits for work to return before it unlocks or campaigns again. On
// shutdown the next leader therefore starts as soon as work has returned, and not sooner.
//
// When the lease is lost, Lead campaigns again, whatever work returns. When work returns nil of itself, Lead
// unlocks, lets others have a turn, and campaigns again. When work returns an error of itself, with the lease held and
// ctx not ended, Lead unlocks and returns it.
//
// Lead rides out a store that fails, trying again after a pause that is jittered, grows to two seconds, and
// starts small again after each success. Observer.Retry is told of each failure. Lead returns errors that trying
// again cannot mend: ErrClosed, ErrInvalidKey, ErrInvalidOption, errors.ErrUnsupported. ErrDenied and ErrUnfit it
// returns as long as the store has never answered as it should since Lead began: a wrong password is a mistake in the
// configuration. It rides them out later, as credentials are rotated and servers replaced.
//
// When ctx ends, Lead returns an error that matches ctx.Err and the cause of ctx: context.Cause(ctx) itself, if that
// matches ctx.Err and nothing else went wrong, else joined with the failure that Lead was riding out, or with the error
// of work or Unlock.
func Lead(
	ctx context.Context, l Locker, key string, work func(context.Context, *Lease) error, opts ...CallOption,
) error {
	var failed error // the last campaign
	reached := false // the store has answered as it should, once at least
	for attempt := 1; ; attempt++ {
		lease, err := l.Lock(ctx, key, opts...)
		if wasAnswered(err) {
			reached, failed = true, nil
		}
		switch {
		case ctx.Err() != nil:
			if err == nil {
				failed, err = nil, lease.Unlock()
			}
			return stopped(ctx, failed, err)
		case err == nil:
			reached, failed, attempt = true, nil, 0
			failure, unlocked := hold(ctx, lease, work)
			switch {
			case ctx.Err() != nil:
				return stopped(ctx, failure, unlocked)
			case failure != nil && !errors.Is(unlocked, ErrLost):
				return join(failure, unlocked)
			}
			// Stepped down, or lost. A store that could not be told of the unlock is ridden out as any other failure.
			if !errors.Is(unlocked, ErrLost) {
				failed = unlocked
			}
		case hopeless(err, reached):
			return err
		default:
			failed = err
		}
		pause := outagePause(attempt + 1)
		if failed != nil {
			tellRetry(l, RetryInfo{Op: opLead, Key: key, Attempt: max(attempt, 1), Err: failed, Pause: pause}, opts)
		}
		select {
		case <-ctx.Done():
			return stopped(ctx, failed, nil)
		case <-time.After(pause):
		}
	}
}

// wasAnswered reports whether err is of a Lock that the store had told that the key was held, so that all was well
// then.
func wasAnswered(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.answered
}

// tellRetry tells the Observers of l, if it is a Client or embeds one.
func tellRetry(l Locker, info RetryInfo, opts []CallOption) {
	if e, ok := l.(interface{ client() *Client }); ok {
		c := e.client()
		info.Store, info.Mode = c.name, c.modeOf(opts)
		c.tellRetry(info)
	}
}

// client returns c, also to who has it embedded.
func (c *Client) client() *Client { return c }

// stopped returns the result of Lead once ctx has ended: its end, with what else went wrong.
func stopped(ctx context.Context, failures ...error) error {
	end := endOf(ctx)
	result := []error{end}
	for _, err := range failures {
		if err != nil && !isJust(ctx, err) {
			result = append(result, err)
		}
	}
	if len(result) == 1 {
		return end
	}
	return errors.Join(result...)
}

// isJust reports whether err says no more than that ctx has ended.
func isJust(ctx context.Context, err error) bool {
	var more *riddenOut
	return (errors.Is(err, context.Cause(ctx)) || errors.Is(err, ctx.Err())) && !errors.Is(err, ErrLost) &&
		!errors.As(err, &more)
}

// hopeless reports whether err is one that the same call will return for ever.
func hopeless(err error, reached bool) bool {
	is := func(class error) bool { return errors.Is(err, class) }
	return slices.ContainsFunc([]error{ErrClosed, ErrInvalidKey, ErrInvalidOption, errors.ErrUnsupported}, is) ||
		!reached && (is(ErrDenied) || is(ErrUnfit))
}
