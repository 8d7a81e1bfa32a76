package etcdlock_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// TestEndpointUnreachable has one endpoint of two or three that cannot be reached. It must cost neither locks nor
// leases.
func TestEndpointUnreachable(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // for renewals to be in time, by the other endpoint, also on a machine that is busy
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
		"black hole later":     {faultproxy.Fault{}, faultproxy.BlackHole(), 1, 2},
		"black hole later, 3":  {faultproxy.Fault{}, faultproxy.BlackHole(), 2, 2},
		"replies lost later":   {faultproxy.Fault{}, faultproxy.DropReplies(), 1, 2},
		"hangs later, 3":       {faultproxy.Fault{}, faultproxy.Hang(), 2, 2},
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

// TestEndpointSilent has one endpoint of two that does not answer any more, and many who lock and unlock. It is
// noticed, or else of the requests that belong to a lock one would always meet it.
func TestEndpointSilent(t *testing.T) {
	t.Parallel()
	const ttl, atOnce, each = 5 * time.Second, 4, 8
	const slow = ttl / 3 / 2 * 3 / 4 // another endpoint is not asked before
	cluster := etcdtest.New(t, etcdtest.Options{})
	for name, fault := range map[string]faultproxy.Fault{"black hole": faultproxy.BlackHole(), "replies lost": faultproxy.DropReplies(), "hangs": faultproxy.Hang()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locktest.Tries(t, func() error { // the machine may be busy with something else
				bad := behind(t, cluster.Member(0))
				l := open(t, []string{bad.Addr(), behind(t, cluster.Member(0)).Addr()}, locker.TTL(ttl))
				mustUnlock(t, mustLock(t, l, unique("key")))
				bad.Set(fault)
				took := slices.Concat(lockMany(t, l, atOnce, each))
				slices.Sort(took)
				t.Logf("half of the Locks and Unlocks take no more than %v, the slowest %v", took[len(took)/2],
					took[len(took)-1])
				if usual := took[len(took)*3/4]; usual > slow {
					return fmt.Errorf("a quarter of the Locks and Unlocks take %v and longer: "+
						"they have waited for the endpoint that is silent", usual)
				}
				bad.Heal()
				works(t, l, l, 1)
				return nil
			})
		})
	}
}

// TestTTLGranted has a server that grants no lease as short as that which was asked for.
func TestTTLGranted(t *testing.T) {
	t.Parallel()
	const granted = 6 * time.Second // 1.5 times the timeout of elections
	cluster := etcdtest.New(t, etcdtest.Options{Flags: []string{"--election-timeout=4000", "--heartbeat-interval=400"}})
	l := open(t, cluster.Endpoints(), locker.TTL(granted*2/3)) // a third of it bounds the first attempt
	before := time.Now()
	lease := mustLock(t, l, unique("key"))
	// Its time begins with a request after before, and before now, however long the answer took.
	least, most := lease.Deadline().Sub(before), time.Until(lease.Deadline())
	if least < granted*8/10 || most > granted {
		t.Errorf("the lease is valid for %v to %v; want not much less than %v", most, least, granted)
	}
	outlives(t, lease, 2)
	mustUnlock(t, lease)
	start := time.Now()
	short := mustTry(t, l, unique("key"), locker.NoRenew())
	if most := time.Until(short.Deadline()); most > granted {
		t.Errorf("a lease that is not renewed is valid for %v; want %v at most", most, granted)
	}
	told(t, short, 2*granted) // by its deadline, or a little later on a machine that is busy
	if held := time.Since(start); held < granted*8/10 {
		t.Errorf("a lease that is not renewed was valid for %v; want almost %v", held, granted)
	}
	mustUnlock(t, mustLock(t, l, short.Key()))
}
