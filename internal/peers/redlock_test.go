package peers

import (
	"fmt"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestRedlock has the same rules on several servers, of which a minority may be down.
func TestRedlock(t *testing.T) {
	t.Parallel()
	var several []kind
	for _, k := range kinds {
		if k.several {
			several = append(several, k)
		}
	}
	for _, c := range []struct{ servers, down int }{{3, 0}, {3, 1}, {5, 0}, {5, 2}} {
		t.Run(fmt.Sprintf("%d servers, %d down", c.servers, c.down), func(t *testing.T) {
			t.Parallel()
			addrs := startServers(t, c.servers, c.down)
			open := func(t *testing.T) *site {
				s := newSite(t, addrs, c.servers-c.down)
				s.ours = func(opts ...locker.Option) locker.Locker { return redlock.New(s.clients, opts...) }
				return s
			}
			for _, k := range several {
				t.Run(k.name, func(t *testing.T) {
					t.Parallel()
					testRules(t, open, k)
				})
			}
			t.Run("MixedFleet", func(t *testing.T) {
				t.Parallel()
				testMixedFleet(t, open(t), several)
			})
		})
	}
}

// startServers starts servers, takes some of them down, and returns the addresses of all, those that answer first.
func startServers(t *testing.T, n, down int) (addrs []string) {
	t.Helper()
	for i := range n {
		server := redistest.New(t, redistest.Options{})
		addrs = append(addrs, server.Addr())
		if i >= n-down {
			server.Kill()
		}
	}
	return addrs
}
