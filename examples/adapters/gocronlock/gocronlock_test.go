package gocronlock

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/redislock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

var (
	_ gocron.Locker  = Locker{}
	_ gocron.Elector = (*Elector)(nil)
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// every is the period of the job, on the clock of the fleet.
const every = time.Minute

// event is what became of a tick in one scheduler.
type event struct {
	scheduler int
	err       error // of Lock; nil if the job runs
}

// fleet is two real schedulers of the same job with the same clock, which stands still between ticks.
type fleet struct {
	t      *testing.T
	clock  *clockwork.FakeClock
	events chan event
	lost   chan error
	finish chan struct{} // each run takes one of it, as its end
}

// newFleet starts a scheduler for each of the options.
func newFleet(t *testing.T, each func(f *fleet, i int) gocron.SchedulerOption) *fleet {
	f := &fleet{t, clockwork.NewFakeClock(), make(chan event, 100), make(chan error, 1), make(chan struct{}, 100)}
	for i := range 2 {
		s, err := gocron.NewScheduler(gocron.WithClock(f.clock), each(f, i))
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.NewJob(gocron.DurationJob(every),
			gocron.NewTask(func() { f.events <- event{i, nil}; <-f.finish }),
			gocron.WithName(t.Name()),
			gocron.WithEventListeners(gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { f.events <- event{i, err} })))
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { close(f.finish) })
	return f
}

// tick is the next moment at which the job is due, in both schedulers.
func (f *fleet) tick() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	if err := f.clock.BlockUntilContext(ctx, 2); err != nil {
		f.t.Fatalf("the schedulers have not set their alarms: %v", err)
	}
	f.clock.Advance(every)
}

func (f *fleet) await() event {
	f.t.Helper()
	return await(f.t, f.events)
}

func await[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("what was to happen has not happened")
	}
	return v
}

// oneRun checks that a tick made the job run in one scheduler, and that the other was refused.
func (f *fleet) oneRun() (at int) {
	f.t.Helper()
	a, b := f.await(), f.await()
	if a.err != nil {
		a, b = b, a
	}
	if a.err != nil || !errors.Is(b.err, locker.ErrLocked) || a.scheduler == b.scheduler {
		f.t.Fatalf("after one tick: %v and %v", a, b)
	}
	return a.scheduler
}

// withLockers gives each scheduler a Locker of its own on the same Redis, as different machines have. The last one is for the
// test.
func withLockers(t *testing.T, atLeast time.Duration) (each func(*fleet, int) gocron.SchedulerOption, test locker.Locker) {
	var locks []locker.Locker
	for range 3 {
		l, err := redislock.Open("redis://" + redistest.Address(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
		locks = append(locks, l)
	}
	return func(f *fleet, i int) gocron.SchedulerOption {
		return gocron.WithDistributedLocker(Locker{locks[i], atLeast, func(_ string, err error) { t.Errorf("lost: %v", err) }})
	}, locks[2]
}

// free waits until the lock of the job is free.
func free(t *testing.T, l locker.Locker) {
	t.Helper()
	lease, err := l.Lock(t.Context(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// Two schedulers, one run per tick. A run that lasts over a tick is not joined by another, in neither scheduler.
func TestOneRunPerTick(t *testing.T) {
	t.Parallel()
	each, l := withLockers(t, 0)
	f := newFleet(t, each)
	for range 5 {
		f.tick()
		f.oneRun()

		f.tick() // the run is not over
		for range 2 {
			if e := f.await(); !errors.Is(e.err, locker.ErrLocked) {
				t.Fatalf("during a run: %v", e)
			}
		}
		f.finish <- struct{}{}
		free(t, l)
	}
}

// A run that is over before the other scheduler has even asked is not repeated by that.
func TestShortRun(t *testing.T) {
	t.Parallel()
	const atLeast = 2 * time.Second
	each, l := withLockers(t, atLeast)
	f := newFleet(t, each)
	f.finish <- struct{}{} // the run ends at once
	begun := time.Now()
	f.tick()
	f.oneRun()
	free(t, l)
	if d := time.Since(begun); d < atLeast {
		t.Errorf("the lock was free after %v, not %v", d, atLeast)
	}
}

// A run that loses its lock goes on, as gocron cannot stop it; Lost says so at once, and the next tick starts another one
// beside it.
func TestLost(t *testing.T) {
	t.Parallel()
	l := memlock.New()
	f := newFleet(t, func(f *fleet, _ int) gocron.SchedulerOption {
		return gocron.WithDistributedLocker(Locker{l.Peer(), 0, func(_ string, err error) { f.lost <- err }})
	})
	f.tick()
	f.oneRun()
	if !l.Break(t.Name()) {
		t.Fatal("nobody had it")
	}
	if err := await(t, f.lost); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Lost was told %v", err)
	}
	f.tick()
	f.oneRun() // beside the first, which still waits for its end
	f.finish <- struct{}{}
	f.finish <- struct{}{}
}

// With the Elector, one scheduler runs all ticks, until it loses the lock. Jobs have the token, and a context that ends then.
func TestElector(t *testing.T) {
	t.Parallel()
	l := memlock.New()
	electors := []*Elector{new(Elector), new(Elector)}
	if err := electors[0].IsLeader(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("before the election: %v", err)
	}
	campaign := func(e *Elector) (resign func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Campaign(ctx, l.Peer(), "leader") }()
		return func() {
			cancel()
			if err := await(t, ended); !errors.Is(err, context.Canceled) {
				t.Errorf("the campaign ended with %v", err)
			}
		}
	}
	elected := func(e *Elector) *locker.Lease {
		for deadline := time.Now().Add(patience); e.IsLeader(t.Context()) != nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nobody was elected")
			}
		}
		return e.Lease()
	}
	f := newFleet(t, func(_ *fleet, i int) gocron.SchedulerOption { return gocron.WithDistributedElector(electors[i]) })
	resign := campaign(electors[0])
	first := elected(electors[0])
	defer campaign(electors[1])()

	for range 3 {
		f.tick()
		if e := f.await(); e.scheduler != 0 {
			t.Fatalf("ran by scheduler %d", e.scheduler)
		}
		f.finish <- struct{}{}
	}
	ctx, cancel := first.Context(t.Context())
	defer cancel()
	resign() // the scheduler is not shut down before: a tick finds it the leader no more
	if err := electors[0].IsLeader(t.Context()); !errors.Is(err, locker.ErrUnlocked) {
		t.Errorf("resigned: %v", err)
	}
	await(t, ctx.Done())
	if second := elected(electors[1]); second.Token() <= first.Token() {
		t.Errorf("token %d follows %d", second.Token(), first.Token())
	}
	f.tick()
	if e := f.await(); e.scheduler != 1 {
		t.Errorf("ran by scheduler %d", e.scheduler)
	}
	f.finish <- struct{}{}
}
