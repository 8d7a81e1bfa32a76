package peers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
)

type rueidisPeer struct{ rueidislock.Locker }

// newRueidis has a lock on so many keys, a majority of twice as many less one.
func newRueidis(t *testing.T, majority int32) rueidisPeer {
	l := must(rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{redistest.Address(t)}},
		KeyMajority:  majority,
		TryNextAfter: patience, // as long as an answer may take; later ones make it ask again and again
	}))(t)
	t.Cleanup(l.Close)
	return rueidisPeer{l}
}

type rueidisHold struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func (p rueidisPeer) tryLock(ctx context.Context, key string, _ time.Duration) (hold, error) {
	return rueidisHoldOf(p.TryWithContext(ctx, key))
}

// lock begins anew now and then: who waits is woken by an invalidation alone, and when the machine is busy one of a few
// hundred is missed, after which it waits for ever.
func (p rueidisPeer) lock(ctx context.Context, key string, _ time.Duration) (hold, error) {
	for {
		ends, cancel := context.WithCancelCause(ctx)
		missed := time.AfterFunc(patience/10, func() { cancel(errMissed) })
		h, err := rueidisHoldOf(p.WithContext(ends, key))
		if missed.Stop() || !errors.Is(context.Cause(ends), errMissed) {
			return h, err
		}
		if err == nil {
			_ = h.unlock(ctx)
		}
	}
}

var errMissed = errors.New("has waited for long")

func rueidisHoldOf(ctx context.Context, cancel context.CancelFunc, err error) (hold, error) {
	if errors.Is(err, rueidislock.ErrNotLocked) {
		return nil, errHeld
	}
	return rueidisHold{ctx, cancel}, err
}

func (h rueidisHold) extend(context.Context, time.Duration) error { return h.ctx.Err() }

func (h rueidisHold) unlock(context.Context) error {
	if h.ctx.Err() != nil {
		return errNotHeld
	}
	h.cancel() // and waits until it is unlocked
	return nil
}

// TestRueidislock: with KeyMajority 1, it and ours exclude one another, and it is told at once of a key that is gone.
func TestRueidislock(t *testing.T) {
	t.Parallel()
	s, one := oneServer(t), newRueidis(t, 1)
	testExclusion(t, one, lockerPeer{s.locker(t, locker.Prefix("rueidislock:0:")), func(uint64) {}})

	h := must(one.lock(t.Context(), t.Name(), long))(t).(rueidisHold)
	s.wipe(t, "rueidislock:0:"+t.Name())
	select {
	case <-h.ctx.Done():
	case <-time.After(patience):
		t.Error("it is not told that it has lost its lock")
	}
	h.cancel()
}

func TestRueidislockPage(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{}) // the key is what the page says
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	before, ours := must(openRueidis(server.Addr()))(t), openAfterRueidis(rdb)
	defer before.Close()
	testTogether(t, map[string]func(context.Context, work) error{
		"before": func(ctx context.Context, w work) error { return beforeRueidis(ctx, before, w) },
		"after":  func(ctx context.Context, w work) error { return after(ctx, ours, w) },
	})
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
}

// TestRueidislockMajority: with its default, a majority of three keys, the first one still decides, as it does not go
// on to the next one from a key that others have; until the holder loses the first one, which it is not told of.
func TestRueidislockMajority(t *testing.T) {
	t.Parallel()
	s := oneServer(t)
	two, ours := newRueidis(t, 2), lockerPeer{s.locker(t, locker.Prefix("rueidislock:0:")), func(uint64) {}}
	testExclusion(t, two, ours)
	testExclusion(t, two, newRueidis(t, 1))

	h := must(two.lock(t.Context(), t.Name(), long))(t).(rueidisHold)
	s.wipe(t, "rueidislock:0:"+t.Name())
	lease := must(ours.tryLock(t.Context(), t.Name(), long))(t)
	select {
	case <-h.ctx.Done():
		t.Error("if this is so no longer, the page has to be changed")
	case <-time.After(10 * retry):
	}
	h.cancel()
	if err := lease.unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRueidislockIsToldLate: cut off, it is told of the loss when another has the lock, and has had it for a while.
func TestRueidislockIsToldLate(t *testing.T) {
	t.Parallel()
	proxy := must(faultproxy.Start(redistest.Address(t)))(t)
	t.Cleanup(func() { proxy.Close() })
	const validity = 2 * time.Second
	l := must(rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{proxy.Addr()}},
		KeyMajority:  1,
		KeyValidity:  validity,
		TryNextAfter: patience,
	}))(t)
	t.Cleanup(l.Close)
	ctx, cancel, err := l.WithContext(t.Context(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	proxy.Set(faultproxy.BlackHole())
	lease := must(oneServer(t).locker(t, locker.Prefix("rueidislock:0:")).Lock(t.Context(), t.Name()))(t)
	got := time.Now()
	if ctx.Err() != nil {
		t.Fatal("if this is so no longer, the page has to be changed")
	}
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Error("it is not told at all")
	}
	t.Logf("two had it for %v, with a KeyValidity of %v", time.Since(got), validity)
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}
