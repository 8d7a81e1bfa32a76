package etcdlock

import (
	"context"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fence makes requests fail that were sent before a certain moment, and of which nobody knows whether they still
// arrive: each transaction of a session is conditional on the revision of one key, which is written to raise the fence.
// So a claim whose request got no answer can be deleted for good, without giving up the lease and with it all other
// locks that are attached to it. In the normal case the key does not exist, its revision is 0, and the condition costs
// nothing.
type fence struct {
	key      string
	lease    func() clientv3.LeaseID // that the key is to be attached to
	revision atomic.Int64            // that the key is known to have
	saw      func(term uint64)       // is told the raft term of each answer
	broken   func(error)             // is told that the fence cannot be right any more
}

// commit carries out ops behind the fence. If the fence has been raised meanwhile, they were not carried out, and it
// tries again. It returns errFence if the store has lost what was written, as after it was restored from a backup: then
// no fence of this session keeps anything out.
func (f *fence) commit(ctx context.Context, kv clientv3.KV, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	for {
		known := f.revision.Load()
		// The fence may have been raised because this call is no longer waited for: it is not to get past that.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		resp, err := kv.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(f.key), "=", known)).
			Then(ops...).
			Commit()
		if err != nil {
			return resp, err
		}
		f.saw(resp.Header.RaftTerm)
		if resp.Succeeded {
			return resp, nil
		}
		if f.revision.Load() > known {
			continue // raised by ourselves
		}
		now, err := kv.Get(ctx, f.key, clientv3.WithKeysOnly())
		if err != nil {
			return nil, err
		}
		if len(now.Kvs) > 0 && now.Kvs[0].ModRevision > known {
			f.learn(now.Kvs[0].ModRevision)
			continue
		}
		// Somebody has deleted the key. Old requests could pass a fence that is down again.
		if _, err := f.raise(ctx, kv); err != nil {
			return nil, err
		}
	}
}

// delete deletes the key of a claim without looking at the fence, which costs the servers less than a transaction. If
// such a request may arrive late, the key is not used again: see claim.delete.
func (f *fence) delete(ctx context.Context, kv clientv3.KV, key string) (*clientv3.TxnResponse, error) {
	resp, err := kv.Delete(ctx, key)
	if err != nil {
		return nil, err
	}
	f.saw(resp.Header.RaftTerm)
	part := &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: (*pb.DeleteRangeResponse)(resp)}
	return &clientv3.TxnResponse{
		Header: resp.Header, Succeeded: true, Responses: []*pb.ResponseOp{{Response: part}},
	}, nil
}

// raise makes all requests fail that were sent before, and carries out ops in the same transaction.
func (f *fence) raise(ctx context.Context, kv clientv3.KV, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // as in commit
	}
	known := f.revision.Load()
	put := clientv3.OpPut(f.key, "", clientv3.WithLease(f.lease()))
	resp, err := kv.Txn(ctx).Then(append(ops, put)...).Commit()
	if err != nil {
		return resp, err
	}
	if resp.Header.Revision <= known {
		f.broken(errFence)
		return resp, errFence
	}
	f.learn(resp.Header.Revision)
	f.saw(resp.Header.RaftTerm)
	return resp, nil
}

func (f *fence) learn(revision int64) {
	for {
		known := f.revision.Load()
		if revision <= known || f.revision.CompareAndSwap(known, revision) {
			return
		}
	}
}
