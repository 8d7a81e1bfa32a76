package modes

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// cache returns one of a table with the row "a", which build makes.
func cache(l locker.Locker, table *Table, build func(context.Context) string) *Cache {
	return &Cache{Locker: l, Key: "prices", Table: table, MaxAge: time.Hour,
		Build: func(ctx context.Context) (map[string]string, error) {
			return map[string]string{"a": build(ctx)}, nil
		}}
}

func wantRow(t *testing.T, c *Cache, want string) {
	t.Helper()
	if row, err := c.Get(t.Context(), "a"); row != want || err != nil {
		t.Errorf("got %q, %v; want %q", row, err, want)
	}
}

// Of many who find no table, one builds it. Then they read beside one another. When it is too old, one builds the next.
func TestCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memory, table := memlock.New(), new(Table)
		var built atomic.Int64
		everybody := func(want int64) {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					wantRow(t, cache(memory.Peer(), table, func(context.Context) string {
						time.Sleep(time.Minute)
						built.Add(1)
						return "1"
					}), "1")
				})
			}
			wg.Wait()
			if got := built.Load(); got != want {
				t.Errorf("built %d times; want %d", got, want)
			}
		}
		everybody(1)
		reader, err := memory.Lock(t.Context(), "prices", locker.Shared())
		if err != nil {
			t.Fatal(err)
		}
		everybody(1) // who wanted to write would wait for that reader
		if err := reader.Unlock(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		everybody(2)
	})
}

// What is not there any more is not found in the next table.
func TestCacheForgets(t *testing.T) {
	t.Parallel()
	table := new(Table)
	if err := errors.Join(table.Set(1, "gone", "1"), table.Set(1, builtAt, "long ago")); err != nil {
		t.Fatal(err)
	}
	c := cache(memlock.New(), table, func(context.Context) string { return "1" })
	wantRow(t, c, "1")
	if row, err := c.Get(t.Context(), "gone"); row != "" || err != nil {
		t.Errorf("got %q, %v", row, err)
	}
}

// Who loses the lock while it builds says so, and does not go on. Whoever comes next builds it all.
func TestCacheLost(t *testing.T) {
	t.Parallel()
	memory, table := memlock.New(), new(Table)
	_, err := cache(memory.Peer(), table, func(ctx context.Context) string {
		_ = memory.Break(t.Context(), "prices")
		if !errors.Is(context.Cause(ctx), locker.ErrLost) {
			t.Errorf("the lock is lost, and the context of Build: %v", context.Cause(ctx))
		}
		return "1"
	}).Get(t.Context(), "a")
	if !errors.Is(err, locker.ErrLost) {
		t.Errorf("the lock was lost: %v", err)
	}
	wantRow(t, cache(memory, table, func(context.Context) string { return "2" }), "2")
}

// Who loses the lock, and comes to write when somebody else has written, is refused.
func TestCacheLate(t *testing.T) {
	t.Parallel()
	memory, table := memlock.New(), new(Table)
	next := cache(memory.Peer(), table, func(context.Context) string { return "2" })
	_, err := cache(memory, table, func(context.Context) string {
		_ = memory.Break(t.Context(), "prices")
		wantRow(t, next, "2")
		return "1"
	}).Get(t.Context(), "a")
	if !errors.Is(err, ErrStale) {
		t.Errorf("the late one: %v", err)
	}
	wantRow(t, next, "2")
}

// A reader does not shut out the one before it, but every writer before it.
func TestTable(t *testing.T) {
	t.Parallel()
	table := new(Table)
	read := func(token uint64) error { _, err := table.Get(token, "a"); return err }
	write := func(token uint64) error { return table.Set(token, "a", "1") }
	for i, step := range []struct {
		do    func(uint64) error
		token uint64
		want  error
	}{
		{write, 2, nil}, {read, 1, ErrStale}, {write, 1, ErrStale}, {read, 5, nil}, {read, 4, nil}, {read, 5, nil},
		{write, 3, ErrStale}, {write, 2, ErrStale}, {write, 6, nil}, {write, 6, nil}, {read, 6, nil},
		{read, 5, ErrStale}, {table.Clear, 5, ErrStale}, {table.Clear, 7, nil}, {read, 6, ErrStale},
	} {
		if err := step.do(step.token); !errors.Is(err, step.want) {
			t.Errorf("step %d, with token %d: %v; want %v", i, step.token, err, step.want)
		}
	}
}
