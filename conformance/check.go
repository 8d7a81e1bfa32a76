package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
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
	rule    string // group/Rule
	ttl     time.Duration
	attempt int             // 1 at first: see verdict
	lasts   time.Duration   // for which the body may run beyond patience
	ctx     context.Context // ends when the watchdog loses patience
	helpers sync.WaitGroup  // goroutines of the body

	mu       sync.Mutex
	random   *rand.Rand
	drew     bool // something at random
	problems []problem
	gaps     []gap
	opening  turn // of who opens a Locker, and cuts it off
	opened   []locker.Locker
	cuts     []func() // what heals them
}

// patience is for how long a body may run before it is said to hang: several times what the slowest takes when each of
// its waits fails.
func patience(ttl time.Duration) time.Duration { return 10*time.Second + 40*ttl }

// closePatience is the same for the Close of what it has opened. A Locker whose store hangs has two TTLs.
func closePatience(ttl time.Duration) time.Duration { return 5*time.Second + 5*ttl }

// run runs the rule's body once.
func (c *check) run(body func(*check)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.ctx = ctx
	finished := make(chan struct{})
	go func() {
		// What the body starts, in the backend too, inherits the label: a panic or a hang then names the rule.
		pprof.SetGoroutineLabels(pprof.WithLabels(ctx, pprof.Labels(ruleLabel, c.rule)))
		defer close(finished)
		defer c.helpers.Wait()
		defer c.reportPanic()
		returned := false
		defer func() {
			if !returned { // it gave up: those whom it has started wait for what will not come
				cancel()
			}
		}()
		body(c)
		returned = true
	}()
	longest := patience(c.ttl) + c.lasts + 10*c.ttl*time.Duration(c.h.Trials/trialsAtATime)
	watchdog := time.NewTimer(longest)
	defer watchdog.Stop()
	select {
	case <-finished:
	case <-watchdog.C:
		c.hangs("the test did not end within %v: something hangs\n%s", longest, goroutinesOf(c.rule))
		cancel()
		select { // a Lock that heeds its ctx lets the body come to its end
		case <-finished:
		case <-time.After(c.ttl):
		}
	}
	c.closeAll()
}

// closeAll heals what the body has cut and closes what it has opened, without trusting Close to return.
func (c *check) closeAll() {
	c.mu.Lock()
	opened, cuts := c.opened, c.cuts
	c.mu.Unlock()
	for _, heal := range cuts {
		heal()
	}
	var closing sync.WaitGroup
	for _, l := range opened {
		closing.Go(func() {
			defer c.reportPanic()
			_ = l.Close()
		})
	}
	done := make(chan struct{})
	go func() { closing.Wait(); close(done) }()
	timer := time.NewTimer(closePatience(c.ttl))
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		c.hangs("Close did not return within %v\n%s", closePatience(c.ttl), goroutinesOf(c.rule))
	}
}

// reportPanic is deferred by goroutines of the suite, so that a panic of the backend fails one rule, and by name.
func (c *check) reportPanic() {
	if v := recover(); v != nil {
		c.add(problem{saw: fmt.Sprintf("panic: %v\n%s", v, abridged(string(debug.Stack()))), at: "panic", wrong: true})
	}
}

// add adds a problem.
func (c *check) add(p problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, p)
}

// failed reports whether there is a problem.
func (c *check) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.problems) > 0
}

// caller returns the position of a caller, as file:line.
func caller(skip int) string {
	_, file, line, _ := runtime.Caller(skip + 1)
	return fmt.Sprintf("%s:%d", filepath.Base(file), line)
}

// record records a problem for which a machine that is busy may be the reason: something came too late, a lease was
// lost because nobody came to renew it, two things happened in another order.
func (c *check) record(skip int, format string, args ...any) {
	c.add(problem{saw: fmt.Sprintf(format, args...), at: caller(skip + 1)})
}

// errorf is record, and goes on.
func (c *check) errorf(format string, args ...any) { c.record(1, format, args...) }

// fatalf is record, and ends the goroutine, which is that of the body or one started with c.do.
func (c *check) fatalf(format string, args ...any) {
	c.record(1, format, args...)
	runtime.Goexit()
}

// wrongf records what is wrong however busy the machine is, such as a lock with two holders. It fails the rule at once.
func (c *check) wrongf(format string, args ...any) {
	c.add(problem{saw: fmt.Sprintf(format, args...), at: caller(1), wrong: true})
}

// wasWrong reports whether wrongf has been called.
func (c *check) wasWrong() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return isWrong(c.problems)
}

// hangs is wrongf for what the watchdogs see.
func (c *check) hangs(format string, args ...any) {
	c.add(problem{saw: fmt.Sprintf(format, args...), at: caller(1), wrong: true, hangs: true})
}

// took checks that something that took so long was to take no longer than bound.
func (c *check) took(took, bound time.Duration, format string, args ...any) {
	if took > bound {
		c.add(problem{
			saw: fmt.Sprintf("%s took %v; want at most %v", fmt.Sprintf(format, args...), took, bound), at: caller(1),
			over: took - bound,
		})
	}
}

// nothing records that a Lock has failed after so long, which was to succeed within bound.
func (c *check) nothing(after, bound time.Duration, format string, args ...any) {
	c.add(problem{saw: fmt.Sprintf(format, args...), at: caller(1), over: max(0, after-bound)})
}

// tookMedian is took for something that was measured several times, one of which the machine may have been late.
func (c *check) tookMedian(took []time.Duration, bound time.Duration, format string, args ...any) {
	if m := median(took); m > bound {
		c.add(problem{
			saw: fmt.Sprintf("%s took %v (median of %v); want at most %v", fmt.Sprintf(format, args...), m, took, bound),
			at:  caller(1), over: m - bound, median: true,
		})
	}
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
func (c *check) do(f func()) {
	c.helpers.Go(func() {
		defer c.reportPanic()
		f()
	})
}

// all runs f(0) to f(n-1) at the same time and waits for them.
func (c *check) all(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			defer c.reportPanic()
			f(i)
		})
	}
	wg.Wait()
}

// turn is a mutex for what may take time, also in a bubble of synctest, whose clock stands still while somebody waits
// for a sync.Mutex.
type turn chan struct{}

func newTurn() turn  { return make(turn, 1) }
func (t turn) take() { t <- struct{}{} }
func (t turn) pass() { <-t }

// open returns a new, independent Locker.
func (c *check) open(opts ...locker.Option) locker.Locker {
	c.opening.take()
	defer c.opening.pass()
	return c.openLocked(opts...)
}

// openForMany is open for a rule whose Lockers hold many keys, and which is not about how long they last: on a busy
// machine, the renewals of all of them may come late.
func (c *check) openForMany(opts ...locker.Option) locker.Locker {
	return c.open(append([]locker.Option{locker.TTL(10 * c.ttl)}, opts...)...)
}

func (c *check) openLocked(opts ...locker.Option) locker.Locker {
	l := c.h.Open(c.t, append([]locker.Option{locker.TTL(c.ttl)}, opts...)...)
	c.mu.Lock()
	c.opened = append(c.opened, l)
	c.mu.Unlock()
	return l
}

// cut severs the Locker that was opened last, and returns what heals it, once. The end of the test heals it, too.
func (c *check) cut(f Fault) (heal func()) {
	heal = sync.OnceFunc(c.h.Cut(c.t, f))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts = append(c.cuts, heal)
	return heal
}

// key returns a key that no other test uses.
func (c *check) key() string { return fmt.Sprintf("conformance/%016x", rand.Uint64()) }

// draw returns a random number below n. The seed of all that a rule draws is in what its failure says.
func (c *check) draw(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drew = true
	return c.random.IntN(n)
}

// shuffle shuffles n things in place.
func (c *check) shuffle(n int, swap func(i, j int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drew = true
	c.random.Shuffle(n, swap)
}

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
		c.record(1, "Lock of a key whose lease nobody renews, and which should be free after its TTL: nothing after %v: %v",
			10*c.ttl, err)
		runtime.Goexit()
	}
	return lease
}

// notRenewed returns the option by which a lease ends with its TTL, where the backend heeds it.
func (c *check) notRenewed() []locker.CallOption {
	if c.h.Features.RenewsItself != "" {
		return nil
	}
	return []locker.CallOption{locker.NoRenew()}
}

// abandon has a new Locker lock a key, as a process would that dies at once: nobody renews or unlocks the lease.
func (c *check) abandon(key string, opts ...locker.CallOption) *locker.Lease {
	c.opening.take()
	defer c.opening.pass()
	lease, err := c.openLocked().TryLock(c.within(10*c.ttl), key, append(opts, c.notRenewed()...)...)
	if err != nil {
		c.record(1, "TryLock of a key that is free: %v; want a lease", err)
		runtime.Goexit()
	}
	if c.h.Features.RenewsItself != "" {
		c.cut(BlackHole)
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
func (c *check) refused(l locker.Locker, held *locker.Lease, why string, opts ...locker.CallOption) {
	lease, err := l.TryLock(c.within(10*c.ttl), held.Key(), opts...)
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
				c.add(problem{
					saw: fmt.Sprintf("the key was free only after %v %s; want within %v", took, why, d), at: caller(1),
					over: took - d,
				})
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
			c.add(problem{
				saw: fmt.Sprintf("the key was still locked %v %s; want it free within %v", time.Since(start), why, d),
				at:  caller(1), over: time.Since(start) - d,
			})
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
	c.do(func() { w.lock(ctx, l, key, opts...) })
	return w
}

func (w *wait) lock(ctx context.Context, l locker.Locker, key string, opts ...locker.CallOption) {
	defer close(w.done)
	w.lease, w.err = l.Lock(ctx, key, opts...)
	w.at = time.Now()
}

// settle gives a Lock that was started, or cancelled, the time to reach the store. What it waits for cannot be seen
// through the interface of a Locker. When a rule is tried again, that has more time.
func (c *check) settle() { time.Sleep(c.ttl / 20 << min(c.attempt-1, 3)) }

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
		c.add(problem{saw: fmt.Sprintf("Done was not closed within %v %s", d, why), at: caller(1), over: d})
	}
}

// awaitRenewal waits until a lease is renewed. If it ends, or is not renewed for long, it says what that means.
func (c *check) awaitRenewal(lease *locker.Lease, otherwise string) {
	start := time.Now()
	for at := lease.Deadline(); lease.Deadline().Equal(at); time.Sleep(c.ttl / 100) {
		if err := lease.Err(); err != nil || time.Since(start) > 10*c.ttl {
			c.record(1, "%s: %v, after %v", otherwise, err, time.Since(start))
			runtime.Goexit()
		}
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
