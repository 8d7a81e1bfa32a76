package conformance

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/lockerkit/locker"
)

// TestTransientErrors: that a request fails now and then is no defect of a backend, whether or not the store has
// carried it out.
func TestTransientErrors(t *testing.T) {
	t.Parallel()
	for _, r := range backendRules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			d := defect{backend: func(_ *testing.T, c *client) locker.Backend { return &failsAtTimes{queued: queued{c}} }}
			for _, p := range d.problems(t, "backend/"+r.name) {
				t.Error(p)
			}
		})
	}
}

// failsAtTimes fails at every fifth request: by turns before and after the store has been asked.
type failsAtTimes struct {
	queued
	requests atomic.Int64
}

func (b *failsAtTimes) fails(request func()) error {
	n := b.requests.Add(1)
	if n%10 != 5 {
		request()
	}
	if n%5 == 0 {
		return errReset
	}
	return nil
}

func (b *failsAtTimes) Acquire(ctx context.Context, r locker.Request) (g locker.Grant, err error) {
	if failure := b.fails(func() { g, err = b.queued.Acquire(ctx, r) }); failure != nil {
		return locker.Grant{}, failure
	}
	return g, err
}

func (b *failsAtTimes) Release(ctx context.Context, g locker.Grant) (err error) {
	if failure := b.fails(func() { err = b.queued.Release(ctx, g) }); failure != nil {
		return failure
	}
	return err
}

func (b *failsAtTimes) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	results := make([]locker.Renewal, len(gs))
	failure := b.fails(func() { b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) { results[i] = r }) })
	for i, r := range results {
		if failure != nil {
			r.Err = failure
		}
		done(i, r)
	}
}
