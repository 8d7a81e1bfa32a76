package peers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// library is another library, as a Backend of ours needs it.
type library interface {
	// tryLock makes one attempt, in the manner of the library. It returns errHeld if somebody else has the key. What it
	// returns beside another error is asked to unlock, as the lock may have been granted.
	tryLock(ctx context.Context, r locker.Request) (hold, error)

	// close frees what the library has opened.
	close() error
}

// waiter is a library that waits better than by asking again.
type waiter interface {
	lock(ctx context.Context, r locker.Request) (hold, error)
}

// numbered is a hold of a library that has a number for it which grows from holder to holder.
type numbered interface {
	hold
	token() uint64
}

// lasting is a hold of a library that decides itself for how long it is valid without a renewal.
type lasting interface {
	hold
	validity() time.Duration // zero if it is as requested
}

// backend is a library wrapped as a locker.Backend, as somebody would who wants its locks in package locker.
//
// What it lends to the library is the map from owners to holds, so that an owner who asks again finds what it has,
// and a stranger to this process nothing; and, where the library has no number for a holder, one that this process
// counts. All else is the library's: whether a lock is free, whose it is, and until when. If it renews by itself, it
// is believed: what it does not report as lost counts as held.
//
// Holds whose lease ends by itself stay in the map, but for those of sessions: a wrapper lives no longer than a test.
type backend struct {
	name    string
	wrapped library
	waiter  waiter // nil if the library has no way to wait of its own
	holds   sync.Map
	count   atomic.Uint64
}

// held is what the map has for an owner.
type held struct {
	hold
	token uint64
}

var (
	_ locker.Backend = (*backend)(nil)
	_ locker.Queue   = (*backend)(nil)
	_ locker.Expirer = sessions{}
)

func newBackend(name string, l library) *backend {
	b := &backend{name: name, wrapped: l}
	b.waiter, _ = l.(waiter)
	return b
}

func (b *backend) String() string { return b.name }

func (b *backend) Features() locker.Features { return locker.Features{Queue: b.waiter != nil} }

func (b *backend) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	if g, ok := b.again(ctx, r); ok {
		return g, nil
	}
	h, err := b.wrapped.tryLock(ctx, r)
	return b.granted(r, h, err)
}

// again answers an owner who asks for what it has.
func (b *backend) again(ctx context.Context, r locker.Request) (g locker.Grant, ok bool) {
	v, ok := b.holds.Load(r.Owner)
	if !ok {
		return g, false
	}
	h := v.(held)
	if h.token == 0 || h.extend(ctx, r.TTL) != nil {
		return g, false
	}
	return locker.Grant{Token: h.token}, true
}

// granted notes the outcome of an attempt.
func (b *backend) granted(r locker.Request, h hold, err error) (g locker.Grant, _ error) {
	switch {
	case errors.Is(err, errHeld):
		return g, locker.ErrLocked
	case err != nil:
		if h != nil {
			b.holds.Store(r.Owner, held{h, 0})
		}
		return g, err
	}
	if n, ok := h.(numbered); ok {
		g.Token = n.token()
	} else {
		g.Token = b.count.Add(1)
	}
	b.holds.Store(r.Owner, held{h, g.Token})
	if own, ok := h.(lasting); ok {
		g.TTL = own.validity()
	}
	return g, nil
}

func (b *backend) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	try, cancel := context.WithTimeout(ctx, r.TTL) // as a TryLock has it
	defer cancel()
	h, err := b.wrapped.tryLock(try, r)
	if errors.Is(err, errHeld) {
		r.ReportHolder("")
		h, err = b.waiter.lock(ctx, r)
	}
	g, err := b.granted(r, h, err)
	g.Sent = time.Now() // the libraries that wait do not say when they asked for what they got
	return g, err
}

func (b *backend) Renew(ctx context.Context, gs []locker.Grant, done func(i int, r locker.Renewal)) {
	var wg sync.WaitGroup
	for i, g := range gs {
		wg.Go(func() {
			v, ok := b.holds.Load(g.Owner)
			if !ok {
				done(i, locker.Renewal{Err: locker.ErrLost})
				return
			}
			done(i, locker.Renewal{Err: lostIfNotHeld(v.(held).extend(ctx, g.TTL))})
		})
	}
	wg.Wait()
}

func (b *backend) Release(ctx context.Context, g locker.Grant) error {
	v, ok := b.holds.Load(g.Owner)
	if !ok {
		return locker.ErrLost
	}
	err := lostIfNotHeld(v.(held).unlock(ctx))
	if err == nil || errors.Is(err, locker.ErrLost) {
		b.holds.Delete(g.Owner)
	}
	return err
}

func (b *backend) Close() error { return b.wrapped.close() }

func lostIfNotHeld(err error) error {
	if errors.Is(err, errNotHeld) {
		return locker.ErrLost
	}
	return err
}

// sessions is the backend of a library whose holds outlive their leases, if nobody ends them.
type sessions struct{ *backend }

func (b sessions) Features() locker.Features {
	f := b.backend.Features()
	f.Expirer = true
	return f
}

// Expired ends what holds a lock whose lease has ended.
func (b sessions) Expired(gs []locker.Grant) {
	for _, g := range gs {
		if v, ok := b.holds.LoadAndDelete(g.Owner); ok {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), g.TTL)
				defer cancel()
				_ = v.(held).unlock(ctx)
			}()
		}
	}
}
