package etcdlock_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// isExpiry reports whether err says that the lease is gone, or the key that was attached to it: both are true then.
func isExpiry(err error) bool {
	return errors.Is(err, etcdlock.ErrLeaseExpired) || strings.Contains(err.Error(), "deleted")
}

func TestLeaseRevoked(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewed every two seconds
	addr := []string{etcdtest.Address(t)}
	root := administer(t, connect(t, addr...))
	t.Run("held and watched", func(t *testing.T) {
		t.Parallel()
		l, key := open(t, addr, locker.TTL(ttl)), unique("key")
		lease := mustTry(t, l, key)
		outlives(t, lease, 1)
		_, leases := root.claims(key)
		root.revoke(leases[0])
		if err := told(t, lease, ttl/3+ttl/4); !isExpiry(err) {
			t.Errorf("a lease that was revoked: %v", err)
		}
		next := mustTry(t, l, key) // at once, whatever the Locker knows of its other lock
		if next.Token() <= lease.Token() {
			t.Errorf("token %d after %d", next.Token(), lease.Token())
		}
		outlives(t, next, 1)
		mustUnlock(t, next)
	})
	t.Run("held", func(t *testing.T) {
		t.Parallel()
		l, key := open(t, addr, locker.TTL(ttl)), unique("key")
		lease, other := mustTry(t, l, key), mustTry(t, l, unique("key"))
		_, leases := root.claims(key)
		root.revoke(leases[0])
		next := mustLock(t, l, key) // by which the Locker learns of it
		for _, lost := range []*locker.Lease{lease, other} {
			if err := told(t, lost, ttl/4); !isExpiry(err) {
				t.Errorf("a lease that was revoked: %v", err)
			}
			if err := lost.Unlock(); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock: %v; want ErrLost", err)
			}
		}
		mustUnlock(t, next)
	})
	t.Run("not asked for anything", func(t *testing.T) {
		t.Parallel()
		l, key := open(t, addr, locker.TTL(ttl)), unique("key")
		lease := mustTry(t, l, key)
		_, leases := root.claims(key)
		root.revoke(leases[0])
		if err := told(t, lease, ttl/3+ttl/4); !isExpiry(err) {
			t.Errorf("a lease that was revoked: %v", err)
		}
	})
	t.Run("waiting", func(t *testing.T) {
		t.Parallel()
		key := unique("key")
		lease := mustTry(t, open(t, addr), key)
		l := open(t, addr, locker.TTL(ttl))
		waiter := waits(l, key)
		_, leases := root.awaitLine(key, 2)
		root.revoke(leases[1])
		// The predecessor stays. The waiter learns that its lease is gone, or, if it looks at the line before, that its
		// key is, and then stands in line again.
		root.awaitLine(key, 2)
		mustUnlock(t, lease)
		mustUnlock(t, granted(t, waiter, ttl/3))
	})
	t.Run("unlocked afterwards", func(t *testing.T) {
		t.Parallel()
		l, key := open(t, addr, locker.TTL(ttl)), unique("key")
		lease := mustTry(t, l, key)
		_, leases := root.claims(key)
		root.revoke(leases[0])
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock after the lease was revoked: %v; want ErrLost", err)
		}
		mustUnlock(t, mustTry(t, l, key))
	})
}

func TestKeyDeleted(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewed every two seconds
	addr := []string{etcdtest.Address(t)}
	root := administer(t, connect(t, addr...))
	t.Run("held", func(t *testing.T) {
		t.Parallel()
		l, key := open(t, addr, locker.TTL(ttl)), unique("key")
		lease, other := mustTry(t, l, key), mustTry(t, l, unique("key"))
		keys, _ := root.claims(key)
		root.delete(keys[0])
		rival := mustTry(t, open(t, addr), key) // this is what the operator wanted
		if err := told(t, lease, ttl/3+ttl/4); !strings.Contains(err.Error(), "deleted") {
			t.Errorf("a lock whose key was deleted: %v", err)
		}
		outlives(t, other, 1)
		mustUnlock(t, rival)
		mustUnlock(t, other)
	})
	t.Run("waiting", func(t *testing.T) {
		t.Parallel()
		key := unique("key")
		lease := mustTry(t, open(t, addr), key)
		first := waits(open(t, addr, locker.TTL(ttl)), key)
		keys, _ := root.awaitLine(key, 2)
		second := waits(open(t, addr, locker.TTL(ttl)), key)
		root.awaitLine(key, 3)
		root.delete(keys[1])
		eventually(t, "the first has rejoined", func() bool {
			now, _ := root.claims(key)
			return len(now) == 3 && now[1] != keys[1]
		})
		mustUnlock(t, lease)
		mustUnlock(t, granted(t, second, patience))
		mustUnlock(t, granted(t, first, patience))
	})
	t.Run("all of the line", func(t *testing.T) {
		t.Parallel()
		key := unique("key")
		l := open(t, addr, locker.TTL(ttl))
		lease := mustTry(t, l, key)
		outlives(t, lease, 1)
		const n = 5
		through := make(chan error, n)
		for range n {
			other := open(t, addr, locker.TTL(ttl))
			go func() {
				next, err := lock(other, key)
				if err == nil {
					err = next.Unlock()
				}
				through <- err
			}()
		}
		root.awaitLine(key, 1+n)
		root.do(func(ctx context.Context) error { // as the documentation of Key has it
			_, err := root.Delete(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix())
			return err
		})
		told(t, lease, ttl/3+ttl/4)
		for range n {
			if err := <-through; err != nil {
				t.Error(err)
			}
		}
	})
}

// compact has all be forgotten that was before now.
func (a admin) compact() {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Put(ctx, "of somebody else", "")
		if err == nil {
			_, err = a.Compact(ctx, r.Header.Revision)
		}
		return err
	})
}

// TestCompaction forgets what is before now, for a holder and a waiter whose watch began before, and then breaks it.
func TestCompaction(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second // a restart may take seconds
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	proxy := behind(t, cluster.Member(0))
	key := unique("key")
	lease := mustTry(t, open(t, []string{proxy.Addr()}, locker.TTL(ttl)), key)
	l, joined := joining(t, connect(t, proxy.Addr()), locker.TTL(ttl))
	first := waits(l, key)
	joined(key, 1)
	outlives(t, lease, 1)
	for _, cut := range []func(){func() {}, proxy.ResetAll, func() { _ = cluster.Restart() }} {
		root.compact()
		cut()
		root.compact()
		outlives(t, lease, 1)
	}
	// Both are still told of what happens.
	keys, _ := root.awaitLine(key, 2)
	root.delete(keys[0])
	told(t, lease, ttl/2) // at the latest by the next renewal, if the watch has not come back yet
	next := granted(t, first, ttl/3)
	root.compact()
	mustUnlock(t, next)
}
