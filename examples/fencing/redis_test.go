package fencing

import (
	"errors"
	"math"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

func TestRedis(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t)})
	t.Cleanup(func() { rdb.Close() })
	a, b := redislock.New(rdb), redislock.New(rdb)
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	staleLease, freshLease := handover(t, a, b, t.Name())
	stale, fresh := staleLease.Token(), freshLease.Token()
	newCell := func(t *testing.T) Cell {
		c := Cell{rdb, t.Name()}
		must(t, rdb.Del(t.Context(), c.Key).Err())
		t.Cleanup(func() { rdb.Del(t.Context(), c.Key) })
		return c
	}
	want := func(t *testing.T, c Cell, value string) {
		t.Helper()
		if got := rdb.HGet(t.Context(), c.Key, "value").Val(); got != value {
			t.Errorf("the value is %q; want %q", got, value)
		}
	}
	t.Run("the stale one comes late", func(t *testing.T) {
		c := newCell(t)
		must(t, c.Set(t.Context(), "old", stale)) // nobody else has been here
		must(t, c.Set(t.Context(), "new", fresh))
		must(t, c.Set(t.Context(), "new", fresh)) // the answer got lost
		wantStale(t, c.Set(t.Context(), "late", stale))
		want(t, c, "new")
	})
	t.Run("first write of all", func(t *testing.T) {
		c := newCell(t)
		must(t, c.Set(t.Context(), "new", fresh))
		wantStale(t, c.Set(t.Context(), "late", stale))
		want(t, c, "new")
	})
	t.Run("between read and write", func(t *testing.T) {
		c := newCell(t)
		value, err := c.Get(t.Context(), fresh) // of nothing, which has a fence now
		must(t, err)
		wantStale(t, c.Set(t.Context(), "late", stale))
		_, err = c.Get(t.Context(), stale)
		wantStale(t, err)
		must(t, c.Set(t.Context(), value+"new", fresh))
		want(t, c, "new")
	})
	t.Run("tokens of any length", func(t *testing.T) {
		c := newCell(t)
		tokens := []uint64{1, 9, 10, 1<<53 + 1, 1<<53 + 2, math.MaxUint64 - 1, math.MaxUint64}
		for i, token := range tokens {
			must(t, c.Set(t.Context(), "v", token))
			if i > 0 {
				wantStale(t, c.Set(t.Context(), "late", tokens[i-1]))
			}
		}
	})
	t.Run("other errors", func(t *testing.T) {
		c := newCell(t)
		must(t, rdb.Set(t.Context(), c.Key, "no hash", 0).Err())
		if err := c.Set(t.Context(), "v", fresh); err == nil || errors.Is(err, ErrStale) {
			t.Errorf("Set: %v", err)
		}
	})
}
