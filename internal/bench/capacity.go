package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockerkit/locker"
)

// load is how much of everything capacity has Lockers do.
type load struct {
	held, waiters, handoffs int
	watch                   time.Duration // how long to count the requests of those who hold or wait
}

// site is a store with its counters.
type site struct {
	name string
	open func(opts ...locker.Option) (locker.Locker, error)
	// What the store says; nil if it does not, or has none.
	requests    func() (float64, error) // that it has got
	messages    func() (float64, error) // that it has sent of itself
	memory      func() (float64, error) // bytes in use
	connections func() (float64, error) // of Lockers
	notifies    func() (float64, error) // statements among the requests by which it was asked to send some
	pids        func() ([]int, error)   // its processes for Lockers
	close       func()
}

func (s *site) Close() { s.close() }

// printCapacity prints what locks and waiters cost on each of the stores, as a Markdown table.
func printCapacity(stores string, l load) error {
	var names []string
	cells := make(map[string][]string)
	for store := range strings.SplitSeq(stores, ",") {
		start, ok := sites[store]
		if !ok {
			return fmt.Errorf("unknown store %q", store)
		}
		s, err := start()
		if err != nil {
			return err
		}
		r := &report{cells: make(map[string]string)}
		err = s.measure(l, r)
		s.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for len(r.order) > len(names) { // the longest one has all, as all have the same order
			names = append(names, r.order[len(names)])
		}
		for _, name := range names {
			cells[name] = append(cells[name], r.cells[name])
		}
		cells[""] = append(cells[""], s.name)
	}
	fmt.Printf("\n| | %s |\n|---|%s\n", strings.Join(cells[""], " | "), strings.Repeat("---:|", len(cells[""])))
	for _, name := range names {
		fmt.Printf("| %s | %s |\n", name, strings.Join(cells[name], " | "))
	}
	return nil
}

// report is a column of the table.
type report struct {
	order []string
	cells map[string]string
}

func (r *report) add(name, format string, args ...any) {
	r.order = append(r.order, name)
	r.cells[name] = fmt.Sprintf(format, args...)
}

// reading is what the store and the runtime tell at a moment.
type reading struct {
	at                                      time.Time
	process                                 float64
	requests, messages, memory, connections float64
}

func (s *site) read() (r reading, err error) {
	r.process = float64(memory())
	for _, c := range []struct {
		f func() (float64, error)
		n *float64
	}{{s.requests, &r.requests}, {s.messages, &r.messages}, {s.memory, &r.memory}, {s.connections, &r.connections}} {
		if c.f == nil {
			continue
		}
		if *c.n, err = c.f(); err != nil {
			return r, err
		}
	}
	r.at = time.Now()
	return r, nil
}

// atRest reads several times, and returns the least: what is in use beyond that is for requests that are under way.
func (s *site) atRest() (least reading, err error) {
	for i := range 5 {
		r, err := s.read()
		if err != nil {
			return least, err
		}
		if i == 0 {
			least = r
		}
		least.process, least.memory = min(least.process, r.process), min(least.memory, r.memory)
		time.Sleep(time.Second)
	}
	return least, nil
}

// memory returns the bytes of the heap and of the goroutines' stacks.
func memory() uint64 {
	runtime.GC()
	runtime.GC() // frees what the first one has found in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// perSecond counts requests for a while.
func (s *site) perSecond(watch time.Duration) (float64, error) {
	if s.requests == nil {
		return 0, nil
	}
	time.Sleep(locker.DefaultTTL) // what is done once for each lock has been done
	before, err := s.read()
	if err != nil {
		return 0, err
	}
	time.Sleep(watch)
	after, err := s.read()
	return (after.requests - before.requests) / after.at.Sub(before.at).Seconds(), err
}

func (s *site) measure(l load, r *report) error {
	return errors.Join(s.measureHeld(l, r), s.measureBeside(r, "reader", l.held, locker.Shared()),
		s.measureBeside(r, "slot", l.held/10, locker.Slots(l.held/10)), s.measureWaiters(l, r, 1),
		s.measureWaiters(l, r, l.waiters), s.measurePairs(l, r))
}

// inUse adds a row about something that the store may not have.
func (r *report) inUse(name string, has bool, format string, args ...any) {
	if !has {
		format, args = "–", nil
	}
	r.add(name, format, args...)
}

func (s *site) measureHeld(l load, r *report) error {
	ctx := context.Background()
	first, err := s.read()
	if err != nil {
		return err
	}
	a, err := s.open()
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	if _, err := a.Lock(ctx, "held/first"); err != nil {
		return err
	}
	one, err := s.perSecond(l.watch)
	if err != nil {
		return err
	}
	before, err := s.read()
	if err != nil {
		return err
	}
	leases := make([]*locker.Lease, l.held)
	if err := each(l.held, 256, func(i int) (err error) {
		leases[i], err = a.Lock(ctx, "held/"+strconv.Itoa(i))
		return err
	}); err != nil {
		return err
	}
	holding, err := s.read()
	if err != nil {
		return err
	}
	n := float64(l.held)
	r.add("process: bytes per lock held", "%.0f", (holding.process-before.process)/n)
	r.inUse("store: bytes per lock held", s.memory != nil, "%.0f", (holding.memory-before.memory)/n)
	many, err := s.perSecond(l.watch)
	if err != nil {
		return err
	}
	if err := each(l.held, 256, func(i int) error { return leases[i].Unlock() }); err != nil {
		return err
	}
	after, err := s.read()
	if err != nil {
		return err
	}
	r.inUse("store: bytes per key, right after Unlock", s.memory != nil, "%.0f", (after.memory-before.memory)/n)
	r.inUse("requests/s to hold 1", s.requests != nil, "%.1f", one)
	r.inUse(fmt.Sprintf("requests/s to hold %d", l.held), s.requests != nil, "%.1f", many)
	r.inUse(fmt.Sprintf("connections to hold %d", l.held), s.connections != nil, "%.0f",
		holding.connections-first.connections)
	return nil
}

// measureBeside has one Locker hold a key so many times, in a mode that allows that.
func (s *site) measureBeside(r *report, what string, holders int, mode locker.CallOption) error {
	ctx := context.Background()
	a, err := s.open()
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	name := fmt.Sprintf("bytes per %s, %d of one key", what, holders)
	first, err := a.Lock(ctx, "held/"+what, mode)
	if errors.Is(err, errors.ErrUnsupported) {
		r.add("process: "+name, "–")
		r.add("store: "+name, "–")
		return nil
	}
	if err != nil {
		return err
	}
	before, err := s.read()
	if err != nil {
		return err
	}
	leases := make([]*locker.Lease, holders-1)
	if err := each(len(leases), 256, func(i int) (err error) {
		leases[i], err = a.Lock(ctx, "held/"+what, mode)
		return err
	}); err != nil {
		return err
	}
	holding, err := s.read()
	if err != nil {
		return err
	}
	n := float64(len(leases))
	r.add("process: "+name, "%.0f", (holding.process-before.process)/n)
	r.inUse("store: "+name, s.memory != nil, "%.0f", (holding.memory-before.memory)/n)
	return errors.Join(first.Unlock(), each(len(leases), 256, func(i int) error { return leases[i].Unlock() }))
}

// measureWaiters has one Locker wait for what another one holds: for one key, or for a number of keys.
func (s *site) measureWaiters(l load, r *report, keys int) error {
	key := func(i int) string { return fmt.Sprintf("waited/%d/%d", keys, i%keys) }
	holder, err := s.open(locker.TTL(10 * time.Minute)) // is not heard of meanwhile
	if err != nil {
		return err
	}
	defer func() { _ = holder.Close() }()
	if err := each(keys, 256, func(i int) error {
		_, err := holder.Lock(context.Background(), key(i))
		return err
	}); err != nil {
		return err
	}
	alone, err := s.read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	waiter, err := s.open()
	if err != nil {
		cancel()
		return err
	}
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		_ = waiter.Close()
	}()
	before, err := s.read()
	if err != nil {
		return err
	}
	var failed atomic.Pointer[error]
	for i := range l.waiters {
		wg.Go(func() {
			_, err := waiter.Lock(ctx, key(i))
			if ctx.Err() == nil {
				failed.Store(&err)
			}
		})
	}
	time.Sleep(3 * time.Second) // they are all in line, or have seen that there is no room
	waiting, err := s.atRest()
	if err != nil {
		return err
	}
	n := float64(l.waiters)
	of := fmt.Sprintf("waiter, %d for one key", l.waiters)
	if keys > 1 {
		of = fmt.Sprintf("waiter, one for each of %d keys", keys)
	}
	r.add("process: bytes per "+of, "%.0f", (waiting.process-before.process)/n)
	r.inUse("store: bytes per "+of, s.memory != nil, "%.0f", (waiting.memory-before.memory)/n)
	rate, err := s.perSecond(l.watch)
	if err != nil {
		return err
	}
	r.inUse("requests/s per "+of, s.requests != nil, "%.3f", rate/n)
	r.inUse("connections, "+strings.TrimPrefix(of, "waiter, "), s.connections != nil, "%.0f",
		waiting.connections-alone.connections)
	if err := failed.Load(); err != nil {
		return fmt.Errorf("a waiter did not wait: %w", *err)
	}
	return nil
}

// measurePairs counts what it takes to lock and unlock, alone and in turns with another Locker.
func (s *site) measurePairs(l load, r *report) error {
	for _, c := range []struct {
		of      string
		lockers int
	}{{"Lock and Unlock", 1}, {"Lock that has to wait, and Unlock", 2}} {
		var lockers []locker.Locker
		for range c.lockers {
			l, err := s.open()
			if err != nil {
				return err
			}
			defer func() { _ = l.Close() }()
			if err := pairs(l, "warm", 1); err != nil { // has its connections
				return err
			}
			lockers = append(lockers, l)
		}
		before, err := s.read()
		if err != nil {
			return err
		}
		if err := each(c.lockers, c.lockers, func(i int) error { return pairs(lockers[i], "turns", l.handoffs/c.lockers) }); err != nil {
			return err
		}
		after, err := s.read()
		if err != nil {
			return err
		}
		n := float64(l.handoffs)
		r.inUse("requests per "+c.of, s.requests != nil, "%.1f", (after.requests-before.requests)/n)
		r.inUse("messages per "+c.of, s.messages != nil, "%.1f", (after.messages-before.messages)/n)
	}
	return nil
}

func pairs(l locker.Locker, key string, n int) error {
	lock := lockerLock(l)
	for range n {
		if err := lock(context.Background(), key); err != nil {
			return err
		}
	}
	return nil
}

// each calls f with 0 to n-1, as many at a time as it is told, and returns an error if there was one.
func each(n, atATime int, f func(i int) error) error {
	var next atomic.Int64
	errs := make(chan error, atATime)
	var wg sync.WaitGroup
	for range atATime {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs // nil if there is none
}
