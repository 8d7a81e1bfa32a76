package redislock

import (
	"context"
	"errors"
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
		n := namesOf(r, process)
		if n.lock != prefix+key {
			t.Fatalf("the lock is at %q", n.lock)
		}
		if n.member != process+":"+r.Owner.String() || holderIn(n.value) != holder || !strings.HasPrefix(n.value, r.Owner.String()) {
			t.Fatalf("member %q, value %q", n.member, n.value)
		}
		companions := []string{n.fence, n.queue, n.alive, n.gone}
		for i, c := range companions {
			if slotOfKey(c) != slotOfKey(n.lock) {
				t.Fatalf("%q is in slot %d, its lock %q in %d", c, slotOfKey(c), n.lock, slotOfKey(n.lock))
			}
			if checkName(c) == nil {
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

func TestNamesDoNotCollide(t *testing.T) {
	seen := make(map[string]string)
	for _, key := range []string{"a", "{a}", "{a}a", "a{a}", "{a}b", "{b}a", "a}", "}a", "{}", "{}a", "{", "}", "fence:", "{a}fence:", ":", "ab"} {
		n := namesOf(locker.Request{Key: key}, strings.Repeat("p", 32))
		for _, name := range []string{n.lock, n.fence, n.queue, n.alive, n.gone} {
			if other, ok := seen[name]; ok {
				t.Errorf("%q belongs to %q and to %q", name, key, other)
			}
			seen[name] = key
		}
	}
}

func TestReservedNames(t *testing.T) {
	n := namesOf(locker.Request{Key: "k"}, strings.Repeat("p", 32))
	if err := checkName(n.queue); !errors.Is(err, locker.ErrInvalidKey) {
		t.Errorf("a lock called %q: %v; want ErrInvalidKey", n.queue, err)
	}
	if err := checkName(DefaultPrefix + n.queue); err != nil {
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
		if got := holderIn(value); got != want {
			t.Errorf("holderIn(%q) = %q; want %q", value, got, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, url := range []string{"redis://localhost:6379/0", "rediss://u:p@h/1?read_timeout=3s", "unix:///tmp/x.sock", "http://x", "", "redis://h/x", "%"} {
		f.Add(url)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel() // so that it does not connect
	f.Fuzz(func(t *testing.T, url string) {
		if _, err := Open(ended, url); !errors.Is(err, locker.ErrInvalidOption) && !errors.Is(err, context.Canceled) {
			t.Errorf("Open(%q): %v; want ErrInvalidOption, or the end of ctx", url, err)
		}
	})
}
