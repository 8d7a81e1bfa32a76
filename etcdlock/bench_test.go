package etcdlock_test

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/wires"
)

func Benchmark(b *testing.B) {
	cluster := etcdtest.New(b, etcdtest.Options{})
	conformance.Bench(b, conformance.Harness{
		OpenB: func(b *testing.B, opts ...locker.Option) locker.Locker {
			client, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
			if err != nil {
				b.Fatal(err)
			}
			return wires.Closing(etcdlock.New(client, opts...), func() { _ = client.Close() })
		},
	})
}
