package memlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// table has Lockers that are independent of one another over the same memory, in fake time.
type table struct {
	*testing.T
	*memlock.Locker
}

func seated(t *testing.T, test func(t table)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New()
		defer l.Close()
		test(table{t, l})
	})
}

// try is TryLock on a Locker of its own, for what has to work.
func (t table) try(opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := t.Peer().TryLock(t.Context(), "k", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// refused is TryLock on a Locker of its own, and on the one of a lease's holder, for what must not work.
func (t table) refused(why string, opts ...locker.CallOption) {
	t.Helper()
	lease, err := t.TryLock(t.Context(), "k", opts...)
	if err == nil {
		_ = lease.Unlock()
	}
	if !errors.Is(err, locker.ErrLocked) {
		t.Errorf("%s: %v; want ErrLocked", why, err)
	}
}

// waits is Lock on a Locker of its own that has to wait.
func (t table) waits(ctx context.Context, opts ...locker.CallOption) <-chan *locker.Lease {
	t.Helper()
	c := make(chan *locker.Lease, 1)
	l := t.Peer()
	go func() {
		lease, err := l.Lock(ctx, "k", opts...)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		c <- lease
	}()
	synctest.Wait()
	if len(c) > 0 {
		t.Error("it does not wait")
	}
	return c
}

// served returns the lease of a waiter that must have been served.
func (t table) served(c <-chan *locker.Lease) *locker.Lease {
	t.Helper()
	synctest.Wait()
	select {
	case lease := <-c:
		return lease
	default:
		t.Fatal("the waiter has not been served")
		return nil
	}
}

func (t table) unlock(leases ...*locker.Lease) {
	t.Helper()
	for _, lease := range leases {
		if err := lease.Unlock(); err != nil {
			t.Error(err)
		}
	}
}

func TestReadersAndWriters(t *testing.T) {
	seated(t, func(t table) {
		writer := t.try()
		t.refused("a reader beside a writer", locker.Shared())
		t.unlock(writer)

		one, two := t.try(locker.Shared()), t.try(locker.Shared())
		if one.Mode() != locker.ModeShared || one.Token() <= writer.Token() || two.Token() <= one.Token() {
			t.Errorf("modes %d, %d, tokens %d, %d after %d", one.Mode(), two.Mode(), one.Token(), two.Token(),
				writer.Token())
		}
		t.refused("a writer beside readers")
		t.refused("a slot beside readers", locker.Slots(3))

		next := t.waits(t.Context())
		t.refused("a reader that overtakes a writer", locker.Shared())
		readers := []<-chan *locker.Lease{t.waits(t.Context(), locker.Shared()), t.waits(t.Context(), locker.Shared())}
		last := t.waits(t.Context())
		t.unlock(one)
		synctest.Wait()
		if len(next) > 0 {
			t.Error("a writer has the lock beside a reader")
		}
		t.unlock(two)
		t.unlock(t.served(next))
		three, four := t.served(readers[0]), t.served(readers[1]) // together
		t.unlock(four, three)
		t.unlock(t.served(last))
	})
}

// TestWriterGivesUp has a writer that waits at the head of the line give up: the readers behind it get in at once.
func TestWriterGivesUp(t *testing.T) {
	seated(t, func(t table) {
		reader := t.try(locker.Shared())
		ctx, cancel := context.WithCancel(t.Context())
		writer := t.waits(ctx)
		one, two := t.waits(t.Context(), locker.Shared()), t.waits(t.Context(), locker.Shared())
		cancel()
		t.unlock(t.served(one), t.served(two), reader)
		<-writer
		t.unlock(t.try())
	})
}

// TestReadersEndByThemselves has one reader be lost: the others are not, and a writer waits for the last of them.
func TestReadersEndByThemselves(t *testing.T) {
	seated(t, func(t table) {
		short, err := t.Peer().Lock(t.Context(), "k", locker.Shared(), locker.TTL(time.Second), locker.NoRenew())
		if err != nil {
			t.Fatal(err)
		}
		long := t.try(locker.Shared(), locker.TTL(time.Minute), locker.NoRenew())
		renewed := t.try(locker.Shared())
		start := time.Now()
		writer := t.waits(t.Context())
		time.Sleep(2 * time.Second)
		if short.Err() == nil || long.Err() != nil || renewed.Err() != nil {
			t.Errorf("after the first TTL: %v, %v, %v; want only the first to be lost", short.Err(), long.Err(),
				renewed.Err())
		}
		t.unlock(renewed)
		lease := <-writer
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("the writer has waited for %v; want until the last reader's lease had ended", waited)
		}
		if long.Err() == nil {
			t.Error("a reader believes in its lease, and a writer has the lock")
		}
		t.unlock(lease)
	})
}

func TestSlots(t *testing.T) {
	seated(t, func(t table) {
		leases := []*locker.Lease{t.try(locker.Slots(3)), t.try(locker.Slots(3)), t.try(locker.Slots(3))}
		for i, lease := range leases {
			if lease.Slot() != i || lease.Mode() != locker.ModeSlots {
				t.Errorf("lease %d has slot %d, mode %d", i, lease.Slot(), lease.Mode())
			}
		}
		t.refused("a fourth of three", locker.Slots(3))
		t.refused("an exclusive lock beside slots")
		t.refused("a reader beside slots", locker.Shared())

		writer := t.waits(t.Context())
		next := t.waits(t.Context(), locker.Slots(3))
		t.unlock(leases[1])
		synctest.Wait()
		t.refused("a slot that is free, with others in line", locker.Slots(3))
		t.unlock(leases[0], leases[2])
		t.unlock(t.served(writer))
		if lease := t.served(next); lease.Slot() != 0 {
			t.Errorf("the first has slot %d", lease.Slot())
		} else {
			t.refused("a lock beside a slot", locker.Slots(1))
			t.unlock(lease)
		}
	})
}

// TestSlotsOfTheDead has holders of slots be cut off: their slots are free after their TTL, and not before.
func TestSlotsOfTheDead(t *testing.T) {
	seated(t, func(t table) {
		dying := t.Peer(locker.TTL(time.Second))
		if _, err := dying.Lock(t.Context(), "k", locker.Slots(2)); err != nil {
			t.Fatal(err)
		}
		alive := t.try(locker.Slots(2))
		dying.Cut()
		start := time.Now()
		lease := <-t.waits(t.Context(), locker.Slots(2))
		if waited := time.Since(start); waited > time.Second || waited < 900*time.Millisecond || lease.Slot() != 0 {
			t.Errorf("slot %d was free after %v; want 0, after the TTL of a second", lease.Slot(), waited)
		}
		t.unlock(lease, alive)
	})
}

// TestDifferentNumbersOfSlots has some ask for more slots than others.
func TestDifferentNumbersOfSlots(t *testing.T) {
	seated(t, func(t table) {
		one := t.try(locker.Slots(1))
		t.refused("a second of one", locker.Slots(1))
		two, three := t.try(locker.Slots(3)), t.try(locker.Slots(3))
		t.refused("a fourth of three", locker.Slots(3))
		t.unlock(one, two)
		t.refused("one beside another", locker.Slots(1))
		again := t.try(locker.Slots(2))
		if again.Slot() == three.Slot() || again.Slot() > 1 {
			t.Errorf("slots %d and %d", again.Slot(), three.Slot())
		}
		t.unlock(again, three)
	})
}

// TestBreakTakesAll takes a lock away from all who have it.
func TestBreakTakesAll(t *testing.T) {
	seated(t, func(t table) {
		one, two := t.try(locker.Shared()), t.try(locker.Shared())
		writer := t.waits(t.Context())
		err := t.Break(t.Context(), "k")
		if err != nil || !errors.Is(one.Err(), locker.ErrBroken) || !errors.Is(two.Err(), locker.ErrBroken) {
			t.Errorf("%v: %v, %v; want ErrBroken", err, one.Err(), two.Err())
		}
		t.unlock(t.served(writer))
	})
}

// TestLeadInSlots has more candidates than may lead at the same time.
func TestLeadInSlots(t *testing.T) {
	seated(t, func(t table) {
		var mu sync.Mutex
		leading, most := 0, 0
		served := make(map[int]bool)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 5 {
			l := t.Peer()
			all.Go(func() {
				_ = locker.Lead(ctx, l, "k", func(ctx context.Context, lease *locker.Lease) error {
					mu.Lock()
					leading++
					most = max(most, leading)
					served[lease.Slot()] = true
					mu.Unlock()
					select {
					case <-time.After(time.Duration(1 + rand.N(1000*time.Millisecond))):
					case <-ctx.Done():
					}
					mu.Lock()
					leading--
					mu.Unlock()
					return nil
				}, locker.Slots(2))
			})
		}
		time.Sleep(time.Minute)
		cancel()
		all.Wait()
		if most != 2 || len(served) != 2 || !served[0] || !served[1] {
			t.Errorf("%d led at the same time, in slots %v; want 2", most, served)
		}
	})
}

// TestModesAtRandom has many lock the same key in different modes, give up, and be cut off.
func TestModesAtRandom(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { seated(t, func(t table) { modesAtRandom(t, seed) }) })
	}
}

func modesAtRandom(t table, seed uint64) {
	const many, rounds, n = 12, 40, 3
	var mu sync.Mutex
	held := make(map[*locker.Lease]bool)
	greatest := make(map[locker.Mode]uint64) // token so far
	enter := func(lease *locker.Lease) {
		mu.Lock()
		defer mu.Unlock()
		for mode, token := range greatest {
			if (mode != lease.Mode() || mode == locker.ModeExclusive) && lease.Token() <= token {
				t.Errorf("mode %d has token %d after token %d of mode %d", lease.Mode(), lease.Token(), token, mode)
			}
		}
		greatest[lease.Mode()] = max(greatest[lease.Mode()], lease.Token())
		slots := make(map[int]bool)
		held[lease] = true
		for other := range held {
			switch {
			case other.Err() != nil: // lost
			case other.Mode() != lease.Mode(), lease.Mode() == locker.ModeExclusive && other != lease:
				t.Errorf("mode %d beside mode %d", other.Mode(), lease.Mode())
			case lease.Mode() != locker.ModeSlots:
			case slots[other.Slot()] || other.Slot() >= n:
				t.Errorf("slot %d is given twice, or there is none", other.Slot())
			default:
				slots[other.Slot()] = true
			}
		}
	}
	modes := [][]locker.CallOption{nil, {locker.Shared()}, {locker.Shared()}, {locker.Slots(n)}, {locker.Slots(n)}}
	var all sync.WaitGroup
	for i := range many {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		l := t.Peer(locker.TTL(time.Second))
		all.Go(func() {
			defer l.Close()
			for range rounds {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+random.IntN(3000))*time.Millisecond)
				opts := modes[random.IntN(len(modes))]
				var lease *locker.Lease
				var err error
				if random.IntN(3) == 0 {
					lease, err = l.TryLock(ctx, "k", opts...)
				} else {
					lease, err = l.Lock(ctx, "k", opts...)
				}
				cancel()
				if err != nil {
					continue
				}
				enter(lease)
				if random.IntN(10) == 0 {
					heal := l.Cut()
					time.Sleep(2 * time.Second)
					heal()
				}
				time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
				mu.Lock()
				delete(held, lease)
				mu.Unlock()
				_ = lease.Unlock()
			}
		})
	}
	all.Wait()
	t.unlock(t.try())
}

// TestFairnessAmongModes serves a line of all modes in order of arrival.
func TestFairnessAmongModes(t *testing.T) {
	seated(t, func(t table) {
		const many = 30
		first := t.try()
		tokens := make([]uint64, many) // by arrival
		var all sync.WaitGroup
		for i := range many {
			l := t.Peer()
			opts := [][]locker.CallOption{nil, {locker.Shared()}, {locker.Slots(2)}}[rand.N(3)]
			all.Go(func() {
				lease, err := l.Lock(t.Context(), "k", opts...)
				if err != nil {
					t.Error(err)
					return
				}
				tokens[i] = lease.Token()
				time.Sleep(time.Millisecond)
				t.unlock(lease)
			})
			synctest.Wait() // it is in line
		}
		t.unlock(first)
		all.Wait()
		if !slices.IsSorted(tokens) {
			t.Errorf("the tokens by arrival: %v", tokens)
		}
	})
}
