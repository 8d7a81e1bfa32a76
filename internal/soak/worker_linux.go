package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/soak/history"
)

const envWorker = "LOCKER_SOAK_WORKER" // the JSON of a workerSpec

// workerSpec is what a worker process is to do.
type workerSpec struct {
	Store      string
	ID         string            // number of the worker, ".", number of its life
	Servers    []string          // addresses that the clients are given
	Via        map[string]string // the address of this worker's proxy for each address of a server
	Records    string            // the file for them
	Goroutines int
	Keys       int
	Seed       uint64
}

// way returns the address by which this worker reaches a server.
func (s workerSpec) way(server string) string {
	if proxy, ok := s.Via[server]; ok {
		return proxy
	}
	return server
}

// ttl is a random one.
func ttl(store string, rng *rand.Rand) time.Duration {
	if store == storeEtcd { // which has whole seconds; a leader that stands still for 2/3 of one is a known gap
		return time.Duration(2+rng.IntN(3)) * time.Second
	}
	return time.Duration(200+rng.IntN(1801)) * time.Millisecond
}

func longestTTL(store string) time.Duration {
	if store == storeEtcd {
		return 4 * time.Second
	}
	return 2 * time.Second
}

// key is one of n, of which two are in demand.
func key(n int, rng *rand.Rand) string {
	if rng.IntN(3) == 0 {
		n = min(n, 2)
	}
	return fmt.Sprintf("soak-%d", rng.IntN(n))
}

// mixed reports whether a key is locked in all modes that the store has: one of the two that are in demand is. The
// others are locked exclusively.
func mixed(key string) bool { return (key[len(key)-1]-'0')%2 == 1 }

// mode is one that a store has.
type mode struct {
	history.Mode
	slots   int
	options []locker.CallOption
}

// modesOf returns the modes of a Locker. Those that let in others come more than once, so that they come one after the
// other in line, too.
func modesOf(l locker.Locker) []mode {
	const slots = 3
	modes := []mode{{Mode: history.Exclusive}}
	for _, m := range []mode{
		{history.Shared, 0, []locker.CallOption{locker.Shared()}},
		{history.Slots, slots, []locker.CallOption{locker.Slots(slots)}},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // the store is not asked
		if _, err := l.TryLock(ctx, "soak", m.options...); !errors.Is(err, errors.ErrUnsupported) {
			modes = append(modes, m, m)
		}
	}
	return modes
}

type worker struct {
	spec    workerSpec
	locker  locker.Locker
	modes   []mode
	pulse   pulse
	ctx     context.Context // ends when the worker is to end
	stopped atomic.Int64    // a moment before ctx ended, or 0
	calls   atomic.Int64
	mu      sync.Mutex
	file    *os.File
}

// runWorker locks and unlocks until SIGTERM.
func runWorker(text string) error {
	w := &worker{}
	if err := json.Unmarshal([]byte(text), &w.spec); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	var err error // the file shows the supervisor that signals are heeded
	if w.file, err = os.OpenFile(w.spec.Records, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	go w.pulse.run()
	rng := rand.New(rand.NewPCG(w.spec.Seed, 0))
	options := []locker.Option{locker.Holder(w.spec.ID), locker.Observe(&locker.Observer{LockDone: noteQueued})}
	l, closeClient, err := openLocker(w.spec, rng, options...)
	if err != nil {
		return err
	}
	w.locker, w.modes = l, modesOf(l)
	ctx, cancel := context.WithCancelCause(context.Background())
	w.ctx = ctx
	go func() {
		<-signals
		w.stopped.Store(now())
		cancel(errStopped)
	}()
	var wg sync.WaitGroup
	for i := range w.spec.Goroutines {
		wg.Go(func() { w.loop(rand.New(rand.NewPCG(w.spec.Seed, uint64(i+1)))) })
	}
	wg.Wait()
	end := history.Record{Kind: history.Finished}
	if err := l.Close(); err != nil {
		end.Text = short(err)
	}
	closeClient()
	end.At = now()
	w.record(end)
	return nil
}

// record writes one record. What is written survives the process.
func (w *worker) record(r history.Record) {
	r.Process = w.spec.ID
	line, err := json.Marshal(r)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, err = w.file.Write(append(line, '\n'))
	}
	fail(err)
}

// The causes of the ends of contexts.
var (
	errStopped    = errors.New("the worker ends")
	errImpatience = errors.New("the patience of this call is over")
)

type queuedKey struct{}

// noteQueued is LockDone of an Observer: it tells the caller whether Lock has waited.
func noteQueued(ctx context.Context, info locker.LockDoneInfo) {
	if queued, ok := ctx.Value(queuedKey{}).(*bool); ok {
		*queued = info.Queued
	}
}

func (w *worker) loop(rng *rand.Rand) {
	for w.ctx.Err() == nil {
		r := history.Record{ID: int(w.calls.Add(1)), Op: "lock"}
		r.Key, r.TTL = key(w.spec.Keys, rng), ttl(w.spec.Store, rng)
		m := w.modes[0]
		if mixed(r.Key) {
			m = w.modes[rng.IntN(len(w.modes))]
		}
		r.Mode, r.Slots = m.Mode, m.slots
		options := append([]locker.CallOption{locker.TTL(r.TTL)}, m.options...)
		if rng.IntN(10) == 0 {
			options = append(options, locker.NoRenew())
		}
		lock := w.locker.Lock
		if rng.IntN(4) == 0 {
			r.Op, lock = "trylock", w.locker.TryLock
		}
		patience := 15 * time.Second
		if rng.IntN(5) == 0 {
			patience = below(rng, 300*time.Millisecond)
		}
		var queued bool
		r.Kind, r.At = history.Asked, now()
		r.Until = r.At + int64(patience)
		w.record(r)
		ctx, cancel := context.WithTimeoutCause(context.WithValue(w.ctx, queuedKey{}, &queued), patience, errImpatience)
		lease, err := lock(ctx, r.Key, options...)
		r.At, r.Queued = now(), queued
		if err == nil {
			w.hold(r, lease, rng)
		} else {
			w.failed(ctx, r, err)
			w.pause(below(rng, 50*time.Millisecond))
		}
		cancel()
		w.pause(below(rng, 20*time.Millisecond))
	}
}

func (w *worker) pause(d time.Duration) {
	select {
	case <-w.ctx.Done():
	case <-time.After(d):
	}
}

// failed records a call that was not granted.
func (w *worker) failed(ctx context.Context, r history.Record, err error) {
	if stopped := w.stopped.Load(); stopped != 0 {
		r.Until = min(r.Until, stopped)
	}
	r.Kind, r.Class, r.Text = history.Failed, classOf(ctx, err), short(err)
	r.Late = w.pulse.since(r.Until)
	w.record(r)
}

func classOf(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		if deadline, _ := ctx.Deadline(); ctx.Err() == nil && time.Until(deadline) <= 0 {
			return "the end of a ctx whose deadline has passed, and which has not ended"
		} else if ctx.Err() == nil {
			return "the end of a ctx that has not ended"
		} else if !errors.Is(err, ctx.Err()) || !errors.Is(err, context.Cause(ctx)) {
			return "the end of a ctx without its cause"
		}
		return "ctx"
	}
	for _, class := range []struct {
		err  error
		name string
	}{
		{locker.ErrLocked, "locked"}, {locker.ErrLost, "lost"}, {locker.ErrUnlocked, "unlocked"},
		{locker.ErrClosed, "closed"}, {locker.ErrDenied, "denied"}, {locker.ErrUnfit, "unfit"},
		{locker.ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, class.err) {
			return class.name
		}
	}
	return "without a class"
}

var numbers = regexp.MustCompile(`[0-9][0-9a-f.:]*`)

// short is the text of an error without what makes each one different.
func short(err error) string {
	text := numbers.ReplaceAllString(err.Error(), "#")
	return text[:min(len(text), 240)]
}

// hold holds a lease for a while. r is the record of its call.
func (w *worker) hold(r history.Record, lease *locker.Lease, rng *rand.Rand) {
	ttl := r.TTL
	r = history.Record{Kind: history.Granted, ID: r.ID, At: r.At, Token: lease.Token(), Slot: lease.Slot(),
		Queued: r.Queued}
	w.record(r)
	hold := below(rng, 20*time.Millisecond)
	switch n := rng.IntN(10); {
	case n < 2:
		hold = below(rng, ttl*3/2)
	case n < 4:
		hold = below(rng, 100*time.Millisecond)
	}
	// Half of the holders look at Err all the time. The others rely on Done: what tells them is the library's timer.
	look := 50 * time.Millisecond
	if rng.IntN(2) == 0 {
		look = 5 * time.Millisecond
	}
	const between = int64(50 * time.Millisecond) // two records
	end, recorded := now()+int64(hold), int64(0)
	for left := int64(1); left > 0 && w.ctx.Err() == nil; {
		at := now()
		if lease.Err() != nil {
			break
		}
		r.Valid = at
		if at-recorded > between {
			w.record(history.Record{Kind: history.Valid, ID: r.ID, At: at})
			recorded = at
		}
		left = end - at
		select {
		case <-lease.Done():
		case <-time.After(min(look, time.Duration(max(left, 0)))):
		}
	}
	at := now()
	if err := lease.Err(); err != nil {
		<-lease.Done()
		at = now()
		deadline := at + int64(time.Until(lease.Deadline()))
		w.record(history.Record{Kind: history.Lost, ID: r.ID, At: at, Valid: r.Valid, Until: deadline, Text: short(err),
			Late: w.pulse.since(min(at, deadline))})
		return
	}
	w.record(history.Record{Kind: history.Released, ID: r.ID, At: at, Valid: at})
	if w.ctx.Err() != nil && rng.IntN(2) == 0 {
		return // Close unlocks it
	}
	err := lease.Unlock()
	w.record(history.Record{Kind: history.Unlocked, ID: r.ID, At: now(), Class: classOf(w.ctx, err)})
}
