package main

import (
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// TestPromote has servers that are all replicas, two of them of each other: there is one master afterwards.
func TestPromote(t *testing.T) {
	g := &group{store: &redisStore{admins: make(map[string]*redis.Client)}}
	for range 3 {
		server := redistest.New(t, redistest.Options{})
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		g.servers = append(g.servers, server)
		g.store.admins[server.Addr()] = rdb
	}
	follow := func(replica, master int) {
		host, port := "127.0.0.1", g.servers[master].Addr()[len("127.0.0.1:"):]
		if _, err := g.store.do(g.servers[replica].Addr(), "replicaof", host, port); err != nil {
			t.Fatal(err)
		}
	}
	if g.promote() {
		t.Error("promoted one of three masters")
	}
	follow(1, 0)
	follow(2, 0)
	locktest.EventuallyWithin(t, 10*time.Second, "replicas of one master", func() bool {
		_, well := g.look()
		return well
	})
	follow(0, 1)
	if !g.promote() {
		t.Fatal("nobody was promoted")
	}
	masters, _ := g.look()
	if len(masters) != 1 {
		t.Errorf("%d masters; want one", len(masters))
	}
}
