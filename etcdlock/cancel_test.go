package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
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
		if time.Since(start) > 10*time.Second { // long before an etcd lease ends
			t.Fatalf("%d keys are there, of %d leases: %q", len(keys), len(want),
				slices.DeleteFunc(keys, func(k string) bool { return slices.Contains(want, k) }))
		}
	}
	for _, lease := range append(leases, held) {
		mustUnlock(t, lease)
	}
	if keys, _ := root.claims(name); len(keys) > 0 {
		t.Errorf("in the end, there is %s", strings.Join(keys, ", "))
	}
}

// TestGivenUpWhenAnswered has callers give up in the moment when the answer arrives.
func TestGivenUpWhenAnswered(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	name := unique("key")
	var giveUp atomic.Pointer[context.CancelFunc]
	l := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if f := giveUp.Load(); f != nil && len(r.puts) > 0 {
			(*f)()
			runtime.Gosched()
		}
		return resp, err
	})
	keeper := mustLock(t, l, unique("key")) // the etcd lease must not end with the claims
	gaveUp := 0
	for i := range 500 {
		acquire := l.Lock
		if i%2 == 0 {
			acquire = l.TryLock
		}
		ctx, cancel := context.WithCancel(t.Context())
		giveUp.Store(&cancel)
		if lease, err := acquire(ctx, fmt.Sprint(name, "/", i)); err == nil {
			mustUnlock(t, lease)
		} else if gaveUp++; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel()
	}
	t.Logf("%d gave up", gaveUp)
	root.awaitLine(name, 0)
	mustUnlock(t, keeper)
}

// TestGivenUpForAReason has a caller whose ctx ends with an error that would mean something if it came from the server:
// as that of an errgroup does if another Lock of the group fails.
func TestGivenUpForAReason(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	l, other := open(t, []string{addr}), open(t, []string{addr})
	for name, fail := range map[string]func(*testing.T) (*locker.Lease, error){
		"locked": func(t *testing.T) (*locker.Lease, error) {
			key := unique("key")
			mustLock(t, other, key)
			return l.TryLock(t.Context(), key)
		},
		"given up": func(t *testing.T) (*locker.Lease, error) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return l.Lock(ctx, unique("key"))
		},
		"invalid key": func(t *testing.T) (*locker.Lease, error) { return l.Lock(t.Context(), "") },
		"invalid option": func(t *testing.T) (*locker.Lease, error) {
			return l.Lock(t.Context(), "key", locker.TTL(1500*time.Millisecond))
		},
		"closed": func(t *testing.T) (*locker.Lease, error) {
			closed := open(t, []string{addr})
			_ = closed.Close()
			return closed.Lock(t.Context(), "key")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := administer(t, connect(t, addr))
			key := unique("key")
			lease := mustLock(t, other, key)
			ctx, cancel := context.WithCancelCause(t.Context())
			waiter := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
			root.awaitLine(key, 2)
			_, cause := fail(t)
			cancel(fmt.Errorf("the group: %w", cause))
			if err := waiter.Get(t); !errors.Is(err, cause) {
				t.Errorf("%v; want %v", err, cause)
			}
			root.awaitLine(key, 1)
			mustUnlock(t, lease)
		})
	}
}
