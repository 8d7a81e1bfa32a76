package locker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// The sentinels. Test for them with errors.Is: what a Locker or a Lease returns is an *Error around one of these, or
// around the end of a context.
var (
	// ErrLocked means that somebody else holds the key, or waits for it in a line that TryLock may not overtake. (On
	// Postgres, a Locker has one place in line for all its waiters: see package pglock.) Nothing else is ever reported
	// as ErrLocked: a store that does not answer is an error of its own.
	ErrLocked = errors.New("locked")

	// ErrLost means that the lease was held and is not any more, without having been unlocked. The key may have another
	// holder from this moment on. The error wraps the reason too, where one is known. Lock and TryLock never return it.
	ErrLost = errors.New("lease lost")

	// ErrUnlocked means that the lease was unlocked, by Unlock or by the Close of its Locker.
	ErrUnlocked = errors.New("lease already unlocked")

	// ErrClosed means that the Locker has been closed, or the store's client that it was given.
	ErrClosed = errors.New("locker closed")

	// ErrInvalidKey means that the key is empty, longer than MaxKeyLen bytes, or one that this backend reserves. The
	// store was not asked.
	ErrInvalidKey = errors.New("invalid key")

	// ErrRevoked means, beside ErrLost, that somebody took the lock away by Client.Revoke. The key is free for others
	// when its Unlock is called, or the lease would have ended without another renewal.
	ErrRevoked = errors.New("revoked")

	// ErrBroken means, beside ErrLost, that somebody freed the lock by Client.Break. Somebody else may hold the key.
	ErrBroken = errors.New("broken")

	// ErrNotHeld means that nobody holds the key that was to be revoked or broken, or all who do are revoked already;
	// or the lease of a Ticket is over, or was adopted already.
	ErrNotHeld = errors.New("nobody holds it")

	// ErrInvalidOption means that an option, or the client that a constructor was given, cannot be used. The store was
	// not asked. What was passed to New is checked by the first Lock, TryLock or Ping, because New returns no error.
	ErrInvalidOption = errors.New("invalid option")
)

// The classes of what goes wrong with a store. Each error that comes from a store is one of them, to errors.Is. The
// packages of the stores have sentinels that say more, each of which wraps its class. errors.ErrUnsupported is beside
// them: the backend cannot do what was asked of it at all, and the store was not asked.
var (
	// ErrUnavailable means no answer, connection refused, starting or shutting down, no leader, no quorum, too busy or
	// too full. It may pass by itself. What a backend reports without any class counts as this.
	ErrUnavailable = errors.New("store unavailable")

	// ErrDenied means that the store does not accept the credentials, or lacks a permission for them.
	ErrDenied = errors.New("denied by the store")

	// ErrUnfit means the wrong kind of server, a version that is too old, a pooler in between, a setting that makes
	// locks impossible. It does not pass by itself.
	ErrUnfit = errors.New("store unfit for locks")
)

// ThisLocker is Error.Holder when a Lock has waited for a key that its own Locker holds, and the holder has no name:
// locks are not reentrant.
const ThisLocker = "this Locker"

// Error is the type of every error that a Locker or a Lease returns.
type Error struct {
	Op      string // "lock", "trylock", "lease" or the name of another method, in small letters
	Key     string // the key as the caller wrote it, without the prefix
	Backend string // the name of the store: "redis", "memory", ...
	Holder  string // who holds the key: the name given by the option Holder, where the store knows it, or ThisLocker
	Err     error  // the reason: test it with errors.Is

	answered bool // before the failure, the store has answered that the key was held
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

// LogValue implements slog.LogValuer.
func (e *Error) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("op", e.Op)}
	for _, a := range []struct{ name, value string }{{"key", e.Key}, {"store", e.Backend}, {"holder", e.Holder}} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	return slog.GroupValue(append(attrs, slog.String("reason", fmt.Sprint(e.Err)))...)
}

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

// NotAcquired marks err, returned by a Backend from Acquire or Wait, as one after which the lock is certainly not held
// and will not be, so that nothing has to be released: the store refused the request, or was never sent it. To use it
// is optional. Any other error, except ErrLocked, ErrInvalidKey, ErrInvalidOption and errors.ErrUnsupported, counts as
// an unknown outcome and is followed by a Release: an error does not mean that the store did nothing.
func NotAcquired(err error) error { return &notAcquired{err} }

type notAcquired struct{ err error }

func (e *notAcquired) Error() string { return e.err.Error() }
func (e *notAcquired) Unwrap() error { return e.err }

// Final marks err, returned by a Backend from Release, as one that another attempt will not mend, such as that the
// client has been closed. Unlock then returns it at once. Without it, Unlock tries again until the lease has ended.
func Final(err error) error { return &final{err} }

type final struct{ err error }

func (e *final) Error() string { return e.err.Error() }
func (e *final) Unwrap() error { return e.err }

func isFinal(err error) bool {
	var f *final
	return errors.As(err, &f)
}

// outcomeUnknown reports whether, after err from Acquire or Wait, the store may hold a lock for us all the same.
func outcomeUnknown(err error) bool {
	var certain *notAcquired
	return err != nil &&
		!errors.As(err, &certain) &&
		!errors.Is(err, ErrLocked) &&
		!errors.Is(err, ErrNotHeld) &&
		!errors.Is(err, ErrInvalidKey) &&
		!errors.Is(err, ErrInvalidOption) &&
		!errors.Is(err, errors.ErrUnsupported)
}

// unmasked returns the error of a call with ctx, or, if that is no more than the cause of ctx, ctx.Err: a cause can be
// any error, such as that of another Lock, and must not be taken for the store's answer.
func unmasked(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || !errors.Is(err, cause) {
		return err
	}
	if n, certain := err.(*notAcquired); certain && error(n) != cause { //nolint:errorlint // the cause may be one, too
		return err
	}
	return ctx.Err()
}

// endOf returns the error of a call that the end of ctx has ended: it matches ctx.Err and the cause of ctx.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return &contextEnd{err, cause}
}

// contextEnd is the end of a context that has a cause of its own.
type contextEnd struct{ err, cause error }

func (e *contextEnd) Error() string   { return fmt.Sprintf("%v: %v", e.err, e.cause) }
func (e *contextEnd) Unwrap() []error { return []error{e.err, e.cause} }

// riddenOut is the end of a context before which a wait has ridden out failures.
type riddenOut struct{ end, last error }

func (e *riddenOut) Error() string   { return fmt.Sprintf("%v; while riding out: %v", e.end, e.last) }
func (e *riddenOut) Unwrap() []error { return []error{e.end, e.last} }

// classes are what an error can be; the first that it matches is what it is treated as.
var classes = []error{
	ErrClosed, ErrInvalidKey, ErrInvalidOption, errors.ErrUnsupported, ErrLocked, ErrLost, ErrUnlocked, ErrNotHeld,
	context.Canceled, context.DeadlineExceeded, ErrDenied, ErrUnfit, ErrUnavailable,
}

// classOf returns the class of err, nil if it has none.
func classOf(err error) error {
	for _, class := range classes {
		if errors.Is(err, class) {
			return class
		}
	}
	return nil
}

// classified makes an error without a class an ErrUnavailable.
func classified(err error) error {
	if classOf(err) == nil {
		return &unavailable{err}
	}
	return err
}

// passes reports whether err may pass by itself: it is an ErrUnavailable, by its own word or because it has no class.
func passes(err error) bool {
	class := classOf(err)
	return class == nil || errors.Is(class, ErrUnavailable)
}

// reason returns which of two failures in a row to tell of; the first may be nil. It is the later one, unless only the
// earlier one does not pass by itself, like a changed password: the last attempts often have no time for an answer.
func reason(before, err error) error {
	if before != nil && !passes(before) && passes(err) {
		return before
	}
	return err
}

// unavailable is an error of the store that is an ErrUnavailable, though it does not say so.
type unavailable struct{ err error }

func (e *unavailable) Error() string   { return e.err.Error() }
func (e *unavailable) Unwrap() []error { return []error{e.err, ErrUnavailable} }

// noAnswer is the error of a call that the store left unanswered for as long as the answer could have been of
// use. It is deliberately not context.DeadlineExceeded: no context of the caller's has ended.
type noAnswer struct{ after time.Duration }

func (e *noAnswer) Error() string {
	if e.after == 0 {
		return "the store did not answer"
	}
	return fmt.Sprintf("the store did not answer within %v", e.after.Round(time.Millisecond))
}
func (e *noAnswer) Timeout() bool { return true }
func (e *noAnswer) Unwrap() error { return ErrUnavailable }

// notHeld is why a lock was not granted, or was taken away before the lease began. It is never ErrLost: nothing was
// held.
type notHeld struct{ err error }

func (e *notHeld) Error() string        { return e.err.Error() }
func (e *notHeld) Is(target error) bool { return target != ErrLost && errors.Is(e.err, target) }
func (e *notHeld) As(target any) bool   { return errors.As(e.err, target) }

// errTooLate is the error of a release for which there was no time left.
var errTooLate = fmt.Errorf("%w: the store did not answer before the lease ended", ErrUnavailable)

// holderOf returns the holder's name that err carries, if any.
func holderOf(err error) string {
	var held *Held
	if errors.As(err, &held) {
		return held.Holder
	}
	return ""
}
