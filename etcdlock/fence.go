package etcdlock

import (
	"context"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// fence makes requests fail that were sent before a certain moment, and of which nobody knows whether they still arrive: each
// transaction of a session is conditional on the revision of one key, which is written to raise the fence. So a claim whose
// request got no answer can be deleted for good, without giving up the lease and with it all other locks that are
// attached to it. In the normal case the key does not exist, its revision is 0, and the condition costs nothing.
type fence struct {
	key      string
	lease    clientv3.LeaseID // that the key is attached to
	revision atomic.Int64     // that the key is known to have
}

// commit carries out ops behind the fence. If the fence has been raised meanwhile, they were not carried out, and it tries again.
func (f *fence) commit(ctx context.Context, kv clientv3.KV, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	for range 10 {
		known := f.revision.Load()
		// The fence may have been raised because this call is no longer waited for: it is not to get past that.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		resp, err := kv.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(f.key), "=", known)).
			Then(ops...).
			Commit()
		if err != nil || resp.Succeeded {
			return resp, err
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
	return nil, errFence
}

// raise makes all requests fail that were sent before, and carries out ops in the same transaction.
func (f *fence) raise(ctx context.Context, kv clientv3.KV, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // as in commit
	}
	put := clientv3.OpPut(f.key, "", clientv3.WithLease(f.lease))
	resp, err := kv.Txn(ctx).Then(append(ops, put)...).Commit()
	if err == nil {
		f.learn(resp.Header.Revision)
	}
	return resp, err
}

func (f *fence) learn(revision int64) {
	for {
		known := f.revision.Load()
		if revision <= known || f.revision.CompareAndSwap(known, revision) {
			return
		}
	}
}
