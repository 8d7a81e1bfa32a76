package locker

import (
	"context"
	"errors"
	"fmt"
)

// Revocation is why a lease was lost whose lock somebody has taken away, by Client.Revoke or Client.Break: errors.As
// finds it in the ErrLost of the lease. It is ErrRevoked or ErrBroken to errors.Is.
type Revocation struct {
	By     string // the name of who did it, given by the option Holder; may be ""
	Reason string // for people; may be ""
	Broken bool   // by Break: somebody else may hold the lock already
}

// Error describes the revocation.
func (r *Revocation) Error() string {
	text := r.kind().Error()
	if r.By != "" {
		text += " by " + r.By
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// Is reports whether target is ErrRevoked, or, if the lock was broken, ErrBroken.
func (r *Revocation) Is(target error) bool { return target == r.kind() }

func (r *Revocation) kind() error {
	if r.Broken {
		return ErrBroken
	}
	return ErrRevoked
}

// MaxReasonLen is the greatest length of the reason of a Revocation, in bytes.
const MaxReasonLen = 256

// Revoker is implemented by a Backend by which locks can be taken away, and which states Features.Revoke.
//
// Both methods are about whoever holds the lock of a name at that moment, and nobody who gets it later. They return
// ErrNotHeld if nobody does, or all who do are revoked already; and errors.ErrUnsupported about a holder that cannot be
// told, such as a client of another kind. They heed ctx. After an error the outcome is unknown; to call them again does
// no harm.
type Revoker interface {
	// Revoke has all holders told, and no renewal of theirs succeed any more: their leases end with ErrLost around r.
	// But the key is not free before each of them has released it, or its lease, as it was last renewed, has ended.
	//
	// The backend of a holder learns of it within about a round trip, and calls Request.ReportLost with r; or it says
	// so at the next renewal, as Renewal.Err around ErrLost and r. Release works as for a lock that is held.
	Revoke(ctx context.Context, name string, r *Revocation) error

	// Break frees the key at once, having minted a greater token than its holders have; the next in line has its turn.
	// The holders are told as by Revoke, at their next renewal at the latest. others allows that leases of other keys
	// end with it, where the store cannot do otherwise: without it, Break does nothing then but return a *OthersError.
	Break(ctx context.Context, name string, r *Revocation, others bool) error
}

// OthersError is why Break has done nothing: on this store, leases of other keys would have ended with that lock.
type OthersError struct{ Others int }

// Error says how many leases there are.
func (e *OthersError) Error() string {
	return fmt.Sprintf("%d other leases would end with it: the option AlsoOthers allows that", e.Others)
}

// Unwrap makes it an errors.ErrUnsupported: without the option, the store cannot do it.
func (e *OthersError) Unwrap() error { return errors.ErrUnsupported }

// BreakOption is an option of Client.Break.
type BreakOption interface{ applyBreak(*breakSettings) error }

type breakSettings struct {
	reason string
	others bool
}

type breakOption func(*breakSettings) error

func (o breakOption) applyBreak(s *breakSettings) error { return o(s) }

// Reason says why a lock is broken: its holders are told. At most MaxReasonLen bytes.
func Reason(reason string) BreakOption {
	return breakOption(func(s *breakSettings) error { s.reason = reason; return nil })
}

// AlsoOthers allows Break to end leases of other keys, where the store cannot do otherwise: see OthersError.
func AlsoOthers() BreakOption {
	return breakOption(func(s *breakSettings) error { s.others = true; return nil })
}

// Revoke asks whoever holds a key to let it go, and sees to it that he does. His lease ends: Done is closed, and Err is
// ErrLost with ErrRevoked, the reason, and the name of this Client (the option Holder). Lead steps down, and campaigns
// again behind those who wait. But nobody else gets the key before the holder has called Unlock. If he does not, they
// get it when his lease, as it was last renewed, has ended, which is within its TTL. So there are never two holders.
// Those who hold it together, in a mode, are all told, and others of that mode get in beside them as ever. Whoever
// waits is not told.
//
// A holder whose process answers is told within about a round trip. If it has had the lock for less than 100 ms, it may
// be told at its first renewal only, as always on Postgres without the option Holder. One that is frozen or cut off
// learns of it as of every other loss.
//
// It returns ErrNotHeld if nobody holds the key. It returns errors.ErrUnsupported if the backend cannot do it, or the
// holder is a client of another kind. Other errors are ErrInvalidKey, ErrInvalidOption for a reason longer than
// MaxReasonLen, ErrClosed, or one of the store, by its class. To call it again after an error does no harm. It is
// bounded by ctx and by the TTL of this Client. It does not wait for the holder: see Inspect.
func (c *Client) Revoke(ctx context.Context, key, reason string) error {
	return c.takeAway(ctx, opRevoke, key, &Revocation{Reason: reason}, func(ctx context.Context, r *Revocation) error {
		return c.revoker.Revoke(ctx, c.defaults.prefix+key, r)
	})
}

// Break frees a key at once, whoever holds it: for a holder that is known to be dead, and has a long TTL. The old
// holder may still be at work, and believe in its lease until its next renewal: then there are two. Its fencing token
// is smaller than the tokens of all who come after, so that a resource that checks tokens refuses it. If it lives, its
// lease ends with ErrLost and ErrBroken. Revoke is the safe way.
//
// On Postgres, where a lock lives and dies with its connection, the holder's Locker is asked first. If it does not
// answer within a second, other leases may end with this one: see OthersError.
//
// It returns the errors of Revoke, but also breaks locks of clients of another kind, as far as the store can. It is
// bounded by ctx and by the TTL of this Client.
func (c *Client) Break(ctx context.Context, key string, opts ...BreakOption) error {
	var s breakSettings
	var err error
	for _, o := range opts {
		if o == nil {
			err = fmt.Errorf("%w: an option is nil", ErrInvalidOption)
		} else {
			err = errors.Join(err, o.applyBreak(&s))
		}
	}
	if err != nil {
		return c.fail(opBreak, key, err)
	}
	r := &Revocation{Reason: s.reason, Broken: true}
	return c.takeAway(ctx, opBreak, key, r, func(ctx context.Context, r *Revocation) error {
		return c.revoker.Break(ctx, c.defaults.prefix+key, r, s.others)
	})
}

// takeAway is Revoke and Break, of which the Observers are told.
func (c *Client) takeAway(
	ctx context.Context, op, key string, r *Revocation, ask func(context.Context, *Revocation) error,
) error {
	r.By = c.defaults.holder
	err := c.asking(ctx, key, c.revoker != nil, "to take locks away", func(ctx context.Context) error {
		if len(r.Reason) > MaxReasonLen {
			return fmt.Errorf("%w: a reason of %d bytes, at most %d are accepted", ErrInvalidOption, len(r.Reason),
				MaxReasonLen)
		}
		return ask(ctx, r)
	})
	if err != nil {
		err = c.fail(op, key, err)
	}
	info := RevokedInfo{Op: op, Key: key, Store: c.name, Revocation: *r, Err: err}
	for _, o := range c.defaults.observers {
		if o.Revoked != nil {
			o.Revoked(info)
		}
	}
	return err
}

// isRevoked reports whether a lease ended for a reason after which its key is reserved for it until it is released.
func isRevoked(reason error) bool {
	var r *Revocation
	return errors.As(reason, &r) && !r.Broken
}
