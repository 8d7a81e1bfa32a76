package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

const testTTL = 10 * time.Second

// bench is a worker in memory, to be run in the fake time of package synctest.
type bench struct {
	*worker
	memory *memlock.Locker
	queue  *memoryQueue

	mu     sync.Mutex
	events []string
	on     map[kind]func() // called after such an event
}

// onBench calls f in fake time, with a worker whose jobs take a second.
func onBench(t *testing.T, f func(*testing.T, *bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{memory: memlock.New(locker.TTL(testTTL)), queue: new(memoryQueue), on: make(map[kind]func())}
		watch := new(locker.Observer)
		b.worker = &worker{
			name: "w", key: "jobs", locks: b.memory.Peer(locker.TTL(testTTL), locker.Observe(watch)), queue: b.queue, grace: 5 * time.Second,
			do:   func(ctx context.Context, _ int64) error { return sleep(ctx, time.Second) },
			tell: b.tell,
		}
		b.observe(watch)
		f(t, b)
		if err := b.locks.Close(); err != nil {
			t.Error(err)
		}
		if lease, err := b.memory.TryLock(t.Context(), "jobs"); err != nil {
			t.Errorf("the key is not free afterwards: %v", err)
		} else if err := lease.Unlock(); err != nil {
			t.Error(err)
		}
	})
}

func (b *bench) tell(e event) {
	b.mu.Lock()
	b.events = append(b.events, e.String())
	then := b.on[e.what]
	delete(b.on, e.what)
	b.mu.Unlock()
	if then != nil {
		then()
	}
}

// expectStory checks that the events match, by their beginnings.
func (b *bench) expectStory(t *testing.T, want ...string) {
	t.Helper()
	if !slices.EqualFunc(b.events, want, strings.HasPrefix) {
		t.Errorf("this happened:\n\t%s\nwant what begins with\n\t%s", strings.Join(b.events, "\n\t"),
			strings.Join(want, "\n\t"))
	}
}

func TestWorkerEndsWithTheJobs(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.jobs = 2
		if err := b.run(t.Context()); err != nil {
			t.Error(err)
		}
		b.expectStory(t, "joins", "leads, token 1", "job 1 ...", "job 1 done", "job 2 ...", "job 2 done",
			"all jobs are done", "leaves")
	})
}

func TestWorkerStops(t *testing.T) {
	for _, test := range []struct {
		name string
		job  time.Duration
		want time.Duration // to stop, one second into the job
		says string
	}{
		{"the job finishes", 3 * time.Second, 2 * time.Second, "job 1 done"},
		{"the job outlives the grace", time.Minute, 5 * time.Second, "drops job 1: it took longer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				ctx, stop := context.WithCancelCause(t.Context())
				var told time.Time
				b.do = func(ctx context.Context, _ int64) error { return sleep(ctx, test.job) }
				time.AfterFunc(time.Second, func() { told = time.Now(); stop(errStop) })
				if err := b.run(ctx); err != nil {
					t.Error(err)
				}
				if took := time.Since(told); took != test.want {
					t.Errorf("it took %v to stop, want %v", took, test.want)
				}
				b.expectStory(t, "joins", "leads", "job 1 ...", test.says, "leaves")
			})
		})
	}
}

// A job that fails ends the worker, which unlocks: the next one may have more luck with it.
func TestWorkerJobFails(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		broken := errors.New("broken")
		b.do = func(_ context.Context, job int64) error {
			if job == 2 {
				return broken
			}
			return nil
		}
		if err := b.run(t.Context()); !errors.Is(err, broken) ||
			!strings.Contains(fmt.Sprint(err), "w: job 2: broken") {
			t.Errorf("run = %v", err)
		}
		b.expectStory(t, "joins", "leads", "job 1 ...", "job 1 done", "job 2 ...", "leaves")
	})
}

// The job in hand is cancelled when the lease is lost, and done again in the next term. That is so whether somebody
// breaks the lock, or revokes it, for which the next one waits until the job has been dropped.
func TestWorkerLosesTheLease(t *testing.T) {
	ways := map[string]func(context.Context, *memlock.Locker) error{
		"broken":  func(ctx context.Context, l *memlock.Locker) error { return l.Break(ctx, "jobs") },
		"revoked": func(ctx context.Context, l *memlock.Locker) error { return l.Revoke(ctx, "jobs", "it hangs") },
	}
	for way, takeAway := range ways {
		t.Run(way, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.jobs = 1
				time.AfterFunc(time.Second/2, func() {
					if err := takeAway(t.Context(), b.memory.Peer()); err != nil {
						t.Error(err)
					}
				})
				if err := b.run(t.Context()); err != nil {
					t.Error(err)
				}
				b.expectStory(t, "joins", "leads, token 1", "job 1 ...", "has lost the lease",
					"drops job 1: lease lost",
					"leads, token 2", "job 1 ...", "job 1 done", "all jobs are done", "leaves")
			})
		})
	}
}

// The lease is lost between the end of a job and the next one.
func TestWorkerLosesTheLeaseBetweenJobs(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.jobs = 2
		b.on[done] = func() { _ = b.memory.Break(t.Context(), "jobs") }
		if err := b.run(t.Context()); err != nil {
			t.Error(err)
		}
		b.expectStory(t, "joins", "leads, token 1", "job 1 ...", "job 1 done", "has lost the lease",
			"leads, token 2", "job 2 ...", "job 2 done", "all jobs are done", "leaves")
	})
}

// A queue that knows of a newer leader is right, whatever the lease says: the worker unlocks and tries again.
func TestWorkerIsDeposed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		ctx, stop := context.WithCancelCause(t.Context())
		b.on[starts] = func() {
			if _, err := b.queue.Claim(ctx, Leader{"rival", 100}); err != nil {
				t.Error(err)
			}
		}
		b.on[leaves] = func() { stop(errStop) }
		if err := b.run(ctx); err != nil {
			t.Error(err)
		}
		b.expectStory(t, "joins", "leads, token 1", "job 1 ...",
			"is refused by the queue: job 1: deposed by rival, token 100", "leaves")
	})
}

// moody is a queue that fails before or after it has done what it was asked.
type moody struct {
	Queue
	fails int
}

func (m *moody) Submit(ctx context.Context, l Leader, job int64) error {
	m.fails++
	switch m.fails % 3 {
	case 1:
		return errors.New("before")
	case 2:
		return errors.Join(errors.New("after"), m.Queue.Submit(ctx, l, job))
	}
	return m.Queue.Submit(ctx, l, job)
}

func TestWorkerRidesOutAnOutageOfTheQueue(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.worker.queue = &moody{Queue: b.queue}
		b.jobs = 2
		if err := b.run(t.Context()); err != nil {
			t.Error(err)
		}
		b.expectStory(t, "joins", "leads", "job 1 ...", "meets an outage: before", "meets an outage: after",
			"job 1 done", "job 2 ...", "meets an outage: before", "meets an outage: after", "job 2 done",
			"all jobs are done", "leaves")
		if len(b.queue.results) != 2 {
			t.Errorf("%d results", len(b.queue.results))
		}
	})
}

// Locks that cannot be reached are reported, and waited for.
func TestWorkerRidesOutAnOutageOfTheLocks(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.jobs = 1
		heal := b.locks.(*memlock.Locker).Cut()
		b.on[outage] = heal
		if err := b.run(t.Context()); err != nil {
			t.Error(err)
		}
		b.expectStory(t, "joins", "meets an outage: locker: lock", "leads", "job 1 ...", "job 1 done",
			"all jobs are done", "leaves")
	})
}
