package etcdlock_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// TestKeysAreUsedAgain looks at what the server remembers of many locks, one after the other: it reads past all of it
// when it is asked who is first in line.
func TestKeysAreUsedAgain(t *testing.T) {
	t.Parallel()
	const n = 1000
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	l, key := open(t, []string{addr}), unique("key")
	start := root.state().revision
	for i := range n {
		acquire := mustLock
		if i%2 == 0 {
			acquire = mustTry
		}
		mustUnlock(t, acquire(t, l, key))
	}
	keys, events := make(map[string]bool), 0
	root.do(func(ctx context.Context) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for r := range root.Watch(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix(), clientv3.WithRev(start)) {
			for _, e := range r.Events {
				keys[string(e.Kv.Key)] = true
				events++
			}
			if events >= 2*n {
				return nil
			}
		}
		return ctx.Err()
	})
	if len(keys) > n/100 { // a request may have to be repeated
		t.Errorf("%d locks one after the other have used %d keys", n, len(keys))
	}
}

// TestKeyAfterDoubt has a claim whose first request arrives when the same Locker has the lock again, perhaps by the
// same key.
func TestKeyAfterDoubt(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	l := hooked(t, connect(t, addr, addr), d.hook, locker.TTL(3*time.Second))
	mustUnlock(t, mustLock(t, l, key))
	lease := mustLock(t, l, key)
	d.arrive(t)
	keys, _ := root.claims(key)
	if len(keys) != 1 || keys[0] != etcdlock.ClaimOf(lease) {
		t.Errorf("there is %q; want %q alone", keys, etcdlock.ClaimOf(lease))
	}
	resp, err := root.Txn(t.Context()).If(etcdlock.Guard(lease)).Commit()
	if err != nil || !resp.Succeeded {
		t.Errorf("the claim is not the one that was granted: %v, %v", resp, err)
	}
	mustUnlock(t, lease)
	root.awaitLine(key, 0)
}
