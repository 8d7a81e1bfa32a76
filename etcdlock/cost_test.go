package etcdlock_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// state is how far a server is.
type state struct{ proposals, revision int64 }

func (a admin) state() (s state) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Status(ctx, a.Endpoints()[0])
		if err == nil {
			s = state{int64(r.RaftIndex), r.Header.Revision}
		}
		return err
	})
	return s
}

// cost is what f makes the server write, at the least of a few times: there are proposals that the server makes for
// itself.
func (a admin) cost(f func()) state {
	a.t.Helper()
	var least state
	for i := range 3 {
		before := a.state()
		f()
		after := a.state()
		cost := state{after.proposals - before.proposals, after.revision - before.revision}
		if i == 0 || cost.proposals < least.proposals {
			least = cost
		}
	}
	return least
}

// TestCost counts what a lock costs the servers: entries of their log, each of which is written to the disks of a
// majority.
func TestCost(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	l, other := open(t, cluster.Endpoints()), open(t, cluster.Endpoints())
	works(t, l, other, 0) // so that both have a lease
	held := mustLock(t, l, unique("key"))
	check := func(what string, want state, f func()) {
		t.Helper()
		if got := root.cost(f); got != want {
			t.Errorf("%s costs %+v; want %+v", what, got, want)
		}
	}
	check("a TryLock that is refused", state{}, func() { isLocked(t, other, held.Key()) })
	check("TryLock and Unlock", state{2, 2}, func() { mustUnlock(t, mustTry(t, l, unique("key"))) })
	check("Lock and Unlock", state{2, 2}, func() { mustUnlock(t, mustLock(t, l, unique("key"))) })
	check("a wait, and Unlock", state{2, 2}, func() {
		key := held.Key()
		waiter := waits(other, key)
		root.awaitLine(key, 2)
		mustUnlock(t, held)
		held = granted(t, waiter, patience)
		l, other = other, l
	})
	check("a renewal", state{}, func() { outlives(t, held, 1) })

	check("Lock, Adopt and Unlock", state{3, 3}, func() {
		mustUnlock(t, mustAdopt(t, other, detach(t, mustLock(t, l, unique("key")))))
	})

	key, two := unique("key"), locker.Slots(2)
	slots := []*locker.Lease{mustLock(t, l, key, two), mustLock(t, l, key, two)}
	check("a TryLock of a slot that is refused", state{}, func() { refuses(t, other, key, "", two) })
	check("TryLock of a slot and Unlock", state{2, 2}, func() { mustUnlock(t, mustTry(t, l, unique("key"), two)) })
	check("Lock of a slot and Unlock", state{2, 2}, func() {
		mustUnlock(t, slots[0])
		slots[0] = mustLock(t, other, key, two)
	})
	check("a wait for a slot, and Unlock", state{3, 3}, func() {
		waiter := waits(other, key, two)
		root.awaitLine(key, 3)
		mustUnlock(t, slots[0])
		slots[0] = granted(t, waiter, patience)
	})
}

// TestCostOfMinHold counts what it takes to keep a key beyond Unlock: an etcd lease, and the key put under it.
func TestCostOfMinHold(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root, l := administer(t, cluster.Client(t)), open(t, cluster.Endpoints())
	works(t, l, l, 0)
	got := root.cost(func() { mustUnlock(t, mustTry(t, l, unique("key"), locker.MinHold(time.Hour))) })
	if want := (state{3, 2}); got != want {
		t.Errorf("it costs %+v; want %+v", got, want)
	}
}

// TestSharedTransactions has many acquires at once, which share entries of the servers' log.
func TestSharedTransactions(t *testing.T) {
	t.Parallel()
	const n = 2000
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	l := open(t, cluster.Endpoints(), locker.TTL(time.Minute)) // also on a busy machine, all are to be answered
	works(t, l, l, 0)
	for name, acquire := range map[string]func(testing.TB, locker.Locker, string, ...locker.CallOption) *locker.Lease{
		"Lock": mustLock, "TryLock": mustTry,
	} {
		cost := root.cost(func() {
			var all sync.WaitGroup
			for range n {
				all.Go(func() { mustUnlock(t, acquire(t, l, unique("key"))) })
			}
			all.Wait()
		})
		t.Logf("%d %ss and Unlocks took %d proposals", n, name, cost.proposals)
		if cost.proposals > 2*n/5 {
			t.Errorf("%d %ss and Unlocks took %d proposals, although they could be put together", n, name, cost.proposals)
		}
	}
}
