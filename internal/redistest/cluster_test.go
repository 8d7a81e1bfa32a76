package redistest

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, ClusterOptions{})
	if len(c.Nodes()) != 6 || len(c.Addrs()) != 6 {
		t.Fatalf("nodes: %v", c.Addrs())
	}
	rdb, ctx := c.Client(t), t.Context()
	for i := range 100 {
		key := "key" + strconv.Itoa(i)
		if err := rdb.Set(ctx, key, i, 0).Err(); err != nil {
			t.Fatal(err)
		}
		master, replica := c.MasterOf(t, key)
		if got, err := c.Admin(master).Get(ctx, key).Int(); err != nil || got != i {
			t.Fatalf("%s on its master: %d, %v", key, got, err)
		}
		if replica == nil || replica == master {
			t.Fatal("the slot has no replica")
		}
	}
}

func TestClusterMovesSlots(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, ClusterOptions{})
	rdb, ctx := c.Client(t), t.Context()
	if err := rdb.Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	slot := c.Slot(t, "key")
	from, _ := c.MasterOf(t, "key")
	to, _ := c.MasterOf(t, "{"+otherSlot(t, c, from)+"}")
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
	if value, err := c.Admin(to).Get(ctx, "key").Result(); value != "value" || err != nil {
		t.Errorf("the key on its new master: %q, %v", value, err)
	}
	for range 5 {
		if err := c.MoveSlot(ctx, slot, from); err != nil {
			t.Fatal(err)
		}
		if err := c.MoveSlot(ctx, slot, to); err != nil {
			t.Fatal(err)
		}
	}
	if value, err := rdb.Get(ctx, "key").Result(); value != "value" || err != nil {
		t.Errorf("the key in the cluster: %q, %v", value, err)
	}
}

// otherSlot returns a key that is not on a node.
func otherSlot(t *testing.T, c *Cluster, not *Server) string {
	for i := 0; ; i++ {
		if key := strconv.Itoa(i); func() bool { master, _ := c.MasterOf(t, key); return master != not }() {
			return key
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
	if n, err := c.Admin(old).Wait(ctx, 1, selftest.Patience).Result(); n != 1 || err != nil {
		t.Fatalf("the replica did not get the key: %d, %v", n, err)
	}
	old.Kill()
	now := c.AwaitFailover(t, c.Slot(t, "key"), old)
	if now != replica {
		t.Errorf("the new master is %s; want the replica", now.Addr())
	}
	if value, err := c.Admin(now).Get(ctx, "key").Result(); value != "value" || err != nil {
		t.Errorf("the key on the new master: %q, %v", value, err)
	}
	if err := old.Restart(); err != nil {
		t.Fatal(err)
	}
	c.AwaitHealthy(t)
	if err := isMaster(ctx, c.Admin(old)); err == nil {
		t.Error("the old master is one again")
	}
}

func TestSentinels(t *testing.T) {
	t.Parallel()
	s := NewSentinels(t, SentinelOptions{})
	rdb, ctx := s.Client(t), t.Context()
	old := s.Master(t)
	set := func(value string) {
		t.Helper()
		for deadline := time.Now().Add(selftest.Patience); ; {
			err := rdb.Set(ctx, "key", value, 0).Err()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	set("1")
	for _, server := range s.Servers() {
		for s.Admin(server).Get(ctx, "key").Val() != "1" {
			if !pause(ctx) {
				t.Fatal("not replicated")
			}
		}
	}
	old.Kill()
	now := s.AwaitFailover(t, old)
	if now == old {
		t.Fatal("no failover")
	}
	if value := s.Admin(now).Get(ctx, "key").Val(); value != "1" {
		t.Errorf("on the new master: %q", value)
	}
	set("2")
	if err := old.Restart(); err != nil {
		t.Fatal(err)
	}
	s.AwaitHealthy(t)
	if err := isMaster(ctx, s.Admin(old)); err == nil {
		t.Error("the old master is one again")
	}
	replica := s.Servers()[2]
	if replica == now {
		replica = s.Servers()[1]
	}
	replica.Kill()
	s.RestartReplica(t, replica)
	if value := s.Admin(replica).Get(ctx, "key").Val(); value != "2" {
		t.Errorf("on a replica that came back: %q", value)
	}
	// A sentinel knows what it knew when it comes back.
	sentinel := s.Sentinels()[0]
	sentinel.Kill()
	if err := sentinel.Restart(); err != nil {
		t.Fatal(err)
	}
	s.AwaitHealthy(t)
	if s.Master(t) != now {
		t.Error("another master after the restart of a sentinel")
	}
}

func TestClusterPortsStayTaken(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, ClusterOptions{})
	node := c.Nodes()[0]
	for range 2 {
		if err := node.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	c.AwaitHealthy(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := c.Master(ctx, 0); err == nil {
		t.Error("a cluster that was closed has a master")
	}
	if err := node.Restart(); !errors.Is(err, ErrClosed) {
		t.Errorf("Restart after Close: %v", err)
	}
}
