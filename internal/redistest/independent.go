package redistest

import (
	"context"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/wires"
)

// Independent are servers that know nothing of one another.
type Independent []*Server

// NewIndependent starts n of them.
func NewIndependent(t testing.TB, n int) Independent {
	servers := make(Independent, n)
	for i := range servers {
		servers[i] = New(t, Options{})
	}
	return servers
}

// Addresses returns where they are.
func (s Independent) Addresses() []string {
	var addresses []string
	for _, server := range s {
		addresses = append(addresses, server.Addr())
	}
	return addresses
}

// Proxied returns a proxy before each server, and their addresses.
func (s Independent) Proxied(t *testing.T) (proxies []*faultproxy.Proxy, addresses []string) {
	proxies = wires.New(s.Addresses()...).Proxies(t)
	for _, proxy := range proxies {
		addresses = append(addresses, proxy.Addr())
	}
	return proxies, addresses
}

// DialEach returns a client for each server, for a look behind the scenes.
func (s Independent) DialEach(t testing.TB) (clients []*redis.Client) {
	for _, server := range s {
		clients = append(clients, Dial(t, server.Addr()))
	}
	return clients
}

// Dial returns a client of the server at addr, closed with the test.
func Dial(t testing.TB, addr string) *redis.Client {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// DialAll returns a client for each address, and what closes them.
func DialAll(addresses []string) (clients []redis.UniversalClient, closeAll func()) {
	for _, address := range addresses {
		clients = append(clients, redis.NewClient(&redis.Options{Addr: address, DisableIdentity: true}))
	}
	return clients, sync.OnceFunc(func() {
		var closing sync.WaitGroup // at the same time: go-redis takes a second for each that it cannot reach
		for _, client := range clients {
			closing.Go(func() { _ = client.Close() })
		}
		closing.Wait()
	})
}

// Open returns a Locker with clients of its own, closed with the test. open is redlock.New, which this package does not
// import, as its tests import this one.
func Open(
	t testing.TB, addresses []string, opts []locker.Option,
	open func([]redis.UniversalClient, ...locker.Option) *locker.Client,
) locker.Locker {
	t.Helper()
	clients, closeAll := DialAll(addresses)
	l := open(clients, opts...)
	t.Cleanup(func() {
		_ = l.Close()
		closeAll()
	})
	return l
}

// RestartAll kills servers, and starts them when all are dead.
func RestartAll(t testing.TB, servers ...*Server) {
	t.Helper()
	for _, server := range servers {
		server.Kill()
	}
	for _, server := range servers {
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
}

// MembersInLine returns who waits in the line of a lock, in order, according to Redis.
func MembersInLine(t testing.TB, rdb *redis.Client, lock string) []string {
	members, err := rdb.ZRange(context.Background(), "{"+lock+"}:locker:queue:", 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	return members
}

// HoldBack keeps what is sent on the present connections from arriving, as a lost packet does: the kernel goes on
// sending it after the client has given up and closed the connection.
func HoldBack(proxy *faultproxy.Proxy) {
	for _, c := range proxy.Conns() {
		c.Set(faultproxy.Fault{ToServer: faultproxy.Flow{Mode: faultproxy.Hold}})
	}
}
