package etcdlock_test

import (
	"errors"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// TestUnlockWhileMoving has the move of a key to another lease and its deletion come together. etcd refuses a
// transaction that changes a key twice; what else is in it is carried out all the same, and so are they.
func TestUnlockWhileMoving(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	l, name := open(t, []string{addr}), unique("key")
	lease, beside := mustLock(t, l, name), etcdlock.DefaultPrefix+unique("beside")
	for i, err := range etcdlock.MoveAndUnlock(lease, beside) {
		if err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
	root.awaitLine(name, 0)
	if !root.exists(beside) {
		t.Error("a key that was to be made beside that is not there")
	}
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v; want ErrLost, as the key was deleted", err)
	}
}
