package etcdlock_test

import (
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// TestEndpointUnreachable has one endpoint of two or three that cannot be reached. It must cost neither locks nor leases.
func TestEndpointUnreachable(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	for name, c := range map[string]struct {
		before, after faultproxy.Fault // before and after the first Lock
		healthy       int
		ttls          int // for how long the lease has to be renewed
	}{
		"refused":              {faultproxy.Refuse(), faultproxy.Refuse(), 1, 1},
		"refused later":        {faultproxy.Fault{}, faultproxy.Refuse(), 1, 1},
		"black hole":           {faultproxy.BlackHole(), faultproxy.BlackHole(), 1, 1},
		"black hole later":     {faultproxy.Fault{}, faultproxy.BlackHole(), 1, 3},
		"black hole later, 3":  {faultproxy.Fault{}, faultproxy.BlackHole(), 2, 3},
		"replies lost later":   {faultproxy.Fault{}, faultproxy.DropReplies(), 1, 3},
		"hangs later, 3":       {faultproxy.Fault{}, faultproxy.Hang(), 2, 3},
		"black hole and heals": {faultproxy.BlackHole(), faultproxy.Fault{}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := behind(t, cluster.Member(0))
			endpoints := []string{bad.Addr()}
			for range c.healthy {
				endpoints = append(endpoints, behind(t, cluster.Member(0)).Addr())
			}
			bad.Set(c.before)
			key := unique("key")
			l, other := open(t, endpoints, locker.TTL(ttl)), open(t, endpoints, locker.TTL(ttl))
			lease := mustLock(t, l, key)
			bad.Set(c.after)
			start := time.Now()
			waiter := waits(other, key)
			mustUnlock(t, mustLock(t, l, unique("key")))
			t.Logf("Lock and Unlock took %v", time.Since(start).Round(time.Millisecond))
			outlives(t, lease, c.ttls)
			root.awaitLine(key, 2)
			start = time.Now()
			mustUnlock(t, lease)
			next := granted(t, waiter, ttl)
			t.Logf("Unlock, and to be granted, took %v", time.Since(start).Round(time.Millisecond))
			outlives(t, next, 1)
			mustUnlock(t, next)
		})
	}
}

// TestTTLGranted has a server that grants no lease as short as that which was asked for.
func TestTTLGranted(t *testing.T) {
	t.Parallel()
	const granted = 3 * time.Second // 1.5 times the timeout of elections
	cluster := etcdtest.New(t, etcdtest.Options{Flags: []string{"--election-timeout=2000", "--heartbeat-interval=200"}})
	l := open(t, cluster.Endpoints(), locker.TTL(time.Second))
	lease := mustLock(t, l, unique("key"))
	if valid := time.Until(lease.Deadline()); valid < granted/2 || valid > granted {
		t.Errorf("the lease is valid for %v; want not much less than %v", valid, granted)
	}
	outlives(t, lease, 2)
	mustUnlock(t, lease)
	short := mustTry(t, l, unique("key"), locker.NoRenew())
	start := time.Now()
	told(t, short, granted+granted/10)
	if held := time.Since(start); held < granted*8/10 {
		t.Errorf("a lease that is not renewed was valid for %v; want almost %v", held, granted)
	}
	mustUnlock(t, mustLock(t, l, short.Key()))
}
