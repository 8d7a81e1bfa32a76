package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// TestManyWithoutAnswer has a server stop to answer many Locks at once, more than its clients can ask for within a TTL.
// Those that begin learn of it soon after their etcd lease is over. Those that wait lose their places in the line, and
// go on waiting.
func TestManyWithoutAnswer(t *testing.T) {
	t.Parallel()
	const ttl, n = 3 * time.Second, 1500
	cluster := etcdtest.New(t, etcdtest.Options{})
	start := func(l locker.Locker, key string) []locktest.Pending[acquired] {
		locks := make([]locktest.Pending[acquired], n)
		for i := range locks {
			locks[i] = locktest.Started(func() acquired {
				ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
				defer cancel()
				lease, err := l.Lock(ctx, fmt.Sprint(key, "/", i))
				return acquired{lease, err}
			})
		}
		return locks
	}
	t.Run("that begin", func(t *testing.T) {
		t.Parallel()
		proxy, key := behind(t, cluster.Member(0)), unique("key")
		l := open(t, []string{proxy.Addr()}, locker.TTL(ttl))
		mustUnlock(t, mustLock(t, l, unique("key"))) // so that it has a lease
		proxy.Set(faultproxy.BlackHole())
		silent := time.Now()
		for _, p := range start(l, key) {
			if a := p.Get(t); !errors.Is(a.err, etcdlock.ErrNoAnswer) && !errors.Is(a.err, etcdlock.ErrLeaseExpired) {
				t.Fatal(a.err)
			}
		}
		if took := time.Since(silent); took > 3*ttl {
			t.Errorf("the last Lock fails after %v", took)
		}
		proxy.Heal()
	})
	t.Run("that wait", func(t *testing.T) {
		t.Parallel()
		root, proxy, key := administer(t, cluster.Client(t)), behind(t, cluster.Member(0)), unique("key")
		rival := open(t, cluster.Endpoints(), locker.TTL(time.Minute))
		l, joined := joining(t, connect(t, proxy.Addr()), locker.TTL(ttl))
		for _, p := range start(rival, key) {
			granted(t, p, patience)
		}
		locks := start(l, key)
		joined(key, n)
		proxy.Set(faultproxy.BlackHole())
		proxy.ResetAll() // so that they look for themselves
		root.awaitLine(key, n)
		proxy.Heal()
		root.awaitLine(key, 2*n)
		if err := rival.Close(); err != nil {
			t.Error(err)
		}
		for _, p := range locks {
			granted(t, p, 3*patience)
		}
	})
}

// TestOutage has connections refused for so long that a client takes long pauses between its attempts to connect.
func TestOutage(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second // a third of it bounds an attempt, which takes a while on a machine that is busy
	cluster := etcdtest.New(t, etcdtest.Options{})
	for name, asks := range map[string]bool{"asks all the time": true, "is idle": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, key := behind(t, cluster.Member(0)), unique("key")
			l := open(t, []string{proxy.Addr()}, locker.TTL(ttl))
			mustUnlock(t, mustLock(t, l, key))
			proxy.Set(faultproxy.Refuse())
			for outage := time.Now(); time.Since(outage) < ttl+2*time.Second; time.Sleep(300 * time.Millisecond) {
				if !asks {
					continue
				}
				if _, err := lock(l, key); err == nil || errors.Is(err, locker.ErrLocked) {
					t.Fatal(err)
				} else if time.Since(outage) > ttl && !strings.Contains(err.Error(), "connection refused") {
					t.Errorf("%v after the server went away: %v", time.Since(outage).Round(time.Millisecond), err)
				}
			}
			proxy.Heal()
			for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				lease, err := lock(l, key)
				// Left alone, a client would wait until its next attempt to connect: after such an outage, six seconds.
				if took := time.Since(start); took > 3*time.Second {
					t.Fatalf("%v after the server is back: %v", took, err)
				}
				if err == nil {
					mustUnlock(t, lease)
					t.Logf("Lock works %v after the server is back", time.Since(start).Round(time.Millisecond))
					return
				}
			}
		})
	}
}
