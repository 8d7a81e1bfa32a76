package main

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	rand2 "math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
)

func TestQueue(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) { testQueue(t, new(memoryQueue)) })
	for _, s := range testStores {
		t.Run(s.name, func(t *testing.T) {
			url, name := s.shared(t), t.Name()+rand.Text()
			testQueue(t, openQueue(t, s, url, name))
			s.history(t, url, name)
		})
	}
}

// openQueue opens a queue as the program does.
func openQueue(t *testing.T, s testStore, url, name string) Queue {
	t.Helper()
	opened, err := s.open(config{backend: url, key: name, ttl: s.ttl})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(opened.locks.Close(), opened.close()); err != nil {
			t.Error(err)
		}
	})
	return opened.queue
}

func testQueue(t *testing.T, q Queue) {
	ctx := t.Context()
	expect := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expectNext := func(l Leader, want int64) {
		t.Helper()
		if job, err := q.Next(ctx, l); err != nil || job != want {
			t.Errorf("Next of %v = %d, %v, want job %d", l, job, err, want)
		}
	}
	// Tokens that differ in their last digit only, beyond what a float64 can tell apart, or in their number of digits.
	ann, bob, cy := Leader{"ann", 9}, Leader{"bob", 1<<60 + 1}, Leader{"cy", 1<<60 + 2}

	if h, err := q.Claim(ctx, ann); err != nil || h != (Handover{}) {
		t.Errorf("the first Claim = %+v, %v", h, err)
	}
	expectNext(ann, 1)
	expect("job 2 before job 1", q.Submit(ctx, ann, 2), ErrOutOfOrder)
	expect("job 0", q.Submit(ctx, ann, 0), ErrOutOfOrder)
	expect("job 1", q.Submit(ctx, ann, 1), nil)
	expect("job 1 again, as if the answer was lost", q.Submit(ctx, ann, 1), nil)
	expectNext(ann, 2)

	// Ann vanishes. That Bob has claimed the queue is enough for her to be refused.
	if h, err := q.Claim(ctx, bob); err != nil || h.From != "ann" || h.Left || h.Ago < 0 || h.Ago > patience {
		t.Errorf("Claim after a crash = %+v, %v", h, err)
	}
	expect("a late result", q.Submit(ctx, ann, 2), ErrDeposed)
	expect("a late repetition", q.Submit(ctx, ann, 1), ErrDeposed)
	_, err := q.Next(ctx, ann)
	expect("a late Next", err, ErrDeposed)
	_, err = q.Claim(ctx, ann)
	expect("a late Claim", err, ErrDeposed)
	expect("a late Leave", q.Leave(ctx, ann), ErrDeposed)
	expect("job 1 of somebody else", q.Submit(ctx, bob, 1), ErrOutOfOrder)
	expectNext(bob, 2)
	expect("job 2", q.Submit(ctx, bob, 2), nil)

	// Bob leaves politely.
	expect("Leave", q.Leave(ctx, bob), nil)
	if h, err := q.Claim(ctx, bob); err != nil || h != (Handover{}) {
		t.Errorf("Claim after having left = %+v, %v", h, err)
	}
	expect("Leave again", q.Leave(ctx, bob), nil)
	time.Sleep(5 * time.Millisecond) // to be measured
	expectNext(bob, 3)               // sent before, and late
	if h, err := q.Claim(ctx, cy); err != nil || h.From != "bob" || !h.Left || h.Ago < 5*time.Millisecond ||
		h.Ago > patience {
		t.Errorf("Claim after Leave = %+v, %v", h, err)
	}
	if h, err := q.Claim(ctx, cy); err != nil || h != (Handover{}) {
		t.Errorf("a repeated Claim = %+v, %v", h, err)
	}
	expect("a result after Leave and a new leader", q.Submit(ctx, bob, 3), ErrDeposed)
	expectNext(cy, 3)
	expectNext(Leader{"zoe", math.MaxUint64}, 3)
	expect("a result after a new leader's first call", q.Submit(ctx, cy, 3), ErrDeposed)
}

// A queue that nobody has claimed yet takes results, too, and is none the worse for one that it refuses.
func TestQueueWithoutClaim(t *testing.T) {
	onEachStore(t, func(t *testing.T, s testStore) {
		url, name := s.shared(t), t.Name()+rand.Text()
		q := openQueue(t, s, url, name)
		for _, job := range []int64{-1, 0, 2} {
			if err := q.Submit(t.Context(), Leader{"ann", 1}, job); !errors.Is(err, ErrOutOfOrder) {
				t.Errorf("job %d: %v", job, err)
			}
		}
		if h := s.history(t, url, name); h.done != 0 || len(h.by) > 0 {
			t.Errorf("results out of order were accepted: %+v", h)
		}
		if err := q.Submit(t.Context(), Leader{"ann", 1}, 1); err != nil {
			t.Error(err)
		}
		if h := s.history(t, url, name); h.done != 1 || h.by[1] != (Leader{"ann", 1}) {
			t.Errorf("the queue has %+v", h)
		}
	})
}

func TestQueueForgets(t *testing.T) {
	onEachStore(t, func(t *testing.T, s testStore) {
		url, name := s.shared(t), t.Name()+rand.Text()
		q := openQueue(t, s, url, name)
		const last = 1003
		for job := int64(1); job <= last; job++ {
			if err := q.Submit(t.Context(), Leader{"ann", uint64(job)}, job); err != nil {
				t.Fatal(err)
			}
		}
		h := s.history(t, url, name)
		if h.done != last || len(h.by) != 1000 {
			t.Errorf("of %d jobs, the queue says that it knows who did %d", h.done, len(h.by))
		}
		for job := int64(last - 999); job <= last; job++ {
			if h.by[job] != (Leader{"ann", uint64(job)}) {
				t.Errorf("job %d was done by %v", job, h.by[job])
			}
		}
	})
}

// Of two leaders who call at the same time, the one with the smaller token never gets in after the other.
func TestQueueAtOnce(t *testing.T) {
	onEachStore(t, func(t *testing.T, s testStore) {
		url, name := s.shared(t), t.Name()+rand.Text()
		const callers, jobs = 8, 10
		var greatest atomic.Uint64 // that the queue is known to have seen
		var wg sync.WaitGroup
		for range callers {
			q := openQueue(t, s, url, name)
			wg.Go(func() {
				for range jobs {
					l := Leader{Name: "x", Token: rand2.Uint64N(1 << 10)}
					before := greatest.Load()
					job, err := q.Next(t.Context(), l)
					if err == nil {
						err = q.Submit(t.Context(), l, job)
					}
					switch {
					case errors.Is(err, ErrDeposed), errors.Is(err, ErrOutOfOrder):
					case err != nil:
						t.Error(err)
					case l.Token < before:
						t.Errorf("token %d was accepted after %d", l.Token, before)
					default:
						for now := greatest.Load(); now < l.Token && !greatest.CompareAndSwap(now, l.Token); {
							now = greatest.Load()
						}
					}
				}
			})
		}
		wg.Wait()
		h := s.history(t, url, name)
		if h.done == 0 || int(h.done) != len(h.by) {
			t.Errorf("the queue says that %d jobs are done, and who did %d", h.done, len(h.by))
		}
		for job := int64(2); job <= h.done; job++ {
			if h.by[job].Token < h.by[job-1].Token {
				t.Errorf("job %d was done by %v after %v", job, h.by[job], h.by[job-1])
			}
		}
	})
}

// A server that does not answer is not waited for. Then the queue works on.
func TestQueueAnswersInTime(t *testing.T) {
	onEachStore(t, func(t *testing.T, s testStore) {
		direct, name := s.shared(t), t.Name()+rand.Text()
		url, proxy := behindProxy(t, direct)
		q := openQueue(t, s, url, name)
		if _, err := q.Claim(t.Context(), Leader{"ann", 1}); err != nil {
			t.Fatal(err)
		}
		for _, fault := range []faultproxy.Fault{faultproxy.Hang(), faultproxy.DropReplies()} {
			proxy.Set(fault)
			start := time.Now()
			err := q.Submit(t.Context(), Leader{"ann", 1}, 1)
			if took := time.Since(start); !errors.Is(err, errNoAnswer) || took > answerWithin+5*time.Second {
				t.Errorf("%+v: %v after %v", fault, err, took)
			}
			proxy.Heal()
		}
		var err error
		for range 10 {
			if err = q.Submit(t.Context(), Leader{"ann", 1}, 1); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("after the outage: %v", err)
		}
		if h := s.history(t, direct, name); h.done != 1 {
			t.Errorf("the queue has %+v", h)
		}
	})
}

// A leader that is stopped between what it reads and what it writes does no harm when it goes on.
func TestEtcdQueueStoppedHalfWay(t *testing.T) {
	t.Parallel()
	url, name := etcdStore.shared(t), t.Name()+rand.Text()
	ann, bob := Leader{"ann", 1}, Leader{"bob", 2}
	onEtcd(t, url, func(ctx context.Context, client *clientv3.Client) error {
		direct := newEtcdQueue(client, name)
		meanwhile := func(f func()) Queue { return newEtcdQueue(&stopping{KV: client, meanwhile: f}, name) }
		onTime := meanwhile(func() {
			if job, err := direct.Next(ctx, ann); err != nil || job != 1 {
				t.Errorf("Next = %d, %v", job, err)
			}
		})
		if err := onTime.Submit(ctx, ann, 1); err != nil {
			t.Errorf("a result of the only leader: %v", err)
		}
		late := meanwhile(func() {
			if h, err := direct.Claim(ctx, bob); err != nil || h.From != "ann" {
				t.Errorf("Claim = %+v, %v", h, err)
			}
		})
		if err := late.Submit(ctx, ann, 2); !errors.Is(err, ErrDeposed) {
			t.Errorf("a late result: %v, want %v", err, ErrDeposed)
		}
		return nil
	})
	if h := etcdStore.history(t, url, name); h.done != 1 || len(h.by) != 1 || h.by[1] != ann {
		t.Errorf("the queue has %+v", h)
	}
}

// stopping is etcd for a process that is stopped before its first transaction, while something else happens.
type stopping struct {
	clientv3.KV
	meanwhile func()
}

func (s *stopping) Txn(ctx context.Context) clientv3.Txn {
	if s.meanwhile != nil {
		s.meanwhile()
		s.meanwhile = nil
	}
	return s.KV.Txn(ctx)
}

// Many processes may be the first to need the tables, which are made again if somebody has removed them.
func TestPgQueueMakesItsTables(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t, pgtest.Options{}).URL()
	for range 3 {
		var wg sync.WaitGroup
		for i := range 10 {
			q := openQueue(t, pgStore, url, strconv.Itoa(i))
			wg.Go(func() {
				for round := int64(1); round <= 2; round++ {
					if err := q.Submit(t.Context(), Leader{"ann", 1}, round); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		onPg(t, url, func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "DROP SCHEMA workers CASCADE")
			return err
		})
	}
}
