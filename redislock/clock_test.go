package redislock_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// steppedClock is a server whose clock can be set.
type steppedClock struct {
	server *redistest.Server
	admin  *redis.Client
}

func newSteppedClock(t *testing.T) steppedClock {
	server := redistest.New(t, redistest.Options{})
	return steppedClock{server, dial(t, server.Addr())}
}

const aheadKey = "ahead"

func (c steppedClock) open(t *testing.T, opts ...locker.Option) locker.Locker {
	l := redislock.NewWithClock(dial(t, c.server.Addr()), aheadKey, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// step sets the clock ahead, or back, of what it would be.
func (c steppedClock) step(t *testing.T, by time.Duration) {
	if err := c.admin.Set(t.Context(), aheadKey, by.Microseconds(), 0).Err(); err != nil {
		t.Fatal(err)
	}
}

// orderIn returns the order in which waiters are served that join a line one after the other, half of them before and
// half of them after step.
func orderIn(t *testing.T, c steppedClock, step func()) []int {
	const waiters = 8
	ls := []locker.Locker{c.open(t), c.open(t)}
	lease := mustLock(t, c.open(t), "k")
	var mu sync.Mutex
	var served []int
	var waits sync.WaitGroup
	for i := range waiters {
		if i == waiters/2 {
			step()
		}
		waits.Go(func() {
			next := mustLock(t, ls[i%2], "k")
			mu.Lock()
			served = append(served, i)
			mu.Unlock()
			mustUnlock(t, next)
		})
		eventually(t, "the waiter is in line", func() bool { return inLine(t, c.admin, "k") == i+1 })
	}
	mustUnlock(t, lease)
	waits.Wait()
	return served
}

// TestLineKeepsItsOrderWhenTheClockIsSet sets the server's clock while a line forms.
func TestLineKeepsItsOrderWhenTheClockIsSet(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"back": -20 * time.Second, "ahead": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newSteppedClock(t)
			served := orderIn(t, c, func() {
				before := membersInLine(t, c.admin, "k")
				c.step(t, by)
				// Each process finds the others dead when the clock goes ahead, and these come back to their places.
				asked := polls(t, c.admin)
				const what = "both processes have asked twice, and all are at their old places"
				eventuallyWithin(t, 20*time.Second, what, func() bool {
					return polls(t, c.admin) >= asked+4 && slices.Equal(membersInLine(t, c.admin, "k"), before)
				})
			})
			if !slices.IsSorted(served) {
				t.Errorf("served in the order %v", served)
			}
		})
	}
}

// polls returns how many scripts the server has run.
func polls(t *testing.T, rdb *redis.Client) int {
	_, evalsha := commandCalls(t, rdb)
	return evalsha
}

// dieInLine puts members of a process that has just died at the end of the line of a key, as if each had joined it.
func dieInLine(t *testing.T, rdb *redis.Client, key string, members int) {
	t.Helper()
	now, err := rdb.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	tag := "{" + redislock.DefaultPrefix + key + "}:locker:"
	process := strings.Repeat("dead", 8)
	pipe := rdb.Pipeline()
	for i := range members {
		member := fmt.Sprintf("%s:%032x", process, i)
		pipe.ZAdd(t.Context(), tag+"queue:", redis.Z{Score: float64(now.UnixMicro() + int64(i)), Member: member})
		pipe.ZAdd(t.Context(), tag+"alive:", redis.Z{Score: float64(now.Add(3 * time.Second).UnixMilli()), Member: member})
	}
	pipe.PExpire(t.Context(), tag+"queue:", 3*time.Second)
	pipe.PExpire(t.Context(), tag+"alive:", 3*time.Second)
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestDeadWaitersWhenTheClockIsSetBack has a process die in line, and the clock be set back after that.
func TestDeadWaitersWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	c := newSteppedClock(t)
	l := c.open(t)
	lease := mustLock(t, l, "k")
	dieInLine(t, c.admin, "k", 40) // each of them would be waited for, for a second
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, "k") })
	eventually(t, "the waiter is in line", func() bool { return inLine(t, c.admin, "k") == 41 })
	c.step(t, -time.Minute)
	mustUnlock(t, lease)
	// They are dropped after three seconds; the rest is for a busy machine.
	mustUnlock(t, next.Within(t, 20*time.Second, "the waiter has the lock"))
}

// TestTryLockWhenTheClockIsSetBack is about a line of dead waiters, and nobody else who would ask for them.
func TestTryLockWhenTheClockIsSetBack(t *testing.T) {
	t.Parallel()
	c := newSteppedClock(t)
	l := c.open(t)
	dieInLine(t, c.admin, "k", 1)
	for _, companion := range []string{"queue:", "alive:"} { // they would expire later by the step, too
		if err := c.admin.Persist(t.Context(), "{"+redislock.DefaultPrefix+"k}:locker:"+companion).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.step(t, -time.Minute)
	if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock behind somebody who may be alive: %v; want ErrLocked", err)
	}
	var lease *locker.Lease
	eventuallyWithin(t, 20*time.Second, "the dead waiter has been dropped", func() (ok bool) {
		var err error
		lease, err = l.TryLock(t.Context(), "k")
		return err == nil
	})
	mustUnlock(t, lease)
}
