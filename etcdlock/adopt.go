package etcdlock

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Adopt implements locker.Adopter. The key in etcd is found by the token, which is its create revision, and is no other
// key's of that line. It is put under the etcd lease of this Locker, with the new owner in its value, if nothing has
// changed it since it was read: so of those who have a copy of a ticket, one gets it. See hands.go.
func (b *backend) Adopt(ctx context.Context, r locker.Request, from locker.Grant) (locker.Grant, error) {
	if err := check(r); err != nil {
		return locker.Grant{}, err
	}
	if c := b.claim(r.Owner); c != nil {
		return b.again(ctx, c)
	}
	for {
		seen, err := b.adoptable(ctx, r, from)
		if err != nil {
			return locker.Grant{}, locker.NotAcquired(err)
		}
		g, err := b.onSession(ctx, r, func(ctx context.Context, s *session, r locker.Request) (locker.Grant, error) {
			return b.takeOver(ctx, s, r, from, seen)
		})
		if !errors.Is(err, errChanged) {
			return g, err
		}
	}
}

// errChanged: what is to be adopted has changed since it was read: it was adopted, or put under another etcd lease.
var errChanged = locker.NotAcquired(errors.New("etcd: the lock has changed"))

// adoptable returns the key that from.Owner has, or r.Owner already, or ErrNotHeld.
func (b *backend) adoptable(ctx context.Context, r locker.Request, from locker.Grant) (*mvccpb.KeyValue, error) {
	if err := b.contact(ctx, r.TTL); err != nil {
		return nil, b.contactFailure(ctx, err)
	}
	line, token := Key(r.Name()), int64(from.Token)
	step := newStep(r.TTL, 2*len(line), span{line, afterLine(line)}.get(
		clientv3.WithMinCreateRev(token), clientv3.WithMaxCreateRev(token)))
	if err := b.reads.do(ctx, step); err != nil {
		return nil, b.failure(err)
	}
	for _, kv := range step.parts[0].GetResponseRange().Kvs {
		mark, _ := markIn(kv)
		h, _ := handsIn(kv)
		if mark == nil && kv.CreateRevision == token && modeIn(kv) == from.Mode && !isStrange(kv) &&
			(h == nil || h.owner == from.Owner || h.owner == r.Owner) {
			return kv, nil
		}
	}
	return nil, locker.ErrNotHeld
}

// takeOver makes r.Owner the owner of a key, if that is as it was seen.
func (b *backend) takeOver(
	ctx context.Context, s *session, r locker.Request, from locker.Grant, seen *mvccpb.KeyValue,
) (locker.Grant, error) {
	key := string(seen.Key)
	c := s.enter(&claim{request: r, key: key, adopted: true, number: from.Slot}, func(c *claim) *step {
		same := clientv3.Compare(clientv3.ModRevision(key), "=", seen.ModRevision)
		then := []clientv3.Op{c.putOp(c.value())}
		if h, _ := handsIn(seen); h == nil {
			// The request that made the key may have been repeated, and still arrive. It would make the key what it
			// was: the fence of its Locker keeps it out.
			raise := clientv3.OpPut(fenceBefore(seen, r.Prefix), "", clientv3.WithLease(clientv3.LeaseID(seen.Lease)))
			then = append(then, raise)
		}
		step := newStep(s.ttl, 8*len(key)+len(r.Holder),
			clientv3.OpTxn([]clientv3.Cmp{same}, then, []clientv3.Op{clientv3.OpGet(key)}))
		step.line = c.line
		return step
	})
	parts, err := c.made(ctx)
	if err != nil {
		return locker.Grant{}, err
	}
	outcome := parts[0].GetResponseTxn()
	if !outcome.Succeeded && !c.isIn(outcome.Responses[0].GetResponseRange().Kvs) {
		c.dismiss()
		return locker.Grant{}, errChanged
	}
	return c.hold(ctx, seen.CreateRevision, from.Slot, c.seenAtPut())
}

// isIn reports whether a claim that is adopted has got its key: by the attempt before, whose answer got lost.
func (c *claim) isIn(kvs []*mvccpb.KeyValue) bool {
	if len(kvs) == 0 {
		return false
	}
	h, _ := handsIn(kvs[0])
	return h != nil && h.owner == c.request.Owner
}

// fenceBefore is the key of the fence that keeps out what the Locker has sent late that made a claim.
func fenceBefore(kv *mvccpb.KeyValue, prefix string) string {
	_, claim, _ := strings.Cut(string(kv.Key), placeOf(string(endOfName), modeIn(kv)))
	session, _, _ := strings.Cut(claim, ".")
	id, _ := strconv.ParseUint(session, 16, 64) // it is not strange
	return fenceKey(prefix, clientv3.LeaseID(id))
}

// Detached implements locker.Detacher. The claim is not ours to be waited for any more: who is next looks at etcd.
func (b *backend) Detached(g locker.Grant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.claims[g.Owner]; c != nil {
		c.detached = true
		b.delistLocked(c)
	}
}
