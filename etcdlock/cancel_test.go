package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// TestCancelledAcquires has many acquires whose callers have no patience. Whatever they leave behind is soon gone.
func TestCancelledAcquires(t *testing.T) {
	t.Parallel()
	const lockers, atOnce, each, longest = 4, 4, 125, 5 * time.Millisecond
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	name := unique("key")
	contended := []string{name + "/a", name + "/b"}
	held := mustLock(t, open(t, []string{addr}), contended[0])
	var mu sync.Mutex
	var leases []*locker.Lease
	var gaveUp int
	var all sync.WaitGroup
	for i := range lockers {
		l := open(t, []string{addr})
		for j := range atOnce {
			all.Go(func() {
				for k := range each {
					key := fmt.Sprintf("%s/%d/%d/%d", name, i, j, k)
					if rand.N(2) == 0 {
						key = contended[rand.N(len(contended))]
					}
					acquire := l.Lock
					if rand.N(2) == 0 {
						acquire = l.TryLock
					}
					ctx, cancel := context.WithTimeout(t.Context(), rand.N(longest))
					lease, err := acquire(ctx, key)
					cancel()
					mu.Lock()
					switch {
					case err == nil && key == contended[1]:
						mustUnlock(t, lease) // for the next
					case err == nil:
						leases = append(leases, lease)
					case errors.Is(err, context.DeadlineExceeded):
						gaveUp++
					case !errors.Is(err, locker.ErrLocked):
						t.Error(err)
					}
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	t.Logf("%d were granted, and %d gave up", len(leases), gaveUp)
	want := []string{etcdlock.ClaimOf(held)}
	for _, lease := range leases {
		want = append(want, etcdlock.ClaimOf(lease))
	}
	slices.Sort(want)
	var keys []string
	same := func() bool {
		keys, _ = root.claims(name)
		slices.Sort(keys)
		return slices.Equal(keys, want)
	}
	for start := time.Now(); !same(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 2*time.Second {
			t.Fatalf("%d keys are there, of %d leases: %q", len(keys), len(want), slices.DeleteFunc(keys, func(k string) bool { return slices.Contains(want, k) }))
		}
	}
	for _, lease := range append(leases, held) {
		mustUnlock(t, lease)
	}
	if keys, _ := root.claims(name); len(keys) > 0 {
		t.Errorf("in the end, there is %s", strings.Join(keys, ", "))
	}
}
