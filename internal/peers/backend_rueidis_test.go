package peers

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
)

// rueidisLibrary is rueidislock, which waits, renews and reports losses by itself, and has one validity for all
// locks. Of a lease that is not to be renewed, the context has a deadline: that ends the hold.
type rueidisLibrary struct {
	rueidislock.Locker
	validity time.Duration
}

// newRueidisLibrary takes one key for each lock, and gives an answer as much time as a lock is valid. Its wall clock is
// wrong by as much as skew says at the time.
func newRueidisLibrary(addr string, validity time.Duration, skew *atomic.Int64) (library, error) {
	l, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{addr}},
		ClientBuilder: func(o rueidis.ClientOption) (rueidis.Client, error) {
			client, err := rueidis.NewClient(o)
			return skewed{client, skew}, err
		},
		KeyMajority:  1,
		KeyValidity:  validity,
		TryNextAfter: validity,
	})
	return rueidisLibrary{l, validity}, err
}

// skewed is a client on a machine whose wall clock is wrong. That shows in what it sends to the server only, as timers
// in the process go by the monotonic clock: all scripts of rueidislock end with a moment, in milliseconds.
type skewed struct {
	rueidis.Client
	by *atomic.Int64 // a time.Duration
}

func (c skewed) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	by, words := time.Duration(c.by.Load()), slices.Clone(cmd.Commands())
	if by == 0 || !strings.HasPrefix(words[0], "EVAL") {
		return c.Client.Do(ctx, cmd)
	}
	last := &words[len(words)-1]
	at, err := strconv.ParseInt(*last, 10, 64)
	if err != nil {
		panic(err)
	}
	*last = strconv.FormatInt(at+by.Milliseconds(), 10)
	return c.Client.Do(ctx, c.B().Arbitrary(words...).Build().ToRetryable())
}

func (l rueidisLibrary) tryLock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, l.TryWithContext)
}

func (l rueidisLibrary) lock(ctx context.Context, r locker.Request) (hold, error) {
	return l.acquire(ctx, r, l.WithContext)
}

func (l rueidisLibrary) close() error { l.Close(); return nil }

// acquire sees to it that the hold does not end with the wait, which it does by the library alone.
func (l rueidisLibrary) acquire(
	ctx context.Context, r locker.Request, by func(context.Context, string) (context.Context, context.CancelFunc, error),
) (hold, error) {
	h := &rueidisLease{}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	if r.NoRenew {
		life, end = context.WithTimeout(context.WithoutCancel(ctx), r.TTL)
	} else {
		h.valid = l.validity
	}
	waits := context.AfterFunc(ctx, end)
	held, unlock, err := by(life, r.Name())
	switch {
	case errors.Is(err, rueidislock.ErrNotLocked):
		end()
		return nil, errHeld
	case err != nil:
		end()
		return nil, err
	case !waits(): // ctx has ended
		unlock()
		return nil, context.Cause(ctx)
	}
	h.rueidisHold = rueidisHold{held, func() { unlock(); end() }}
	h.unlocked = context.AfterFunc(held, func() { r.ReportLost(errors.New("rueidislock: the lock's context has ended")) })
	return h, nil
}

type rueidisLease struct {
	rueidisHold
	valid    time.Duration
	unlocked func() bool // nobody is to be told
}

func (h *rueidisLease) validity() time.Duration { return h.valid }

func (h *rueidisLease) unlock(ctx context.Context) error {
	h.unlocked()
	return h.rueidisHold.unlock(ctx)
}

// extend is asked what the library knows: it extends by itself.
func (h *rueidisLease) extend(context.Context, time.Duration) error {
	if h.ctx.Err() != nil {
		return errNotHeld
	}
	return nil
}

// TestRueidislockWallClock: what a machine locks whose clock is behind by more than the validity has expired by then.
// It is told that it has the lock, and so is another machine.
func TestRueidislockWallClock(t *testing.T) {
	t.Parallel()
	var behind, right atomic.Int64
	try := func(skew *atomic.Int64) {
		l := must(newRueidisLibrary(redistest.Address(t), patience, skew))(t).(rueidisLibrary)
		t.Cleanup(l.Close)
		_, cancel, err := l.TryWithContext(t.Context(), t.Name())
		if err != nil {
			t.Fatalf("if this is so no longer, the page has to be changed: %v", err)
		}
		t.Cleanup(cancel)
	}
	behind.Store(int64(-2 * patience))
	try(&behind)
	try(&right)
}
