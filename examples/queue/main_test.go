package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// Three workers do the jobs in order, each once, though each of them is stopped after a few.
func TestWorkers(t *testing.T) {
	t.Parallel()
	addr, name := redistest.Address(t), "{"+locktest.Unique("queue")+"}"
	rdb := redistest.Dial(t, addr)
	const jobs = 30
	for i := range jobs {
		if err := rdb.LPush(t.Context(), name, fmt.Sprint(i)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var done []string
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			n := 0
			if err := run(ctx, addr, name, func(_ context.Context, job string) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				if n++; n > jobs/3 {
					stop() // before the job is done: another worker does it
					return "", context.Canceled
				}
				done = append(done, job)
				return "did " + job, nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	locktest.Eventually(t, "all is done", func() bool { return rdb.LLen(t.Context(), name).Val() == 0 })
	mu.Lock()
	defer mu.Unlock()
	for i, job := range done {
		if job != fmt.Sprint(i) {
			t.Fatalf("the jobs were done in the order %v", done)
		}
	}
	if n := rdb.HLen(t.Context(), name+":results").Val(); n != jobs || len(done) != jobs {
		t.Errorf("%d results of %d jobs, %d done", n, jobs, len(done))
	}
	t.Cleanup(wg.Wait)
}

// A leader who has lost the lock, and does not know yet, cannot note a result, nor take a job from the list.
func TestDeposed(t *testing.T) {
	t.Parallel()
	rdb, name := redistest.Dial(t, redistest.Address(t)), "{"+locktest.Unique("queue")+"}"
	if err := rdb.LPush(t.Context(), name, "a job").Err(); err != nil {
		t.Fatal(err)
	}
	for _, tokens := range [][2]uint64{{9, 10}, {1 << 60, 1<<60 + 1}} {
		old := &queue{rdb: rdb, name: name, token: tokens[0]}
		successor := &queue{rdb: rdb, name: name, token: tokens[1]}
		for _, q := range []*queue{old, successor} {
			if job, err := q.call(t.Context(), next); job != "a job" || err != nil {
				t.Fatalf("the job is %q, %v", job, err)
			}
		}
		if _, err := old.call(t.Context(), finish, "a job", "late"); !errors.Is(err, errDeposed) {
			t.Errorf("finish: %v", err)
		}
		if _, err := old.call(t.Context(), next); !errors.Is(err, errDeposed) {
			t.Errorf("next: %v", err)
		}
	}
	jobs, results := rdb.LLen(t.Context(), name).Val(), rdb.HLen(t.Context(), name+":results").Val()
	if jobs != 1 || results != 0 {
		t.Errorf("%d jobs and %d results", jobs, results)
	}
	empty := &queue{rdb: rdb, name: name + "empty", token: 1}
	if _, err := empty.call(t.Context(), next); !errors.Is(err, redis.Nil) {
		t.Errorf("an empty list: %v", err)
	}
}
