package etcdlock

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Hands. The key of a claim that holds a lock can be handed on: to another owner, who adopts the lease, or to none, who
// keeps it from others for a while (see adopt.go and keep.go). It is put again under another etcd lease. Its create
// revision stays, and with it the place in the line and the token. From then on its value says who has it.
//
// The Locker that has made the claim, or adopted it, may not know that yet. All that it does to the key by itself, such
// as to delete it when the lease was not renewed, is conditional on the value: see isOurs.

// handedSign begins the value of a claim that was handed on. It comes after all other values: see markSign.
const handedSign = "\xff\xff"

// hands is who has a claim that was handed on.
type hands struct {
	owner  locker.Owner // zero if it is nobody's, and kept
	holder string
}

// around is the value of the claim; value is what it would be otherwise: a mark, or the number of a slot.
func (h hands) around(value string) string {
	return h.sign() + " " + escape(h.holder) + " " + escape(value)
}

// sign is what the value of the claim begins with, before a space.
func (h hands) sign() string { return handedSign + h.owner.String() }

// handsIn returns who has a claim, nil if it was never handed on, and what else its value says.
func handsIn(kv *mvccpb.KeyValue) (h *hands, value string) {
	value = string(kv.Value)
	rest, ok := strings.CutPrefix(value, handedSign)
	if !ok { // as nearly always
		return nil, value
	}
	texts := strings.Split(rest, " ")
	if len(texts) != 3 {
		return nil, value
	}
	for i := range texts {
		var err error
		if texts[i], err = url.PathUnescape(texts[i]); err != nil {
			return nil, value
		}
	}
	owner, err := ownerOf(texts[0])
	if err != nil {
		return nil, value
	}
	return &hands{owner: owner, holder: texts[1]}, texts[2]
}

// ownerOf is the reverse of Owner.String.
func ownerOf(text string) (o locker.Owner, err error) {
	b, err := hex.DecodeString(text)
	if err == nil && len(b) != len(o) {
		err = fmt.Errorf("an owner of %d bytes", len(b))
	}
	if err != nil {
		return o, err
	}
	return locker.Owner(b), nil
}

// isOurs is the condition that the claim is there, and was not handed on.
func (c *claim) isOurs() []clientv3.Cmp {
	value := clientv3.Value(c.key)
	if !c.adopted {
		return []clientv3.Cmp{clientv3.Compare(value, "<", handedSign)}
	}
	sign := hands{owner: c.request.Owner}.sign()
	return []clientv3.Cmp{clientv3.Compare(value, ">", sign), clientv3.Compare(value, "<", sign+"!")}
}

// isStill is the condition that the claim has held the lock all the time, whoever has it now.
func (c *claim) isStill() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(c.key), "=", c.token)
}

// deleteOpLocked deletes the key if it is the claim's. While its owner has the lease, it is.
func (c *claim) deleteOpLocked() clientv3.Op {
	deletion := clientv3.OpDelete(c.key)
	switch {
	case c.keeping: // nobody can have adopted it
		return clientv3.OpTxn([]clientv3.Cmp{c.isStill()}, []clientv3.Op{deletion}, nil)
	case c.adopted, c.expired:
		return clientv3.OpTxn(c.isOurs(), []clientv3.Op{deletion}, nil)
	}
	return deletion
}

// plainValue is the value of a claim that has the lock, if it were never handed on.
func (c *claim) plainValue() string {
	if c.isForSlot() {
		return offer{number: c.number}.value()
	}
	return c.request.Holder
}

// value is the value of a claim that has the lock, and was not revoked.
func (c *claim) value() string {
	if c.adopted {
		return hands{c.request.Owner, c.request.Holder}.around(c.plainValue())
	}
	return c.plainValue()
}
