package etcdlock_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// testLeaderResumes has the leader stand still, time and again, for about as long as a TTL, in which the others renew
// leases, and go on. By its clock all leases are over, and at times it has the new leader revoke those that it knew. No
// lock is lost by that, and nobody loses the place in line.
func testLeaderResumes(t *testing.T) {
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	endpoints := cluster.Endpoints()
	l, key := open(t, endpoints, locker.TTL(membersTTL)), unique("key")
	held := []*locker.Lease{mustLock(t, l, key)}
	for range 4 {
		held = append(held, mustLock(t, l, unique("key")))
	}
	var waiters []locktest.Pending[acquired]
	for range 3 {
		rival, joined := joining(t, connect(t, endpoints...), locker.TTL(membersTTL))
		waiters = append(waiters, locktest.Started(func() acquired { // for as long as it takes
			lease, err := rival.Lock(t.Context(), key)
			return acquired{lease, err}
		}))
		joined(key, 1)
	}
	n := wires.Trials(t, 4)
	for trial := range n {
		cluster.AwaitHealthy(t)
		resume, start := pause(t, cluster.Member(cluster.Leader(t))), time.Now()
		long := membersTTL*7/10 + rand.N(membersTTL*13/10)
		eventually(t, "the leases are renewed without the leader", func() bool {
			renewed := held[0].Err() != nil || held[0].Deadline().After(start.Add(membersTTL))
			return renewed && time.Since(start) > long
		})
		resume()
		resumed := time.Now()
		for _, lease := range held {
			eventually(t, "the lease is renewed again", func() bool {
				return lease.Err() != nil || lease.Deadline().After(resumed.Add(membersTTL))
			})
			switch err := lease.Err(); {
			case err == nil:
			case strings.Contains(err.Error(), "not renewed in time"):
				t.Skipf("trial %d of %d: on this machine, an election takes too long: %v", trial, n, err)
			default:
				t.Fatalf("trial %d of %d: %v", trial, n, err)
			}
		}
	}
	token := held[0].Token()
	mustUnlock(t, held[0])
	for i, w := range waiters { // in the order in which they have come
		a := w.Within(t, 2*membersTTL, fmt.Sprint("waiter ", i, " is served"))
		if a.err != nil {
			t.Fatalf("waiter %d: %v", i, a.err)
		}
		if a.Token() <= token {
			t.Errorf("waiter %d: token %d after %d", i, a.Token(), token)
		}
		token = a.Token()
		mustUnlock(t, a.Lease)
	}
	for _, lease := range held[1:] {
		mustUnlock(t, lease)
	}
}

// testLeaderStandsStill has the leader, the only one to be asked, stand still for a little less than a TTL. When it
// goes on, it answers at times keep-alives of which the leader since knows nothing: see session.renew.
func testLeaderStandsStill(t *testing.T) {
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	leader := cluster.Leader(t)
	other := connect(t, cluster.Member((leader+1)%3).Addr())
	l := open(t, []string{cluster.Member(leader).Addr()}, locker.TTL(membersTTL))
	lease := mustLock(t, l, unique("key"))
	left := func(ctx context.Context) (ttl int64, err error) { // of the etcd lease that the key is attached to now
		claim, err := other.Get(ctx, etcdlock.ClaimOf(lease))
		if err != nil || len(claim.Kvs) == 0 {
			return 0, err
		}
		r, err := other.TimeToLive(ctx, clientv3.LeaseID(claim.Kvs[0].Lease))
		if err != nil {
			return 0, err
		}
		return r.TTL, nil
	}
	deadline := lease.Deadline()
	eventually(t, "the lease is renewed", func() bool { return lease.Deadline().After(deadline) })
	resume := pause(t, cluster.Member(leader))
	time.Sleep(membersTTL * 7 / 10)
	deadline = lease.Deadline()
	resume()
	for start := time.Now(); time.Since(start) < membersTTL/2 && lease.Err() == nil; time.Sleep(time.Millisecond) {
		trusted := lease.Deadline()
		if trusted.Equal(deadline) {
			continue
		}
		deadline = trusted
		ctx, cancel := context.WithTimeout(context.Background(), membersTTL)
		ttl, err := left(ctx)
		cancel()
		switch {
		case err != nil:
			t.Logf("the cluster says nothing: %v", err)
		case time.Until(trusted) > time.Duration(ttl+1)*time.Second:
			t.Errorf("the holder trusts its lease for %v, and the cluster keeps it for %d s", time.Until(trusted), ttl)
		}
	}
	t.Logf("the holder says %v", lease.Err())
}
