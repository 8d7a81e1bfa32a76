package locker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// lockFunc is Lock or TryLock.
type lockFunc = func(context.Context, string, ...locker.CallOption) (*locker.Lease, error)

// fake is a Backend whose calls can be replaced and are recorded. It grants everything.
type fake struct {
	acquire func(context.Context, locker.Request) (locker.Grant, error)
	renew   func(context.Context, []locker.Grant) []error // all results at once
	renewal func(context.Context, []locker.Grant, func(int, locker.Renewal))
	release func(context.Context, locker.Grant) error

	mu       sync.Mutex
	acquired []locker.Request
	renewed  [][]locker.Grant
	renewals []time.Time
	released []locker.Grant
	releases []time.Time
	closed   int
	token    uint64
}

func (f *fake) String() string { return "fake" }

func (f *fake) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	f.mu.Lock()
	f.acquired = append(f.acquired, r)
	f.mu.Unlock()
	if f.acquire != nil {
		return f.acquire(ctx, r)
	}
	return f.grant(r), nil
}

func (f *fake) grant(r locker.Request) locker.Grant {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.token++
	return locker.Grant{Request: r, Token: f.token}
}

func (f *fake) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	f.mu.Lock()
	f.renewed = append(f.renewed, gs)
	f.renewals = append(f.renewals, time.Now())
	f.mu.Unlock()
	if f.renewal != nil {
		f.renewal(ctx, gs, done)
		return
	}
	errs := make([]error, len(gs))
	if f.renew != nil {
		errs = f.renew(ctx, gs)
	}
	for i, err := range errs {
		done(i, locker.Renewal{Err: err})
	}
}

func (f *fake) Release(ctx context.Context, g locker.Grant) error {
	f.mu.Lock()
	f.released = append(f.released, g)
	f.releases = append(f.releases, time.Now())
	f.mu.Unlock()
	if f.release != nil {
		return f.release(ctx, g)
	}
	return nil
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

// calls returns how often Acquire, Renew and Release have been called.
func (f *fake) calls() (acquired, renewed, released int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.acquired), len(f.renewed), len(f.released)
}

// unreleased returns how many owners have asked for locks, and nothing was released of them.
func (f *fake) unreleased() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	owners := make(map[locker.Owner]bool)
	for _, r := range f.acquired {
		owners[r.Owner] = true
	}
	for _, g := range f.released {
		delete(owners, g.Owner)
	}
	return len(owners)
}

// validity is for how long a lease is trusted: its TTL less 1 % and 2 ms.
func validity(ttl time.Duration) time.Duration { return ttl - ttl/100 - 2*time.Millisecond }

var errFault = errors.New("the store has a fault")

// inFakeTime runs the test with a Locker over f, and closes it.
func inFakeTime(t *testing.T, f *fake, body func(t *testing.T, l *locker.Client), opts ...locker.Option) {
	t.Helper()
	inFakeTimeOn(t, f, body, opts...)
}

// inFakeTimeOn is inFakeTime with what a fake is in.
func inFakeTimeOn(
	t *testing.T, b locker.Backend, body func(t *testing.T, l *locker.Client), opts ...locker.Option,
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(b, append([]locker.Option{locker.TTL(time.Second)}, opts...)...)
		body(t, l)
		if err := l.Close(); err != nil && !errors.Is(err, errFault) {
			t.Errorf("Close: %v", err)
		}
		time.Sleep(time.Hour) // calls that heed no ctx come to their end
	})
}

func mustLock(t *testing.T, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := l.TryLock(t.Context(), key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// hang waits until ctx ends.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// refuse makes f refuse so many attempts before it grants.
func refuse(f *fake, times int, held error) {
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		if n, _, _ := f.calls(); n <= times {
			return locker.Grant{}, held
		}
		return f.grant(r), nil
	}
}
