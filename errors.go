package locker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The sentinels. Test for them with errors.Is: what a Locker or a Lease returns is always an *Error around one of
// these, around the cause of a context that ended, or around what the store said.
var (
	// ErrLocked: somebody else holds the key, or waits for it in a line that TryLock may not overtake.
	// Nothing else is ever reported as ErrLocked: a store that does not answer is an error of its own.
	ErrLocked = errors.New("locked")

	// ErrLost: the lease was held and is not any more, without having been unlocked. The key may have another
	// holder from this moment on. The error wraps the reason too, where one is known.
	ErrLost = errors.New("lease lost")

	// ErrUnlocked: the lease was unlocked, by Unlock or by the Close of its Locker.
	ErrUnlocked = errors.New("lease already unlocked")

	// ErrClosed: the Locker has been closed.
	ErrClosed = errors.New("locker closed")

	// ErrInvalidKey: the key is empty, longer than MaxKeyLen bytes, or one that this backend reserves. The
	// store was not asked.
	ErrInvalidKey = errors.New("invalid key")

	// ErrInvalidOption: an option has a value that cannot be honoured, or is one for New that was passed to
	// Lock. The store was not asked. Options passed to New are checked by the first Lock or TryLock, because
	// New returns no error.
	ErrInvalidOption = errors.New("invalid option")
)

// Error is the type of every error that a Locker or a Lease returns.
type Error struct {
	Op      string // "lock", "trylock", "unlock", "lease" or "close"
	Key     string // the key as the caller wrote it, without the prefix
	Backend string // the name of the store: "redis", "memory", ...
	Holder  string // who holds the key, where the store knows a name: see the option Holder
	Err     error  // the reason: test it with errors.Is
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("locker: ")
	b.WriteString(e.Op)
	if e.Key != "" {
		fmt.Fprintf(&b, " %q", e.Key)
	}
	if e.Backend != "" {
		fmt.Fprintf(&b, " (%s)", e.Backend)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Holder != "" {
		fmt.Fprintf(&b, " [held by %s]", e.Holder)
	}
	return b.String()
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Held is what a Backend returns when it refuses an acquire because the key has an owner, or because others
// are in line for it. It is ErrLocked to errors.Is. A backend that knows neither field may return ErrLocked.
type Held struct {
	Holder    string        // the name that the holder gave itself; "" if unknown
	Remaining time.Duration // how long the holder's lease still runs unless renewed; 0 if unknown
}

// Error describes the refusal.
func (h *Held) Error() string { return ErrLocked.Error() }

// Unwrap makes a Held an ErrLocked.
func (h *Held) Unwrap() error { return ErrLocked }

// NotAcquired marks err, returned by a Backend from Acquire or Wait, as one after which the lock is certainly not held and
// will not be, so that nothing has to be released: the store refused the request, or was never sent it. To use it is
// optional. Any other error, except ErrLocked, ErrInvalidKey, ErrInvalidOption and errors.ErrUnsupported, counts as an
// unknown outcome and is followed by a Release: an error does not mean that the store did nothing.
func NotAcquired(err error) error { return &notAcquired{err} }

type notAcquired struct{ err error }

func (e *notAcquired) Error() string { return e.err.Error() }
func (e *notAcquired) Unwrap() error { return e.err }

// outcomeUnknown reports whether, after err from Acquire or Wait, the store may hold a lock for us all the same.
func outcomeUnknown(err error) bool {
	var certain *notAcquired
	return err != nil &&
		!errors.As(err, &certain) &&
		!errors.Is(err, ErrLocked) &&
		!errors.Is(err, ErrInvalidKey) &&
		!errors.Is(err, ErrInvalidOption) &&
		!errors.Is(err, errors.ErrUnsupported)
}

// unmasked returns the error of a call with ctx, or, if that is no more than the cause of ctx, ctx.Err: a cause can be any error, such as that of
// another Lock, and must not be taken for the store's answer.
func unmasked(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || !errors.Is(err, cause) {
		return err
	}
	if _, certain := err.(*notAcquired); certain { //nolint:errorlint // the cause may have one inside
		return err
	}
	return ctx.Err()
}

// noAnswer is the error of a call that the store left unanswered for as long as the answer could have been of
// use. It is deliberately not context.DeadlineExceeded: no context of the caller's has ended.
type noAnswer struct{ after time.Duration }

func (e *noAnswer) Error() string {
	return fmt.Sprintf("the store did not answer within %v", e.after.Round(time.Millisecond))
}
func (e *noAnswer) Timeout() bool { return true }

// errTooLate is the error of a release for which there was no time left.
var errTooLate = errors.New("the store did not answer before the lease ended")

// holderOf returns the holder's name that err carries, if any.
func holderOf(err error) string {
	var held *Held
	if errors.As(err, &held) {
		return held.Holder
	}
	return ""
}
