package redislock_test

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// dialWire returns a client with a wire of its own, and what closes both.
func dialWire(t *testing.T, w *wires.Wires) (rdb *redis.Client, proxy *faultproxy.Proxy, closeBoth func()) {
	proxy = w.Proxy(t)
	rdb = redis.NewClient(&redis.Options{Addr: proxy.Addr(), DisableIdentity: true})
	closeBoth = sync.OnceFunc(func() {
		_ = rdb.Close()
		_ = proxy.Close()
	})
	t.Cleanup(closeBoth)
	return rdb, proxy, closeBoth
}

func TestConformance(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	w := wires.New(server.Addr())
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer admin.Close()
	conformance.Run(t, conformance.Harness{
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			rdb, _, closeBoth := dialWire(t, w)
			return wires.Closing(redislock.New(rdb, opts...), closeBoth)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			rdb, _, _ := dialWire(t, w)
			b := redislock.NewBackend(rdb)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) { // without data: the worst that can happen to one server
			redistest.RestartAll(t, server)
		},
		Break: func(t *testing.T, key string) {
			if err := admin.Del(context.Background(), redislock.DefaultPrefix+key).Err(); err != nil {
				t.Error(err)
			}
		},
		Trials: wires.Trials(t, 5),
	})
}
