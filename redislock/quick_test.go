package redislock_test

import (
	"errors"
	"math"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// TestOneCallEach: to take a lock that is free, to be refused one that is not, and to give one back is one call each.
func TestOneCallEach(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	rdb := dial(t, redistest.Address(t))
	rdb.AddHook(redistest.Hook(func(cmds ...redis.Cmder) { calls.Add(int64(len(cmds))) }))
	l := open(t, rdb, locker.TTL(time.Minute))
	locktest.Warm(l, 1) // the server has the scripts, then
	expect := func(what string) {
		t.Helper()
		if n := calls.Swap(0); n != 1 {
			t.Errorf("%s: %d calls; want 1", what, n)
		}
	}
	key := locktest.Unique("k")
	calls.Store(0)
	lease := mustLock(t, l, key)
	expect("Lock of a key that is free")
	if _, err := l.TryLock(t.Context(), key); !errors.Is(err, locker.ErrLocked) {
		t.Error(err)
	}
	expect("TryLock of a key that is held")
	mustUnlock(t, lease)
	expect("Unlock")
}

// TestTokenAfter has Redis remember all kinds of tokens of a key. The next one is greater, and not below the clock.
func TestTokenAfter(t *testing.T) {
	t.Parallel()
	rdb := dial(t, redistest.Address(t))
	l := open(t, rdb, locker.TTL(time.Minute))
	clock := func() uint64 { return uint64(rdb.Time(t.Context()).Val().UnixMicro()) }
	later := clock() + uint64(time.Hour.Microseconds())
	for name, test := range map[string]struct{ before, next uint64 }{
		"none":                         {0, 0}, // the clock decides
		"one of long ago":              {1, 0},
		"the last one with 15 digits":  {1e15 - 1, 0},
		"one of a clock that is ahead": {later, later + 1},
	} {
		t.Run(name, func(t *testing.T) {
			key := locktest.Unique("k")
			fence := redislock.NamesOf(redislock.DefaultPrefix, key)[1]
			if test.before > 0 {
				rdb.Set(t.Context(), fence, strconv.FormatUint(test.before, 10), time.Minute)
			}
			begun := clock()
			lease := mustLock(t, l, key)
			defer mustUnlock(t, lease)
			least, most := begun, clock()
			if test.next > 0 {
				least, most = test.next-1, test.next
			}
			if token := lease.Token(); token < least || token > most || token <= test.before {
				t.Errorf("the token is %d; want %d to %d, and more than %d", token, least, most, test.before)
			}
			if kept, err := rdb.Get(t.Context(), fence).Uint64(); kept != lease.Token() {
				t.Errorf("Redis remembers %d, %v; want %d", kept, err, lease.Token())
			}
		})
	}
	t.Run("what is none", func(t *testing.T) {
		key := locktest.Unique("k")
		rdb.RPush(t.Context(), redislock.NamesOf(redislock.DefaultPrefix, key)[1], math.Pi)
		if lease, err := l.TryLock(t.Context(), key); err == nil {
			t.Errorf("granted with token %d, which Redis cannot remember", lease.Token())
		}
		eventually(t, "the key is free again", func() bool {
			return rdb.Exists(t.Context(), redislock.DefaultPrefix+key).Val() == 0
		})
	})
}
