package etcdlock

import (
	"context"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// resentKey is the key of a context's *atomic.Bool that is set when a transaction was sent more than once.
type resentKey struct{}

// watchfulKV tells when the client sends a transaction more than once by itself: if the server says that the deadline has passed, for instance,
// before the client has noticed. The first may then be carried out, too, at any time.
type watchfulKV struct{ pb.KVClient }

func (k watchfulKV) Txn(ctx context.Context, in *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if resent, ok := ctx.Value(resentKey{}).(*atomic.Bool); ok {
		var sent atomic.Int32
		opts = append(opts, grpc.OnFinish(func(error) {
			if sent.Add(1) > 1 {
				resent.Store(true)
			}
		}))
	}
	return k.KVClient.Txn(ctx, in, opts...)
}
