package etcdlock_test

import (
	"context"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

const (
	// heldTTL is one whose first renewal is far away, and beforeRenewal is less than it takes to come.
	heldTTL       = time.Minute
	beforeRenewal = heldTTL / 4
)

// TestToldBeforeFirstRenewal has locks be taken away as soon as they are granted, in each way. Their holders are told
// long before they renew.
func TestToldBeforeFirstRenewal(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, by := administer(t, connect(t, addr)), operator(t, addr)
	ways := map[string]func(*locker.Lease){
		"key deleted":   func(l *locker.Lease) { root.delete(etcdlock.ClaimOf(l)) },
		"lease revoked": func(l *locker.Lease) { root.revoke(root.leaseAt(l.Key())) },
		"Revoke":        func(l *locker.Lease) { mustRevoke(t, by, l.Key()) },
		"Break": func(l *locker.Lease) {
			if err := by.Break(t.Context(), l.Key()); err != nil {
				t.Error(err)
			}
		},
	}
	tried := func(t *testing.T, opts ...locker.CallOption) *locker.Lease {
		return mustTry(t, open(t, []string{addr}, locker.TTL(heldTTL)), unique("key"), opts...)
	}
	locked := func(t *testing.T, opts ...locker.CallOption) *locker.Lease {
		return mustLock(t, open(t, []string{addr}, locker.TTL(heldTTL)), unique("key"), opts...)
	}
	waited := func(t *testing.T, opts ...locker.CallOption) *locker.Lease {
		key := unique("key")
		before := mustLock(t, open(t, []string{addr}), key)
		waiter := waits(open(t, []string{addr}, locker.TTL(heldTTL)), key, opts...)
		root.awaitLine(key, 2)
		mustUnlock(t, before)
		return granted(t, waiter, patience)
	}
	with := func(
		lease func(*testing.T, ...locker.CallOption) *locker.Lease, opts ...locker.CallOption,
	) func(*testing.T) *locker.Lease {
		return func(t *testing.T) *locker.Lease { return lease(t, opts...) }
	}
	for name, lease := range map[string]func(*testing.T) *locker.Lease{
		"TryLock":        with(tried),
		"Lock":           with(locked),
		"a Lock in line": with(waited),
		"NoRenew":        with(locked, locker.NoRenew()),
		"shared TryLock": with(tried, locker.Shared()),
		"shared Lock":    with(locked, locker.Shared()),
		"shared in line": with(waited, locker.Shared()),
		"a slot":         with(tried, locker.Slots(2)),
		"slot in line":   with(waited, locker.Slots(2)),
		"adopted": func(t *testing.T) *locker.Lease {
			return mustAdopt(t, open(t, []string{addr}, locker.TTL(heldTTL)), detach(t, locked(t)))
		},
	} {
		for how, take := range ways {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				held := lease(t)
				take(held)
				told(t, held, beforeRenewal)
				_ = held.Unlock()
			})
		}
	}
}

// TestRevokedWhenJustGranted has a waiter be revoked that has the lock since a moment, and does not know yet.
func TestRevokedWhenJustGranted(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, by, key := administer(t, connect(t, addr)), operator(t, addr), unique("key")
	before := mustLock(t, open(t, []string{addr}), key)
	var gate sync.RWMutex
	l := etcdlock.NewByKV(connect(t, addr), func(kv pb.KVClient) pb.KVClient { return gated{kv, &gate} },
		locker.TTL(heldTTL))
	t.Cleanup(func() { _ = l.Close() })
	waiter := waits(l, key)
	root.awaitLine(key, 2)
	gate.Lock()
	mustUnlock(t, before)
	mustRevoke(t, by, key)
	gate.Unlock()
	lease := granted(t, waiter, patience)
	revoked(t, lease, beforeRenewal, locker.ErrRevoked)
	unlockRevoked(t, lease)
}

// gated is a pb.KVClient whose transactions wait at a gate.
type gated struct {
	pb.KVClient
	gate *sync.RWMutex
}

func (g gated) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	g.gate.RLock()
	g.gate.RUnlock() //nolint:staticcheck // it only waits
	return g.KVClient.Txn(ctx, r, opts...)
}

// TestWatchedAgain has the connection of holders break, long before they renew. They are told of what has happened in
// between, and after that.
func TestWatchedAgain(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root, proxy := administer(t, cluster.Client(t)), behind(t, cluster.Member(0))
	l := open(t, []string{proxy.Addr()}, locker.TTL(heldTTL))
	one, two := mustLock(t, l, unique("key")), mustLock(t, l, unique("key"))
	for _, lease := range []*locker.Lease{one, two} {
		eventually(t, "it is watched", func() bool { return etcdlock.IsWatched(locker.GrantOf(lease)) })
	}
	proxy.Set(faultproxy.Refuse())
	proxy.ResetAll()
	root.delete(etcdlock.ClaimOf(one))
	proxy.Heal()
	told(t, one, beforeRenewal)
	root.delete(etcdlock.ClaimOf(two))
	told(t, two, beforeRenewal)
}

// TestForgottenBeforeWatched has a lock be taken away, and that be forgotten, before its key is watched.
func TestForgottenBeforeWatched(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	lease := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(heldTTL)), unique("key"))
	root.delete(etcdlock.ClaimOf(lease))
	root.compact()
	told(t, lease, beforeRenewal)
}

// TestShortLocksAreNotWatched has locks be held for a moment each: they are not worth a watch.
func TestShortLocksAreNotWatched(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	l := open(t, cluster.Endpoints(), locker.TTL(heldTTL))
	const n = 200
	for range n {
		mustUnlock(t, mustTry(t, l, unique("key")))
	}
	if r := watchRequests(t, cluster.Member(0)); r > n/4 { // a busy machine may hold one for longer
		t.Errorf("%d requests for watches, for %d locks", r, n)
	}
}
