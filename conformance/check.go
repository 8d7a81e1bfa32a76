package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// check is what the body of a rule works with. It records problems instead of failing a test, so that the suite can be
// tested with backends that break the rules.
type check struct {
	t       *testing.T
	h       Harness
	ttl     time.Duration
	ctx     context.Context // ends when the watchdog loses patience
	helpers sync.WaitGroup  // goroutines of the body

	mu       sync.Mutex
	problems []problem
	gaps     []gap
	opened   []locker.Locker
}

// run runs the rule's body and returns what it found, and what it could not look at. A body that hangs is given up after a
// while.
func (r rule) run(t *testing.T, h Harness) ([]problem, []gap) {
	patience := 20*time.Second + 60*h.TTL
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &check{t: t, h: h, ttl: h.TTL, ctx: ctx}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		defer c.helpers.Wait()
		r.body(c)
	}()
	watchdog := time.NewTimer(patience)
	defer watchdog.Stop()
	select {
	case <-finished:
	case <-watchdog.C:
		c.record(1, "the test did not end within %v: something hangs\n%s", patience, goroutines())
		cancel()
		select { // a Lock that heeds its ctx lets the body come to its end
		case <-finished:
		case <-time.After(h.TTL):
		}
	}
	c.closeAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems), slices.Clone(c.gaps)
}

// closeAll closes what the body has opened, without trusting Close to return.
func (c *check) closeAll() {
	c.mu.Lock()
	opened := c.opened
	c.mu.Unlock()
	var closing sync.WaitGroup
	for _, l := range opened {
		closing.Go(func() { _ = l.Close() })
	}
	done := make(chan struct{})
	go func() { closing.Wait(); close(done) }()
	patience := time.NewTimer(20*time.Second + 10*c.ttl)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		c.record(1, "Close did not return")
	}
}

func (c *check) record(skip int, format string, args ...any) {
	_, file, line, _ := runtime.Caller(skip + 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, problem{
		saw: fmt.Sprintf(format, args...),
		at:  fmt.Sprintf("%s:%d", filepath.Base(file), line),
	})
}

// errorf records a problem and goes on.
func (c *check) errorf(format string, args ...any) { c.record(1, format, args...) }

// fatalf records a problem and ends the goroutine, which is that of the body or one started with c.do.
func (c *check) fatalf(format string, args ...any) {
	c.record(1, format, args...)
	runtime.Goexit()
}

// leaves tells that something has not been looked at.
func (c *check) leaves(o outcome, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gaps = append(c.gaps, gap{fmt.Sprintf(format, args...), o})
}

// has reports whether a hook is provided, without which part of a rule is not proven.
func (c *check) has(need *hook, part string) bool {
	if need.provided(c.h) {
		return true
	}
	c.leaves(inPart, "not proven without Harness.%s: %s", need.name, part)
	return false
}

// do runs f on a goroutine that the body's end waits for.
func (c *check) do(f func()) { c.helpers.Go(f) }

// all runs f(0) to f(n-1) at the same time and waits for them.
func (c *check) all(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// open returns a new, independent Locker.
func (c *check) open(opts ...locker.Option) locker.Locker {
	l := c.h.Open(c.t, append([]locker.Option{locker.TTL(c.ttl)}, opts...)...)
	c.mu.Lock()
	c.opened = append(c.opened, l)
	c.mu.Unlock()
	return l
}

// key returns a key that no other test uses.
func (c *check) key() string { return fmt.Sprintf("conformance/%016x", rand.Uint64()) }

// soon is a time by which something that needs a few round trips has happened even on a busy machine, and yet
// well before a lease could have expired instead.
func (c *check) soon() time.Duration { return c.ttl / 2 }

// within returns a context that ends after d.
func (c *check) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.ctx, d)
	c.t.Cleanup(cancel)
	return ctx
}

// lock locks key with l within ten TTLs, and ends the goroutine if it cannot.
func (c *check) lock(l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	lease, err := l.Lock(c.within(10*c.ttl), key, opts...)
	if err != nil {
		c.record(1, "Lock of a key that is free, or soon will be: nothing after %v: %v", 10*c.ttl, err)
		runtime.Goexit()
	}
	return lease
}

// takeOver is lock for a key whose lease is not renewed and ends with its TTL.
func (c *check) takeOver(l locker.Locker, key string) *locker.Lease {
	lease, err := l.Lock(c.within(10*c.ttl), key)
	if err != nil {
		c.record(1, "Lock of a key whose lease nobody renews, and which should be free after its TTL: nothing after %v: %v (mend %s first)",
			10*c.ttl, err, firstOfExpiry)
		runtime.Goexit()
	}
	return lease
}

// tryLock is lock for a key that has to be free.
func (c *check) tryLock(l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	lease, err := l.TryLock(c.within(10*c.ttl), key, opts...)
	if err != nil {
		c.record(1, "TryLock of a key that is free: %v; want a lease", err)
		runtime.Goexit()
	}
	return lease
}

// unlock unlocks lease, which has to succeed.
func (c *check) unlock(lease *locker.Lease) {
	if err := lease.Unlock(); err != nil {
		c.record(1, "Unlock of a lease that is held: %v; want nil", err)
	}
}

// refused checks that l cannot lock the key of a lease that somebody has.
func (c *check) refused(l locker.Locker, held *locker.Lease, why string) {
	lease, err := l.TryLock(c.within(10*c.ttl), held.Key())
	if err == nil {
		loss := ""
		if err := held.Err(); err != nil {
			loss = fmt.Sprintf(", but the holder had been told of the end of its lease (%v)", err)
		}
		c.record(1, "TryLock %s: it succeeded%s; want ErrLocked", why, loss)
		_ = lease.Unlock()
	} else if !errors.Is(err, locker.ErrLocked) {
		c.record(1, "TryLock %s: %v; want ErrLocked", why, err)
	}
}

// freeWithin checks that l can lock key within d from now, and unlocks it.
func (c *check) freeWithin(l locker.Locker, key string, d time.Duration, why string) {
	start := time.Now()
	for {
		lease, err := l.TryLock(c.within(10*c.ttl), key)
		if err == nil {
			if took := time.Since(start); took > d {
				c.record(1, "the key was free only after %v %s; want within %v", took, why, d)
			}
			if err := lease.Unlock(); err != nil {
				c.record(1, "Unlock: %v", err)
			}
			return
		}
		if !errors.Is(err, locker.ErrLocked) {
			c.record(1, "TryLock %s: %v", why, err)
			return
		}
		if time.Since(start) > d+2*c.ttl {
			c.record(1, "the key was still locked %v %s; want it free within %v", time.Since(start), why, d)
			return
		}
		time.Sleep(c.ttl / 200)
	}
}

// wait is a Lock under way.
type wait struct {
	lease *locker.Lease
	err   error
	at    time.Time // when Lock returned
	done  chan struct{}
}

// start calls Lock on a goroutine of its own.
func (c *check) start(ctx context.Context, l locker.Locker, key string, opts ...locker.CallOption) *wait {
	w := &wait{done: make(chan struct{})}
	c.do(func() {
		defer close(w.done)
		w.lease, w.err = l.Lock(ctx, key, opts...)
		w.at = time.Now()
	})
	return w
}

// settle gives a Lock that was started, or cancelled, the time to reach the store. What it waits for cannot be seen
// through the interface of a Locker.
func (c *check) settle() { time.Sleep(c.ttl / 20) }

// result waits for the end of the Lock, for a while longer than most contexts last.
func (c *check) result(w *wait) (*locker.Lease, error) {
	select {
	case <-w.done:
		return w.lease, w.err
	case <-time.After(11 * c.ttl):
		c.record(1, "Lock had not returned after %v", 11*c.ttl)
		runtime.Goexit()
		return nil, nil
	}
}

// closedWithin checks that the lease ends within d.
func (c *check) closedWithin(lease *locker.Lease, d time.Duration, why string) {
	select {
	case <-lease.Done():
	case <-time.After(d):
		c.record(1, "Done was not closed within %v %s", d, why)
	}
}

// isClosed reports whether a channel is closed, without the help that Lease.Done gives by looking at the clock.
func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// median returns the middle of some measurements: what a rule about speed is judged by, as a machine may always be
// busy with something else for a moment.
func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// contextCause is context.Cause, once ctx has had the time to end.
func contextCause(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	return context.Cause(ctx)
}
