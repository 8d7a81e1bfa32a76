package etcdlock_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/wires"
)

// countsLooks is a pb.KVClient that counts the requests for which etcd has to read a whole line.
type countsLooks struct {
	pb.KVClient
	looks *atomic.Int32
}

func (c countsLooks) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	for _, op := range r.Success {
		if look := op.GetRequestRange(); look.GetMaxCreateRevision() > 0 {
			c.looks.Add(1)
		}
	}
	return c.KVClient.Txn(ctx, r, opts...)
}

// TestLongLine has many goroutines of a Locker wait for one key. Each is served in its turn, and only one at a time
// looks whose turn it is: else each handoff would take as much work as the square of the line.
func TestLongLine(t *testing.T) {
	t.Parallel()
	waiters := wires.Trials(t, 200)
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var looks atomic.Int32
	counting := func(kv pb.KVClient) pb.KVClient { return countsLooks{kv, &looks} }
	l := etcdlock.NewByKV(connect(t, addr), counting, locker.TTL(time.Minute))
	t.Cleanup(func() { _ = l.Close() })
	first := mustLock(t, l, key)
	var all sync.WaitGroup
	var last atomic.Uint64
	last.Store(first.Token())
	start := time.Now()
	for range waiters {
		all.Go(func() {
			lease, err := l.Lock(t.Context(), key)
			if err != nil {
				t.Error(err)
				return
			}
			if before := last.Swap(lease.Token()); before >= lease.Token() {
				t.Errorf("token %d after %d", lease.Token(), before)
			}
			mustUnlock(t, lease)
		})
	}
	root.awaitLine(key, waiters+1)
	joined := time.Now()
	mustUnlock(t, first)
	all.Wait()
	n := looks.Load()
	t.Logf("%d have joined in %v, and were served in %v, with %d looks",
		waiters, joined.Sub(start), time.Since(joined), n)
	if most := int32(waiters * 3 / 2); n > most { //nolint:gosec // few
		t.Errorf("%d looks at the line for %d waiters; want %d at most", n, waiters, most)
	}
}
