package conformance

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// TestUnusual proves that the suite refuses no backend that keeps the contract in a way of its own.
func TestUnusual(t *testing.T) {
	type unusual struct {
		name     string
		backend  func(*client) locker.Backend
		features Features
	}
	for _, test := range sampled(t, []unusual{
		{name: "TTLs in whole seconds, others refused", backend: func(c *client) locker.Backend { return wholeSeconds{queued{c}} }},
		{name: "TTLs in whole seconds, and the one granted told", backend: func(c *client) locker.Backend { return roundsUp{queued{c}} }},
		{
			name:     "no line",
			backend:  func(c *client) locker.Backend { return c },
			features: Features{Unordered: "there is no line"},
		},
		{
			name:     "no line, and nothing told of the holder",
			backend:  func(c *client) locker.Backend { return justLocked{c} },
			features: Features{Unordered: "there is no line"},
		},
		{name: "a far store", backend: func(c *client) locker.Backend { return far{queued{c}, 15 * time.Millisecond} }},
		{name: "leases kept alive ahead of time", backend: func(c *client) locker.Backend { return keepsAhead{newRenewsAhead(c)} }},
		{name: "a session, of whose leases some end", backend: func(c *client) locker.Backend { return newSession(c) }},
		{name: "no renewal at the last moment", backend: func(c *client) locker.Backend { return tooLate{queued{c}} }},
		{name: "one request for each renewal", backend: func(c *client) locker.Backend { return renewsApart{queued{c}} }},
	}, 4) {
		t.Run(test.name, func(t *testing.T) {
			d := defect{backend: func(_ *testing.T, c *client) locker.Backend { return test.backend(c) }}
			h := d.harness()
			h.Features = test.features
			h = h.withDefaults()
			rep := newReport(t.Name(), h)
			serialFirst(t, func(serial bool) {
				for _, group := range groups() {
					for _, r := range group.rules {
						if res := rep.of(group, r); r.serial == serial {
							t.Run(res.name, func(t *testing.T) { r.test(t, h, rep, res) })
						}
					}
				}
			})
		})
	}
}

// wholeSeconds refuses what it cannot keep.
type wholeSeconds struct{ queued }

func (wholeSeconds) check(r locker.Request) error {
	if r.TTL%time.Second != 0 {
		return fmt.Errorf("%w: TTL(%v) is not in whole seconds", locker.ErrInvalidOption, r.TTL)
	}
	return nil
}

func (b wholeSeconds) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	return b.queued.Acquire(ctx, r)
}

func (b wholeSeconds) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if err := b.check(r); err != nil {
		return locker.Grant{}, err
	}
	return b.queued.Wait(ctx, r)
}

// roundsUp tells what it makes of a TTL.
type roundsUp struct{ queued }

func inSeconds(r locker.Request) locker.Request {
	if r.TTL%time.Second != 0 {
		r.TTL = r.TTL.Truncate(time.Second) + time.Second
	}
	return r
}

func (b roundsUp) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.queued.Acquire(ctx, inSeconds(r))
}

func (b roundsUp) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.queued.Wait(ctx, inSeconds(r))
}

func (b roundsUp) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	gs = slices.Clone(gs)
	for i := range gs {
		gs[i].Request = inSeconds(gs[i].Request)
	}
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		r.TTL = gs[i].TTL
		done(i, r)
	})
}

// justLocked does not know who holds a key, nor for how long.
type justLocked struct{ *client }

func (b justLocked) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	if _, held := err.(*locker.Held); held { //nolint:errorlint // it is returned as it is
		err = locker.ErrLocked
	}
	return g, err
}

// far is a store whose answers take a while.
type far struct {
	queued
	delay time.Duration
}

// answered waits for the answer.
func (b far) answered(ctx context.Context) error {
	select {
	case <-time.After(b.delay):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b far) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	sent := time.Now()
	g, err := b.queued.Acquire(ctx, r)
	if late := b.answered(ctx); late != nil {
		return locker.Grant{}, late
	}
	g.Sent = sent
	return g, err
}

func (b far) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if late := b.answered(ctx); late != nil {
		return locker.Grant{}, late
	}
	return g, err
}

func (b far) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.queued.Renew(ctx, gs, func(i int, r locker.Renewal) {
		if i == 0 {
			if late := b.answered(ctx); late != nil {
				return
			}
		}
		done(i, r)
	})
}

func (b far) Release(ctx context.Context, g locker.Grant) error {
	err := b.queued.Release(ctx, g)
	if late := b.answered(ctx); late != nil {
		return late
	}
	return err
}

// keepsAhead is renewsAhead that counts from when a renewal was sent.
type keepsAhead struct{ *renewsAhead }

func (b keepsAhead) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.renewsAhead.fromSent.Store(true)
	b.renewsAhead.Renew(ctx, gs, done)
}

// tooLate sends no renewal that might come too late: it says until when the lease lasts without.
type tooLate struct{ queued }

func (b tooLate) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	sent := time.Now()
	g, err := b.queued.Acquire(ctx, r)
	g.Sent = sent
	return g, err
}

func (b tooLate) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	isLate := func(g locker.Grant) bool { age := time.Since(g.Sent); return age >= g.TTL*19/20 && age < g.TTL }
	if len(gs) == 1 && isLate(gs[0]) {
		done(0, locker.Renewal{Sent: gs[0].Sent})
		return
	}
	b.queued.Renew(ctx, gs, done)
}

// session keeps all of its leases alive for as long as it renews one, until it is told that they have ended.
type session struct {
	queued
	mu     sync.Mutex
	grants map[locker.Owner]locker.Grant
}

func newSession(c *client) *session {
	return &session{queued: queued{c}, grants: make(map[locker.Owner]locker.Grant)}
}

func (*session) Features() locker.Features { return locker.Features{Queue: true, Expirer: true} }

func (b *session) note(g locker.Grant, err error) (locker.Grant, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.grants[g.Owner] = g
	}
	return g, err
}

func (b *session) forget(g locker.Grant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.grants, g.Owner)
}

func (b *session) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.note(b.queued.Acquire(ctx, r))
}

func (b *session) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	return b.note(b.queued.Wait(ctx, r))
}

func (b *session) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.mu.Lock()
	var others []locker.Grant
	for _, g := range b.grants {
		if !slices.ContainsFunc(gs, func(of locker.Grant) bool { return of.Owner == g.Owner }) {
			others = append(others, g)
		}
	}
	b.mu.Unlock()
	n := len(gs)
	b.queued.Renew(ctx, slices.Concat(gs, others), func(i int, r locker.Renewal) {
		if i < n {
			done(i, r)
		}
	})
}

func (b *session) Release(ctx context.Context, g locker.Grant) error {
	b.forget(g)
	return b.queued.Release(ctx, g)
}

func (b *session) Expired(gs []locker.Grant) {
	for _, g := range gs {
		b.forget(g)
		_ = b.queued.Release(context.Background(), g)
	}
}

// renewsApart renews each lease by a request of its own.
type renewsApart struct{ queued }

func (b renewsApart) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	var requests sync.WaitGroup
	for i := range gs {
		requests.Go(func() { b.queued.Renew(ctx, gs[i:i+1], func(_ int, r locker.Renewal) { done(i, r) }) })
	}
	requests.Wait()
}
