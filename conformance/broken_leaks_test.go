package conformance

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// leakDefects leave something behind with Close, or with each thing that they do.
var leakDefects = slices.Concat(fileDefects(), []defect{
	{
		name: "a goroutine for each lock",
		backend: func(t *testing.T, c *client) locker.Backend {
			return leaksMore{queued{c}, newLeak(t), onAcquire, false}
		},
		caught: []string{"close/LeaksNothingWhileOpen"},
		fine:   []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
	{
		name: "a goroutine for each refusal",
		backend: func(t *testing.T, c *client) locker.Backend {
			return leaksMore{queued{c}, newLeak(t), onRefusal, false}
		},
		caught: []string{"close/LeaksNothingWhileOpen"},
		fine:   []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
	{
		name: "a goroutine for each renewal",
		backend: func(t *testing.T, c *client) locker.Backend {
			return leaksMore{queued{c}, newLeak(t), onRenewal, false}
		},
		caught: []string{"close/LeaksNothingWhileOpen"},
		fine:   []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
	{
		name:    "a goroutine for each wait",
		backend: func(t *testing.T, c *client) locker.Backend { return leaksMore{queued{c}, newLeak(t), onWait, false} },
		caught:  []string{"close/LeaksNothingWhileOpen"},
		fine:    []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
	{
		name:    "a goroutine for each wait that is cancelled",
		backend: func(t *testing.T, c *client) locker.Backend { return leaksMore{queued{c}, newLeak(t), onCancel, false} },
		caught:  []string{"close/LeaksNothingWhileOpen"},
		fine:    []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
	{
		name: "a goroutine for each lease that is lost",
		backend: func(t *testing.T, c *client) locker.Backend {
			return &watchesLeases{queued: queued{c}, leak: newLeak(t)}
		},
		caught: []string{"close/LeaksNothingWhileOpen"},
		fine:   []string{"close/LeaksNothing", "close/UnlocksHeld", "exclusion/OneHolder"},
	},
})

// fileDefects are about open files, where the system tells how many there are.
func fileDefects() []defect {
	if openFiles() == 0 {
		return nil
	}
	return []defect{
		{
			name: "Close leaves a connection open",
			backend: func(t *testing.T, c *client) locker.Backend {
				newLeak(t).openFile()
				return queued{c}
			},
			caught: []string{"close/LeaksNothing"},
			fine:   []string{"close/LeaksNothingWhileOpen", "close/UnlocksHeld", "close/Idempotent", "exclusion/OneHolder"},
		},
		{
			name:    "a connection for each lock",
			backend: func(t *testing.T, c *client) locker.Backend { return leaksMore{queued{c}, newLeak(t), onAcquire, true} },
			caught:  []string{"close/LeaksNothingWhileOpen", "close/LeaksNothing"},
			fine:    []string{"close/UnlocksHeld", "exclusion/OneHolder"},
		},
		{
			name:    "a connection for each wait that is cancelled",
			backend: func(t *testing.T, c *client) locker.Backend { return leaksMore{queued{c}, newLeak(t), onCancel, true} },
			caught:  []string{"close/LeaksNothingWhileOpen", "close/LeaksNothing"},
			fine:    []string{"close/UnlocksHeld", "exclusion/OneHolder"},
		},
	}
}

// leak is what has leaked. Goroutines end with Close, as a backend's should; files stay open until the test is over.
type leak struct {
	t       *testing.T
	running sync.WaitGroup
	end     chan struct{}
}

func newLeak(t *testing.T) *leak { return &leak{t: t, end: make(chan struct{})} }

func (l *leak) goroutine() { l.running.Go(func() { <-l.end }) }

func (l *leak) openFile() {
	f, err := os.Open(os.DevNull)
	if err != nil {
		l.t.Error(err)
		return
	}
	l.t.Cleanup(func() { _ = f.Close() })
}

func (l *leak) close() {
	close(l.end)
	l.running.Wait()
}

// leakWhen is what leaks.
type leakWhen int

const (
	onAcquire leakWhen = iota
	onRefusal
	onRenewal
	onWait
	onCancel
)

// leaksMore leaks something each time.
type leaksMore struct {
	queued
	leak  *leak
	when  leakWhen
	files bool
}

func (b leaksMore) leaks(when leakWhen) {
	switch {
	case when != b.when:
	case b.files:
		b.leak.openFile()
	default:
		b.leak.goroutine()
	}
}

func (b leaksMore) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if err == nil {
		b.leaks(onAcquire)
	} else {
		b.leaks(onRefusal)
	}
	return g, err
}

func (b leaksMore) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.leaks(onRenewal)
	b.queued.Renew(ctx, gs, done)
}

func (b leaksMore) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	b.leaks(onWait)
	g, err := b.queued.Wait(ctx, r)
	if ctx.Err() != nil {
		b.leaks(onCancel)
	}
	return g, err
}

func (b leaksMore) Close() error {
	b.leak.close()
	return b.queued.Close()
}

// watchesLeases has a goroutine for each lease, until it is released.
type watchesLeases struct {
	queued
	leak    *leak
	mu      sync.Mutex
	watched map[locker.Owner]chan struct{}
}

func (b *watchesLeases) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.queued.Acquire(ctx, r)
	if err == nil {
		released := make(chan struct{})
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.watched == nil {
			b.watched = make(map[locker.Owner]chan struct{})
		}
		b.watched[r.Owner] = released
		b.leak.running.Go(func() {
			select {
			case <-released:
			case <-b.leak.end:
			}
		})
	}
	return g, err
}

func (b *watchesLeases) Release(ctx context.Context, g locker.Grant) error {
	b.mu.Lock()
	if released := b.watched[g.Owner]; released != nil {
		close(released)
		delete(b.watched, g.Owner)
	}
	b.mu.Unlock()
	return b.queued.Release(ctx, g)
}

func (b *watchesLeases) Close() error {
	b.leak.close()
	return b.queued.Close()
}

// moreTokenDefects forget tokens, or count them in another way than by key.
var moreTokenDefects = []defect{
	{
		name:   "tokens forgotten after some seconds",
		store:  func(s *store) { (&countsKeys{lasts: 7 * time.Second}).install(s) },
		caught: []string{"fencing/Remembered"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/StaleWriterIsRefused", "fencing/FollowsName", "exclusion/OneHolder",
		},
	},
	{
		name:   "tokens forgotten with the hundredth key",
		store:  func(s *store) { (&countsKeys{most: 100}).install(s) },
		caught: []string{"fencing/Remembered"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/StaleWriterIsRefused", "fencing/FollowsName", "exclusion/OneHolder",
		},
	},
	{
		name:   "tokens forgotten with the thousandth key",
		store:  func(s *store) { (&countsKeys{most: 1000}).install(s) },
		caught: []string{"fencing/Remembered"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/StaleWriterIsRefused", "fencing/FollowsName", "exclusion/OneHolder",
		},
	},
	{
		name: "tokens counted by prefix and key",
		store: func(s *store) {
			(&countsKeys{nameOf: func(r locker.Request) string { return r.Prefix + "\x00" + r.Key }}).install(s)
		},
		caught: []string{"fencing/FollowsName"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/Remembered", "fencing/StaleWriterIsRefused", "exclusion/PrefixIsolates",
		},
	},
	{
		name:   "tokens counted by prefix",
		store:  func(s *store) { (&countsKeys{nameOf: func(r locker.Request) string { return r.Prefix }}).install(s) },
		caught: []string{"fencing/FollowsName"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/Remembered", "fencing/StaleWriterIsRefused", "exclusion/PrefixIsolates",
		},
	},
	{
		name: "tokens counted by the key's last part",
		store: func(s *store) {
			(&countsKeys{nameOf: func(r locker.Request) string { return r.Key[strings.LastIndex(r.Key, "/")+1:] }}).install(s)
		},
		caught: []string{"fencing/FollowsName"},
		fine:   []string{"fencing/StrictlyIncreasing", "fencing/Remembered", "fencing/StaleWriterIsRefused"},
	},
	{
		name:   "tokens of 16 bits",
		store:  func(s *store) { s.mint = func(last uint64) uint64 { return uint64(uint16(last) + 1) } },
		caught: []string{"fencing/NeverWraps"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/Remembered", "fencing/StaleWriterIsRefused", "exclusion/OneHolder",
		},
	},
	{
		name:   "tokens of 16 bits with a sign",
		store:  func(s *store) { s.mint = func(last uint64) uint64 { return uint64(int16(last) + 1) } },
		caught: []string{"fencing/NeverWraps"},
		fine:   []string{"fencing/StrictlyIncreasing", "fencing/StaleWriterIsRefused", "exclusion/OneHolder"},
	},
	{
		name:   "tokens of 8 bits for each key",
		store:  func(s *store) { (&countsKeys{bits: 8}).install(s) },
		caught: []string{"fencing/NeverWraps"},
		fine: []string{
			"fencing/StrictlyIncreasing", "fencing/Remembered", "fencing/StaleWriterIsRefused", "exclusion/OneHolder",
		},
	},
	{
		name:    "tokens forgotten with Close",
		store:   func(s *store) { new(countsKeys).install(s) },
		backend: func(_ *testing.T, c *client) locker.Backend { return &forgetsOnClose{queued: queued{c}} },
		caught:  []string{"fencing/Remembered"},
		fine:    []string{"fencing/StaleWriterIsRefused", "fencing/NeverWraps", "exclusion/OneHolder"},
	},
}

// countsKeys has a count of tokens for each key, or what it takes for one.
type countsKeys struct {
	nameOf func(locker.Request) string
	lasts  time.Duration // since it was last used; zero is for ever
	most   int           // counts; zero means any number
	bits   int           // of a token; zero means 64
	counts map[string]*count
	order  []string // of their first use
}

type count struct {
	last uint64
	used time.Time
}

// install has the store mint in this way.
func (k *countsKeys) install(s *store) {
	if k.nameOf == nil {
		k.nameOf = locker.Request.Name
	}
	k.counts = make(map[string]*count)
	s.counts = k
}

func (k *countsKeys) mint(r locker.Request) uint64 {
	name := k.nameOf(r)
	c := k.counts[name]
	if c == nil || k.lasts > 0 && time.Since(c.used) > k.lasts {
		if k.most > 0 && len(k.order) == k.most {
			delete(k.counts, k.order[0])
			k.order = k.order[1:]
		}
		c = new(count)
		k.counts[name] = c
		k.order = append(k.order, name)
	}
	c.used = time.Now()
	if c.last++; k.bits > 0 && c.last == 1<<k.bits {
		c.last = 1
	}
	return c.last
}

// forgetsOnClose takes along the counts of the keys that it has locked.
type forgetsOnClose struct {
	queued
	mu     sync.Mutex
	locked []string
}

func (b *forgetsOnClose) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	b.mu.Lock()
	b.locked = append(b.locked, r.Name())
	b.mu.Unlock()
	return b.queued.Acquire(ctx, r)
}

func (b *forgetsOnClose) Close() error {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for _, name := range b.locked {
		delete(b.store.counts.counts, name)
	}
	return b.queued.Close()
}
