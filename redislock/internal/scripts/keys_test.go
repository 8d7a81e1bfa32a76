package scripts

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
)

// slotOfKey is the hash slot of any key, hash tag or not, as the specification of Redis Cluster has it.
func slotOfKey(key string) uint16 {
	if open := strings.IndexByte(key, '{'); open >= 0 {
		if length := strings.IndexByte(key[open+1:], '}'); length > 0 {
			return slotOf(key[open+1 : open+1+length])
		}
	}
	return slotOf(key)
}

func TestSlotOf(t *testing.T) {
	// From the specification, and from CLUSTER KEYSLOT.
	for key, slot := range map[string]uint16{"123456789": 0x31C3, "foo": 12182, "": 0} {
		if got := slotOf(key); got != slot {
			t.Errorf("slotOf(%q) = %d; want %d", key, got, slot)
		}
	}
}

// TestNumberOfEverySlot holds the numbers to the slots, and to what processes of all versions have to share.
func TestNumberOfEverySlot(t *testing.T) {
	for slot, number := range numberOf() {
		tag := strconv.Itoa(number)
		if number == 0 || int(slotOf(tag)) != slot {
			t.Fatalf("slot %d has the number %q, which is in slot %d", slot, tag, slotOf(tag))
		}
	}
	for key, tag := range map[string]string{"a}b": "20658", "}": "5305", "orders}42": "78381"} {
		if got := hashTag(key); got != tag {
			t.Errorf("hashTag(%q) = %q; want %q, as ever", key, got, tag)
		}
	}
}

// TestHashTagDoesNotSearch counts allocations: a search for the number made one for each number that it tried.
func TestHashTagDoesNotSearch(t *testing.T) {
	hashTag("}") // makes the table
	if n := testing.AllocsPerRun(100, func() { hashTag("orders}42") }); n > 10 {
		t.Errorf("a key with a brace takes %v allocations", n)
	}
}

func BenchmarkNames(b *testing.B) {
	process := strings.Repeat("p", 32)
	for name, key := range map[string]string{"plain": "orders/42", "tag": "orders/{42}", "brace": "orders}42"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NamesOf(locker.Request{Prefix: "locker:", Key: key}, process)
			}
		})
	}
}

// namesIn returns the keys that a request uses, the lock first.
func namesIn(n Names) []string {
	return []string{n.Lock, n.Fence, n.Queue, n.Alive, n.Holders, n.Slots, n.Tombstone, NoteOf(n)}
}

func FuzzNames(f *testing.F) {
	for _, key := range []string{"orders", "{a}b", "a{b}c", "a}b", "{}", "}{", "{}}a", "{{a}}", "a{b", "\x00", "é", "{a}:locker:fence:", "locker:{x"} {
		f.Add("locker:", key, "worker")
		f.Add("", key, "")
	}
	process := strings.Repeat("p", 32)
	f.Fuzz(func(t *testing.T, prefix, key, holder string) {
		if key == "" || len(key) > locker.MaxKeyLen {
			t.Skip("not a key")
		}
		r := locker.Request{Prefix: prefix, Key: key, Holder: holder, Owner: locker.Owner{1, 2, 3}}
		n := NamesOf(r, process)
		if n.Lock != prefix+key {
			t.Fatalf("the lock is at %q", n.Lock)
		}
		if n.Member != process+":"+r.Owner.String() || HolderIn(n.Value) != holder ||
			!strings.HasPrefix(n.Value, r.Owner.String()) {
			t.Fatalf("member %q, value %q", n.Member, n.Value)
		}
		companions := namesIn(n)[1:]
		for i, c := range companions {
			if slotOfKey(c) != slotOfKey(n.Lock) {
				t.Fatalf("%q is in slot %d, its lock %q in %d", c, slotOfKey(c), n.Lock, slotOfKey(n.Lock))
			}
			if CheckName(c) == nil {
				t.Fatalf("a lock could be called %q", c)
			}
			for _, other := range companions[:i] {
				if c == other {
					t.Fatalf("%q has two uses", c)
				}
			}
		}
	})
}

// FuzzDistinctNames has two locks: nothing that one of them has in Redis is the other's.
func FuzzDistinctNames(f *testing.F) {
	for _, key := range []string{"a", "{a}", "a}", "{a}:locker:fence:", "{", ":", "fence:", strings.Repeat("0", 32)} {
		f.Add("locker:", key, "{"+key+"}", []byte("1"), []byte("2"))
		f.Add("", key, key+":"+strings.Repeat("0", 32), []byte{}, []byte("2"))
	}
	process := strings.Repeat("p", 32)
	f.Fuzz(func(t *testing.T, prefix, key1, key2 string, owner1, owner2 []byte) {
		r1 := locker.Request{Prefix: prefix, Key: key1}
		r2 := locker.Request{Prefix: prefix, Key: key2}
		copy(r1.Owner[:], owner1)
		copy(r2.Owner[:], owner2)
		if max(len(key1), len(key2)) > locker.MaxKeyLen || key1 == key2 || CheckName(r1.Name()) != nil ||
			CheckName(r2.Name()) != nil {
			t.Skip("not two locks")
		}
		n1, n2 := NamesOf(r1, process), NamesOf(r2, process)
		of1 := namesIn(n1)
		for _, name := range namesIn(n2) {
			if slices.Contains(of1, name) {
				t.Errorf("%q belongs to %q and to %q", name, r1.Name(), r2.Name())
			}
		}
		n := NamesOf(locker.Request{Prefix: prefix, Key: key1, Owner: r2.Owner}, process)
		if (n.Tombstone == n1.Tombstone) != (r1.Owner == r2.Owner) || n.Fence != n1.Fence || n.Queue != n1.Queue ||
			n.Alive != n1.Alive {
			t.Errorf("two owners of %q have %+v and %+v", r1.Name(), n1, n)
		}
	})
}

func TestNamesDoNotCollide(t *testing.T) {
	seen := make(map[string]string)
	for _, key := range []string{"a", "{a}", "{a}a", "a{a}", "{a}b", "{b}a", "a}", "}a", "{}", "{}a", "{", "}", "fence:", "{a}fence:", ":", "ab"} {
		n := NamesOf(locker.Request{Key: key}, strings.Repeat("p", 32))
		for _, name := range namesIn(n) {
			if other, ok := seen[name]; ok {
				t.Errorf("%q belongs to %q and to %q", name, key, other)
			}
			seen[name] = key
		}
	}
}

func TestReservedNames(t *testing.T) {
	n := NamesOf(locker.Request{Key: "k"}, strings.Repeat("p", 32))
	if err := CheckName(n.Queue); !errors.Is(err, locker.ErrInvalidKey) {
		t.Errorf("a lock called %q: %v; want ErrInvalidKey", n.Queue, err)
	}
	if err := CheckName("locker:" + n.Queue); err != nil {
		t.Errorf("with the default prefix no key is reserved: %v", err)
	}
}

func TestHolderIn(t *testing.T) {
	owner := strings.Repeat("0f", 16)
	for value, want := range map[string]string{
		owner: "", owner + ":": "", owner + ":me": "me", owner + ":a:b": "a:b", "": "", "x": "",
		strings.Repeat("zz", 16) + ":me": "", // another library's value
		owner + "me":                     "",
	} {
		if got := HolderIn(value); got != want {
			t.Errorf("holderIn(%q) = %q; want %q", value, got, want)
		}
	}
}
