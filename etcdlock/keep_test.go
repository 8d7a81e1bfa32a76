package etcdlock_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// modes are the ways to have a lock by which others may have it, too.
var modes = map[string][]locker.CallOption{
	"exclusive": nil, "shared": {locker.Shared()}, "slots": {locker.Slots(3)},
}

// leaseAt returns the etcd lease of the only key in a line.
func (a admin) leaseAt(name string) clientv3.LeaseID {
	a.t.Helper()
	_, leases := a.awaitLine(name, 1)
	return leases[0]
}

// TestKept has a key that is kept looked at, revoked and broken. It does not depend on the Locker that had it, nor on
// its etcd lease.
func TestKept(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root, by, key := administer(t, connect(t, addr)), operator(t, addr), unique("key")
			l := open(t, []string{addr}, locker.TTL(3*time.Second), locker.Holder("worker 7"))
			lease := mustLock(t, l, key, append(opts, locker.MinHold(time.Hour))...)
			session := root.leaseAt(key)
			mustUnlock(t, lease)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if keeper := root.leaseAt(key); keeper == session {
				t.Error("the key is under the etcd lease of the Locker")
			}
			refuses(t, by, key, "worker 7")
			info := inspect(t, by, key)
			if len(info.Holders) != 1 {
				t.Fatalf("%+v; want one holder", info)
			}
			if h := info.Holders[0]; h.Name != "worker 7" || h.Mode != lease.Mode() || h.Token != lease.Token() ||
				h.Slot != lease.Slot() || h.Left < 50*time.Minute || h.Left > time.Hour {
				t.Errorf("%+v; want the holder as it was, for an hour", h)
			}
			notHeld(t, by, key)
			waiter := waits(by, key)
			root.awaitLine(key, 2)
			if err := by.Break(t.Context(), key); err != nil {
				t.Errorf("Break of a key that is kept: %v", err)
			}
			next := granted(t, waiter, patience)
			if next.Token() <= lease.Token() {
				t.Errorf("the token of the next is %d after %d", next.Token(), lease.Token())
			}
			mustUnlock(t, next)
			root.awaitLine(key, 0)
		})
	}
}

// TestKeptIsNotMoved has the keys of a Locker put under another etcd lease, as after a change of the leader, when one
// of them is kept. Its Locker gives it free when its time is over, and uses it again.
func TestKeptIsNotMoved(t *testing.T) {
	t.Parallel()
	const ttl, least = 3 * time.Second, 1500 * time.Millisecond
	addr := etcdtest.Address(t)
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root, key := administer(t, connect(t, addr)), unique("key")
			l, other := open(t, []string{addr}, locker.TTL(ttl)), open(t, []string{addr}, locker.TTL(ttl))
			keeper := mustLock(t, l, unique("keeper"))
			lease := mustLock(t, l, key, append(opts, locker.MinHold(least))...)
			at := time.Now()
			mustUnlock(t, lease)
			before := root.leaseAt(key)
			if err := etcdlock.Move(t.Context(), keeper); err != nil {
				t.Fatal(err)
			}
			if time.Since(at) < least {
				if after := root.leaseAt(key); after != before {
					t.Errorf("the key is under the lease %x; want %x, as before", after, before)
				}
			}
			next := granted(t, waits(other, key), patience)
			if early := least - time.Since(at); early > 0 {
				t.Errorf("another has the lock %v before MinHold has passed", early)
			}
			mustUnlock(t, next)
			mustUnlock(t, mustLock(t, l, key, opts...))
			root.awaitLine(key, 0)
			mustUnlock(t, keeper)
		})
	}
}

// TestKeepOfRevoked has a holder unlock that does not know yet that its lock was revoked: it is free at once.
func TestKeepOfRevoked(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, by, key := administer(t, connect(t, addr)), operator(t, addr), unique("key")
	b := etcdlock.NewBackend(connect(t, addr))
	etcdlock.WatchNoneSoon(b)
	l := locker.New(b, locker.Prefix(etcdlock.DefaultPrefix), locker.TTL(time.Minute))
	t.Cleanup(func() { _ = l.Close() })
	lease := mustLock(t, l, key, locker.MinHold(time.Hour))
	mustRevoke(t, by, key)
	mustUnlock(t, lease)
	root.awaitLine(key, 0)
	mustUnlock(t, mustTry(t, l, key))
}

// TestKeepRepeated has the answer to the request by which a key is kept get lost, or that request come late: when the
// same Locker has the lock again.
func TestKeepRepeated(t *testing.T) {
	t.Parallel()
	const ttl, least = 3 * time.Second, time.Second
	addr := etcdtest.Address(t)
	for name, late := range map[string]bool{"the answer is lost": false, "the request is late": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, key := administer(t, connect(t, addr)), unique("key")
			var held, lost atomic.Bool
			d := &delayed{which: func(r request) bool { return held.Load() && r.claims(key) }}
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				if late {
					return d.hook(r)
				}
				resp, err := pass(r)
				if held.Load() && r.claims(key) && lost.CompareAndSwap(false, true) {
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			}, locker.TTL(ttl))
			lease := mustLock(t, l, key, locker.MinHold(least))
			at := time.Now()
			held.Store(true)
			mustUnlock(t, lease)
			if !late && !lost.Load() {
				t.Error("no answer was lost")
			}
			held.Store(false)
			next := granted(t, waits(l, key), patience)
			if early := least - time.Since(at); early > 0 {
				t.Errorf("another has the lock %v before MinHold has passed", early)
			}
			before := root.leaseAt(key)
			if late {
				d.arrive(t)
			}
			if after := root.leaseAt(key); after != before {
				t.Error("the lock of the next was put under another etcd lease")
			}
			mustUnlock(t, next)
			root.awaitLine(key, 0)
		})
	}
}

// TestKeepFails has no request succeed by which a key is kept. Its Locker keeps it all the same, and gives it free.
func TestKeepFails(t *testing.T) {
	t.Parallel()
	const ttl, least = 3 * time.Second, 1500 * time.Millisecond
	addr := etcdtest.Address(t)
	for name, failure := range map[string]error{
		"refused": status.Error(codes.Internal, "out of order"), "no space": rpctypes.ErrNoSpace,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := unique("key")
			var held atomic.Bool
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				if held.Load() && r.claims(key) {
					return nil, failure
				}
				return pass(r)
			}, locker.TTL(ttl))
			keeper := mustLock(t, l, unique("keeper"))
			lease := mustLock(t, l, key, locker.MinHold(least))
			at := time.Now()
			held.Store(true)
			var unlocked sync.WaitGroup
			unlocked.Go(func() { _ = lease.Unlock() }) // tries until the key is gone
			next := granted(t, waits(open(t, []string{addr}, locker.TTL(ttl)), key), patience)
			if early := least - time.Since(at); early > 0 {
				t.Errorf("another has the lock %v before MinHold has passed", early)
			}
			unlocked.Wait()
			mustUnlock(t, next)
			outlives(t, keeper, 1)
			mustUnlock(t, keeper)
		})
	}
}

// TestKeeperEnds has the etcd lease end under which a key is about to be put. That of the Locker lives on, and the next
// attempt takes another.
func TestKeeperEnds(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	root, key := administer(t, cluster.Client(t)), unique("key")
	var held atomic.Bool
	var known []clientv3.LeaseID
	leases := func() (all []clientv3.LeaseID) {
		root.do(func(ctx context.Context) error {
			r, err := root.Leases(ctx)
			if err == nil {
				for _, l := range r.Leases {
					all = append(all, l.ID)
				}
			}
			return err
		})
		return all
	}
	l := hooked(t, cluster.Client(t), func(r request) (*clientv3.TxnResponse, error) {
		if r.claims(key) && held.CompareAndSwap(true, false) {
			for _, id := range leases() {
				if !slices.Contains(known, id) {
					root.revoke(id)
				}
			}
		}
		return pass(r)
	}, locker.TTL(ttl))
	keeper := mustLock(t, l, unique("keeper"))
	lease := mustLock(t, l, key, locker.MinHold(time.Hour))
	known = leases()
	held.Store(true)
	mustUnlock(t, lease)
	if held.Load() {
		t.Error("no etcd lease was revoked")
	}
	if at := root.leaseAt(key); slices.Contains(known, at) {
		t.Errorf("the key is under the lease %x; want one of its own", at)
	}
	if err := keeper.Err(); err != nil {
		t.Errorf("another lock of the same Locker: %v", err)
	}
	outlives(t, keeper, 1)
	mustUnlock(t, keeper)
}

// TestKeptBesideOthers has a key be kept of which its Locker makes others meanwhile: those have other keys in etcd.
func TestKeptBesideOthers(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	l := open(t, []string{addr})
	for range 2 {
		mustUnlock(t, mustLock(t, l, key, locker.Slots(3), locker.MinHold(time.Hour)))
	}
	last := mustLock(t, l, key, locker.Slots(3))
	hasSlot(t, root, last, 2)
	refuses(t, l, key, "", locker.Slots(3))
	if keys, _ := root.claims(key); len(slices.Compact(keys)) != 3 {
		t.Errorf("there is %q; want three keys", keys)
	}
	mustUnlock(t, last)
	last = mustLock(t, l, key, locker.Slots(3))
	hasSlot(t, root, last, 2)
	mustUnlock(t, last)
	if err := l.Break(t.Context(), key); err != nil {
		t.Error(err)
	}
	root.awaitLine(key, 0)
	if err := l.Break(t.Context(), key); !errors.Is(err, locker.ErrNotHeld) {
		t.Errorf("Break of what is free: %v", err)
	}
}
