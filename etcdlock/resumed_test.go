package etcdlock_test

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// TestLeaderResumes has the leader stand still for longer than a TTL, which the others renew leases in, and go on. By its clock all
// leases are over, and at times it has the new leader delete them: nothing that a client does prevents that. What is left is
// that the holder is told, and that its token and Guard protect what it writes.
func TestLeaderResumes(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	root := administer(t, cluster.Client(t))
	l, rival, key := open(t, cluster.Endpoints(), locker.TTL(membersTTL)), open(t, cluster.Endpoints(), locker.TTL(membersTTL)), unique("key")
	holder := mustLock(t, l, key)
	waiter := waits(rival, key)
	root.awaitLine(key, 2)
	resume, start := pause(t, cluster.Member(cluster.Leader(t))), time.Now()
	eventually(t, "the lease is renewed without the leader", func() bool {
		return holder.Err() != nil || holder.Deadline().After(start.Add(2*membersTTL))
	})
	if err := holder.Err(); err != nil {
		t.Fatal(err)
	}
	resume()
	select {
	case <-holder.Done():
	case <-time.After(membersTTL * 2 / 3): // by then, it would have been told
		mustUnlock(t, holder)
		mustUnlock(t, granted(t, waiter, membersTTL))
		return
	}
	t.Logf("the leader that was deposed has ended the lease: %v", holder.Err())
	a := waiter.within(t, 2*membersTTL, "the wait is over")
	if errors.Is(a.err, etcdlock.ErrLeaseExpired) {
		t.Logf("and that of who waited: %v", a.err)
		a.Lease = mustLock(t, rival, key)
	} else if a.err != nil {
		t.Fatal(a.err)
	}
	if a.Token() <= holder.Token() {
		t.Errorf("token %d after %d", a.Token(), holder.Token())
	}
	root.do(func(ctx context.Context) error {
		r, err := root.Txn(ctx).If(etcdlock.Guard(holder)).Then(clientv3.OpPut(unique("key"), "")).Commit()
		if err == nil && r.Succeeded {
			t.Error("who was the holder can write")
		}
		return err
	})
	mustUnlock(t, a.Lease)
}

// TestLeaderStandsStill has the leader, the only one to be asked, stand still for a little less than a TTL. When it goes on, it answers at times
// keep-alives of which the leader since knows nothing: see session.renew.
func TestLeaderStandsStill(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	leader := cluster.Leader(t)
	other := connect(t, cluster.Member((leader+1)%3).Addr())
	l := open(t, []string{cluster.Member(leader).Addr()}, locker.TTL(membersTTL))
	lease := mustLock(t, l, unique("key"))
	var id clientv3.LeaseID
	administer(t, other).do(func(ctx context.Context) error {
		r, err := other.Get(ctx, etcdlock.ClaimOf(lease))
		if err == nil {
			id = clientv3.LeaseID(r.Kvs[0].Lease)
		}
		return err
	})
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
		r, err := other.TimeToLive(ctx, id)
		cancel()
		switch {
		case err != nil:
			t.Logf("the cluster says nothing: %v", err)
		case time.Until(trusted) > time.Duration(r.TTL+1)*time.Second:
			t.Errorf("the holder trusts its lease for %v, and the cluster keeps it for %d s", time.Until(trusted), r.TTL)
		}
	}
	t.Logf("the holder says %v", lease.Err())
}
