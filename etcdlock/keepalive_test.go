package etcdlock_test

import (
	"context"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// observedLeases notes the contexts of the streams of keep-alives, which end with them.
type observedLeases struct {
	pb.LeaseClient
	mu      *sync.Mutex
	streams *[]context.Context
}

func (l observedLeases) LeaseKeepAlive(ctx context.Context, opts ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.streams = append(*l.streams, ctx)
	return l.LeaseClient.LeaseKeepAlive(ctx, opts...)
}

// TestKeepAliveStreamEnds has an etcd lease revoked, of which the Locker learns otherwise than by a keep-alive. The stream of its keep-alives
// must not stay open.
func TestKeepAliveStreamEnds(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	var mu sync.Mutex
	var streams []context.Context
	l := etcdlock.NewWith(connect(t, addr), func(c pb.LeaseClient) pb.LeaseClient { return observedLeases{c, &mu, &streams} }, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	key := unique("key")
	lease := mustLock(t, l, key)
	outlives(t, lease, 1)
	mu.Lock()
	stream := streams[0]
	mu.Unlock()
	if stream.Err() != nil {
		t.Error("the stream was not kept for the next keep-alive")
	}
	_, leases := root.claims(key)
	root.revoke(leases[0])
	mustUnlock(t, mustLock(t, l, unique("key"))) // its transaction is refused
	told(t, lease, ttl/3)
	eventually(t, "the stream has ended", func() bool { return stream.Err() != nil })
}
