package redislock_test

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/internal/conn"
)

// throughProxies returns a dialer that goes to each address by way of the proxy in the same place.
func throughProxies(
	addrs []string, proxies []*faultproxy.Proxy,
) func(ctx context.Context, network, addr string) (net.Conn, error) {
	via := make(map[string]string)
	for i, addr := range addrs {
		via[addr] = proxies[i].Addr()
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, via[addr])
	}
}

// closer returns a function that closes a client and its proxies, once, and not later than the test ends.
func closer(t *testing.T, rdb redis.UniversalClient, proxies []*faultproxy.Proxy) func() {
	closeAll := sync.OnceFunc(func() {
		_ = rdb.Close()
		for _, proxy := range proxies {
			_ = proxy.Close()
		}
	})
	t.Cleanup(closeAll)
	return closeAll
}

// groupTTL is a TTL for tests with many processes and proxies, on a machine that may be busy.
const groupTTL = 1500 * time.Millisecond

// onCluster returns a harness for the nodes of a cluster. Each Locker has a proxy to each node.
func onCluster(t *testing.T, c *redistest.Cluster) conformance.Harness {
	w := wires.New(c.Addrs()...)
	admin := c.Client(t)
	dialCluster := func(t *testing.T) (redis.UniversalClient, func()) {
		proxies := w.Proxies(t)
		rdb := redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: c.Addrs(), DisableIdentity: true, DialerRetries: 1, Dialer: throughProxies(c.Addrs(), proxies),
		})
		conn.Redialing(rdb) // as Open does
		return rdb, closer(t, rdb, proxies)
	}
	return conformance.Harness{
		TTL: groupTTL,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			rdb, closeBoth := dialCluster(t)
			return wires.Closing(redislock.New(rdb, opts...), closeBoth)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			rdb, _ := dialCluster(t)
			b := redislock.NewBackend(rdb)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) { // all of it, without data
			redistest.RestartAll(t, c.Nodes()...)
			c.AwaitHealthy(t)
		},
		Break: func(t *testing.T, key string) {
			if err := admin.Del(context.Background(), redislock.DefaultPrefix+key).Err(); err != nil {
				t.Error(err)
			}
		},
		Trials: wires.Trials(t, 2),
	}
}

func TestConformanceCluster(t *testing.T) {
	wires.Thorough(t) // but not without Restart: see TestConformanceReshard
	conformance.Run(t, onCluster(t, redistest.NewCluster(t, redistest.ClusterOptions{})))
}

// reshard moves the slots of keys that exist from master to master, again and again, until ctx ends. It returns how
// many it has moved.
func reshard(ctx context.Context, t *testing.T, c *redistest.Cluster) (moved int) {
	masters := c.Nodes()[:3]
	for ctx.Err() == nil {
		from, to := masters[rand.IntN(3)], masters[rand.IntN(3)]
		key, err := c.Admin(from).RandomKey(ctx).Result()
		if from == to || err != nil { // redis.Nil: it has none
			time.Sleep(time.Millisecond)
			continue
		}
		slot, err := c.Admin(from).ClusterKeySlot(ctx, key).Result()
		if err == nil {
			err = c.MoveSlot(context.WithoutCancel(ctx), int(slot), to)
		}
		if err != nil && ctx.Err() == nil {
			t.Errorf("reshard: %v", err)
			return moved
		}
		moved++
	}
	return moved
}

// TestConformanceReshard runs the suite while the slots of its keys move all the time.
func TestConformanceReshard(t *testing.T) {
	wires.Long(t)
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	moved := make(chan int, 1)
	go func() { moved <- reshard(ctx, t, c) }()
	h := onCluster(t, c)
	h.Restart = nil // a move that the restart interrupts has to be mended by hand
	h.Features.ListsInPart = "a key may move to a node that has been looked at"
	conformance.Run(t, h)
	cancel()
	if n := <-moved; n < 100 {
		t.Errorf("only %d slots were moved", n)
	} else {
		t.Logf("%d slots were moved", n)
	}
}

// onSentinel returns a harness for a group of servers. Each Locker has a proxy to each server and to each sentinel.
func onSentinel(t *testing.T, s *redistest.Sentinels) conformance.Harness {
	var addrs []string
	for _, server := range append(s.Servers(), s.Sentinels()...) {
		addrs = append(addrs, server.Addr())
	}
	w := wires.New(addrs...)
	admin := s.Client(t)
	dialGroup := func(t *testing.T) (redis.UniversalClient, func()) {
		proxies := w.Proxies(t)
		o := s.FailoverOptions()
		o.Dialer = throughProxies(addrs, proxies)
		rdb := redis.NewFailoverClient(o)
		conn.Redialing(rdb) // as Open does
		return rdb, closer(t, rdb, proxies)
	}
	return conformance.Harness{
		TTL: groupTTL,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			rdb, closeBoth := dialGroup(t)
			return wires.Closing(redislock.New(rdb, opts...), closeBoth)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			rdb, _ := dialGroup(t)
			b := redislock.NewBackend(rdb)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) { // the master dies, a replica takes over, and the old master comes back, without data
			old := s.Master(t)
			old.Kill()
			s.AwaitFailover(t, old)
			s.RestartReplica(t, old)
			s.AwaitHealthy(t) // sentinels who are not done with one failover make of the next one two
		},
		Break: func(t *testing.T, key string) {
			if err := admin.Del(context.Background(), redislock.DefaultPrefix+key).Err(); err != nil {
				t.Error(err)
			}
		},
		Trials: wires.Trials(t, 2),
	}
}

func TestConformanceSentinel(t *testing.T) {
	wires.Long(t)
	conformance.Run(t, onSentinel(t, redistest.NewSentinels(t, redistest.SentinelOptions{})))
}
