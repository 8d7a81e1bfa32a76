package etcdlock_test

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// hookedLeases is a pb.LeaseClient whose streams of keep-alives are opened by keepAlive.
type hookedLeases struct {
	pb.LeaseClient
	keepAlive func(context.Context, pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error)
}

func (l hookedLeases) LeaseKeepAlive(ctx context.Context, _ ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	return l.keepAlive(ctx, l.LeaseClient)
}

// TestKeepAliveStreamEnds has an etcd lease revoked, of which the Locker learns otherwise than by a keep-alive. The
// stream of its keep-alives must not stay open.
func TestKeepAliveStreamEnds(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // a third of it is more than a busy machine needs
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	streams := make(chan context.Context, 100) // which they end with
	l := etcdlock.NewWith(connect(t, addr), func(c pb.LeaseClient) pb.LeaseClient {
		return hookedLeases{c, func(ctx context.Context, c pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error) {
			streams <- ctx
			return c.LeaseKeepAlive(ctx)
		}}
	}, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	key := unique("key")
	lease := mustLock(t, l, key)
	outlives(t, lease, 1)
	stream := <-streams
	if stream.Err() != nil {
		t.Error("the stream was not kept for the next keep-alive")
	}
	_, leases := root.claims(key)
	root.revoke(leases[0])
	mustUnlock(t, mustLock(t, l, unique("key"))) // its transaction is refused
	told(t, lease, ttl/3)
	eventually(t, "the stream has ended", func() bool { return stream.Err() != nil })
}

// remainder is a stream of keep-alives that answers as a proxy may: with less than the whole TTL.
type remainder struct{ pb.Lease_LeaseKeepAliveClient }

func (s remainder) Recv() (*pb.LeaseKeepAliveResponse, error) {
	r, err := s.Lease_LeaseKeepAliveClient.Recv()
	if err == nil {
		r.TTL--
	}
	return r, err
}

// TestKeepAliveRemainder has keep-alives answered with what is left of the TTL. They have renewed nothing.
func TestKeepAliveRemainder(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	l := etcdlock.NewWith(connect(t, etcdtest.Address(t)), func(c pb.LeaseClient) pb.LeaseClient {
		return hookedLeases{c, func(ctx context.Context, c pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error) {
			stream, err := c.LeaseKeepAlive(ctx)
			return remainder{stream}, err
		}}
	}, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	told(t, mustLock(t, l, unique("key")), 2*ttl)
}
