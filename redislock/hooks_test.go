package redislock_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestHooksSeeScripts: the hooks of the client that New is given see what is sent to lock, to wait, to renew and to
// unlock; on a cluster, the hooks of the nodes do.
func TestHooksSeeScripts(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	hook := redistest.Hook(func(cmds ...redis.Cmder) {
		for _, cmd := range cmds {
			if name := cmd.Name(); name == "evalsha" || name == "eval" {
				seen.Add(1)
			}
		}
	})
	server, servers := redistest.New(t, redistest.Options{}), redistest.NewIndependent(t, 3)
	cluster := redistest.NewCluster(t, redistest.ClusterOptions{})
	for name, open := range map[string]func(t *testing.T, opts ...locker.Option) locker.Locker{
		"one server": func(t *testing.T, opts ...locker.Option) locker.Locker {
			rdb := dial(t, server.Addr())
			rdb.AddHook(hook)
			return open(t, rdb, opts...)
		},
		"cluster": func(t *testing.T, opts ...locker.Option) locker.Locker {
			rdb := cluster.Client(t)
			rdb.OnNewNode(func(node *redis.Client) { node.AddHook(hook) })
			return open(t, rdb, opts...)
		},
		"Redlock": func(t *testing.T, opts ...locker.Option) locker.Locker {
			var rdbs []redis.UniversalClient
			for _, server := range servers {
				rdb := dial(t, server.Addr())
				rdb.AddHook(hook)
				rdbs = append(rdbs, rdb)
			}
			l := redlock.New(rdbs, opts...)
			t.Cleanup(func() { _ = l.Close() })
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, locker.TTL(time.Minute))
			awaits := func(what string, scripts int64) {
				t.Helper()
				eventuallyWithin(t, 40*time.Second, "the hook sees "+what,
					func() bool { return seen.Load() >= scripts })
				seen.Store(0)
			}
			lease := mustLock(t, l, "k")
			awaits("a lock", 1)
			waited := make(chan *locker.Lease, 1)
			go func() { waited <- mustLock(t, l, "k") }()
			awaits("a waiter, who asks and then polls", 3)
			mustUnlock(t, lease)
			awaits("an unlock", 1)
			mustUnlock(t, <-waited)
			seen.Store(0)
			lease = mustLock(t, l, "renewed", locker.TTL(6*time.Second))
			seen.Store(0)
			awaits("renewals", 3)
			mustUnlock(t, lease)
		})
	}
}
