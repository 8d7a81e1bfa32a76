package locker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// LockInfo is what a store says of a lock at one moment. By the time it is read, it may be different: it is for people
// and for reports, and not for deciding whether to lock. What a store cannot know is zero; docs/operating.md has a
// table of what each one knows.
type LockInfo struct {
	Key     string       // without the prefix of the Client; "" if the store does not keep it
	Holders []HolderInfo // none if the key is free; more than one are all shared, or have slots
	Waiters []WaiterInfo // of whom the store knows something, in order of line
	Waiting int          // how many wait in line: at least as many as there are Waiters
}

// HolderInfo describes somebody who has a lock, or had it: a key that was revoked, or that is kept for MinHold, has its
// holder until it is free.
type HolderInfo struct {
	Name  string // given by the option Holder
	Mode  Mode
	Slot  int       // with ModeSlots, which one
	Token uint64    // the fencing token
	Since time.Time // when the lock was granted, by the store's clock

	// Left is for how long the lease lasts unless it is renewed, by the store's clock. A holder whose process is alive
	// renews it three times per TTL.
	Left time.Duration

	// Session says by what connection the store knows the holder, or what a client of another kind has written there.
	Session string
}

// WaiterInfo describes somebody who waits for a lock.
type WaiterInfo struct {
	Name    string // given by the option Holder
	Mode    Mode
	Since   time.Time // when it got into line, by the store's clock
	Session string    // as in HolderInfo
}

// Inspector is implemented by a Backend that can tell who has a lock, and which states Features.Inspect. To inspect
// changes nothing, and makes nobody wait for longer than another attempt to lock does. Its methods heed ctx.
type Inspector interface {
	// Inspect returns what the store knows of the lock of a name, which is a key with its prefix.
	Inspect(ctx context.Context, name string) (LockInfo, error)

	// List yields the locks that are held whose names begin with a prefix, with the names as LockInfo.Key, in any
	// order, each once. They are not a picture of one moment: a lock that is taken or given back meanwhile may be
	// missing. An error is the last thing that it yields. It asks the store for a bounded part at a time.
	List(ctx context.Context, prefix string) iter.Seq2[LockInfo, error]
}

// Inspect returns who holds a key, who waits for it, and what else the store knows of that: see LockInfo. It disturbs
// nobody. A key that nobody holds is no error.
//
// It returns errors.ErrUnsupported if the backend cannot do it, ErrInvalidKey, ErrClosed, or an error of the store, by
// its class. It is bounded by ctx and by the TTL of this Client.
func (c *Client) Inspect(ctx context.Context, key string) (info LockInfo, err error) {
	err = c.asking(ctx, key, c.inspector != nil, inspecting, func(ctx context.Context) error {
		info, err = c.inspector.Inspect(ctx, c.defaults.prefix+key)
		return err
	})
	if err != nil {
		return LockInfo{}, c.fail(opInspect, key, err)
	}
	info.Key = key
	return info, nil
}

const inspecting = "to inspect locks"

// List returns what Inspect would say of each key that is held and begins with a prefix, in any order; "" is for all of
// this Client. The keys are not a picture of one moment: one that is locked or unlocked meanwhile may be missing. It
// disturbs nobody: the store is asked for a part at a time.
//
//	for info, err := range l.List(ctx, "orders/") { ... }
//
// The errors are as of Inspect; one is the last thing that it yields. It is bounded by ctx.
func (c *Client) List(ctx context.Context, prefix string) iter.Seq2[LockInfo, error] {
	return func(yield func(LockInfo, error) bool) {
		fail := func(err error) { yield(LockInfo{}, c.fail(opList, prefix, err)) }
		if err := c.mayAsk(ctx, c.inspector != nil, inspecting); err != nil {
			fail(err)
			return
		}
		defer c.calls.Done()
		for info, err := range c.inspector.List(ctx, c.defaults.prefix+prefix) {
			switch {
			case err == nil:
				info.Key = strings.TrimPrefix(info.Key, c.defaults.prefix)
				if !yield(info, nil) {
					return
				}
			case ctx.Err() != nil:
				fail(endOf(ctx))
				return
			default:
				fail(err)
				return
			}
		}
	}
}

// mayAsk begins a call of a backend that has to offer it, if it may be made; c.calls.Done ends it.
func (c *Client) mayAsk(ctx context.Context, offered bool, what string) error {
	switch {
	case c.invalid != nil:
		return c.invalid
	case !offered:
		return fmt.Errorf("%s: %w: %s", c.name, errors.ErrUnsupported, what)
	case ctx.Err() != nil:
		return endOf(ctx)
	}
	return c.enter()
}

// asking makes such a call about a key, with a ctx that is bounded by the TTL, too.
func (c *Client) asking(
	ctx context.Context, key string, offered bool, what string, ask func(context.Context) error,
) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := c.mayAsk(ctx, offered, what); err != nil {
		return err
	}
	defer c.calls.Done()
	bounded, cancel := context.WithTimeoutCause(ctx, c.defaults.ttl, &noAnswer{after: c.defaults.ttl})
	defer cancel()
	err := ask(bounded)
	switch {
	case err == nil || errors.Is(err, ErrNotHeld):
		return err
	case ctx.Err() != nil:
		return endOf(ctx)
	case bounded.Err() != nil:
		return context.Cause(bounded)
	}
	return err
}
