package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/soak/history"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// openRedis makes the Locker of a worker, whose connections go through its proxies.
func openRedis(spec workerSpec, rng *rand.Rand, opts []locker.Option) (locker.Locker, func(), error) {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		return dialer.DialContext(ctx, network, spec.way(addr))
	}
	protocol := 2 + rng.IntN(2)
	var clients []redis.UniversalClient
	switch spec.Store {
	case storeSentinel:
		clients = append(clients, redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: redistest.MasterName, SentinelAddrs: spec.Servers,
			Dialer: dial, Protocol: protocol, DialerRetries: 1}))
	case storeCluster:
		clients = append(clients, redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: spec.Servers, Dialer: dial, Protocol: protocol, DialerRetries: 1}))
	default:
		for _, addr := range spec.Servers {
			clients = append(clients, redis.NewClient(&redis.Options{
				Addr: addr, Dialer: dial, Protocol: protocol, DialerRetries: 1}))
		}
	}
	closeClients := func() {
		for _, rdb := range clients {
			_ = rdb.Close()
		}
	}
	if spec.Store == storeRedlock {
		return redlock.New(clients, opts...), closeClients, nil
	}
	return redislock.New(clients[0], opts...), closeClients, nil
}

// redisStore is Redis in one of its four ways.
type redisStore struct {
	soak      *soak
	servers   []*redistest.Server // which have the locks
	sentinels *redistest.Sentinels
	cluster   *redistest.Cluster
	groups    []*group                 // of servers that replicate one another
	admins    map[string]*redis.Client // by address
}

// What the documentation of redislock admits. A Redlock has no gap if servers that lose data stay away for a TTL.
const (
	dataLost = "server: data lost"
	failover = "failover" // seen by a group's watch
)

func (r *redisStore) rules() history.Rules {
	return history.Rules{Gaps: []history.Gap{
		{Name: "a server has lost its data", Events: []string{dataLost}},
		{Name: "a replica took over without the lock, or from a master that went on", Events: []string{failover}},
	}}
}

func newRedisStore(s *soak) (r *redisStore, err error) {
	logging.Disable() // of connections that fail, as they are to
	if err := useServerProgram(s.dir, redistest.EnvProgram); err != nil {
		return nil, err
	}
	r = &redisStore{soak: s, admins: map[string]*redis.Client{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	durable := []string{"--appendonly", "yes", "--appendfsync", "always"} // what was answered survives
	switch s.config.store {
	case storeSentinel:
		if r.sentinels, err = redistest.StartSentinels(redistest.SentinelOptions{Args: durable}); err != nil {
			return nil, err
		}
		r.servers = r.sentinels.Servers()
		r.groups = []*group{{store: r, servers: r.servers}}
	case storeCluster:
		if r.cluster, err = redistest.StartCluster(redistest.ClusterOptions{Args: durable}); err != nil {
			return nil, err
		}
		r.servers = r.cluster.Nodes()
		for i := range len(r.servers) / 2 {
			pair := []*redistest.Server{r.servers[i], r.servers[i+len(r.servers)/2]}
			r.groups = append(r.groups, &group{store: r, servers: pair})
		}
	default:
		for range map[string]int{storeRedis: 1, storeRedlock: 3}[s.config.store] {
			server, err := redistest.Start(redistest.Options{Args: durable})
			if err != nil {
				return nil, err
			}
			r.servers = append(r.servers, server)
		}
	}
	for _, addr := range r.reachable() {
		r.admins[addr] = redis.NewClient(&redis.Options{Addr: addr, DialerRetries: 1, MaxRetries: 1,
			DialTimeout: time.Second, ReadTimeout: time.Second, ContextTimeoutEnabled: true, PipelinePoolSize: -1})
	}
	for _, g := range r.groups {
		go g.watch()
	}
	return r, nil
}

func (r *redisStore) close() (err error) {
	if r.sentinels != nil {
		err = r.sentinels.Close()
	}
	if r.cluster != nil {
		err = errors.Join(err, r.cluster.Close())
	}
	for _, server := range r.servers {
		err = errors.Join(err, server.Close())
	}
	return err
}

func (r *redisStore) addrs() []string {
	if r.sentinels != nil {
		return r.sentinels.SentinelAddrs()
	}
	return r.reachable()
}

func (r *redisStore) reachable() (all []string) {
	for _, s := range r.servers {
		all = append(all, s.Addr())
	}
	if r.sentinels != nil {
		all = append(all, r.sentinels.SentinelAddrs()...)
	}
	return all
}

// do runs a command at a server.
func (r *redisStore) do(addr string, args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return r.admins[addr].Do(ctx, args...).Result()
}

func (r *redisStore) healthy(context.Context) error {
	for _, server := range r.servers {
		if _, err := r.do(server.Addr(), "ping"); err != nil {
			return err
		}
	}
	for _, g := range r.groups {
		if !g.settled() {
			return fmt.Errorf("not one master with its replicas, but %s", g.roles())
		}
	}
	return nil
}

// leftovers are keys that would stay for ever.
func (r *redisStore) leftovers() (left []string, err error) {
	ctx := context.Background()
	for _, server := range r.servers {
		rdb := r.admins[server.Addr()]
		keys, err := rdb.Keys(ctx, "*").Result()
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			const never = -1
			ttl, err := rdb.PTTL(ctx, key).Result()
			if err != nil && !strings.HasPrefix(err.Error(), "MOVED") { // by a replica, whose master is asked, too
				return nil, err
			} else if err == nil && ttl == never {
				left = append(left, fmt.Sprintf("%s: key %q does not expire", server.Addr(), key))
			}
		}
	}
	return left, nil
}
