package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerkit/locker/internal/soak/history"
)

// fault is something that happens to the servers. One happens at a time.
type fault struct {
	weight int
	what   string
	most   time.Duration // how long it lasts at most; mostly it is much shorter
	least  time.Duration

	// begin makes it begin, and returns what ends it, or nil. It may fill in e further, and return errNotNow.
	begin func(rng *rand.Rand, e *history.Event) (end func() error, err error)
}

// errNotNow says that a fault is not possible at present, as there is no leader, say.
var errNotNow = errors.New("not possible at present")

// node is a server process.
type node interface {
	Addr() string
	Kill()
	Restart() error
	Pause() error
	Resume() error
}

// some is a function that chooses a node.
type some func(rng *rand.Rand) node

func frozen(weight int, what string, most time.Duration, choose some) fault {
	return fault{weight, what, most, 0, func(rng *rand.Rand, e *history.Event) (func() error, error) {
		n := choose(rng)
		e.Server = n.Addr()
		return n.Resume, n.Pause()
	}}
}

func killed(weight int, what string, most time.Duration, choose some, restart func(node) error) fault {
	return fault{weight, what, most, 0, func(rng *rand.Rand, e *history.Event) (func() error, error) {
		n := choose(rng)
		e.Server = n.Addr()
		n.Kill()
		return func() error { return restart(n) }, nil
	}}
}

// serverFaults has one fault after the other happen to the servers.
func (s *soak) serverFaults(ctx context.Context, rng *rand.Rand) error {
	faults := s.store.faults()
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for sleep(ctx, below(rng, time.Second)); ctx.Err() == nil; sleep(ctx, below(rng, time.Second)) {
		n := rng.IntN(total)
		i := slices.IndexFunc(faults, func(f fault) bool {
			n -= f.weight
			return n < 0
		})
		if err := s.happen(faults[i], rng); err != nil {
			return err
		}
	}
	return nil
}

// happen makes a fault happen, from the beginning to the end.
func (s *soak) happen(f fault, rng *rand.Rand) error {
	e := history.Event{What: "server: " + f.what, From: now()}
	end, err := f.begin(rng, &e)
	if errors.Is(err, errNotNow) {
		return nil
	} else if err != nil {
		return err
	}
	if end != nil {
		time.Sleep(max(f.least, mostlyShort(f.most, rng)))
		err = end()
	}
	e.To = now()
	s.note(e)
	return err
}

// below returns a random duration below one.
func below(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

// mostlyShort returns a random duration, of which few are long.
func mostlyShort(longest time.Duration, rng *rand.Rand) time.Duration {
	x := rng.Float64()
	return time.Duration(x * x * float64(longest))
}

// sleep sleeps, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// await waits until the servers are well.
func (s *soak) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := s.store.healthy(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
