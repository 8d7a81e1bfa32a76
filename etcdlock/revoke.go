package etcdlock

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Revocation. To revoke a lock is to put a mark into the value of the claim that holds it. The claim keeps its create
// revision and its etcd lease: the line is the same as before, for everybody in it, and the mark goes when the claim
// does. The Locker that has made the claim watches it (see held.go), or sees the mark when it looks. It then renews the
// lock no more, and deletes the claim as it does others: when the lock is unlocked, or its time is over. If that Locker
// is gone, its etcd lease ends, and all its claims with it.
//
// A claim that is broken gets a mark, too, so that its holder sees why. Then it is deleted.

// The first sign of a mark is in no other value of a claim: neither in a name, which is UTF-8, nor in the number of a
// slot. What was handed on begins with two of them, and may have a mark within: see hands.go.
const (
	markSign    = "\xff"
	markRevoked = markSign + "revoked"
	markBroken  = markSign + "broken"
)

// marked is the value of a claim that was taken away. It also says what was there before.
func marked(kv *mvccpb.KeyValue, r *locker.Revocation) string {
	kind := markRevoked
	if r.Broken {
		kind = markBroken
	}
	mark := strings.Join([]string{kind, escape(r.By), escape(r.Reason), escape(valueIn(kv))}, " ")
	if h, _ := handsIn(kv); h != nil {
		return h.around(mark)
	}
	return mark
}

// markIn returns the mark on a claim, or nil, and the value that it had before.
func markIn(kv *mvccpb.KeyValue) (r *locker.Revocation, value string) {
	_, value = handsIn(kv)
	if !strings.HasPrefix(value, markSign) { // as nearly always
		return nil, value
	}
	texts := strings.Split(value, " ")
	if len(texts) != 4 || texts[0] != markRevoked && texts[0] != markBroken {
		return nil, value
	}
	for i := range texts {
		var err error
		if texts[i], err = url.PathUnescape(texts[i]); err != nil {
			return nil, value
		}
	}
	return &locker.Revocation{By: texts[1], Reason: texts[2], Broken: texts[0] == markBroken}, texts[3]
}

// valueIn returns the value of a claim, whether it has a mark or not.
func valueIn(kv *mvccpb.KeyValue) string {
	_, value := markIn(kv)
	return value
}

// Revoke implements locker.Revoker.
func (b *backend) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	holders, err := b.holders(ctx, name)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(holders, func(c claimed) bool { return c.strange }) {
		return fmt.Errorf("%w: the key is held by another program, which cannot be told", errors.ErrUnsupported)
	}
	holders = slices.DeleteFunc(holders, func(c claimed) bool { return hasMark(c.kv, r) })
	if len(holders) == 0 {
		return locker.ErrNotHeld
	}
	return b.mark(ctx, holders, r)
}

// Break implements locker.Revoker. The token of the next holder is greater, as is each revision than those before.
func (b *backend) Break(ctx context.Context, name string, r *locker.Revocation, _ bool) error {
	holders, err := b.holders(ctx, name)
	switch {
	case err != nil:
		return err
	case len(holders) == 0:
		return locker.ErrNotHeld
	}
	ours := slices.DeleteFunc(slices.Clone(holders), func(c claimed) bool { return c.strange })
	if err := b.mark(ctx, ours, r); err != nil && !errors.Is(err, ErrNoSpace) { // there is enough to delete
		return err
	}
	_, err = b.each(ctx, holders, func(c claimed) clientv3.Op {
		key := string(c.kv.Key)
		same := clientv3.Compare(clientv3.CreateRevision(key), "=", c.kv.CreateRevision)
		return clientv3.OpTxn([]clientv3.Cmp{same}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	})
	return err
}

// holders reads who has the lock of a name.
func (b *backend) holders(ctx context.Context, name string) ([]claimed, error) {
	claims, err := b.readLine(ctx, Key(name))
	return slices.DeleteFunc(claims, func(c claimed) bool { return !c.holds }), err
}

// hasMark reports whether a claim that is to be revoked was taken away already. What is to be broken may have been
// revoked.
func hasMark(kv *mvccpb.KeyValue, r *locker.Revocation) bool {
	before, _ := markIn(kv)
	return before != nil && !r.Broken
}

// mark marks claims as taken away, unless they are gone: whoever has got the lock since is left alone. Those that have
// changed since they were read, as they were put under another etcd lease, are tried again.
func (b *backend) mark(ctx context.Context, claims []claimed, r *locker.Revocation) error {
	for len(claims) > 0 {
		outcomes, err := b.each(ctx, claims, func(c claimed) clientv3.Op {
			key := string(c.kv.Key)
			same := clientv3.Compare(clientv3.ModRevision(key), "=", c.kv.ModRevision)
			put := clientv3.OpPut(key, marked(c.kv, r), clientv3.WithIgnoreLease())
			return clientv3.OpTxn([]clientv3.Cmp{same}, []clientv3.Op{put}, []clientv3.Op{clientv3.OpGet(key)})
		})
		if err != nil {
			return err
		}
		var changed []claimed
		for i, o := range outcomes {
			if o.Succeeded {
				continue
			}
			for _, kv := range o.Responses[0].GetResponseRange().Kvs {
				if kv.CreateRevision == claims[i].kv.CreateRevision && !hasMark(kv, r) {
					changed = append(changed, claimed{kv: kv})
				}
			}
		}
		claims = changed
	}
	return nil
}

// each carries out something for each of some claims, and returns what has become of it.
func (b *backend) each(
	ctx context.Context, claims []claimed, op func(claimed) clientv3.Op,
) (outcomes []*pb.TxnResponse, err error) {
	const atOnce = 32 // is far fewer than a transaction may have
	for some := range slices.Chunk(claims, atOnce) {
		var ops []clientv3.Op
		for _, c := range some {
			ops = append(ops, op(c))
		}
		resp, err := inquire(ctx, b, writing, func(ctx context.Context, l *link) (*clientv3.TxnResponse, error) {
			return l.kv.Txn(ctx).Then(ops...).Commit()
		})
		if err != nil {
			return nil, err
		}
		for _, part := range resp.Responses {
			outcomes = append(outcomes, part.GetResponseTxn())
		}
	}
	return outcomes, nil
}

// took notes that somebody has taken the lock away, and tells its holder. What is renewed no more is deleted when its
// time is over, unless it is released before.
func (c *claim) took(r *locker.Revocation) {
	c.session.b.mu.Lock()
	defer c.session.b.mu.Unlock()
	if c.gone || c.revoked != nil {
		return
	}
	c.revoked = r
	c.request.ReportLost(r)
}

// changed is told what has become of the key of a claim that is watched.
func (c *claim) changed(e *mvccpb.Event) {
	if e.Type == clientv3.EventTypeDelete {
		c.lose(errDeleted)
	} else if r, _ := markIn(e.Kv); r != nil {
		c.took(r)
	}
}
