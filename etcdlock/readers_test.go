package etcdlock_test

import (
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

// TestReaderAsksAgain has the answer to a reader get lost, who has the lock, and asks again: with the same token.
func TestReaderAsksAgain(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	for name, acquire := range map[string]func(locker.Locker, string) (*locker.Lease, error){
		"Lock": func(l locker.Locker, key string) (*locker.Lease, error) { return lock(l, key, locker.Shared()) },
		"TryLock": func(l locker.Locker, key string) (*locker.Lease, error) {
			return l.TryLock(t.Context(), key, locker.Shared())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := unique("key")
			var lost atomic.Bool
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				resp, err := pass(r)
				if r.claims(key) && lost.CompareAndSwap(false, true) {
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			})
			other := locktest.MustLock(t, open(t, []string{addr}), key, locker.Shared())
			lease, err := acquire(l, key)
			if err != nil {
				t.Fatal(err)
			}
			if !lost.Load() || lease.Token() <= other.Token() {
				t.Errorf("an answer was lost: %v; token %d after %d", lost.Load(), lease.Token(), other.Token())
			}
			resp, err := root.Txn(t.Context()).If(etcdlock.Guard(lease), etcdlock.Guard(other)).Commit()
			if err != nil || !resp.Succeeded {
				t.Errorf("the guards of two readers do not hold: %v, %v", resp, err)
			}
			mustUnlock(t, lease)
			mustUnlock(t, other)
			root.awaitLine(key, 0)
		})
	}
}

// TestManyReadersOfOneLocker has many readers and writers wait in two Lockers, of which the readers of each get in
// together.
func TestManyReadersOfOneLocker(t *testing.T) {
	t.Parallel()
	const readers = 200
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	l := open(t, []string{addr}, locker.TTL(30*time.Second))
	writer := mustLock(t, l, key)
	var waiting []locktest.Pending[acquired]
	for range readers {
		waiting = append(waiting, waits(l, key, locker.Shared()))
	}
	root.awaitLine(key, 1+readers)
	last := waits(l, key)
	root.awaitLine(key, 2+readers)
	mustUnlock(t, writer)
	leases := make([]*locker.Lease, readers)
	for i, w := range waiting {
		leases[i] = granted(t, w, patience)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	mustUnlock(t, granted(t, last, patience))
	root.awaitLine(key, 0)
}
