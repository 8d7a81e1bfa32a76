package locker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// Client is the Locker of every Backend. Constructors of backends return it.
type Client struct {
	backend  Backend
	queue    Queue    // nil if the backend has no waiting line
	expirer  Expirer  // nil if the backend need not be told of leases that end by themselves
	features Features // as the backend states them
	name     string   // of the backend, for errors
	defaults settings

	inspector Inspector // nil if the backend cannot tell who has a lock
	revoker   Revoker   // nil if it cannot take one away
	adopter   Adopter   // nil if it cannot change the owner of one

	invalid error              // why nothing can be locked: of the options or the Backend passed to New
	life    context.Context    // ends when Close begins
	end     context.CancelFunc // ends life
	done    chan struct{}      // closed when Close has ended

	acquires, releases, renewals unanswered // calls of the backend that outlast their use
	cleanup                      cleanup
	news                         news

	// mu guards what follows and the state of every Lease. It is never held while the backend is called, so
	// no method of a Lease waits for the store, Unlock excepted.
	mu      sync.Mutex
	closed  bool
	working map[*Lease]struct{} // those under which the work of Do, DoAll or Lead goes on
	schedule

	// calls counts the calls of users and the work they left behind. Add from zero happens under mu while not
	// closed, so that Close, which sets closed first, can wait for it.
	calls sync.WaitGroup
}

var _ Locker = (*Client)(nil)

// New makes a Client of a Backend. The options are the defaults for its leases. It does not ask the store anything.
//
// New returns no error: what is wrong with b or opts is reported by the first Lock, TryLock or Ping, as
// ErrInvalidOption. Backends in this module have constructors of their own that call New.
func New(b Backend, opts ...Option) *Client {
	c := &Client{backend: b, done: make(chan struct{})}
	c.life, c.end = context.WithCancel(context.Background())
	c.defaults, c.invalid = defaults(opts)
	if isNil(b) {
		c.backend, c.name = noBackend{}, "no store"
		c.invalid = errors.Join(fmt.Errorf("%w: New(nil): there is no backend", ErrInvalidOption), c.invalid)
		return c
	}
	c.name = fmt.Sprintf("%T", b)
	if s, ok := b.(fmt.Stringer); ok {
		c.name = s.String()
	}
	if err := c.learnFeatures(); err != nil {
		c.invalid = errors.Join(err, c.invalid)
	}
	return c
}

// isNil reports whether b is nil, or a nil pointer.
func isNil(b Backend) bool {
	v := reflect.ValueOf(b)
	return b == nil || v.Kind() == reflect.Pointer && v.IsNil()
}

// noBackend stands for the Backend that New was not given.
type noBackend struct{ Backend }

func (noBackend) Close() error { return nil }

// learnFeatures notes what the backend states, and checks that the methods for it are there.
func (c *Client) learnFeatures() error {
	f, ok := c.backend.(interface{ Features() Features })
	if !ok {
		return nil
	}
	c.features = f.Features()
	return errors.Join(
		learn(c, &c.queue, c.features.Queue, "Queue", "method Wait"),
		learn(c, &c.expirer, c.features.Expirer, "Expirer", "method Expired"),
		learn(c, &c.inspector, c.features.Inspect, "Inspect", "methods Inspect and List"),
		learn(c, &c.revoker, c.features.Revoke, "Revoke", "methods Revoke and Break"),
		learn(c, &c.adopter, c.features.Adopt, "Adopt", "method Adopt"),
	)
}

// learn notes that the backend has what goes with a feature, if it states that, or returns what is missing.
func learn[T any](c *Client, has *T, stated bool, feature, methods string) error {
	if !stated {
		return nil
	}
	var ok bool
	if *has, ok = c.backend.(T); ok {
		return nil
	}
	return fmt.Errorf("%w: %s states Features.%s but has no %s", ErrInvalidOption, c.name, feature, methods)
}

const (
	opLock    = "lock"
	opTryLock = "trylock"
	opUnlock  = "unlock"
	opLease   = "lease"
	opClose   = "close"
	opPing    = "ping"
	opLead    = "lead"
	opInspect = "inspect"
	opList    = "list"
	opRevoke  = "revoke"
	opBreak   = "break"
	opHealthy = "healthy"
	opDetach  = "detach"
	opAdopt   = "adopt"
)

// Lock implements Locker.
func (c *Client) Lock(ctx context.Context, key string, opts ...CallOption) (*Lease, error) {
	return c.lock(ctx, opLock, key, opts)
}

// TryLock implements Locker.
func (c *Client) TryLock(ctx context.Context, key string, opts ...CallOption) (*Lease, error) {
	return c.lock(ctx, opTryLock, key, opts)
}

// PingKey is the key that Ping locks for a moment, with the prefix of its Client.
const PingKey = "locker.ping"

// Ping reports whether locks can be had: it locks PingKey and unlocks it again, with the prefix and the TTL of this
// Client. Somebody else's Ping at the same time does no harm. It returns nil, or the error that TryLock or Unlock of
// any other key would have returned: ErrUnavailable, ErrDenied and ErrUnfit say what is wrong. It is bounded by ctx and
// by the TTL. Observers are not told.
func (c *Client) Ping(ctx context.Context) error {
	lease, err := c.acquire(ctx, opPing, PingKey, []CallOption{NoRenew()})
	switch {
	case errors.Is(err, ErrLocked) && ctx.Err() == nil:
		return nil
	case err != nil:
		return err
	}
	if err := lease.unlock(); err != nil && !errors.Is(err, ErrLost) { // lost: it took longer than the TTL, but is done
		return c.fail(opPing, PingKey, err)
	}
	return nil
}

// acquire is Lock, TryLock and Ping: it checks everything that can be checked without the store, then tries or waits.
func (c *Client) acquire(ctx context.Context, op, key string, opts []CallOption) (*Lease, error) {
	l, err := c.prepare(key, opts)
	if err != nil {
		return nil, c.fail(op, key, err)
	}
	if ctx.Err() != nil {
		return nil, c.fail(op, key, endOf(ctx))
	}
	if err := c.enter(); err != nil {
		return nil, c.fail(op, key, err)
	}
	defer c.calls.Done()

	if op != opPing {
		l.beSeen()
	}
	if op == opLock {
		err = c.wait(ctx, l)
	} else {
		err = c.try(ctx, l)
	}
	if err != nil {
		e := c.fail(op, key, err)
		if op == opLock {
			c.nameHolder(e, l)
		}
		return nil, e
	}
	return l, nil
}

// prepare checks options and key, and returns a Lease to be acquired.
func (c *Client) prepare(key string, opts []CallOption) (*Lease, error) {
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
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if err := c.features.offer(s.mode, s.minHold); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	l := &Lease{client: c, noRenew: s.noRenew, index: unscheduled}
	l.grant.Request = Request{
		Prefix: s.prefix, Key: key, Mode: s.mode, Slots: s.slots, Owner: newOwner(), Holder: s.holder,
		TTL: s.ttl, NoRenew: s.noRenew, MinHold: s.minHold, lease: l,
	}
	return l, nil
}

func checkKey(key string) error {
	if key == "" || len(key) > MaxKeyLen {
		return fmt.Errorf("%w: %d bytes long, must be 1 to %d", ErrInvalidKey, len(key), MaxKeyLen)
	}
	return nil
}

// enter counts a call that Close has to wait for; calls.Done ends it.
func (c *Client) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.calls.Add(1)
	return nil
}

// nameHolder says in e, the error of a Lock that failed, who held the key, as far as that is known.
func (c *Client) nameHolder(e *Error, l *Lease) {
	holder, answers := l.waitedFor()
	e.answered = answers > 0
	switch {
	case e.Holder != "" || !e.answered:
	case holder != "":
		e.Holder = holder
	case c.holds(l.grant.Key):
		e.Holder = ThisLocker
	}
}

// fail makes the error of an operation. What a store has said without a class of its own counts as ErrUnavailable.
func (c *Client) fail(op, key string, err error) *Error {
	return &Error{Op: op, Key: key, Backend: c.name, Holder: holderOf(err), Err: classified(err)}
}

// Close implements Locker.
func (c *Client) Close() error {
	c.end() // first the waiters, so that none is granted what is unlocked next

	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.closed = true
	c.calls.Add(1)
	defer close(c.done)
	held := append([]*Lease(nil), c.schedule.leases...)
	ends := make([]ending, len(held))
	for i, l := range held {
		ends[i] = l.endLocked(ErrUnlocked)
	}
	c.schedule.stop()
	c.mu.Unlock()
	announce(ends)
	c.cleanup.start(c) // one last attempt for each
	c.calls.Done()

	errs := make([]error, len(held)+1)
	parallel(len(held), func(i int) {
		if err := held[i].release(time.Until(held[i].deadline)); err != nil {
			errs[i] = c.fail(opUnlock, held[i].Key(), err)
		}
	})

	idle := make(chan struct{})
	go func() { c.calls.Wait(); close(idle) }()
	// A client that ignores its ctx must not hold up the process for ever.
	patience := time.NewTimer(c.defaults.ttl)
	defer patience.Stop()
	select {
	case <-idle:
	case <-patience.C:
	}
	c.tellExpired()
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
