package locker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

var errWork = errors.New("the work failed")

func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Second))
		defer l.Close()
		ran := false
		err := locker.Do(t.Context(), l, "k", func(ctx context.Context) error {
			ran = true
			if _, err := l.TryLock(ctx, "k"); !errors.Is(err, locker.ErrLocked) {
				t.Errorf("inside Do: %v; want ErrLocked", err)
			}
			if lease := locker.FromContext(ctx); lease == nil || lease.Key() != "k" || lease.Token() == 0 {
				t.Errorf("FromContext inside Do: %v", lease)
			}
			return ctx.Err()
		})
		if err != nil || !ran {
			t.Errorf("Do: %v, ran %v", err, ran)
		}
		if err := locker.Do(t.Context(), l, "k", func(context.Context) error { return errWork }); !errors.Is(err, errWork) {
			t.Errorf("Do: %v; want the error of its function", err)
		}
		err = locker.Do(t.Context(), l, "k", func(ctx context.Context) error {
			_ = l.Break(t.Context(), "k")
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), locker.ErrLost) {
				t.Errorf("cause of the context: %v; want ErrLost", context.Cause(ctx))
			}
			return nil // finished all the same, but not under the lock
		})
		if !errors.Is(err, locker.ErrLost) || !errors.Is(err, locker.ErrBroken) {
			t.Errorf("Do after a loss: %v; want ErrLost with its reason", err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = locker.Do(t.Context(), l, "k", func(context.Context) error { panic("in the work") })
		}()
		if _, err := l.TryLock(t.Context(), "k"); err != nil {
			t.Errorf("after a panic: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err = locker.Do(ctx, l, "free", func(context.Context) error { t.Error("called"); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Do with a ctx that has ended: %v", err)
		}
	})
}

// fleet counts who leads.
type fleet struct {
	t       *testing.T
	leading atomic.Int32
	mu      sync.Mutex
	terms   []string
	tokens  []uint64
}

// work leads until ctx ends, and then for a while longer, as work that takes time to stop.
func (f *fleet) work(name string, stopping time.Duration) func(context.Context, *locker.Lease) error {
	return func(ctx context.Context, lease *locker.Lease) error {
		if f.leading.Add(1) != 1 {
			f.t.Errorf("%s leads beside another one", name)
		}
		defer f.leading.Add(-1)
		f.mu.Lock()
		f.terms = append(f.terms, name)
		f.tokens = append(f.tokens, lease.Token())
		f.mu.Unlock()
		<-ctx.Done()
		time.Sleep(stopping)
		return ctx.Err()
	}
}

func TestLeadHandsOverOnShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := memlock.New(locker.TTL(time.Second))
		defer memory.Close()
		f := &fleet{t: t}
		var stops []context.CancelFunc
		var done []chan error
		for _, name := range []string{"a", "b", "c"} {
			ctx, stop := context.WithCancel(t.Context())
			l := memory.Peer(locker.TTL(time.Second))
			ended := make(chan error, 1)
			go func() {
				defer l.Close()
				ended <- locker.Lead(ctx, l, "leader", f.work(name, 300*time.Millisecond))
			}()
			synctest.Wait()
			stops, done = append(stops, stop), append(done, ended)
		}
		for i, stop := range stops {
			time.Sleep(5 * time.Second)
			stop()
			if err := <-done[i]; !errors.Is(err, context.Canceled) {
				t.Errorf("Lead: %v; want the cause of its ctx", err)
			}
			synctest.Wait() // the next one leads at once, when the work has stopped
			if i < 2 && f.leading.Load() != 1 {
				t.Errorf("after %d leaders have left, %d lead", i+1, f.leading.Load())
			}
		}
		if want := []string{"a", "b", "c"}; !slices.Equal(f.terms, want) || !slices.IsSorted(f.tokens) {
			t.Errorf("led by %v with tokens %v; want %v", f.terms, f.tokens, want)
		}
	})
}

func TestLeadCampaignsAgainAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Second))
		defer l.Close()
		f := &fleet{t: t}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		// The work takes longer to stop than it takes to win the next campaign.
		go func() { ended <- locker.Lead(ctx, l, "leader", f.work("a", 3*time.Second)) }()
		for range 3 {
			synctest.Wait()
			if l.Break(t.Context(), "leader") != nil {
				t.Error("nobody led")
			}
			time.Sleep(10 * time.Second)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Lead: %v", err)
		}
		if len(f.terms) != 4 || !slices.IsSorted(f.tokens) {
			t.Errorf("%d terms with tokens %v; want 4", len(f.terms), f.tokens)
		}
	})
}

func TestLeadRidesOutAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Second))
		defer l.Close()
		f := &fleet{t: t}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		heal := l.Cut() // an outage at the start
		go func() { ended <- locker.Lead(ctx, l, "leader", f.work("a", 0)) }()
		time.Sleep(time.Minute)
		heal()
		time.Sleep(2 * time.Second)
		if f.leading.Load() != 1 {
			t.Error("does not lead two seconds after the outage")
		}
		heal = l.Cut() // and one while it leads
		time.Sleep(time.Second)
		if f.leading.Load() != 0 {
			t.Error("leads although its lease is lost")
		}
		time.Sleep(time.Minute)
		heal()
		time.Sleep(2 * time.Second)
		if f.leading.Load() != 1 {
			t.Error("does not lead two seconds after the second outage")
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Lead: %v", err)
		}
	})
}

func TestLeadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Second))
		terms := 0
		err := locker.Lead(t.Context(), l, "leader", func(context.Context, *locker.Lease) error {
			if terms++; terms < 3 {
				return nil // stepped down: it leads again
			}
			return errWork
		})
		if !errors.Is(err, errWork) || terms != 3 {
			t.Errorf("Lead: %v after %d terms; want the error of the third", err, terms)
		}
		if lease, err := l.TryLock(t.Context(), "leader"); err != nil {
			t.Errorf("not unlocked after an error: %v", err)
		} else {
			_ = lease.Unlock()
		}
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		err = locker.Lead(ctx, l, "leader", func(ctx context.Context, _ *locker.Lease) error {
			cancel(cause)
			<-ctx.Done()
			return errWork // what went wrong on the way out is not lost
		})
		if !errors.Is(err, cause) || !errors.Is(err, errWork) {
			t.Errorf("Lead: %v; want the cause of its ctx and the error of the work", err)
		}
		work := func(context.Context, *locker.Lease) error { t.Error("called"); return nil }
		if err := locker.Lead(t.Context(), l, "", work); !errors.Is(err, locker.ErrInvalidKey) {
			t.Errorf("Lead without a key: %v", err)
		}
		if err := locker.Lead(t.Context(), l, "k", work, locker.TTL(1)); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("Lead with an invalid option: %v", err)
		}
		_ = l.Close()
		if err := locker.Lead(t.Context(), l, "k", work); !errors.Is(err, locker.ErrClosed) {
			t.Errorf("Lead with a closed Locker: %v", err)
		}
	})
}

// TestDoWithinDo locks another key with the context of a lease, all on one Client: what that context knows of its lease
// takes the mutex of the Client.
func TestDoWithinDo(t *testing.T) {
	l := memlock.New()
	err := locker.Do(t.Context(), l, "outer", func(ctx context.Context) error {
		return locker.Do(ctx, l, "inner", func(ctx context.Context) error {
			lease, err := l.TryLock(ctx, "innermost")
			if err != nil {
				return err
			}
			if err := l.Ping(ctx); err != nil {
				t.Error(err)
			}
			if key := locker.FromContext(ctx).Key(); key != "inner" {
				t.Errorf("FromContext: the lease of %q; want that of the inner Do", key)
			}
			return lease.Unlock()
		})
	})
	if err != nil {
		t.Error(err)
	}
}
