package conformance

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/lockerkit/locker"
)

// resources are what a process has of something that leaks.
type resources struct {
	goroutines int
	files      int // open files and connections; 0 where the system does not tell
}

func (r resources) String() string {
	if r.files == 0 {
		return fmt.Sprintf("%d goroutines", r.goroutines)
	}
	return fmt.Sprintf("%d goroutines and %d open files or connections", r.goroutines, r.files)
}

// inUse returns what the process has now.
func inUse() resources { return resources{len(stacks()), openFiles()} }

// openFiles returns how many file descriptors the process has, as far as the system tells that in the way of most
// Unixes.
func openFiles() int {
	for _, dir := range []string{"/dev/fd", "/proc/self/fd"} {
		if files, err := os.ReadDir(dir); err == nil {
			return len(files)
		}
	}
	return 0
}

// falls waits until the process has no more than it had, or so many more of each kind, for a while.
func (c *check) falls(to resources, more int, patience time.Duration) bool {
	pause := c.ttl / 200
	for start := time.Now(); ; time.Sleep(pause) {
		pause = min(2*pause, c.ttl/10)
		now := inUse()
		if now.goroutines <= to.goroutines+more && now.files <= to.files+more {
			return true
		}
		if time.Since(start) > patience {
			return false
		}
	}
}

func leaksNothing(c *check) {
	use := func() {
		a, b := c.open(), c.open()
		key := c.key()
		lease := c.tryLock(a, key)
		w := c.start(c.within(10*c.ttl), b, key) // so that whatever a wait needs is there
		c.settle()
		waits := c.start(c.within(c.ttl/10), b, key)
		time.Sleep(c.ttl / 2) // and a renewal
		c.unlock(lease)
		next, err := c.result(w)
		if err != nil {
			c.fatalf("Lock: %v", err)
		}
		_, _ = c.result(waits)
		_, _ = a.TryLock(c.within(10*c.ttl), key)
		ctx, cancel := next.Context(c.ctx)
		defer cancel()
		for _, l := range []locker.Locker{a, b} {
			if err := l.Close(); err != nil {
				c.errorf("Close: %v", err)
			}
		}
		if ctx.Err() == nil {
			c.errorf("the context of a lease has not ended with Close")
		}
	}
	use() // what exists once per process may stay
	before := inUse()
	use()
	if c.falls(before, 0, c.ttl) {
		return
	}
	// Something else in the process may have begun meanwhile, such as the client of a hook that connects anew. A leak
	// happens again.
	before = inUse()
	use()
	if !c.falls(before, 0, c.ttl) {
		c.errorf("%v before a Locker was opened, %v after it was closed:\n%s", before, inUse(), goroutines())
	}
}

// leaksNothingWhileOpen uses two Lockers for all that they do, time and again.
func leaksNothingWhileOpen(c *check) {
	const times = 30
	a, b := c.open(), c.open()
	use := func() {
		c.all(times, func(i int) {
			time.Sleep(time.Duration(i) * c.ttl / 3 / times) // so that not all renewals go together
			c.useInAllWays(a, b, c.ttl+c.ttl/5)
		})
	}
	c.all(times, func(int) { c.useInAllWays(a, b, c.ttl*2/5) }) // pools and caches become as large as it takes
	time.Sleep(c.ttl / 10)
	before := inUse()
	use()
	// What leaks once for each time is not less than half of them; what is made anew meanwhile, such as a connection,
	// is.
	if c.falls(before, times/2, c.ttl) {
		return
	}
	before = inUse()
	use()
	if !c.falls(before, times/2, c.ttl) {
		c.errorf("%v before two Lockers were used %d times, %v a while after:\n%s", before, times, inUse(), goroutines())
	}
}

// useInAllWays has a lock taken, refused, renewed, handed over, waited for in vain, and, if it is held for longer than
// a TTL, lost.
func (c *check) useInAllWays(a, b locker.Locker, hold time.Duration) {
	key, other := c.key(), c.key()
	ending := c.tryLock(a, other, c.notRenewed()...)
	lease := c.tryLock(a, key)
	held := time.Now()
	for range 3 {
		c.refused(b, lease, "of a key that is held")
	}
	ctx, cancel := context.WithTimeout(c.ctx, 10*c.ttl)
	defer cancel()
	w := c.start(ctx, b, key)
	c.settle()
	for range 2 {
		soon, cancel := context.WithTimeout(c.ctx, c.ttl/20)
		_, _ = b.Lock(soon, key)
		cancel()
	}
	time.Sleep(hold - time.Since(held))
	c.unlock(lease)
	if next, err := c.result(w); err == nil {
		c.unlock(next)
	}
	if ending.Err() == nil {
		c.unlock(ending)
	}
	c.unlock(c.takeOver(b, other))
}
