package etcdlock

import (
	"net/url"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// FuzzKey holds keys to what the waiting line takes for granted: each name has a range of them to itself.
func FuzzKey(f *testing.F) {
	for _, name := range []string{
		"locker/orders/42", "a", "a@", "a%40", "%", "!", "a!7", " ", "\x00", "\x7f", "é", "\xff", "",
	} {
		f.Add(name, "a", uint64(1), uint64(0), uint64(0))
		f.Add(name, name+"@", uint64(0x7fffffffffffffff), uint64(7), uint64(1000))
	}
	f.Fuzz(func(t *testing.T, name, other string, lease, generation, ordinal uint64) {
		key := Key(name)
		if strings.Trim(key, visible) != "" || strings.IndexByte(key, '@') != len(key)-1 || strings.Contains(key, "!") {
			t.Fatalf("Key(%q) is %q", name, key)
		}
		if back, err := url.PathUnescape(key[:len(key)-1]); back != name || err != nil {
			t.Fatalf("Key(%q) is %q, which stands for %q (%v)", name, key, back, err)
		}
		if len(name) > 0 && strings.Trim(name, visible) == "" && !strings.ContainsAny(name, "%@!") && key != name+"@" {
			t.Fatalf("Key(%q) is %q; visible characters stand for themselves", name, key)
		}
		id := clientv3.LeaseID(lease) //nolint:gosec // any bits will do
		claim := claimKey(key, id, generation, ordinal)
		if !strings.HasPrefix(claim, key) || claim <= key || claim >= afterLine(key) {
			t.Fatalf("the claim %q is not in the range of %q", claim, name)
		}
		reader := claimKey(placeOf(key, locker.ModeShared), id, generation, ordinal)
		if !strings.HasPrefix(reader, key) || reader <= claim || reader >= afterLine(key) {
			t.Fatalf("the claim %q of a reader is not in the range of %q, behind the others", reader, name)
		}
		if r := rivalsOf(key, locker.ModeShared); claim < r.from || claim >= r.end || reader < r.end {
			t.Fatalf("a reader waits for %q; want that to be %q, and not %q", r, claim, reader)
		}
		begin := placeOf(key, locker.ModeSlots)
		slot := claimKey(begin, id, generation, ordinal) + slotSuffix(locker.Request{Slots: 3, Holder: other})
		if s := slotsOf(key); !strings.HasPrefix(slot, key) || slot < s.from || slot >= s.end {
			t.Fatalf("the claim %q to a slot is not in %q", slot, s)
		}
		if r := rivalsOf(key, locker.ModeSlots); slot >= r.from || claim < r.from || reader >= r.end {
			t.Fatalf("a claim to a slot waits for %q; want that to be %q and %q, and not %q", r, claim, reader, slot)
		}
		if r := rivalsOf(key, locker.ModeShared); slot < r.from || slot >= r.end {
			t.Fatalf("a reader waits for %q; want %q to be in it", r, slot)
		}
		if n, holder, ok := slotIn(&mvccpb.KeyValue{Key: []byte(slot)}); n != 3 || holder != other || !ok {
			t.Fatalf("the claim %q to a slot says %d, %q; want 3, %q", slot, n, holder, other)
		}
		for _, no := range []string{claim, reader} {
			if _, _, ok := slotIn(&mvccpb.KeyValue{Key: []byte(no)}); ok {
				t.Fatalf("the claim %q is taken for one to a slot", no)
			}
		}
		for _, fence := range []string{fenceKey(name, id), fenceKey(other, id)} {
			if fence >= key && fence < afterLine(key) {
				t.Fatalf("the fence %q is in the range of %q", fence, name)
			}
		}
		if fence := fenceKey(name, id); !strings.HasPrefix(fence, escape(name)) {
			t.Fatalf("the fence %q does not begin with the prefix %q", fence, name)
		}
		if other == name {
			return
		}
		for _, foreign := range []string{Key(other), claimKey(Key(other), id, generation, ordinal)} {
			if foreign >= key && foreign < afterLine(key) {
				t.Fatalf("%q, a key of %q, is in the range of %q", foreign, other, name)
			}
		}
	})
}

// FuzzClaimKey has two claims to one name, which are never at the same key.
func FuzzClaimKey(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint64(1), uint64(2), uint64(3))
	f.Add(uint64(0x12), uint64(3), uint64(4), uint64(1), uint64(0x23), uint64(4))
	f.Fuzz(func(t *testing.T, lease1, generation1, ordinal1, lease2, generation2, ordinal2 uint64) {
		//nolint:gosec // any bits will do
		id1, id2 := clientv3.LeaseID(lease1), clientv3.LeaseID(lease2)
		same := lease1 == lease2 && generation1 == generation2 && ordinal1 == ordinal2
		claim1, claim2 := claimKey("k@", id1, generation1, ordinal1), claimKey("k@", id2, generation2, ordinal2)
		if (claim1 == claim2) != same {
			t.Errorf("the claims are %q and %q", claim1, claim2)
		}
		if fence1, fence2 := fenceKey("k", id1), fenceKey("k", id2); (fence1 == fence2) != (lease1 == lease2) {
			t.Errorf("the fences are %q and %q", fence1, fence2)
		}
	})
}

// visible are the visible ASCII characters.
var visible = func() string {
	var b strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}()
