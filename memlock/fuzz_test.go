package memlock_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// FuzzNames has prefixes, keys and holders of all kinds. Those that are valid lock exactly the key that they amount to,
// and whoever is refused is told the holder's name as it was given.
func FuzzNames(f *testing.F) {
	f.Add("locker:", "orders/42", "worker", "", "locker:orders/42")
	f.Add("a", "bc", "", "ab", "c")
	f.Add("", "\x00", "\xff", "\x00", "")
	f.Add("p", strings.Repeat("k", locker.MaxKeyLen), strings.Repeat("h", locker.MaxHolderLen), "", "k")
	f.Add(strings.Repeat("p", locker.MaxKeyLen+1), strings.Repeat("k", locker.MaxKeyLen+1), "é", "p", "")
	f.Fuzz(func(t *testing.T, prefix, key, holder, otherPrefix, otherKey string) {
		one := memlock.New(locker.Prefix(prefix))
		defer one.Close()
		lease, err := one.TryLock(t.Context(), key, locker.Holder(holder))
		switch {
		case len(prefix) > locker.MaxKeyLen || len(holder) > locker.MaxHolderLen || !utf8.ValidString(holder):
			if !errors.Is(err, locker.ErrInvalidOption) {
				t.Fatalf("prefix of %d bytes, holder %q: %v; want ErrInvalidOption", len(prefix), holder, err)
			}
			return
		case key == "" || len(key) > locker.MaxKeyLen:
			if !errors.Is(err, locker.ErrInvalidKey) {
				t.Fatalf("a key of %d bytes: %v; want ErrInvalidKey", len(key), err)
			}
			return
		case err != nil:
			t.Fatalf("prefix %q, key %q, holder %q: %v", prefix, key, holder, err)
		}
		if len(otherPrefix) > locker.MaxKeyLen || otherKey == "" || len(otherKey) > locker.MaxKeyLen {
			t.Skip("not another lock")
		}
		two := one.Peer(locker.Prefix(otherPrefix))
		defer two.Close()
		other, err := two.TryLock(t.Context(), otherKey)
		var refused *locker.Error
		if prefix+key == otherPrefix+otherKey {
			if !errors.Is(err, locker.ErrLocked) || !errors.As(err, &refused) || refused.Holder != holder {
				t.Fatalf("%q and %q are one key, held by %q: %#v", prefix+key, otherPrefix+otherKey, holder, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("%q is held, and therefore %q is not free: %v", prefix+key, otherPrefix+otherKey, err)
		}
		if err := errors.Join(lease.Unlock(), other.Unlock()); err != nil {
			t.Error(err)
		}
	})
}
