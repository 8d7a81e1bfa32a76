package etcdlock_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

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
