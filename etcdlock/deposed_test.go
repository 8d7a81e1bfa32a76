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

// deposed makes of keep-alives what a leader makes of them that stands still, and then does not know yet that there is
// another.
type deposed struct {
	mu      sync.Mutex
	mode    mode
	changed chan struct{} // closed when mode is changed
	lies    int           // answers that the cluster knows nothing of
}

type mode int

const (
	leads   mode = iota
	still        // does not answer
	resumed      // answers, and the cluster knows nothing of it
)

func (d *deposed) set(m mode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mode = m
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *deposed) told() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lies
}

type deposedLeases struct {
	pb.LeaseClient
	d *deposed
}

func (l deposedLeases) LeaseKeepAlive(
	ctx context.Context, opts ...grpc.CallOption,
) (pb.Lease_LeaseKeepAliveClient, error) {
	stream, err := l.LeaseClient.LeaseKeepAlive(ctx, opts...)
	return &deposedStream{Lease_LeaseKeepAliveClient: stream, d: l.d}, err
}

type deposedStream struct {
	pb.Lease_LeaseKeepAliveClient
	d     *deposed
	asked *pb.LeaseKeepAliveRequest
}

func (s *deposedStream) Send(r *pb.LeaseKeepAliveRequest) error { s.asked = r; return nil }

func (s *deposedStream) Recv() (*pb.LeaseKeepAliveResponse, error) {
	for {
		s.d.mu.Lock()
		mode, changed := s.d.mode, s.d.changed
		if mode == resumed {
			s.d.lies++
		}
		s.d.mu.Unlock()
		switch mode {
		case leads:
			if err := s.Lease_LeaseKeepAliveClient.Send(s.asked); err != nil {
				return nil, err
			}
			return s.Lease_LeaseKeepAliveClient.Recv()
		case resumed:
			return &pb.LeaseKeepAliveResponse{Header: &pb.ResponseHeader{RaftTerm: 1}, ID: s.asked.ID, TTL: 60}, nil
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil, s.Context().Err()
		}
	}
}

// TestDeposedLeader has keep-alives answered by a leader that was deposed while it stood still. They do not count; and
// nothing is asked beside keep-alives that come in due time.
func TestDeposedLeader(t *testing.T) {
	t.Parallel()
	const ttl = 8 * time.Second // in a third of it, it can be renewed also when the machine is busy
	// The cluster is in raft term 2 or later.
	cluster := etcdtest.New(t, etcdtest.Options{})
	d := &deposed{changed: make(chan struct{})}
	l := etcdlock.NewWith(connect(t, cluster.Endpoints()...),
		func(c pb.LeaseClient) pb.LeaseClient { return deposedLeases{c, d} }, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	lease := mustLock(t, l, unique("key"))
	outlives(t, lease, 1)

	d.set(still)
	eventually(t, "a keep-alive is overdue", func() bool { return time.Until(lease.Deadline()) < ttl*4/10 })
	before := lease.Deadline()
	d.set(resumed)
	eventually(t, "the deposed leader has answered a few times", func() bool { return d.told() > 3 })
	if after := lease.Deadline(); !after.Equal(before) {
		t.Errorf("an answer of a deposed leader made the lease valid for %v longer", after.Sub(before))
	}
	d.set(leads)
	outlives(t, lease, 1)
	mustUnlock(t, lease)
}
