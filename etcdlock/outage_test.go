package etcdlock_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// TestManyWithoutAnswer has a server stop to answer many Locks at once, more than its clients can ask for within a TTL. All of them learn
// of it soon after their etcd lease is over.
func TestManyWithoutAnswer(t *testing.T) {
	t.Parallel()
	const ttl, n = 3 * time.Second, 1500
	cluster := etcdtest.New(t, etcdtest.Options{})
	for name, wait := range map[string]bool{"that begin": false, "that wait": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, proxy := administer(t, cluster.Client(t)), behind(t, cluster.Member(0))
			rival, l, key := open(t, cluster.Endpoints(), locker.TTL(time.Minute)), open(t, []string{proxy.Addr()}, locker.TTL(ttl)), unique("key")
			mustUnlock(t, mustLock(t, l, unique("key"))) // so that it has a lease
			locks := make([]pending[acquired], n)
			start := func() {
				for i := range locks {
					locks[i] = waits(l, fmt.Sprint(key, "/", i))
				}
			}
			if wait {
				var all sync.WaitGroup
				for i := range locks {
					all.Go(func() { mustLock(t, rival, fmt.Sprint(key, "/", i)) })
				}
				all.Wait()
				start()
				root.awaitLine(key, 2*n)
			}
			proxy.Set(faultproxy.BlackHole())
			silent := time.Now()
			if wait {
				proxy.ResetAll() // so that they look for themselves
			} else {
				start()
			}
			for _, p := range locks {
				if a := p.get(t); a.err == nil || !errors.Is(a.err, etcdlock.ErrNoAnswer) && !errors.Is(a.err, etcdlock.ErrLeaseExpired) {
					t.Fatal(a.err)
				}
			}
			if took := time.Since(silent); took > 3*ttl {
				t.Errorf("the last Lock fails after %v", took)
			}
			proxy.Heal()
		})
	}
}

// TestOutage has connections refused for so long that a client takes long pauses between its attempts to connect.
func TestOutage(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	for name, asks := range map[string]bool{"asks all the time": true, "is idle": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, key := behind(t, cluster.Member(0)), unique("key")
			l := open(t, []string{proxy.Addr()}, locker.TTL(ttl))
			mustUnlock(t, mustLock(t, l, key))
			proxy.Set(faultproxy.Refuse())
			for outage := time.Now(); time.Since(outage) < 10*time.Second; time.Sleep(ttl / 10) {
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
				if took := time.Since(start); took > time.Second {
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
