package conformance

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

const hintCutOff = "The store must keep a lock for the whole TTL since it granted or renewed it, by its own clock, each time " +
	"that it says so. Grant.Sent is a moment before the request was sent that was granted, and Renewal.Sent one before the " +
	"request that renewed it: never that of the answer. A backend that learns of a loss otherwise calls Request.ReportLost " +
	"before anybody else can have the key."

// cutOffRules are about a holder that cannot reach the store any more.
var cutOffRules = []rule{
	{
		name: "ExpiresWhenAbandoned", body: expiresWhenAbandoned, expires: true,
		did: "Holders are cut off from the store, some right after they have locked a key, others after one renewal or " +
			"several (without Harness.Cut: one has a lease with NoRenew, and never unlocks); another Locker tries the keys " +
			"until they are free, or waits for them.",
		text: "The key of a holder that is cut off is free when its TTL has passed since it was renewed last.",
		hint: hintExpiry + " Renew sets the same expiry anew: it does not add to what is left.",
	},
	{
		name: "DoneBeforeRival", body: doneBeforeRival, needs: needsCut, expires: true, lasts: time.Minute,
		did: "Holders of several leases, some of which they have waited for, and which have been renewed up to several " +
			"times, are cut off from the store at random moments, in each of the four ways of Fault, while rivals wait in " +
			"Lock: from the beginning, or from then on.",
		text: "Of a holder that is cut off, Done is closed before any rival's Lock returns, every time.",
		hint: hintCutOff,
	},
	{
		name: "DoneBeforeRivalIfLate", body: doneBeforeRivalIfLate, needs: needsCut, expires: true, lasts: time.Minute,
		since: "v0.1.0",
		did: "The same while answers, or requests, have come late, by up to a fifth of the TTL: DelayReplies and " +
			"LateRequests.",
		text: "Of a holder that is cut off, Done is closed before any rival's Lock returns, however long the answers have " +
			"taken that it got.",
		hint: hintCutOff,
	},
}

// affordable returns less for a run in real time, and more for one in fake time, where to wait costs nothing.
func affordable[T any](less, more T) T {
	if inFakeTime() {
		return more
	}
	return less
}

// renewals counts those that the store has confirmed to a Locker, by key.
type renewals struct {
	mu    sync.Mutex
	count map[string]int
	more  chan struct{} // closed at the next one
}

func newRenewals() *renewals {
	return &renewals{count: make(map[string]int), more: make(chan struct{})}
}

// observe returns the option with which a Locker tells of its renewals.
func (r *renewals) observe() locker.Option {
	return locker.Observe(&locker.Observer{Renewed: func(info locker.RenewedInfo) {
		if info.Err != nil {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.count[info.Key]++
		close(r.more)
		r.more = make(chan struct{})
	}})
}

// of returns how many there have been of a key, and a channel that is closed at the next one of any.
func (r *renewals) of(key string) (int, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[key], r.more
}

// renewed waits until a lease has been renewed n times, and reports whether it has.
func (c *check) renewed(r *renewals, lease *locker.Lease, n int) bool {
	patience := time.After(time.Duration(n+2) * c.ttl)
	for {
		count, more := r.of(lease.Key())
		if count >= n {
			return true
		}
		select {
		case <-more:
		case <-lease.Done():
			c.record(1, "the lease ended after %d renewals, with the holder alive: %v", count, lease.Err())
			return false
		case <-patience:
			c.record(1, "Observer.Renewed told of %d renewals of a lease only; want %d", count, n)
			return false
		}
	}
}

func expiresWhenAbandoned(c *check) {
	b := c.open()
	if c.h.Cut == nil {
		key := c.key()
		lease := c.abandon(key)
		c.freeWithin(b, key, c.ttl+c.soon(), "after a holder took it that does not renew")
		if lease.Err() == nil {
			c.errorf("the holder still has its lease")
		}
		c.has(needsCut, "the same for a holder that is really cut off")
		return
	}
	for _, n := range affordable([]int{0, 2, 3}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}) {
		c.abandonAfter(n, b)
	}

	// The same with one that is cut off in the middle of an acquire, after the store's first answer was lost: if there
	// is anything left to ask of the store then, such as to set the TTL, it is not asked for any more.
	key := c.key()
	a := c.open()
	c.unlock(c.lock(a, c.key())) // there are connections
	heal := c.cut(DropReplies)
	defer heal()
	acquiring := c.start(c.within(10*c.ttl), a, key)
	c.settle()
	defer c.cut(BlackHole)()
	c.freeWithin(b, key, c.ttl+c.soon(), "after somebody was cut off while acquiring it")
	if _, err := c.result(acquiring); err == nil {
		c.errorf("Lock succeeded although no answer can have come")
	}
}

// abandonAfter cuts a holder off when it has renewed its first lease n times, and its next ones less often. It does not
// wait for the keys to be free.
func (c *check) abandonAfter(n int, b locker.Locker) {
	count := newRenewals()
	a := c.open(count.observe()) // the last, for cut
	leases := []*locker.Lease{c.tryLock(a, c.key())}
	for i := range n {
		if !c.renewed(count, leases[0], i+1) {
			return
		}
		if i < n-1 {
			leases = append(leases, c.tryLock(a, c.key()))
		}
	}
	c.cut(BlackHole) // for good
	cutOff := time.Now()
	for i, lease := range leases {
		c.do(func() {
			when := fmt.Sprintf("after its holder, which had renewed the first of its leases %d times, was cut off", n)
			if i == 0 {
				c.freeWithin(b, lease.Key(), c.ttl+c.soon(), when)
			} else {
				next := c.takeOver(b, lease.Key())
				c.took(time.Since(cutOff), c.ttl+c.soon(), "until the key was free %s", when)
				c.unlock(next)
			}
			if lease.Err() == nil {
				c.errorf("the holder still has its lease")
			}
		})
	}
}

// cutOff is how a holder is cut off.
type cutOff struct {
	before *Fault // in force until then; may be nil
	by     Fault
}

func (o cutOff) String() string {
	if o.before == nil {
		return o.by.String()
	}
	return fmt.Sprintf("%v, then %v", *o.before, o.by)
}

func doneBeforeRival(c *check) {
	var all []cutOff
	for _, f := range partitions {
		all = append(all, cutOff{by: f})
	}
	c.cutOffs(all)
}

func doneBeforeRivalIfLate(c *check) {
	var all []cutOff
	for _, before := range delays {
		for _, f := range affordable([]Fault{BlackHole}, []Fault{BlackHole, Refuse, DropReplies}) {
			all = append(all, cutOff{&before, f})
		}
	}
	c.cutOffs(all)
}

const (
	trialsAtATime  = 20 // of Harness.Trials
	leasesPerTrial = 4  // that a holder has for each of them
)

// cutOffs makes Harness.Trials trials for each way to cut a holder off. One holder serves for several trials, and the
// holders are cut off one after the other, since Cut severs the Locker opened last.
func (c *check) cutOffs(ways []cutOff) {
	m := margins{of: make(map[string][]time.Duration)}
	for done := 0; done < c.h.Trials; done += trialsAtATime {
		n := min(trialsAtATime, c.h.Trials-done) * leasesPerTrial
		for range affordable(1, 3) {
			c.shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
			var rivals sync.WaitGroup
			for i, way := range ways {
				// Of different lengths, so that holders are cut off before and after renewals, and just then.
				lasts := c.ttl/5 + time.Duration(i)*c.ttl*6/5/time.Duration(len(ways)) + c.drawTime(c.ttl*3/10)
				if way.before != nil {
					lasts += c.ttl * 2 / 5 // what comes late takes its time
				}
				c.cutOffTrial(way, n, affordable(lasts, 2*lasts), &m, &rivals)
			}
			rivals.Wait()
		}
	}
	m.log(c)
}

// margins are the times from the closing of the Done of leases to the return of a rival's Lock, as a goroutine that
// waited for Done saw it, by how the holder was cut off.
type margins struct {
	mu sync.Mutex
	of map[string][]time.Duration
}

func (m *margins) add(way cutOff, margin time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of[way.String()] = append(m.of[way.String()], margin)
}

func (m *margins) log(c *check) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for way, of := range m.of {
		slices.Sort(of)
		at := func(q int) time.Duration { return of[(len(of)-1)*q/100].Round(10 * time.Microsecond) }
		c.t.Logf(
			"%s: Done closed before the rival's Lock returned for %d leases, with a margin of min %v, p10 %v, median %v, p90 %v, max %v",
			way,
			len(of),
			at(0),
			at(10),
			at(50),
			at(90),
			at(100),
		)
	}
}

// drawTime returns a random duration below d.
func (c *check) drawTime(d time.Duration) time.Duration { return time.Duration(c.draw(int(d))) }

// cutOffTrial opens a holder, has it lock keys at random moments for so long, and cuts it off. It does not wait for the
// rivals, who wait for its keys then.
func (c *check) cutOffTrial(way cutOff, n int, lasts time.Duration, m *margins, rivals *sync.WaitGroup) {
	rival, before := c.open(), c.open()
	holder := c.open()                // the last, for cut
	c.unlock(c.lock(holder, c.key())) // there are connections
	if way.before != nil {
		c.cut(*way.before)
	}
	var trial sync.WaitGroup
	await := func(lease *locker.Lease) {
		trial.Go(func() {
			defer c.reportPanic()
			c.outlived(way, lease, rival, m)
		})
	}
	leases := make([]*locker.Lease, n)
	c.all(n, func(i int) {
		leases[i] = c.lockAmid(holder, before, i, lasts, way.before != nil)
		if i%2 == 1 && leases[i] != nil {
			await(leases[i])
		}
	})
	had := 0
	for _, lease := range leases {
		if lease == nil {
			continue
		}
		had++
		if err := lease.Err(); err != nil && way.before == nil {
			c.errorf("a lease was lost before its holder was cut off: %v", err)
		}
	}
	if had == 0 {
		c.errorf("%v: none of %d locks could be had", way, n)
	}
	heal := c.cut(way.by)
	for i, lease := range leases {
		if i%2 == 0 && lease != nil {
			await(lease)
		}
	}
	rivals.Go(func() {
		trial.Wait()
		heal() // now, as there may be more trials than connections to be had
		for _, l := range []locker.Locker{rival, before, holder} {
			_ = l.Close()
		}
	})
}

// lockAmid has a Locker lock the i-th key at a random moment within so long, for many of them near the end: with
// TryLock, with Lock, or with Lock of a key that another Locker has until then. If answers come late, it may fail,
// and return nil.
func (c *check) lockAmid(l, before locker.Locker, i int, lasts time.Duration, late bool) (lease *locker.Lease) {
	key, at := c.key(), c.drawTime(lasts)
	if i/3%2 == 0 { // it will not have been renewed
		at = lasts - c.drawTime(min(lasts, c.ttl/4))
	}
	ctx := c.within(10 * c.ttl)
	var err error
	switch i % 3 {
	case 0:
		time.Sleep(at)
		lease, err = l.TryLock(ctx, key)
	case 1:
		time.Sleep(at)
		lease, err = l.Lock(ctx, key)
	default:
		first := c.tryLock(before, key)
		w := c.start(ctx, l, key)
		time.Sleep(at)
		c.unlock(first)
		lease, err = c.result(w)
	}
	if err != nil && !late {
		c.errorf("a key that is free, or soon will be: %v", err)
	}
	return lease
}

// outlived checks that a lease whose holder is cut off ends before a rival has the key.
func (c *check) outlived(way cutOff, lease *locker.Lease, rival locker.Locker, m *margins) {
	done := lease.Done()
	closed := make(chan time.Time, 1)
	c.do(func() {
		<-done
		closed <- time.Now()
	})
	// Renewals that reach the store although their answers get lost make the rival wait longer.
	next, err := rival.Lock(c.within(12*c.ttl), lease.Key())
	wasClosed := isClosed(done)
	at := time.Now()
	loss := lease.Err()
	defer func() { _ = lease.Unlock() }() // or who waits for Done might do so for ever
	if err != nil {
		c.errorf("%v: the rival's Lock: %v", way, err)
		return
	}
	defer c.unlock(next)
	switch {
	case loss == nil:
		c.twoHolders(way.by, lease, "%v: the rival's Lock returned while the holder's lease was valid, for %v more",
			way, lease.Deadline().Sub(at))
	case !errors.Is(loss, locker.ErrLost):
		c.errorf("%v: Err of the holder that was cut off: %v; want ErrLost", way, loss)
	case wasClosed:
		m.add(way, at.Sub(<-closed))
	case at.After(lease.Deadline()): // Err looks at the clock: this machine was late to close Done
		c.add(problem{
			saw: fmt.Sprintf(
				"%v: the rival's Lock returned while the Done of the holder was not closed, %v after its Deadline", way,
				at.Sub(lease.Deadline())),
			at: caller(0), over: at.Sub(lease.Deadline()),
		})
	default:
		c.errorf("%v: the rival's Lock returned while the Done of the holder was not closed", way)
	}
}

// twoHolders records that a rival has the lock while the lease of who was cut off is valid. Where a lock ends with
// its connection, both are told at the same moment when that breaks, and a holder that had no processor then is told
// too late.
func (c *check) twoHolders(by Fault, lease *locker.Lease, format string, args ...any) {
	at := time.Now()
	saw := fmt.Sprintf(format, args...)
	if by != Refuse || connectionBound.reason(c.h.Features) == "" {
		c.wrongf("%s", saw)
		return
	}
	select {
	case <-lease.Done():
		c.took(max(time.Since(at), 1), 0, "%s: until the holder was told", saw)
	case <-time.After(c.ttl / 4):
		c.wrongf("%s, and %v later it still was", saw, c.ttl/4)
	}
}
