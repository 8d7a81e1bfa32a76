package gocronlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/redislock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

var (
	_ gocron.Locker  = Locker{}
	_ gocron.Elector = (*Elector)(nil)
)

// event is what became of a tick in one scheduler.
type event struct {
	scheduler int
	err       error // of Lock; nil if the job runs
	at        time.Time
}

// fleet is two real schedulers of the same job, which is due at the same moments in both.
type fleet struct {
	t      *testing.T
	events chan event
	lost   chan error
	finish chan struct{} // each run takes one of it, as its end
}

// newFleet starts a scheduler for each of the options, with a job that is due every so many seconds, by the wall clock.
func newFleet(t *testing.T, seconds int, each func(f *fleet, i int) gocron.SchedulerOption) *fleet {
	f := &fleet{t, make(chan event, 100), make(chan error, 1), make(chan struct{}, 100)}
	for i := range 2 {
		s, err := gocron.NewScheduler(each(f, i))
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.NewJob(
			gocron.CronJob(fmt.Sprintf("*/%d * * * * *", seconds), true),
			gocron.NewTask(func() { f.events <- event{i, nil, time.Now()}; <-f.finish }),
			gocron.WithName(t.Name()),
			gocron.WithEventListeners(
				gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { f.events <- event{i, err, time.Now()} }),
			),
		)
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

func (f *fleet) await() event {
	f.t.Helper()
	return locktest.Receive(f.t, f.events)
}

// awaitRun returns the next run. Until then, there may be refusals by others that have the lock.
func (f *fleet) awaitRun() event {
	f.t.Helper()
	for {
		e := f.await()
		if e.err == nil {
			return e
		}
		if !errors.Is(e.err, locker.ErrLocked) {
			f.t.Fatal(e.err)
		}
	}
}

// withLockers gives each scheduler a Locker of its own on the same Redis, as different machines have. The last one is
// for the test.
func withLockers(
	t *testing.T, atLeast time.Duration,
) (each func(*fleet, int) gocron.SchedulerOption, test locker.Locker) {
	var locks []locker.Locker
	for range 3 {
		l, err := redislock.Open(t.Context(), "redis://"+redistest.Address(t))
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
		return gocron.WithDistributedLocker(
			Locker{locks[i], atLeast, func(_ string, err error) { t.Errorf("lost: %v", err) }},
		)
	}, locks[2]
}

// Two schedulers, one run per tick, though each run is over long before the other scheduler might ask.
func TestOneRunPerTick(t *testing.T) {
	t.Parallel()
	const ticks, seconds = 3, 2
	each, _ := withLockers(t, seconds*time.Second/2)
	f := newFleet(t, seconds, each)
	for range 10 * ticks {
		f.finish <- struct{}{} // runs end at once
	}
	runs, refusals := make(map[time.Time]int), make(map[time.Time]int)
	for len(runs) < ticks || len(refusals) < ticks {
		e := f.await()
		tick := e.at.Truncate(seconds * time.Second)
		switch {
		case e.err == nil:
			runs[tick]++
		case errors.Is(e.err, locker.ErrLocked):
			refusals[tick]++
		default:
			t.Fatal(e.err)
		}
		if runs[tick] > 1 || refusals[tick] > 1 {
			t.Fatalf("at %v: %d runs, %d refusals", tick, runs[tick], refusals[tick])
		}
	}
}

// A run that lasts over a tick is not joined by another, in neither scheduler.
func TestLongRun(t *testing.T) {
	t.Parallel()
	each, _ := withLockers(t, 0)
	f := newFleet(t, 1, each)
	f.awaitRun()
	for range 4 { // at least one from each
		if e := f.await(); !errors.Is(e.err, locker.ErrLocked) {
			t.Fatalf("during a run: %v", e)
		}
	}
	f.finish <- struct{}{}
	f.awaitRun()
}

// The lock is kept for AtLeast, and no longer.
func TestAtLeast(t *testing.T) {
	t.Parallel()
	const atLeast = time.Second
	each, l := withLockers(t, atLeast)
	f := newFleet(t, 5, each)
	f.finish <- struct{}{} // the run ends at once
	begun := f.awaitRun().at
	lease, err := l.Lock(t.Context(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begun); d < atLeast/2 { // it began a little before the run, and longer on a machine that is busy
		t.Errorf("the lock was free %v after the run began, not %v", d, atLeast)
	}
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// A run that loses its lock goes on, as gocron cannot stop it; Lost says so at once, and the next tick starts another
// one beside it.
func TestLost(t *testing.T) {
	t.Parallel()
	l := memlock.New()
	f := newFleet(t, 1, func(f *fleet, _ int) gocron.SchedulerOption {
		return gocron.WithDistributedLocker(Locker{l.Peer(), 0, func(_ string, err error) { f.lost <- err }})
	})
	f.awaitRun()
	if l.Break(t.Context(), t.Name()) != nil {
		t.Fatal("nobody had it")
	}
	if err := locktest.Receive(t, f.lost); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Lost was told %v", err)
	}
	f.awaitRun() // beside the first, which still waits for its end
}

// With the Elector, one scheduler runs all ticks, until it loses the lock. Jobs have the token, and a context that ends
// then.
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
			if err := locktest.Receive(t, ended); !errors.Is(err, context.Canceled) {
				t.Errorf("the campaign ended with %v", err)
			}
		}
	}
	elected := func(e *Elector) *locker.Lease {
		locktest.Eventually(t, "somebody is elected", func() bool { return e.IsLeader(t.Context()) == nil })
		return e.Lease()
	}
	f := newFleet(t, 1, func(_ *fleet, i int) gocron.SchedulerOption { return gocron.WithDistributedElector(electors[i]) })
	resign := campaign(electors[0])
	first := elected(electors[0])
	defer campaign(electors[1])()

	for range 2 {
		if e := f.awaitRun(); e.scheduler != 0 {
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
	locktest.Receive(t, ctx.Done())
	if second := elected(electors[1]); second.Token() <= first.Token() {
		t.Errorf("token %d follows %d", second.Token(), first.Token())
	}
	for f.awaitRun().scheduler == 0 { // it began before
		f.finish <- struct{}{}
	}
	if e := f.awaitRun(); e.scheduler != 1 {
		t.Errorf("ran by scheduler %d", e.scheduler)
	}
}
