package etcdlock_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/wires"
)

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }

// dialWire returns a client with wires of its own, and what closes both.
func dialWire(t *testing.T, w *wires.Wires) (client *clientv3.Client, closeBoth func()) {
	proxies := w.Proxies(t)
	var endpoints []string
	for _, proxy := range proxies {
		endpoints = append(endpoints, proxy.Addr())
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	closeBoth = sync.OnceFunc(func() {
		_ = client.Close()
		for _, proxy := range proxies {
			_ = proxy.Close()
		}
	})
	t.Cleanup(closeBoth)
	return client, closeBoth
}

// TestConformance relaxes nothing. Its TTLs are the whole seconds that etcd counts in; fractions are refused, which the
// rule about them allows.
func TestConformance(t *testing.T) { testConformance(t, 0, etcdtest.Options{}) }

// testConformanceOfMembers has etcd's own intervals, with twice the usual TTL: a machine that has much to do makes
// members miss heartbeats.
func testConformanceOfMembers(t *testing.T) {
	wires.Long(t)
	flags := []string{"--heartbeat-interval=100", "--election-timeout=1000"}
	testConformance(t, 2*time.Second, etcdtest.Options{Members: 3, Flags: flags})
}

func testConformance(t *testing.T, ttl time.Duration, opts etcdtest.Options) {
	cluster := etcdtest.New(t, opts)
	w := wires.New(cluster.Endpoints()...)
	direct := cluster.Client(t)
	conformance.Run(t, conformance.Harness{
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			client, closeBoth := dialWire(t, w)
			return wires.Closing(etcdlock.New(client, opts...), closeBoth)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			client, _ := dialWire(t, w)
			b := etcdlock.NewBackend(client)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) {
			if err := cluster.Restart(); err != nil {
				t.Fatal(err)
			}
			cluster.AwaitHealthy(t)
		},
		Break: func(t *testing.T, key string) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if r, err := direct.Delete(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix()); err != nil ||
				r.Deleted == 0 {
				t.Errorf("delete the lock %q: %v, %v", key, r, err)
			}
		},
		TTL:    ttl,
		Trials: wires.Trials(t, 5),
	})
}
