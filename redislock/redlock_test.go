package redislock_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
)

// independent are servers that know nothing of one another.
type independent []*redistest.Server

func newIndependent(t testing.TB, n int) independent {
	servers := make(independent, n)
	for i := range servers {
		servers[i] = redistest.New(t, redistest.Options{})
	}
	return servers
}

func (s independent) addresses() []string {
	var addresses []string
	for _, server := range s {
		addresses = append(addresses, server.Addr())
	}
	return addresses
}

// dialAll returns a client for each address, and what closes them.
func dialAll(addresses []string) (clients []redis.UniversalClient, closeAll func()) {
	for _, address := range addresses {
		clients = append(clients, redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true}))
	}
	return clients, sync.OnceFunc(func() {
		for _, client := range clients {
			_ = client.Close()
		}
	})
}

// dialProxies returns clients with wires of their own.
func dialProxies(t *testing.T, w *wires.Wires) (clients []redis.UniversalClient, closeAll func()) {
	proxies := w.Proxies(t)
	var addresses []string
	for _, proxy := range proxies {
		addresses = append(addresses, proxy.Addr())
	}
	clients, closeClients := dialAll(addresses)
	closeAll = sync.OnceFunc(func() {
		closeClients()
		for _, proxy := range proxies {
			_ = proxy.Close()
		}
	})
	t.Cleanup(closeAll)
	return clients, closeAll
}

// redlockHarness is the harness over servers, some of which may be in trouble.
func redlockHarness(t *testing.T, servers independent) conformance.Harness {
	w := wires.New(servers.addresses()...)
	admins, closeAdmins := dialAll(servers.addresses())
	t.Cleanup(closeAdmins)
	return conformance.Harness{
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			clients, closeAll := dialProxies(t, w)
			return wires.Closing(redislock.NewRedlock(clients, opts...), closeAll)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			clients, _ := dialProxies(t, w)
			b := redislock.NewRedlockBackend(clients)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) {
			for _, server := range servers {
				server.Kill()
			}
			for _, server := range servers {
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			}
		},
		Break: func(t *testing.T, key string) {
			for _, admin := range admins {
				if err := admin.Del(context.Background(), redislock.DefaultPrefix+key).Err(); err != nil {
					t.Error(err)
				}
			}
		},
		TTL:    2 * time.Second, // each step is three or five requests here, and a race detector watches them all
		Trials: wires.Trials(t, 3),
	}
}

func TestRedlockConformance(t *testing.T) {
	for name, n := range map[string]int{"three": 3, "five": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, redlockHarness(t, newIndependent(t, n)))
		})
	}
}
