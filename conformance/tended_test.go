package conformance

import (
	"context"
	"sync"

	"github.com/lockerkit/locker"
)

// tended is a backend that does something about each lock for as long as somebody has it.
type tended struct {
	queued
	tend func(locker.Grant) func(context.Context) // what is done until ctx ends: when the lock is released, or expires

	mu      sync.Mutex
	ends    map[locker.Owner]context.CancelFunc
	tending sync.WaitGroup
}

func newTended(c *client, tend func(locker.Grant) func(context.Context)) *tended {
	return &tended{queued: queued{c}, tend: tend, ends: make(map[locker.Owner]context.CancelFunc)}
}

func (b *tended) Features() locker.Features {
	f := b.queued.Features()
	f.Expirer = true
	return f
}

func (b *tended) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if err == nil {
		b.begin(g)
	}
	return g, err
}

func (b *tended) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Wait(ctx, r)
	if err == nil {
		b.begin(g)
	}
	return g, err
}

func (b *tended) begin(g locker.Grant) {
	ctx, end := context.WithCancel(context.Background())
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ends[g.Owner] != nil {
		end()
		return
	}
	b.ends[g.Owner] = end
	work := b.tend(g)
	b.tending.Go(func() { work(ctx) })
}

func (b *tended) end(owner locker.Owner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if end := b.ends[owner]; end != nil {
		end()
	}
}

func (b *tended) Release(ctx context.Context, g locker.Grant) error {
	b.end(g.Owner)
	return b.queued.Release(ctx, g)
}

// Expired ends what nobody would: the store may have got a renewal of which the Locker was told too late.
func (b *tended) Expired(gs []locker.Grant) {
	for _, g := range gs {
		b.end(g.Owner)
	}
}

func (b *tended) Close() error {
	b.mu.Lock()
	for _, end := range b.ends {
		end()
	}
	b.mu.Unlock()
	b.tending.Wait()
	return b.queued.Close()
}
