package etcdlock_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// TestRepeatedRequest has the answer to the first in line get lost, and others join the line before its request is
// repeated.
func TestRepeatedRequest(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	one, two := behind(t, cluster.Member(0)), behind(t, cluster.Member(0))
	key := unique("key")
	first := open(t, []string{one.Addr(), two.Addr()}, locker.TTL(ttl))
	others := []locker.Locker{open(t, cluster.Endpoints(), locker.TTL(ttl)), open(t, cluster.Endpoints(), locker.TTL(ttl))}
	for _, l := range append(others, first) {
		mustUnlock(t, mustLock(t, l, unique("key"))) // so that it has a lease
	}
	var lost atomic.Bool
	line := []byte(etcdlock.Key(etcdlock.DefaultPrefix + key))
	for _, proxy := range []*faultproxy.Proxy{one, two} {
		proxy.SetWhere(func(sent []byte) bool { return bytes.Contains(sent, line) && lost.CompareAndSwap(false, true) },
			faultproxy.DropReplies())
	}

	before := root.state().revision
	waiters := []locktest.Pending[acquired]{waits(first, key)}
	root.awaitLine(key, 1)
	for i, l := range others {
		waiters = append(waiters, waits(l, key))
		root.awaitLine(key, 2+i)
	}
	last := uint64(0)
	for i, waiter := range waiters {
		lease := granted(t, waiter, 2*ttl)
		if lease.Token() <= last {
			t.Errorf("number %d: token %d after %d", i, lease.Token(), last)
		}
		last = lease.Token()
		mustUnlock(t, lease)
	}
	// Each writes its claim, and deletes it; the first does so again, and raises the fence.
	if n := root.state().revision - before; n < 7 || n > 15 {
		t.Errorf("%d writes", n)
	}
}

// TestRepeatedUnlock has the answer to an Unlock get lost. What is found when it is repeated is no loss of the lock.
func TestRepeatedUnlock(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	for name, doubtful := range map[string]bool{"of a claim": false, "of a claim that had to be repeated, too": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := unique("key")
			var claimed, unclaimed atomic.Bool
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				resp, err := pass(r)
				if doubtful && r.claims(key) && claimed.CompareAndSwap(false, true) ||
					r.unclaims(key) && unclaimed.CompareAndSwap(false, true) {
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			})
			mustUnlock(t, mustLock(t, l, key))
			if !unclaimed.Load() {
				t.Error("no answer was lost")
			}
		})
	}
}

// slowDisk is a pb.KVClient of which requests that write are answered late.
type slowDisk struct {
	pb.KVClient
	delay  time.Duration
	writes *atomic.Int32
}

func (s slowDisk) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := s.KVClient.Txn(ctx, r, opts...)
	if err == nil && writes(r) {
		err = s.write(ctx)
	}
	return resp, err
}

func (s slowDisk) DeleteRange(
	ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption,
) (*pb.DeleteRangeResponse, error) {
	resp, err := s.KVClient.DeleteRange(ctx, r, opts...)
	if err == nil {
		err = s.write(ctx)
	}
	return resp, err
}

func (s slowDisk) write(ctx context.Context) error {
	s.writes.Add(1)
	select {
	case <-time.After(s.delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func writes(r *pb.TxnRequest) bool {
	return slices.ContainsFunc(r.Success, func(op *pb.RequestOp) bool {
		return op.GetRequestPut() != nil || op.GetRequestDeleteRange() != nil ||
			op.GetRequestTxn() != nil && writes(op.GetRequestTxn())
	})
}

// TestSlowDisk has all writes take long, on a cluster of several endpoints. None is repeated for that, which would make
// them slower.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	const ttl, pairs = 6 * time.Second, 2
	const delay = 2 * ttl / 3 / 3 // twice as long as one endpoint has before it is suspected
	cluster := etcdtest.New(t, etcdtest.Options{})
	var endpoints []string
	for range 3 {
		endpoints = append(endpoints, behind(t, cluster.Member(0)).Addr())
	}
	locktest.Tries(t, func() error { // an endpoint may not answer in time, on a busy machine
		var sent atomic.Int32
		slow := func(kv pb.KVClient) pb.KVClient { return slowDisk{kv, delay, &sent} }
		l := etcdlock.NewByKV(connect(t, endpoints...), slow, locker.TTL(ttl))
		defer func() { _ = l.Close() }()
		held, err := lock(l, unique("key"))
		if err != nil {
			return err
		}
		for range pairs {
			lease, err := lock(l, unique("key"))
			if err != nil {
				return err
			}
			mustUnlock(t, lease)
		}
		mustUnlock(t, held)
		if n := sent.Load(); n != 2+2*pairs {
			return fmt.Errorf("%d writes for %d pairs; want one for each Lock and Unlock", n, 1+pairs)
		}
		return nil
	})
}
