package etcdlock_test

import (
	"context"
	"crypto/rand"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// bare returns a backend alone, with what kv and leases make of the client's, closed with the test.
func bare(t *testing.T, kv func(clientv3.KV) clientv3.KV, leases func(pb.LeaseClient) pb.LeaseClient) locker.Backend {
	t.Helper()
	b := etcdlock.NewBackendOn(connect(t, etcdtest.Address(t)), kv, leases)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// grantOf acquires a new key of a backend.
func grantOf(t *testing.T, b locker.Backend, ttl time.Duration) locker.Grant {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r := locker.Request{Prefix: etcdlock.DefaultPrefix, Key: unique("key"), TTL: ttl}
	_, _ = rand.Read(r.Owner[:])
	g, err := b.Acquire(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// result is what Renew reports of a grant.
type result struct {
	i int
	locker.Renewal
}

// renewals starts a Renew. returned is closed when it has returned.
func renewals(t *testing.T, b locker.Backend, gs ...locker.Grant) (results <-chan result, returned <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	came, over := make(chan result, 2*len(gs)), make(chan struct{})
	go func() {
		defer close(over)
		b.Renew(ctx, gs, func(i int, r locker.Renewal) { came <- result{i, r} })
	}()
	return came, over
}

// renewed checks that the next result is of a grant that was renewed.
func renewed(t *testing.T, results <-chan result, i int) {
	t.Helper()
	select {
	case r := <-results:
		if r.i != i || r.Err != nil || r.Sent.IsZero() {
			t.Errorf("grant %d: %+v; want a renewal of grant %d", r.i, r.Renewal, i)
		}
	case <-time.After(patience):
		t.Fatalf("no result for grant %d", i)
	}
}

// mute is a stream of keep-alives whose answers do not come until it is told to speak.
type mute struct {
	pb.Lease_LeaseKeepAliveClient
	silent *atomic.Int64 // the lease that gets no answer
	speak  chan struct{}
	lease  int64
}

func (s *mute) Send(r *pb.LeaseKeepAliveRequest) error {
	s.lease = r.ID
	return s.Lease_LeaseKeepAliveClient.Send(r)
}

func (s *mute) Recv() (*pb.LeaseKeepAliveResponse, error) {
	if s.lease == s.silent.Load() {
		select {
		case <-s.speak:
		case <-s.Context().Done():
		}
	}
	return s.Lease_LeaseKeepAliveClient.Recv()
}

// TestRenewSessionHangs has the keep-alive of one etcd lease get no answer. The locks on another do not wait for it.
func TestRenewSessionHangs(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Second
	var silent atomic.Int64
	speak := make(chan struct{})
	b := bare(t, nil, func(c pb.LeaseClient) pb.LeaseClient {
		return hookedLeases{c, func(ctx context.Context, c pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error) {
			stream, err := c.LeaseKeepAlive(ctx)
			return &mute{Lease_LeaseKeepAliveClient: stream, silent: &silent, speak: speak}, err
		}}
	})
	hung, healthy := grantOf(t, b, ttl), grantOf(t, b, ttl+time.Second)
	silent.Store(int64(etcdlock.LeaseOf(hung)))
	time.Sleep((ttl + time.Second) / 5) // for both to need a keep-alive
	results, returned := renewals(t, b, hung, healthy)
	renewed(t, results, 1)
	select {
	case r := <-results:
		t.Errorf("a result for the lease that got no answer: %+v", r)
	default:
	}
	close(speak)
	renewed(t, results, 0)
	<-returned
}

// heldReads keeps transactions back that read a key, or a range that begins with it, and write nothing.
type heldReads struct {
	clientv3.KV
	key    *atomic.Value // string
	letGo  chan struct{}
	onHold chan struct{} // has room for all
}

func (kv heldReads) Txn(ctx context.Context) clientv3.Txn {
	return &heldTxn{Txn: kv.KV.Txn(ctx), ctx: ctx, kv: kv}
}

type heldTxn struct {
	clientv3.Txn
	ctx  context.Context
	kv   heldReads
	held bool
}

func (x *heldTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { x.Txn = x.Txn.If(cmps...); return x }

func (x *heldTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	key := x.kv.key.Load().(string)
	x.held = slices.ContainsFunc(ops, func(op clientv3.Op) bool { return op.IsGet() && string(op.KeyBytes()) == key }) &&
		!slices.ContainsFunc(ops, clientv3.Op.IsPut)
	x.Txn = x.Txn.Then(ops...)
	return x
}

func (x *heldTxn) Commit() (*clientv3.TxnResponse, error) {
	if x.held {
		x.kv.onHold <- struct{}{}
		select {
		case <-x.kv.letGo:
		case <-x.ctx.Done():
		}
	}
	return x.Txn.Commit()
}

// TestRenewLookHangs has the look at a claim that is not watched yet get no answer. The lock that is watched does not
// wait for it.
func TestRenewLookHangs(t *testing.T) {
	t.Parallel()
	const ttl = 30 * time.Second // for an attempt to outlast the test's own steps
	var key atomic.Value
	key.Store("")
	held := heldReads{key: &key, letGo: make(chan struct{}), onHold: make(chan struct{}, 100)}
	b := bare(t, func(kv clientv3.KV) clientv3.KV { held.KV = kv; return held }, nil)
	etcdlock.WatchNoneSoon(b)
	watched := grantOf(t, b, ttl)
	results, returned := renewals(t, b, watched)
	renewed(t, results, 0)
	<-returned
	eventually(t, "it is watched", func() bool { return etcdlock.IsWatched(watched) })
	fresh := grantOf(t, b, ttl)
	key.Store(etcdlock.ClaimKeyOf(fresh))
	results, returned = renewals(t, b, fresh, watched)
	renewed(t, results, 1)
	<-held.onHold
	select {
	case r := <-results:
		t.Errorf("a result for the claim of which nothing is known: %+v", r)
	default:
	}
	close(held.letGo)
	renewed(t, results, 0)
	<-returned
}

// testTwoSessions has leases of two TTLs, and a member of three that hangs.
func testTwoSessions(t *testing.T) {
	for range wires.Trials(t, 1) {
		cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
		l := open(t, cluster.Endpoints(), locker.TTL(membersTTL))
		var leases []*locker.Lease
		for i := range 6 {
			ttl := locker.TTL(membersTTL + time.Duration(i%2)*time.Second)
			leases = append(leases, mustLock(t, l, unique("key"), ttl))
		}
		resume, paused := pause(t, cluster.Member((cluster.Leader(t)+1)%3)), time.Now()
		for _, lease := range leases {
			until := paused.Add(3 * membersTTL)
			eventually(t, "all are renewed", func() bool { return lease.Err() != nil || lease.Deadline().After(until) })
			if err := lease.Err(); err != nil {
				t.Error(err)
			}
		}
		resume()
		_ = l.Close()
		_ = cluster.Close()
	}
}

// TestWaitWithoutRelease has a Wait end whose owner is never released. What it has left behind goes all the same.
func TestWaitWithoutRelease(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	root, b := administer(t, connect(t, etcdtest.Address(t))), bare(t, nil, nil)
	holder := grantOf(t, b, ttl)
	ctx, cancel := context.WithCancel(t.Context())
	r := holder.Request
	_, _ = rand.Read(r.Owner[:])
	waiter := locktest.Started(func() error { _, err := b.(locker.Queue).Wait(ctx, r); return err })
	keys, _ := root.awaitLine(r.Key, 2)
	cancel()
	if err := waiter.Get(t); err == nil {
		t.Error("a Wait that was cancelled has the lock")
	}
	eventually(t, "the claim of the waiter is gone", func() bool { return !root.exists(keys[1]) })
}

// slowLook is a pb.KVClient of which the reads that verify keep-alives are answered late.
type slowLook struct {
	pb.KVClient
	delay time.Duration
}

func (s slowLook) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	if r.CountOnly && r.RangeEnd == nil {
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.KVClient.Range(ctx, r, opts...)
}

// TestVerifiedLate has it take longer to verify a keep-alive than a renewal may last. The lease lives all the same, as
// each keep-alive counts when it is verified.
func TestVerifiedLate(t *testing.T) {
	t.Parallel()
	const ttl = 8 * time.Second // there is time left for a keep-alive also when the machine is busy
	addr := etcdtest.Address(t)
	slow := func(kv pb.KVClient) pb.KVClient { return slowLook{kv, ttl/3 + ttl/30} }
	l := etcdlock.NewByKV(connect(t, addr, addr, addr), slow, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	lease := mustLock(t, l, unique("key"))
	outlives(t, lease, 2)
	mustUnlock(t, lease)
}
