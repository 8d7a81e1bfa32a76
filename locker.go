package locker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Locker hands out leases on named keys. It is safe for concurrent use. A key is any 1 to MaxKeyLen bytes.
type Locker interface {
	// Lock waits until the key is free and this caller's turn has come, and returns the lease of it. ctx bounds
	// the wait and nothing else: the lease does not end with it. Locks are not reentrant: a second Lock of a key
	// that this same Locker holds waits like any other.
	//
	// When ctx ends, Lock returns its cause at once, naming the holder where the store knows it, and nothing stays
	// locked. If the store fails, or does not answer (mostly within the TTL; each backend says how long that takes), Lock returns
	// that error; Lead is the one that rides out an outage. Also ErrClosed, ErrInvalidKey and ErrInvalidOption.
	Lock(ctx context.Context, key string, opts ...Option) (*Lease, error)

	// TryLock makes one attempt and does not wait: it returns ErrLocked when the key has a holder, or others who
	// wait in line for it, and every other error as Lock does. When ctx ends before the store has answered, it returns the
	// cause of ctx at once, and nothing stays locked.
	TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error)

	// Close fails those who wait with ErrClosed, unlocks what is held, waits for clean-up that is under way, and
	// frees the resources that the Locker itself opened. With a store that answers it takes a round trip; with one that
	// hangs no longer than the leases it unlocks are valid, plus one TTL, plus what the backend takes (redislock: at
	// most two seconds). It returns what could not be unlocked. A second Close waits for the first and returns nil;
	// any later Lock returns ErrClosed.
	Close() error
}

// New makes a Locker of a Backend. The options are the defaults for its leases; invalid ones are reported by the
// first Lock or TryLock. Backends in this module have constructors of their own that call New.
func New(b Backend, opts ...Option) Locker {
	c := &core{backend: b, name: fmt.Sprintf("%T", b), done: make(chan struct{})}
	if s, ok := b.(fmt.Stringer); ok {
		c.name = s.String()
	}
	c.queue, _ = b.(Queue)
	_, c.heeds = b.(HeedsContext)
	c.life, c.end = context.WithCancel(context.Background())
	c.defaults, c.invalid = defaults(opts)
	return c
}

// core is the portable half: the Locker of every Backend.
type core struct {
	backend  Backend
	queue    Queue  // nil if the backend has no waiting line
	name     string // of the backend, for errors
	heeds    bool   // its calls return when their ctx ends
	defaults settings
	invalid  error              // of the options passed to New
	life     context.Context    // ends when Close begins
	end      context.CancelFunc // ends life
	done     chan struct{}      // closed when Close has ended

	// mu guards what follows and the state of every Lease. It is never held while the backend is called, so
	// no method of a Lease waits for the store, Unlock excepted.
	mu     sync.Mutex
	closed bool
	schedule

	// calls counts the calls of users and the work they left behind. Add from zero happens under mu while not
	// closed, so that Close, which sets closed first, can wait for it.
	calls sync.WaitGroup
}

const (
	opLock    = "lock"
	opTryLock = "trylock"
	opUnlock  = "unlock"
	opLease   = "lease"
	opClose   = "close"
)

func (c *core) Lock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.acquire(ctx, opLock, key, opts)
}

func (c *core) TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.acquire(ctx, opTryLock, key, opts)
}

// acquire is Lock and TryLock: it checks everything that can be checked without the store, then tries or waits.
func (c *core) acquire(ctx context.Context, op, key string, opts []Option) (*Lease, error) {
	l, err := c.prepare(key, opts)
	if err != nil {
		return nil, c.fail(op, key, err)
	}
	if ctx.Err() != nil {
		return nil, c.fail(op, key, context.Cause(ctx))
	}
	if err := c.enter(); err != nil {
		return nil, c.fail(op, key, err)
	}
	defer c.calls.Done()

	if op == opTryLock {
		err = c.try(ctx, l)
	} else {
		err = c.wait(ctx, l)
	}
	if err != nil {
		e := c.fail(op, key, err)
		if e.Holder == "" && op == opLock {
			e.Holder = l.waitedFor()
		}
		return nil, e
	}
	return l, nil
}

// prepare checks options and key, and returns a Lease to be acquired.
func (c *core) prepare(key string, opts []Option) (*Lease, error) {
	if c.invalid != nil {
		return nil, c.invalid
	}
	s := c.defaults
	if len(opts) > 0 {
		var err error
		if s, err = s.with(opts); err != nil {
			return nil, err
		}
	}
	if key == "" || len(key) > MaxKeyLen {
		return nil, fmt.Errorf("%w: %d bytes long, must be 1 to %d", ErrInvalidKey, len(key), MaxKeyLen)
	}
	l := &Lease{core: c, noRenew: s.noRenew, index: unscheduled}
	l.grant.Request = Request{Prefix: s.prefix, Key: key, Owner: newOwner(), Holder: s.holder, TTL: s.ttl, NoRenew: s.noRenew, lease: l}
	return l, nil
}

// enter counts a call that Close has to wait for; calls.Done ends it.
func (c *core) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.calls.Add(1)
	return nil
}

func (c *core) fail(op, key string, err error) *Error {
	return &Error{Op: op, Key: key, Backend: c.name, Holder: holderOf(err), Err: err}
}

// Close implements Locker.
func (c *core) Close() error {
	c.end() // first the waiters, so that none is granted what is unlocked next

	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.closed = true
	defer close(c.done)
	held := append([]*Lease(nil), c.schedule.leases...)
	ends := make([]ending, len(held))
	for i, l := range held {
		ends[i] = l.endLocked(ErrUnlocked)
	}
	c.schedule.stop()
	c.mu.Unlock()
	announce(ends)

	errs := make([]error, len(held)+1)
	parallel(len(held), func(i int) { errs[i] = held[i].release(time.Until(held[i].deadline)) })

	idle := make(chan struct{})
	go func() { c.calls.Wait(); close(idle) }()
	// A client that ignores its ctx must not hold up the process for ever.
	patience := time.NewTimer(c.defaults.ttl)
	defer patience.Stop()
	select {
	case <-idle:
	case <-patience.C:
	}
	if err := c.backend.Close(); err != nil {
		errs[len(held)] = c.fail(opClose, "", err)
	}
	return errors.Join(errs...)
}

// parallel calls f(0) to f(n-1) from a bounded number of goroutines: enough for a pipelining client to put
// many releases into each round trip.
func parallel(n int, f func(int)) {
	const most = 256
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range min(n, most) {
		wg.Go(func() {
			for i := taken.Add(1) - 1; i < int64(n); i = taken.Add(1) - 1 {
				f(int(i))
			}
		})
	}
	wg.Wait()
}
