package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// lineRules are those about the order in which waiters are served.
var lineRules = []rule{
	{
		name: "FIFO", body: fifo, relaxes: unordered, serial: true, // first of those that have to do with order
		did: "24 Locks over three Lockers come one after the other for a key that is held: in turn, in blocks, and mixed. " +
			"96 come for another, four at a time. The holders unlock, and each waiter soon after. When eight have been " +
			"served, others come; meanwhile a fourth Locker, or one of the three, uses TryLock all the time.",
		text: "Waiters are served in order of arrival, across Lockers, and TryLock never overtakes them.",
		hint: "Implement locker.Queue, and state Features.Queue, if your store has a line or can keep one. (A Wait that " +
			"the method Features does not state is never called; what is stated without a Wait, locker.New refuses.) If it " +
			"has none: conformance.Features{Unordered: \"the reason\"}. If each Locker has one place in it for all its " +
			"waiters: Features{OrderedPerLocker: \"the reason\"}.",
	},
	{
		name: "NoOvertaking", body: noOvertaking, relaxes: unordered, since: "v0.1.0",
		did: "Locks of five Lockers wait for a key, one each. Its holder unlocks; at the same moment, others call TryLock and " +
			"Lock: the former holder, those who wait, and a stranger.",
		text: "Whoever comes when a key is unlocked is served after all who wait for it, whether by TryLock or by Lock.",
		hint: hintReserved,
	},
	{
		name: "NoOvertakingOnExpiry", body: noOvertakingOnExpiry, relaxes: unordered, expires: true, since: "v0.1.0",
		did: "Locks of three Lockers wait for a key, one each. Its holder's lease ends with its TTL; about then, others call " +
			"TryLock and Lock.",
		text: "Whoever comes when a lease expires is served after all who wait for the key, whether by TryLock or by Lock.",
		hint: hintReserved,
	},
	{
		name: "KeepsItsPlace", body: keepsItsPlace, relaxes: unordered, since: "v0.1.0",
		did: "Twelve Locks over three Lockers come for a key, one after the other, while its holder keeps it for four TTLs, four " +
			"seconds at least.",
		text: "A waiter keeps its place in line however long it waits, while the holder's lease is renewed.",
		hint: "If the line forgets those of whom it has not heard for a while, each waiter has to be heard of more often, and " +
			"one that was forgotten takes its old place. What a renewal writes is the expiry, and nothing else.",
	},
	{
		name: "CancelKeepsOrder", body: cancelKeepsOrder, relaxes: unordered, since: "v0.1.0",
		did: "Twelve Locks over three Lockers wait for a key, and one of a fourth Locker. The first, the last and some in the " +
			"middle are cancelled, and the fourth Locker is closed. The holder unlocks; when two have been served, one more " +
			"is cancelled.",
		text: "When waiters give up, the others are served all the same, in order of arrival.",
		hint: "Take out of the line whoever has Grant.Owner, wherever it is, and nobody else: not the first, not all of that " +
			"Locker, not those behind it. The others stay as they are.",
	},
}

const hintReserved = "Hand the key over to the first in line in the step that frees it. Or reserve it for the first until it has " +
	"come for it: then Acquire, and the first step of Wait, refuse everybody else as long as there is a line, also when the " +
	"last holder's lease has expired."

// line is a key that some wait for, with the order in which they came and in which they were served.
type line struct {
	c   *check
	key string

	mu     sync.Mutex
	came   []*place
	served []*place
}

// place is that of somebody in a line.
type place struct {
	name   string // for people
	locker int    // index
	rank   int    // those with a smaller one have come before
	came   time.Time
	cancel context.CancelFunc
	served chan struct{} // closed when it has the lock
	keeps  chan struct{} // closed when it may unlock
	done   chan struct{} // closed when it has unlocked, or its Lock has failed
	leaves bool          // it gives up, or may do so
	err    error         // of its Lock, when done
	failed time.Time     // when that has returned it
}

// newcomer is the rank of those who come when the order of the others is certain.
const newcomer = 1 << 20

// newLine returns the line of a new key.
func (c *check) newLine() *line { return &line{c: c, key: c.key()} }

// join has the Locker with index i get into line, which takes a moment. At its turn, it unlocks after a short while, or
// when keeps is closed.
func (l *line) join(ls []locker.Locker, i, rank int, patience time.Duration, opts ...locker.CallOption) *place {
	ctx, cancel := context.WithTimeout(l.c.ctx, patience)
	p := &place{
		locker: i, rank: rank, came: time.Now(), cancel: cancel,
		served: make(chan struct{}), done: make(chan struct{}),
	}
	l.mu.Lock()
	l.came = append(l.came, p)
	p.name = fmt.Sprintf("%c%d", 'A'+i, len(l.came))
	l.mu.Unlock()
	l.c.do(func() {
		defer close(p.done)
		defer cancel()
		lease, err := ls[i].Lock(ctx, l.key, opts...)
		if err != nil {
			p.err, p.failed = err, time.Now()
			return
		}
		l.serves(p, lease)
	})
	return p
}

// arrive lets those arrive who have just come. What cannot be seen takes as long as what can be, if the store is slow:
// the answer to a TryLock that was sent later.
func (c *check) arrive(ls []locker.Locker, lines ...*line) {
	c.settle()
	c.all(len(lines), func(i int) {
		l := lines[i]
		l.mu.Lock()
		last := l.came[len(l.came)-1]
		l.mu.Unlock()
		if lease, err := ls[last.locker].TryLock(c.within(10*c.ttl), l.key); err == nil {
			_ = lease.Unlock()
		}
	})
}

// serves notes that it is the turn of p, and unlocks.
func (l *line) serves(p *place, lease *locker.Lease) {
	l.mu.Lock()
	l.served = append(l.served, p)
	keeps := p.keeps
	l.mu.Unlock()
	close(p.served)
	if keeps != nil {
		select {
		case <-keeps:
		case <-l.c.ctx.Done():
		}
	} else {
		time.Sleep(l.c.ttl / 500)
	}
	l.c.unlock(lease)
}

// hold makes p keep the lock, when it gets it, until release is called.
func (l *line) hold(p *place) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keeps := make(chan struct{})
	p.keeps = keeps
	return sync.OnceFunc(func() { close(keeps) })
}

// reached waits until it is the turn of p, or until its Lock has failed.
func (p *place) reached() {
	select {
	case <-p.served:
	case <-p.done:
	}
}

// giveUp gives up the place, and waits for the Lock to return.
func (p *place) giveUp() {
	p.leaves = true
	p.cancel()
	<-p.done
}

// tries has a Locker call TryLock all the time, until stop is called, which waits for it.
func (l *line) tries(ls []locker.Locker, i int) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	l.c.do(func() {
		defer close(ended)
		for {
			p := &place{
				name:   fmt.Sprintf("TryLock(%c)", 'A'+i),
				locker: i,
				rank:   newcomer,
				came:   time.Now(),
				served: make(chan struct{}),
			}
			lease, err := ls[i].TryLock(l.c.within(10*l.c.ttl), l.key)
			switch {
			case err == nil:
				l.serves(p, lease)
			case !errors.Is(err, locker.ErrLocked):
				l.c.errorf("TryLock of a key that others wait for: %v; want ErrLocked", err)
				return
			}
			select {
			case <-end:
				return
			case <-time.After(l.c.ttl / 1000):
			}
		}
	})
	return sync.OnceFunc(func() { close(end); <-ended })
}

// ends waits for all who are in line.
func (l *line) ends() {
	l.mu.Lock()
	came := slices.Clone(l.came)
	l.mu.Unlock()
	for _, p := range came {
		<-p.done
	}
}

// judge checks that all but those who have given up were served, and in order. perLocker leaves out those of different
// Lockers.
func (l *line) judge(perLocker bool, arrivals string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.came {
		if isClosed(p.done) && p.err != nil && !p.leaves {
			l.c.add(problem{
				saw: fmt.Sprintf("Lock of %s, when %d of %d had been served: %v (%s; came: %s; served: %s)",
					p.name, len(l.served), len(l.came), p.err, arrivals, names(l.came), names(l.served)),
				at:   caller(1),
				over: max(0, p.failed.Sub(p.came)-l.c.longWait()-5*l.c.ttl), // all had been served by then
			})
			return
		}
	}
	var worst, overtaken *place
	var by time.Duration
	for i, late := range l.served {
		for _, early := range l.served[:i] {
			if early.rank <= late.rank || perLocker && early.locker != late.locker {
				continue
			}
			if later := early.came.Sub(late.came); later > by {
				worst, overtaken, by = early, late, later
			}
		}
	}
	if worst == nil {
		return
	}
	overtook := fmt.Sprintf("%s was served before %s, which had come %v before it", worst.name, overtaken.name,
		by.Round(time.Millisecond))
	if strings.HasPrefix(worst.name, "TryLock") {
		overtook = fmt.Sprintf("TryLock got in with %s in line, which had come %v before and was not yet served",
			overtaken.name, by.Round(time.Millisecond))
	}
	l.c.add(problem{
		saw: fmt.Sprintf("%s (%s; a letter is a Locker; came: %s; served: %s)", overtook, arrivals, names(l.came),
			names(l.served)),
		at: caller(1),
		// A machine that was late is an excuse if it was late by a good part of that.
		over: min(max(by, l.c.ttl/6), l.c.ttl/2),
	})
}

// names lists places, unless they are very many.
func names(places []*place) string {
	const most = 40
	var b strings.Builder
	for i, p := range places {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(places)-most)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p.name)
	}
	return b.String()
}

// perLocker reports whether the order among waiters of different Lockers is left out, and says so in the report.
func (c *check) perLocker() bool {
	reason := orderedPerLocker.reason(c.h.Features)
	if reason == "" {
		return false
	}
	c.leaves(inPart, "relaxed: in order among the waiters of one Locker only: %s (Features.%s)", reason,
		orderedPerLocker.name)
	return true
}

// openAll returns n Lockers, each of which has been served in the lines of several keys: so it has all that takes time
// to make, such as connections.
func (c *check) openAll(n, keys int) []locker.Locker {
	ls := make([]locker.Locker, n)
	for i := range ls {
		ls[i] = c.open()
	}
	leases := make([]*locker.Lease, keys)
	for i := range leases {
		leases[i] = c.lock(ls[0], c.key())
	}
	c.do(func() {
		c.settle()
		for _, lease := range leases {
			c.unlock(lease)
		}
	})
	c.all(n*keys, func(i int) {
		if lease, err := ls[i%n].Lock(c.within(5*c.ttl), leases[i/n].Key()); err == nil {
			_ = lease.Unlock()
		}
	})
	return ls
}

func fifo(c *check) {
	const lockers, waiters, together, served = 3, 24, 4, 8
	ls := c.openAll(lockers+1, 4)
	stranger := lockers // its index
	turns := []struct {
		arrivals string
		locker   func(i int) int
	}{
		{"Lockers in turn", func(i int) int { return i % lockers }},
		{"Lockers in blocks", func(i int) int { return i * lockers / waiters }},
		{"Lockers mixed", nil},
	}
	mixed := make([]int, waiters)
	for i := range mixed {
		mixed[i] = i % lockers
	}
	c.shuffle(waiters, func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	turns[2].locker = func(i int) int { return mixed[i] }

	lines := make([]*line, len(turns))
	leases := make([]*locker.Lease, len(turns))
	for i := range lines {
		lines[i] = c.newLine()
		leases[i] = c.lock(ls[i%lockers], lines[i].key)
	}
	long := c.newLine()
	first := c.lock(ls[stranger], long.key)
	patience := 20 * c.ttl
	for i := range waiters {
		// What has nothing to do with the order of arrival: the names of the holders, and how long they would like to
		// hold.
		name := locker.Holder(fmt.Sprintf("%02d", 99-i))
		ttl := locker.TTL(time.Duration(1+c.draw(3)) * c.ttl)
		lines[0].join(ls, turns[0].locker(i), i, patience, name)
		lines[1].join(ls, turns[1].locker(i), i, patience)
		lines[2].join(ls, turns[2].locker(i), i, patience, ttl)
		for k := range together {
			long.join(ls, (i+k)%lockers, i, patience)
		}
		c.arrive(ls, append(lines, long)...)
	}
	perLocker := c.perLocker()
	c.all(len(lines)+1, func(j int) {
		if j == len(lines) {
			c.unlock(first)
			long.ends()
			long.judge(perLocker, "four at a time")
			return
		}
		l := lines[j]
		midway := l.came[served]
		release := l.hold(midway)
		stop := l.tries(ls, []int{stranger, 0, stranger}[j])
		c.unlock(leases[j])
		midway.reached()
		for i := range lockers {
			l.join(ls, i, waiters+i, patience)
			c.arrive(ls, l)
		}
		release()
		l.ends()
		stop()
		l.judge(perLocker, turns[j].arrivals)
	})
}

// trespass has many come when the key of a line becomes free: the Lockers with the given indexes.
func (l *line) trespass(ls []locker.Locker, by []int, offsets []time.Duration) (stop func()) {
	var stops []func()
	for _, i := range by {
		stops = append(stops, l.tries(ls, i))
	}
	for k, offset := range offsets {
		l.c.do(func() {
			time.Sleep(offset)
			l.join(ls, by[k%len(by)], newcomer, 20*l.c.ttl)
		})
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// offsets returns n random durations below most, and zero as the first.
func (c *check) offsets(n int, most time.Duration) []time.Duration {
	ds := make([]time.Duration, n)
	for i := range ds[1:] {
		ds[1+i] = time.Duration(c.draw(int(most)))
	}
	return ds
}

func noOvertaking(c *check) {
	const waiters = 5
	holder, stranger := waiters, waiters+1
	trespassers := [][]int{{holder}, {stranger}, {0, waiters - 1}} // by key
	ls := c.openAll(waiters+2, len(trespassers))
	lines := make([]*line, len(trespassers))
	leases := make([]*locker.Lease, len(lines))
	offsets := make([][]time.Duration, len(lines))
	for i := range lines {
		lines[i] = c.newLine()
		leases[i] = c.lock(ls[holder], lines[i].key)
		offsets[i] = c.offsets(4, c.ttl/50)
	}
	for i := range waiters {
		for _, l := range lines {
			l.join(ls, i, i, 20*c.ttl)
		}
		c.arrive(ls, lines...)
		time.Sleep(c.ttl / 20) // each of them may be another process of the server's
	}
	c.all(len(lines), func(j int) {
		l := lines[j]
		stop := l.trespass(ls, trespassers[j], offsets[j])
		c.unlock(leases[j])
		l.ends()
		stop()
		l.judge(false, "after Unlock")
	})
}

func noOvertakingOnExpiry(c *check) {
	const waiters = 3
	stranger := waiters
	trespassers := [][]int{{stranger}, {0, waiters - 1}} // by key
	ls := c.openAll(waiters+1, len(trespassers))
	lines := make([]*line, len(trespassers))
	offsets := make([][]time.Duration, len(lines))
	leases := make([]*locker.Lease, len(lines))
	for i := range lines {
		lines[i] = c.newLine()
		leases[i] = c.abandon(lines[i].key)
		offsets[i] = c.offsets(6, c.ttl/5)
		for k := range 12 { // at its end, many
			offsets[i] = append(offsets[i], c.ttl/10+time.Duration(k)*c.ttl/1000)
		}
	}
	for i := range waiters {
		for _, l := range lines {
			l.join(ls, i, i, 20*c.ttl)
		}
		c.arrive(ls, lines...)
		time.Sleep(c.ttl / 20) // each of them may be another process of the server's
	}
	c.all(len(lines), func(j int) {
		// Its holder takes the lease for over a little before its TTL.
		time.Sleep(time.Until(leases[j].Deadline().Add(c.ttl/100+2*time.Millisecond)) - c.ttl/10)
		l := lines[j]
		stop := l.trespass(ls, trespassers[j], offsets[j])
		l.ends()
		stop()
		l.judge(false, "after the holder's TTL")
	})
}

// longWait is for how long a waiter has to keep its place, as far as it is proven. In fake time that costs nothing.
func (c *check) longWait() time.Duration {
	if inFakeTime() {
		return max(4*time.Second, 25*c.ttl)
	}
	return max(4*time.Second, 4*c.ttl)
}

func keepsItsPlace(c *check) {
	const lockers, waiters = 3, 12
	ls := c.openAll(lockers+1, 1)
	order := make([]int, waiters)
	for i := range order {
		order[i] = i % lockers
	}
	c.shuffle(waiters, func(i, j int) { order[i], order[j] = order[j], order[i] })
	l := c.newLine()
	begun, long := time.Now(), c.longWait()
	lease := c.lock(ls[lockers], l.key)
	for i, locker := range order {
		l.join(ls, locker, i, long+10*c.ttl)
		// They come all the time, so that some have waited for longer than others, and the last ones hardly at all.
		c.arrive(ls, l)
		time.Sleep(time.Until(begun.Add(time.Duration(i+1) * long / waiters)))
	}
	c.unlock(lease)
	l.ends()
	l.judge(c.perLocker(), fmt.Sprintf("they have come over %v", long))
}

func cancelKeepsOrder(c *check) {
	const lockers, waiters, keys, cancelled, served = 3, 12, 2, 3, 2
	ls := c.openAll(lockers+1, keys)
	closes := []locker.Locker{c.open(), c.open()}
	lines := make([]*line, keys)
	leases := make([]*locker.Lease, keys)
	order := make([][]int, keys) // of Lockers
	which := make([][]int, keys) // are cancelled, from those in the middle
	for k := range lines {
		lines[k] = c.newLine()
		leases[k] = c.lock(ls[lockers], lines[k].key)
		order[k], which[k] = make([]int, waiters), make([]int, waiters-2)
		for i := range order[k] {
			order[k][i] = i % lockers
		}
		for i := range which[k] {
			which[k][i] = 1 + i
		}
		c.shuffle(waiters, func(i, j int) { order[k][i], order[k][j] = order[k][j], order[k][i] })
		c.shuffle(len(which[k]), func(i, j int) { which[k][i], which[k][j] = which[k][j], which[k][i] })
	}
	waits := make([][]*place, keys)
	for i := range waiters {
		for k, l := range lines {
			if i == waiters/2 {
				l.join(append(slices.Clone(ls), closes[k]), lockers+1, i, 20*c.ttl).leaves = true
			}
			waits[k] = append(waits[k], l.join(ls, order[k][i], i, 20*c.ttl))
		}
		c.arrive(ls, lines...)
	}
	perLocker := c.perLocker()
	c.all(keys, func(k int) {
		l := lines[k]
		middle := which[k]
		c.do(func() { _ = closes[k].Close() })
		for _, i := range append([]int{0, waiters - 1}, middle[:cancelled]...) {
			waits[k][i].giveUp()
		}
		c.settle()
		stay := slices.Sorted(slices.Values(middle[cancelled:]))
		reached := waits[k][stay[served-1]]
		release := l.hold(reached)
		c.unlock(leases[k])
		reached.reached()
		waits[k][stay[served+1]].giveUp()
		c.arrive(ls, l)
		release()
		l.ends()
		l.judge(perLocker, "some have given up")
	})
}
