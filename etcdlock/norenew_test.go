package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// TestNoRenew checks for how long a lease is valid that is not renewed, whenever the etcd lease was last kept alive.
func TestNoRenew(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	check := func(lease *locker.Lease, before time.Time) { // it was granted after that, which may have taken long
		t.Helper()
		if valid := lease.Deadline().Sub(before); valid < ttl*9/10 {
			t.Errorf("a lease with a TTL of %v is valid for %v since before it was granted", ttl, valid)
		}
		mustUnlock(t, lease)
	}
	l, key := open(t, []string{addr}, locker.TTL(ttl)), unique("key")
	holder := mustLock(t, open(t, []string{addr}), key)
	waiter := waits(l, key, locker.NoRenew())
	root.awaitLine(key, 2)
	time.Sleep(ttl / 4) // a keep-alive is due at a third
	before := time.Now()
	check(mustTry(t, l, unique("key"), locker.NoRenew()), before)
	time.Sleep(ttl / 4)
	before = time.Now()
	mustUnlock(t, holder)
	check(granted(t, waiter, patience), before)
}

// TestNoRenewSharesKeepAlives has many leases granted at once that are not renewed: each needs a keep-alive that was
// sent after it was asked for, which many can share. A stream for each would cost the server a check of the password
// each.
func TestNoRenewSharesKeepAlives(t *testing.T) {
	t.Parallel()
	var streams atomic.Int32
	l := etcdlock.NewWith(connect(t, etcdtest.Address(t)), func(c pb.LeaseClient) pb.LeaseClient {
		return hookedLeases{c, func(ctx context.Context, c pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error) {
			streams.Add(1)
			return c.LeaseKeepAlive(ctx)
		}}
	}, locker.TTL(time.Minute), locker.NoRenew())
	t.Cleanup(func() { _ = l.Close() })
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() { mustUnlock(t, mustTry(t, l, unique("key"))) })
	}
	all.Wait()
	if n := streams.Load(); n > 5 { // one, and others only after failures
		t.Errorf("%d streams of keep-alives", n)
	}
}

// generous is a backend by whose grants leases end later than they should, as if the timers of package locker were
// late.
type generous struct{ locker.Backend }

func (b generous) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.Backend.Acquire(ctx, r)
	g.TTL = time.Hour
	return g, err
}

// TestNoRenewToldFirst has the TTL of a lease pass that does not know it. It must be told before its key is deleted.
func TestNoRenewToldFirst(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	backend, key := etcdlock.NewBackend(connect(t, addr)), unique("key")
	l := locker.New(generous{backend}, locker.Prefix(etcdlock.DefaultPrefix), locker.TTL(ttl), locker.NoRenew())
	t.Cleanup(func() { _ = l.Close() })
	lease := mustTry(t, l, key)
	claim := etcdlock.ClaimOf(lease)
	eventually(t, "the key is deleted", func() bool { return !root.exists(claim) })
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !strings.Contains(err.Error(), "its TTL has passed") {
		t.Errorf("when the key is deleted, the lease says %v", err)
	}
}

// TestNoRenewWithoutAnswers has the server not answer before, and after, the lock was granted. Who does not want to
// have it renewed must not wait any longer.
func TestNoRenewWithoutAnswers(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // for half of the bound to be enough for a busy machine
	const bound = ttl / 3       // of an attempt
	cluster := etcdtest.New(t, etcdtest.Options{})
	for name, opts := range map[string][]locker.CallOption{"renewed": nil, "not renewed": {locker.NoRenew()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Tries(t, func() error {
				proxy, key := behind(t, cluster.Member(0)), unique("key")
				l := open(t, []string{proxy.Addr()}, locker.TTL(ttl))
				mustUnlock(t, mustLock(t, l, unique("key")))
				proxy.Set(faultproxy.BlackHole())
				start := time.Now()
				a := waits(l, key, opts...).Get(t)
				took := time.Since(start)
				proxy.Heal()
				if took > bound*3/2 {
					return fmt.Errorf("Lock gives up after %v: %w", took, a.err)
				}
				checkError(t, a.err, "lock", key, etcdlock.ErrNoAnswer)
				return nil
			})
		})
		t.Run(name+", granted", func(t *testing.T) {
			t.Parallel()
			locktest.Tries(t, func() error {
				proxy, key := behind(t, cluster.Member(0)), unique("key")
				l := hooked(t, connect(t, proxy.Addr()), func(r request) (*clientv3.TxnResponse, error) {
					resp, err := pass(r)
					if r.claims(key) {
						proxy.Set(faultproxy.BlackHole())
					}
					return resp, err
				}, locker.TTL(ttl))
				mustUnlock(t, mustLock(t, l, unique("key")))
				start := time.Now()
				a := waits(l, key, opts...).Get(t)
				took := time.Since(start)
				defer proxy.Heal()
				if a.err != nil || took > bound*3/2 {
					return fmt.Errorf("Lock returns after %v: %w", took, a.err)
				}
				if err := a.Err(); err != nil {
					return err
				}
				proxy.Heal()
				return a.Unlock()
			})
		})
	}
}
