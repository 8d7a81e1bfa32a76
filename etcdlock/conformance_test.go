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

// dialWire returns a client with a wire of its own, and what closes both.
func dialWire(t *testing.T, w *wires.Wires) (client *clientv3.Client, closeBoth func()) {
	proxy := w.Proxy(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{proxy.Addr()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	closeBoth = sync.OnceFunc(func() {
		_ = client.Close()
		_ = proxy.Close()
	})
	t.Cleanup(closeBoth)
	return client, closeBoth
}

func TestConformance(t *testing.T) {
	cluster := etcdtest.New(t, etcdtest.Options{})
	w := wires.New(cluster.Member(0).Addr())
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
		},
		Break: func(t *testing.T, key string) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if r, err := direct.Delete(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix()); err != nil || r.Deleted == 0 {
				t.Errorf("delete the lock %q: %v, %v", key, r, err)
			}
		},
		Trials: wires.Trials(t, 5),
	})
}
