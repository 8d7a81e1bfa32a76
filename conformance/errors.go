package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

var errorRules = []rule{
	{
		name: "Typed", body: typed, expires: true,
		did: "A key is held, waited for, unlocked and lost, and with Harness.Cut the store dies; the errors are looked at.",
		text: "A caller can tell apart: somebody holds it; my wait ended; the store is unreachable; I had it and lost it. " +
			"A dead store is ErrUnavailable, never ErrLocked, ErrDenied or ErrUnfit.",
		hint: "Acquire returns a *locker.Held, or ErrLocked, and Renew and Release ErrLost, only where the store has said " +
			"so; in all other cases what the client says, wrapped or not. ErrDenied and ErrUnfit are for what does not pass " +
			"by itself.",
	},
}

// kinds are the errors of which at most one may be true of an error.
var kinds = []error{
	locker.ErrLocked, locker.ErrLost, locker.ErrUnlocked, locker.ErrClosed, locker.ErrInvalidKey, locker.ErrInvalidOption,
	context.Canceled, context.DeadlineExceeded, locker.ErrUnavailable, locker.ErrDenied, locker.ErrUnfit,
}

// isJust checks that err is want and none of the other kinds.
func (c *check) isJust(err, want error, when string) {
	if err == nil {
		c.record(1, "no error %s", when)
		return
	}
	expected := errors.Is(err, want)
	if !expected {
		c.record(1, "%s: %v; want %v", when, err, want)
	}
	for _, kind := range kinds {
		if !errors.Is(kind, want) && errors.Is(err, kind) {
			// A store on a busy machine may not have answered in time.
			wrong := expected || !errors.Is(kind, locker.ErrUnavailable)
			c.add(problem{saw: fmt.Sprintf("%s: the error %q is a %q", when, err, kind), at: caller(1), wrong: wrong})
		}
	}
}

func typed(c *check) {
	key := c.key()
	b := c.open()
	a := c.open() // the last, for cut
	lease := c.tryLock(a, key, locker.Holder("conformance-holder"))

	_, err := b.TryLock(c.within(10*c.ttl), key)
	c.isJust(err, locker.ErrLocked, "TryLock of a key that is held")
	var e *locker.Error
	if !errors.As(err, &e) {
		c.errorf("the error of TryLock is a %T; want a *locker.Error", err)
	} else if e.Key != key || e.Op == "" || e.Backend == "" {
		c.errorf("the error does not say operation, key and backend: %+v", e)
	} else if e.Holder != "" && e.Holder != "conformance-holder" {
		c.errorf("the error says that %q holds the key; it is conformance-holder", e.Holder)
	}
	if err == nil || !strings.Contains(err.Error(), key) {
		c.errorf("the text of the error does not mention the key: %v", err)
	}

	_, err = b.Lock(c.within(c.ttl/10), key)
	c.isJust(err, context.DeadlineExceeded, "Lock whose wait ended")

	cause := errors.New("conformance: the cause of the deadline")
	ctx, cancel := context.WithTimeoutCause(c.ctx, c.ttl/10, cause)
	defer cancel()
	_, err = b.Lock(ctx, key)
	c.isJust(err, context.DeadlineExceeded, "Lock whose wait ended with a cause")
	if !errors.Is(err, cause) {
		c.errorf("Lock whose wait ended with a cause: %v; want an error that matches the cause as well", err)
	}

	c.unlock(lease)
	c.isJust(lease.Err(), locker.ErrUnlocked, "Err after Unlock")

	if c.h.Features.RenewsItself == "" { // else the reason of a loss is an error of a connection that was cut
		lost := c.tryLock(b, c.key(), locker.NoRenew())
		c.closedWithin(lost, 2*c.ttl, "although nothing renews the lease")
		c.isJust(lost.Err(), locker.ErrLost, "Err after a loss")
		c.isJust(lost.Unlock(), locker.ErrLost, "Unlock after a loss")
	}

	if !c.has(needsCut, "that a dead store is ErrUnavailable") {
		return
	}
	defer c.cut(Refuse)()
	start := time.Now()
	_, err = a.TryLock(c.within(10*c.ttl), key)
	c.isJust(err, locker.ErrUnavailable, "TryLock while the store refuses connections")
	_, err = a.Lock(c.within(10*c.ttl), key)
	c.isJust(err, locker.ErrUnavailable, "Lock while the store refuses connections")
	c.took(time.Since(start), 4*c.ttl, "to report twice that the store cannot be reached, each within a TTL,")
}
