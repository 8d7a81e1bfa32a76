package etcdlock

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Slots (see locker.Slots). A claim has got one when no claim of another mode is older, and when it and each older
// claim to a slot has fewer of them before it than there are slots, by its own word. That word is in the key. So
// everybody who looks at a line sees the same, whatever numbers of slots are asked for there, and nobody is overtaken.
// And who has got a slot keeps it, as older claims come no more.
//
// What is left is to say which one. The number of a slot is the value of the key of the claim that has it, which is
// empty before. To write it is conditional on no claim having that number: then no two have the same. Each claim takes
// the smallest number that no older one has, and passes over as many as there are older ones that have got a slot and
// not yet taken a number. So those who take one at the same time seldom want the same, and nobody's number is too
// great: it is at most the number of older claims.
//
// A claim may be made with a number, where nobody has to be waited for. Then it is also conditional on there being no
// claim that has been made, and no number that was taken, since the line was looked at.

// slotSuffix is what the key of a claim to a slot ends with.
func slotSuffix(r locker.Request) string { return fmt.Sprintf(".%d.%s", r.Slots, escape(r.Holder)) }

// slotIn returns what the key of a claim says of the slot that it is for, if it is for one: of how many it is, and who
// wants it.
func slotIn(kv *mvccpb.KeyValue) (n int, holder string, ok bool) {
	_, claim, ok := strings.Cut(string(kv.Key), placeOf(string(endOfName), locker.ModeSlots))
	if !ok {
		return 0, "", false
	}
	if parts := strings.SplitN(claim, ".", 5); len(parts) == 5 { // three of them tell it apart, see claimKey
		n, _ = strconv.Atoi(parts[3])
		holder, _ = url.PathUnescape(parts[4])
	}
	return n, holder, true
}

// numberIn returns the number of the slot that a claim has, if it has taken one.
func numberIn(kv *mvccpb.KeyValue) (number int, ok bool) {
	number, err := strconv.Atoi(valueIn(kv))
	return number, err == nil && number >= 0
}

// admit reports whether a claim to one of n slots has got one, if those are all that are older.
func admit(older []*mvccpb.KeyValue, n int) bool {
	for i, kv := range older {
		if of, _, _ := slotIn(kv); of <= i {
			return false // that one waits
		}
	}
	return len(older) < n
}

// nextNumber is the number that a claim takes which has got a slot, if those are all that are older.
func nextNumber(older []*mvccpb.KeyValue) int {
	taken, pass := make([]bool, len(older)+1), 0
	for _, kv := range older {
		switch number, ok := numberIn(kv); {
		case !ok:
			pass++
		case number < len(taken):
			taken[number] = true
		}
	}
	number := 0
	for ; taken[number] || pass > 0; number++ {
		if !taken[number] {
			pass--
		}
	}
	return number
}

// firstSlotsOp reads the first n claims to slots: those that can have got one of n.
func firstSlotsOp(line string, n int) clientv3.Op {
	return slotsOf(line).get(
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend), clientv3.WithLimit(int64(n)))
}

// offer is a slot for a claim that is about to be made.
type offer struct {
	number   int
	revision int64 // of the store, when it was seen to be free
}

// offerOf returns which of n slots is free, or who is in the way, if those are the claims in the line of other modes
// and those to slots.
func offerOf(rivals, slots []*mvccpb.KeyValue, n int) (inTheWay []*mvccpb.KeyValue, free offer) {
	if len(rivals) == 0 && admit(slots, n) {
		return nil, offer{number: nextNumber(slots)}
	}
	return append(rivals, slots...), offer{}
}

// stands is the condition that no claim to a slot has been made, nor any number taken, since.
func (o offer) stands(line string) clientv3.Cmp {
	slots := slotsOf(line)
	return clientv3.Compare(clientv3.ModRevision(slots.from), "<", o.revision+1).WithRange(slots.end)
}

// value is that of the claim that takes it.
func (o offer) value() string { return strconv.Itoa(o.number) }

// abreast is how many of those who wait for a slot look when one is given back. The others are told when it is their
// turn to do that: to look is as much work for the servers as the line is long.
const abreast = 4

// slotsBeforeOp reads the last claims to slots before this one.
func (w *waiter) slotsBeforeOp() clientv3.Op {
	return slotsOf(w.claim.line).get(clientv3.WithMaxCreateRev(w.revision-1), clientv3.WithLimit(abreast),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
}

// lookAtSlots is what a waiter sees for which no older claim of another mode is in the way. first is the first claims
// to slots, and before the last ones before its own, the last one first. If it has got a slot, it takes a number.
func (w *waiter) lookAtSlots(ctx context.Context, v view, first, before []*mvccpb.KeyValue) (view, error) {
	c := w.claim
	own := slices.IndexFunc(first, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == c.key })
	if own < 0 || !admit(first[:own], c.request.Slots) {
		v.before = waitsFor(c.line, before)
		return v, nil
	}
	if number, ok := numberIn(first[own]); ok { // the attempt before, whose answer got lost
		v.number = number
		return v, nil
	}
	v.number = nextNumber(first[:own])
	switch ok, err := w.take(ctx, v.number, first[own], v.revision); {
	case err != nil:
		return view{}, err
	case !ok:
		w.overtaken = true
		return w.look(ctx)
	}
	return v, nil
}

// waitsFor is what a claim waits for that has got no slot: that one is given back, or before that, if there are as many
// who wait before it as may look then, that the first of those has one or gives up.
func waitsFor(line string, before []*mvccpb.KeyValue) target {
	if len(before) == abreast {
		last := before[abreast-1]
		if _, ok := numberIn(last); !ok {
			return target{span: span{from: string(last.Key)}, puts: true}
		}
	}
	return target{span: slotsOf(line)}
}

// take writes the number of its slot into the claim, and returns whether it could: not if another has that number, or
// if the claim is not as it was seen any more. The lease stays the one that the key is attached to.
//
// A mark (see revoke.go) hides a number from the condition that no other has it. So there must be no mark; or, if that
// has failed, nothing may have changed since the line was looked at.
func (w *waiter) take(ctx context.Context, number int, seen *mvccpb.KeyValue, revision int64) (ok bool, err error) {
	c, value := w.claim, strconv.Itoa(number)
	slots := slotsOf(c.line)
	conditions := []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(c.key), "=", w.revision),
		clientv3.Compare(clientv3.Value(c.key), "=", string(seen.Value)), // so that what comes late changes no number
		clientv3.Compare(clientv3.Value(slots.from), "!=", value).WithRange(slots.end),
		clientv3.Compare(clientv3.Value(slots.from), "<", markSign).WithRange(slots.end),
	}
	if w.overtaken {
		conditions[3] = offer{revision: revision}.stands(c.line)
	}
	step := newStep(c.session.ttl, 5*len(c.key),
		clientv3.OpTxn(conditions, []clientv3.Op{clientv3.OpPut(c.key, value, clientv3.WithIgnoreLease())}, nil))
	step.line, step.over = c.line, c.session.over
	if err := c.session.steps.do(ctx, step); err != nil {
		return false, w.backend.failure(err)
	}
	return step.parts[0].GetResponseTxn().Succeeded, nil
}
