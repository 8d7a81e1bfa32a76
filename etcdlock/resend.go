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
type watchfulKV struct {
	pb.KVClient
	conn *conn
}

func (k watchfulKV) Txn(ctx context.Context, in *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if resent, ok := ctx.Value(resentKey{}).(*atomic.Bool); ok {
		var sent atomic.Int32
		opts = append(opts, grpc.OnFinish(func(err error) {
			if !wasPassedOver(err) && sent.Add(1) > 1 {
				resent.Store(true)
			}
		}))
	}
	return onSome(ctx, k.conn, k.KVClient.Txn, in, opts)
}

func (k watchfulKV) Range(ctx context.Context, in *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	return onSome(ctx, k.conn, k.KVClient.Range, in, opts)
}
