package peers

import (
	"context"
	"errors"
	"testing"

	"github.com/lockerkit/locker"
)

// TestOthersAndSeveralHolders: the clients of other libraries are kept out by our readers, and by who has one of
// several slots, until the last of them has left; and keep them out.
func TestOthersAndSeveralHolders(t *testing.T) {
	t.Parallel()
	s := oneServer(t)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			if k.name == "node-redlock" {
				needNode(t)
			}
			other := k.open(t, s)
			one, two := s.locker(t), s.locker(t)
			for name, mode := range map[string]locker.CallOption{"readers": locker.Shared(), "slots": locker.Slots(3)} {
				key := t.Name() + "/" + name
				first := must(one.TryLock(t.Context(), key, mode, locker.TTL(long)))(t)
				second := must(two.TryLock(t.Context(), key, mode, locker.TTL(long)))(t)
				for _, lease := range []*locker.Lease{first, second} {
					if _, err := other.tryLock(t.Context(), key, long); !errors.Is(err, errHeld) {
						t.Errorf("beside %s: %v; want it refused", name, err)
					}
					if err := lease.Unlock(); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				theirs := must(other.tryLock(t.Context(), key, long))(t)
				if _, err := one.TryLock(t.Context(), key, mode); !errors.Is(err, locker.ErrLocked) {
					t.Errorf("%s beside a lock of theirs: %v; want ErrLocked", name, err)
				}
				waiting := begin(t, func(ctx context.Context) (hold, error) {
					lease, err := one.Lock(ctx, key, mode, locker.TTL(long))
					return lockerHold{lease}, err
				})
				waiting.stays(t, "two have it")
				if err := theirs.unlock(t.Context()); err != nil {
					t.Error(err)
				}
				if err := waiting.await(t).unlock(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
