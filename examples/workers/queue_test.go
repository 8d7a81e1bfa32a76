package main

import (
	"crypto/rand"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/redistest"
)

func TestQueue(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) { testQueue(t, new(memoryQueue)) })
	t.Run("redis", func(t *testing.T) {
		rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t)})
		defer rdb.Close()
		q := newRedisQueue(rdb, t.Name()+rand.Text())
		defer rdb.Del(t.Context(), q.key)
		testQueue(t, q)
	})
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
	time.Sleep(5 * time.Millisecond) // to be measured
	if h, err := q.Claim(ctx, cy); err != nil || h.From != "bob" || !h.Left || h.Ago < 5*time.Millisecond || h.Ago > patience {
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
