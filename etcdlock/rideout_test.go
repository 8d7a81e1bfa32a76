package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// retries returns an option that has what a Lock rides out sent to a channel.
func retries() (locker.Option, <-chan error) {
	failures := make(chan error, 1000)
	return locker.Observe(&locker.Observer{Retry: func(info locker.RetryInfo) {
		select {
		case failures <- info.Err:
		default:
		}
	}}), failures
}

// awaitRetry waits until a failure was ridden out that is want.
func awaitRetry(t *testing.T, failures <-chan error, want error) {
	t.Helper()
	for limit := time.After(patience); ; {
		select {
		case err := <-failures:
			if errors.Is(err, want) {
				return
			}
		case <-limit:
			t.Fatalf("nothing was ridden out that is %v", want)
		}
	}
}

// joining returns a Locker, and what waits until it knows that so many claims have been made for locks that begin with
// key. Others see them before that, when the answer may still get lost, and a Lock then ends with whatever goes wrong.
func joining(t *testing.T, client *clientv3.Client, opts ...locker.Option) (l locker.Locker, joined func(string, int)) {
	t.Helper()
	var mu sync.Mutex
	claims := make(map[string]bool)
	l = hooked(t, client, func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			for _, claim := range r.puts {
				claims[claim] = true
			}
		}
		return resp, err
	}, opts...)
	return l, func(key string, n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d have joined the line", n), func() bool {
			mu.Lock()
			defer mu.Unlock()
			known := 0
			for claim := range claims {
				if strings.HasPrefix(claim, etcdlock.DefaultPrefix+key) {
					known++
				}
			}
			return known == n
		})
	}
}

// TestWaitThroughRestart has the server restarted while one waits who was told that the key is held.
func TestWaitThroughRestart(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	key := unique("key")
	holder := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(time.Minute)), key)
	l, joined := joining(t, connect(t, cluster.Endpoints()...), locker.TTL(3*time.Second))
	waiter := waits(l, key)
	joined(key, 1)
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	cluster.AwaitHealthy(t)
	select {
	case a := <-waiter.Done:
		t.Fatalf("before Unlock, the wait is over: %v", a.err)
	default:
	}
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}

// behindProxy is a Lock that waits for a key which somebody else holds, and reaches the server through a proxy.
type behindProxy struct {
	root     admin
	proxy    *faultproxy.Proxy
	key      string
	holder   *locker.Lease
	lock     locktest.Pending[acquired]
	failures <-chan error // that were ridden out
}

func waitBehindProxy(t *testing.T, ttl time.Duration) behindProxy {
	t.Helper()
	cluster := etcdtest.New(t, etcdtest.Options{})
	w := behindProxy{root: administer(t, cluster.Client(t)), proxy: behind(t, cluster.Member(0)), key: unique("key")}
	w.holder = mustLock(t, open(t, cluster.Endpoints(), locker.TTL(time.Minute)), w.key)
	observe, failures := retries()
	l, joined := joining(t, connect(t, w.proxy.Addr()), locker.TTL(ttl), observe)
	w.lock, w.failures = waits(l, w.key), failures
	joined(w.key, 1)
	return w
}

// TestWaitThroughOutage has a waiter cut off from the server for so long that it loses its place in the line.
func TestWaitThroughOutage(t *testing.T) {
	t.Parallel()
	w := waitBehindProxy(t, 2*time.Second)
	w.proxy.Set(faultproxy.Refuse())
	awaitRetry(t, w.failures, etcdlock.ErrLeaseExpired)
	w.root.awaitLine(w.key, 1)
	w.proxy.Heal()
	w.root.awaitLine(w.key, 2)
	mustUnlock(t, w.holder)
	mustUnlock(t, granted(t, w.lock, patience))
}

// TestWaitKeepsItsPlace has a waiter cut off from the server for less than its TTL.
func TestWaitKeepsItsPlace(t *testing.T) {
	t.Parallel()
	w := waitBehindProxy(t, time.Minute)
	before, _ := w.root.claims(w.key)
	w.proxy.Set(faultproxy.Refuse())
	awaitRetry(t, w.failures, locker.ErrUnavailable)
	w.proxy.Heal()
	mustUnlock(t, w.holder)
	next := granted(t, w.lock, patience)
	if etcdlock.ClaimOf(next) != before[1] {
		t.Errorf("the waiter had the place %q, and has got the lock with %q", before[1], etcdlock.ClaimOf(next))
	}
	mustUnlock(t, next)
}

// TestWaitTakenBack has the key of a waiter deleted by an operator. The waiter goes to the end of the line.
func TestWaitTakenBack(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	holder := mustLock(t, open(t, []string{addr}), key)
	observe, failures := retries()
	waiter := waits(open(t, []string{addr}, locker.TTL(2*time.Second), observe), key)
	keys, _ := root.awaitLine(key, 2)
	root.delete(keys[1])
	awaitRetry(t, failures, locker.ErrUnavailable)
	root.awaitLine(key, 2)
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}

// TestQueuedBeforeLook has a Lock end that has joined the line, and has not seen yet who is before it. It knows that it
// has waited.
func TestQueuedBeforeLook(t *testing.T) {
	t.Parallel()
	addr, key := etcdtest.Address(t), unique("key")
	var line atomic.Value
	line.Store(etcdlock.Key(etcdlock.DefaultPrefix + key))
	held := heldReads{key: &line, letGo: make(chan struct{}), onHold: make(chan struct{}, 100)}
	defer close(held.letGo)
	queued := make(chan bool, 1)
	l := etcdlock.NewOn(
		connect(t, addr),
		func(kv clientv3.KV) clientv3.KV { held.KV = kv; return held },
		locker.Observe(
			&locker.Observer{LockDone: func(_ context.Context, info locker.LockDoneInfo) { queued <- info.Queued }},
		),
	)
	t.Cleanup(func() { _ = l.Close() })
	holder := mustLock(t, open(t, []string{addr}), key)
	ctx, cancel := context.WithCancel(t.Context())
	waiter := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
	<-held.onHold
	cancel()
	if err := waiter.Get(t); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !<-queued {
		t.Error("a Lock that has joined the line says that it was not queued")
	}
	mustUnlock(t, holder)
}
