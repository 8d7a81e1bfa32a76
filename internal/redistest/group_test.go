package redistest

import (
	"strconv"
	"testing"

	"github.com/lockerkit/locker/internal/locktest"
)

// A key moves with its slot, and is where its master is said to be.
func TestClusterMovesSlots(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, ClusterOptions{})
	rdb, ctx := c.Client(t), t.Context()
	if err := rdb.Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	slot := c.Slot(t, "key")
	from, _ := c.MasterOf(t, "key")
	to := from
	for i := 0; to == from; i++ {
		to, _ = c.MasterOf(t, strconv.Itoa(i))
	}
	if err := c.BeginMove(ctx, slot, from, to); err != nil {
		t.Fatal(err)
	}
	if err := c.Admin(from).MGet(ctx, "key", "{key}").Err(); err == nil || err.Error()[:9] != "TRYAGAIN " {
		t.Errorf("two keys, one of which is missing, of a slot on its way: %v", err)
	}
	if err := c.MoveKeys(ctx, slot, from, to); err != nil {
		t.Fatal(err)
	}
	if err := c.Admin(from).Get(ctx, "key").Err(); err == nil || err.Error()[:4] != "ASK " {
		t.Errorf("a key that has been moved, where it was: %v", err)
	}
	if err := c.EndMove(ctx, slot, from, to); err != nil {
		t.Fatal(err)
	}
	for _, next := range []*Server{to, from, to} {
		if err := c.MoveSlot(ctx, slot, next); err != nil {
			t.Fatal(err)
		}
		if value, err := c.Admin(next).Get(ctx, "key").Result(); value != "value" || err != nil {
			t.Errorf("the key on its new master: %q, %v", value, err)
		}
	}
}

func TestClusterFailsOver(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, ClusterOptions{})
	ctx := t.Context()
	old, replica := c.MasterOf(t, "key")
	if err := c.Admin(old).Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Admin(old).Wait(ctx, 1, locktest.Patience).Result(); n != 1 || err != nil {
		t.Fatalf("the replica did not get the key: %d, %v", n, err)
	}
	old.Kill()
	now := c.AwaitFailover(t, c.Slot(t, "key"), old)
	if value, err := c.Admin(now).Get(ctx, "key").Result(); now != replica || value != "value" || err != nil {
		t.Errorf("on the new master, %s: %q, %v; the replica was %s", now.Addr(), value, err, replica.Addr())
	}
	if err := old.Restart(); err != nil {
		t.Fatal(err)
	}
	c.AwaitHealthy(t)
	if err := c.isMaster(ctx, old); err == nil {
		t.Error("the old master is one again")
	}
}

func TestSentinelsFailOver(t *testing.T) {
	t.Parallel()
	s := NewSentinels(t, SentinelOptions{})
	ctx, old := t.Context(), s.Master(t)
	if err := s.Admin(old).Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Admin(old).Wait(ctx, 2, locktest.Patience).Result(); n != 2 || err != nil {
		t.Fatalf("not replicated: %d, %v", n, err)
	}
	old.Kill()
	now := s.AwaitFailover(t, old)
	if value, err := s.Client(t).Get(ctx, "key").Result(); now == old || value != "value" || err != nil {
		t.Errorf("on the new master: %q, %v", value, err)
	}
	s.RestartReplica(t, old)
	if value := s.Admin(old).Get(ctx, "key").Val(); value != "value" {
		t.Errorf("on a replica that came back: %q", value)
	}
	s.AwaitHealthy(t)
	if s.Master(t) != now {
		t.Error("another master after the restart of a replica")
	}
}
