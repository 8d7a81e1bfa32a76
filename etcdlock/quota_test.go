package etcdlock_test

import (
	"errors"
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

// The transaction with which the database reaches its quota is carried out, and answered as if it were not
// (quotaApplierV3.Txn in etcd 3.6). The hooks here do the same.

// TestQuotaReachedByLock has a Lock do it: no key may be left.
func TestQuotaReachedByLock(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	var reached atomic.Bool
	l := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if err == nil && r.claims(key) && reached.CompareAndSwap(false, true) {
			return nil, rpctypes.ErrNoSpace
		}
		return resp, err
	}, locker.TTL(3*time.Second))
	keeper := mustLock(t, l, unique("key")) // the etcd lease must not end with the claim
	_, err := lock(l, key)
	checkError(t, err, "lock", key, etcdlock.ErrNoSpace)
	root.awaitLine(key, 0)
	mustUnlock(t, mustLock(t, l, key))
	mustUnlock(t, keeper)
}

// TestQuotaReachedBesideUnlock has an Unlock share a transaction with such a Lock: it is no loss that the key is gone
// the second time.
func TestQuotaReachedBesideUnlock(t *testing.T) {
	t.Parallel()
	const tries = 200
	addr := etcdtest.Address(t)
	key := unique("key")
	var reached atomic.Bool
	l := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if err == nil && r.unclaims(key) && len(r.puts) > 0 && reached.CompareAndSwap(false, true) {
			return nil, rpctypes.ErrNoSpace
		}
		return resp, err
	}, locker.TTL(3*time.Second))
	for range tries {
		lease := mustLock(t, l, key)
		var others sync.WaitGroup
		for range 6 {
			others.Go(func() {
				if lease, err := lock(l, unique("key")); err == nil {
					_ = lease.Unlock()
				} else if !errors.Is(err, etcdlock.ErrNoSpace) {
					t.Error(err)
				}
			})
		}
		mustUnlock(t, lease)
		others.Wait()
		if reached.Load() {
			return
		}
	}
	t.Errorf("in %d tries, no Unlock shared a transaction with a Lock", tries)
}

// TestUnlockWithoutSpace unlocks a claim that had to be repeated when there is no space to raise the fence.
func TestUnlockWithoutSpace(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	var repeated, full atomic.Bool
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		switch {
		case full.Load() && len(r.puts) > 0:
			return nil, rpctypes.ErrNoSpace
		case !r.claims(key):
			return pass(r)
		}
		resp, err := pass(r)
		if repeated.CompareAndSwap(false, true) {
			return nil, status.Error(codes.Unavailable, "the answer is lost")
		}
		full.Store(true)
		return resp, err
	}, locker.TTL(ttl))
	keeper := mustLock(t, l, unique("key"))
	lease := mustLock(t, l, key)
	start := time.Now()
	mustUnlock(t, lease)
	if took := time.Since(start); took > ttl/3 {
		t.Errorf("Unlock took %v", took)
	}
	root.awaitLine(key, 0)
	outlives(t, keeper, 3) // the lease is not given up
	full.Store(false)
	eventually(t, "the fence is raised", func() bool { return root.exists(etcdlock.FenceOf(keeper)) })
	mustUnlock(t, keeper)
}
