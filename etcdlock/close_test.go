package etcdlock_test

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// lateGrants passes the answers to requests for a lease on when nobody waits for them any more.
type lateGrants struct {
	pb.LeaseClient
	granted chan clientv3.LeaseID
}

func (l lateGrants) LeaseGrant(
	ctx context.Context, r *pb.LeaseGrantRequest, opts ...grpc.CallOption,
) (*pb.LeaseGrantResponse, error) {
	resp, err := l.LeaseClient.LeaseGrant(ctx, r, opts...)
	if err == nil {
		l.granted <- clientv3.LeaseID(resp.ID)
		<-ctx.Done()
	}
	return resp, err
}

// TestCloseWhileLeaseIsGranted has a Locker closed before it learns that it has a lease. It gives that back all the
// same.
func TestCloseWhileLeaseIsGranted(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	granted := make(chan clientv3.LeaseID, 1)
	l := etcdlock.NewWith(connect(t, addr), func(c pb.LeaseClient) pb.LeaseClient { return lateGrants{c, granted} },
		locker.TTL(9*time.Second)) // for an attempt to outlast what happens before Close
	waiter := waits(l, unique("key"))
	lease := <-granted
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if a := waiter.Get(t); !errors.Is(a.err, locker.ErrClosed) {
		t.Error(a.err)
	}
	root.do(func(ctx context.Context) error {
		r, err := root.TimeToLive(ctx, lease)
		if err == nil && r.TTL > 0 {
			t.Errorf("the lease lives for another %d s", r.TTL)
		}
		return err
	})
}
