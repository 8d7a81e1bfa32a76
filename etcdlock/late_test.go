package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
)

// exists reports whether there is a key.
func (a admin) exists(key string) (yes bool) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Get(ctx, key)
		yes = err == nil && len(r.Kvs) > 0
		return err
	})
	return yes
}

// TestLateRequest has the first attempt to make a claim arrive when the claim is of no more use to anybody. At whatever
// time that is, it must not leave a key that nobody will ever delete.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	addr := etcdtest.Address(t)
	other := open(t, []string{addr})
	for name, c := range map[string]struct {
		endpoints int // with several, there is another attempt, which is answered
		useless   func(t *testing.T, root admin, l locker.Locker, d *delayed, key string)
	}{
		"no answer": {1, func(t *testing.T, _ admin, l locker.Locker, d *delayed, key string) {
			_, err := lock(l, key)
			checkError(t, err, "lock", key, etcdlock.ErrNoAnswer)
		}},
		"unlocked": {2, func(t *testing.T, _ admin, l locker.Locker, d *delayed, key string) {
			mustUnlock(t, mustLock(t, l, key))
		}},
		"taken away": {2, func(t *testing.T, root admin, l locker.Locker, d *delayed, key string) {
			lease := mustTry(t, l, key)
			root.delete(etcdlock.ClaimOf(lease))
			told(t, lease, ttl)
		}},
		"refused": {2, func(t *testing.T, _ admin, l locker.Locker, d *delayed, key string) {
			refused := locktest.Started(func() error { _, err := l.TryLock(t.Context(), key); return err })
			eventually(t, "the first attempt is under way", d.has)
			rival := mustTry(t, other, key)
			if err := refused.Get(t); !errors.Is(err, locker.ErrLocked) {
				t.Error(err)
			}
			mustUnlock(t, rival)
		}},
		"given up": {2, func(t *testing.T, root admin, l locker.Locker, d *delayed, key string) {
			rival := mustLock(t, other, key)
			ctx, cancel := context.WithCancel(t.Context())
			waiter := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
			root.awaitLine(key, 2)
			cancel()
			if err := waiter.Get(t); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			mustUnlock(t, rival)
		}},
		"taken away while it waits": {2, func(t *testing.T, root admin, l locker.Locker, d *delayed, key string) {
			rival := mustLock(t, other, key)
			waiter := waits(l, key)
			keys, _ := root.awaitLine(key, 2)
			root.delete(keys[1])
			root.awaitLine(key, 2) // the waiter has rejoined
			mustUnlock(t, rival)
			mustUnlock(t, granted(t, waiter, ttl))
		}},
	} {
		for when, fenced := range map[string]bool{"at once": false, "later": true} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				root := administer(t, connect(t, addr))
				key := unique("key")
				d := &delayed{which: func(r request) bool { return r.claims(key) }}
				l := hooked(t, connect(t, slices.Repeat([]string{addr}, c.endpoints)...), d.hook, locker.TTL(ttl))
				begun := time.Now()
				keeper := mustLock(t, l, unique("key")) // the etcd lease must not end with the claim
				late := time.Since(begun) > ttl/12      // so that it may have needed a second attempt
				fence := etcdlock.FenceOf(keeper)
				if root.exists(fence) && !late {
					t.Error("the fence is raised without need")
				}
				c.useless(t, root, l, d, key)
				if fenced {
					eventually(t, "the fence is raised", func() bool { return root.exists(fence) })
				}
				d.arrive(t)
				root.awaitLine(key, 0)
				mustUnlock(t, keeper)
			})
		}
	}
}

// TestMadeAnew has an operator delete a claim, and then the first attempt to make it arrive, when the fence is about to
// be raised for that.
func TestMadeAnew(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	arrived := make(chan struct{})
	arrive := sync.OnceFunc(func() { close(arrived) })
	t.Cleanup(arrive) // or else Close waits for it
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		if slices.ContainsFunc(r.puts, isFence) {
			<-arrived
		}
		return d.hook(r)
	}, locker.TTL(ttl))
	keeper := mustLock(t, l, unique("keeper"))
	lease := mustLock(t, l, key)
	root.delete(etcdlock.ClaimOf(lease))
	d.arrive(t)
	if !root.exists(etcdlock.ClaimOf(lease)) {
		t.Error("the first attempt came too late")
	}
	arrive()
	eventually(t, "the fence is raised", func() bool { return root.exists(etcdlock.FenceOf(keeper)) })
	told(t, lease, ttl)
	root.awaitLine(key, 0)
	mustUnlock(t, keeper)
}

// TestWaiterMadeAnew has an operator delete the claim of a waiter, and then the first attempt to make it arrive, when
// another waits behind it: the place in line is the last one now.
func TestWaiterMadeAnew(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	arrived := make(chan struct{})
	arrive := sync.OnceFunc(func() { close(arrived) })
	t.Cleanup(arrive) // or else Close waits for it
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		if slices.ContainsFunc(r.puts, isFence) {
			<-arrived
		}
		return d.hook(r)
	})
	holder := mustLock(t, open(t, []string{addr}), key)
	first := waits(l, key)
	keys, _ := root.awaitLine(key, 2)
	second := waits(open(t, []string{addr}), key)
	root.awaitLine(key, 3)
	root.delete(keys[1])
	d.arrive(t)
	if now, _ := root.claims(key); len(now) != 3 || now[2] != keys[1] {
		t.Errorf("the first attempt came too late: there is %q", now)
	}
	mustUnlock(t, holder)
	next := granted(t, second, patience)
	arrive()
	mustUnlock(t, next)
	last := granted(t, first, patience)
	if last.Token() <= next.Token() {
		t.Errorf("the first to wait has the lock with the token %d; want one after %d", last.Token(), next.Token())
	}
	mustUnlock(t, last)
	root.awaitLine(key, 0)
}

// isFence reports whether a key is that of a fence.
func isFence(key string) bool { return strings.HasPrefix(key, etcdlock.DefaultPrefix+"!") }

// TestLateUnlock has the first attempt to unlock arrive when the same Locker has the lock again.
func TestLateUnlock(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.unclaims(key) }}
	l := hooked(t, connect(t, addr, addr), d.hook, locker.TTL(ttl))
	mustUnlock(t, mustLock(t, l, key))
	lease := mustLock(t, l, key)
	d.arrive(t)
	if !root.exists(etcdlock.ClaimOf(lease)) {
		t.Error("the lock was deleted")
	}
	mustUnlock(t, lease)
}

// TestDeletionFails has the deletion of a claim that may yet be made fail once. However long the TTL is, there is soon
// another attempt.
func TestDeletionFails(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Minute
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	put := &delayed{which: func(r request) bool { return r.claims(key) }}
	var abandoned atomic.Value // the key of the claim
	abandoned.Store("")
	var attempts atomic.Int32
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		if slices.Contains(r.deletes, abandoned.Load().(string)) && attempts.Add(1) == 1 {
			return nil, status.Error(codes.Internal, "out of order")
		}
		return put.hook(r)
	}, locker.TTL(ttl))
	rival := mustLock(t, open(t, []string{addr}), key)
	waiter := waits(l, key)
	keys, _ := root.awaitLine(key, 2)
	abandoned.Store(keys[1])
	root.delete(keys[1])
	mustUnlock(t, rival) // so that the waiter looks, and joins the line again
	mustUnlock(t, granted(t, waiter, patience))
	eventually(t, "there is another attempt to delete the claim", func() bool { return attempts.Load() > 1 })
}

// TestFenceDeleted has an operator delete what keeps late requests out.
func TestFenceDeleted(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	l := hooked(t, connect(t, addr, addr), d.hook, locker.TTL(3*time.Second))
	keeper := mustLock(t, l, unique("key"))
	mustUnlock(t, mustLock(t, l, key))
	root.delete(etcdlock.FenceOf(keeper))
	works(t, l, l, 0)
	d.arrive(t)
	root.awaitLine(key, 0)
	mustUnlock(t, keeper)
}

// TestFenceRaisedAtOnce has many claims at once whose requests have to be repeated, and so a fence that is raised all
// the time.
func TestFenceRaisedAtOnce(t *testing.T) {
	t.Parallel()
	const atOnce, each = 16, 20
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	name := unique("key")
	var lost sync.Map
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if r.claims(name + "/0") {
			if _, again := lost.LoadOrStore(strings.Join(r.puts, " "), nil); !again {
				return nil, status.Error(codes.Unavailable, "the answer is lost")
			}
		}
		return resp, err
	})
	keeper := mustLock(t, l, unique("key"))
	var all sync.WaitGroup
	for i := range atOnce {
		all.Go(func() {
			for range each {
				lease, err := lock(l, fmt.Sprint(name, "/", i%4))
				if err == nil {
					err = lease.Unlock()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if !root.exists(etcdlock.FenceOf(keeper)) {
		t.Error("the fence was not raised")
	}
	root.awaitLine(name, 0)
	mustUnlock(t, keeper)
}
