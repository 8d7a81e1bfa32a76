package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// withTokens starts members with passwords that take as long to check as by default, and tokens that are signed, and
// expire soon, whatever they are used for. It returns somebody who may do everything there.
func withTokens(t *testing.T, members int, ttl time.Duration) (*etcdtest.Cluster, admin) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("any secret will do, as long as it is long"), 0o644); err != nil {
		t.Fatal(err)
	}
	cluster := etcdtest.New(t, etcdtest.Options{Members: members, Flags: []string{
		fmt.Sprintf("--auth-token=jwt,sign-method=HS256,priv-key=%s,ttl=%v", key, ttl),
	}})
	root := askForPasswords(t, cluster)
	root.addRole("app", etcdlock.DefaultPrefix)
	root.addUser("app", "app")
	return cluster, root
}

// testLoginsExpire has tokens expire every one to two seconds, beside many who lock: what is held, and what
// waits, outlives that. The TTL is such that a renewal finds an expired token each time, and a login, which is work for
// the processor by design, may take some seconds beside everything else that a machine does.
func testLoginsExpire(t *testing.T) {
	wires.Long(t)
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint("members: ", members), func(t *testing.T) {
			locktest.Tries(t, func() error { return expireTokens(t, members) })
		})
	}
}

func expireTokens(t *testing.T, members int) error {
	const ttl, n, goroutines, lasts = 9 * time.Second, 20, 32, 20 * time.Second
	cluster, root := withTokens(t, members, 2*time.Second)
	defer func() { _ = cluster.Close() }()
	var logins atomic.Int32
	config := clientv3.Config{
		Endpoints: cluster.Endpoints(), Username: "app", Password: secret,
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(countLogins(&logins))},
	}
	l, other := with(t, connectWith(t, config), locker.TTL(ttl)), with(t, connectWith(t, config), locker.TTL(ttl))
	var held []*locker.Lease
	var waiters []locktest.Pending[acquired]
	for range n {
		lease := mustLock(t, other, unique("key"))
		held = append(held, lease, mustLock(t, l, unique("key")))
		waiters = append(waiters, locktest.Started(func() acquired {
			next, err := l.Lock(t.Context(), lease.Key())
			return acquired{next, err}
		}))
		root.awaitLine(lease.Key(), 2)
	}
	joined := root.state().revision
	var all sync.WaitGroup
	var pairs, failed, longest atomic.Int64
	start := time.Now()
	for range goroutines {
		all.Go(func() {
			for key := unique("key"); time.Since(start) < lasts; pairs.Add(1) {
				began := time.Now()
				lease, err := l.Lock(t.Context(), key)
				if err == nil {
					err = lease.Unlock()
				}
				if err != nil {
					failed.Add(1)
					t.Log(err)
				}
				took := int64(time.Since(began))
				for most := longest.Load(); took > most && !longest.CompareAndSwap(most, took); most = longest.Load() {
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d pairs, %d failed, the longest took %v; %d logins", pairs.Load(), failed.Load(),
		time.Duration(longest.Load()), logins.Load())
	var errs []error
	for _, lease := range held {
		errs = append(errs, lease.Err())
		_ = lease.Unlock()
	}
	for _, w := range waiters {
		next := granted(t, w, patience)
		if int64(next.Token()) > joined {
			errs = append(errs, errors.New("a waiter has lost its place"))
		}
		mustUnlock(t, next)
	}
	return errors.Join(errs...)
}

// countLogins counts the logins of a client.
func countLogins(n *atomic.Int32) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil && strings.HasSuffix(method, "/Authenticate") {
			n.Add(1)
		}
		return err
	}
}
