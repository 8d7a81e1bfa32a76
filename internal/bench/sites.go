package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

var sites = map[string]func() (*site, error){
	"memory":   memorySite,
	"redis":    func() (*site, error) { return redisSite("redislock", 1) },
	"redlock":  func() (*site, error) { return redisSite("Redlock, 3 servers", 3) },
	"postgres": postgresSite,
	"etcd":     etcdSite,
}

func memorySite() (*site, error) {
	memory := memlock.New()
	return &site{
		name:  "memlock",
		open:  func(opts ...locker.Option) (locker.Locker, error) { return memory.Peer(opts...), nil },
		close: func() {},
	}, nil
}

// closing is a Locker that closes its client too.
type closing struct {
	locker.Locker
	client func() error
}

func (c closing) Close() error { return errors.Join(c.Locker.Close(), c.client()) }

// redisSite has one server, or several independent ones, of which everything is the sum.
func redisSite(name string, servers int) (*site, error) {
	ctx := context.Background()
	var stop []func() error
	var admins []*redis.Client
	s := &site{name: name, close: func() {
		for _, f := range stop {
			_ = f()
		}
	}}
	var addrs []string
	for range servers {
		server, err := redistest.Start(redistest.Options{})
		if err != nil {
			s.Close()
			return nil, err
		}
		admin := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 1, DisableIdentity: true})
		stop = append(stop, admin.Close, server.Close)
		admins, addrs = append(admins, admin), append(addrs, server.Addr())
	}
	url, open := "redis://"+addrs[0], redislock.Open
	if servers > 1 {
		url, open = "redlock://"+strings.Join(addrs, ","), redlock.Open
	}
	s.open = func(opts ...locker.Option) (locker.Locker, error) { return open(ctx, url, opts...) }
	sum := func(section string, values ...string) func() (float64, error) {
		return func() (sum float64, err error) {
			for _, admin := range admins {
				info, err := admin.Info(ctx, section).Result()
				if err != nil {
					return 0, err
				}
				for line := range strings.Lines(info) {
					for _, value := range values {
						var n float64
						if rest, ok := strings.CutPrefix(line, value); ok {
							if _, err := fmt.Sscanf(rest, "%g", &n); err != nil {
								return 0, fmt.Errorf("%q: %w", line, err)
							}
							sum += n
						}
					}
				}
			}
			return sum, nil
		}
	}
	// What scripts call counts among the commands, too: these are called by no script.
	s.requests = sum("commandstats", "cmdstat_evalsha:calls=", "cmdstat_eval:calls=", "cmdstat_subscribe:calls=",
		"cmdstat_unsubscribe:calls=", "cmdstat_ping:calls=")
	s.messages = sum("commandstats", "cmdstat_publish:calls=")
	s.memory = sum("memory", "used_memory:")
	s.connections = sum("clients", "connected_clients:")
	return s, nil
}

func postgresSite() (*site, error) {
	// Room for as many locks as there are, and more. That Postgres comes with the counter of statements is up to who
	// packages it.
	server, err := pgtest.Start(pgtest.Options{Settings: map[string]string{
		"max_locks_per_transaction": "256", "shared_preload_libraries": "pg_stat_statements"}})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	admin, err := pgx.Connect(ctx, server.URL())
	if err != nil {
		_ = server.Close()
		return nil, err
	}
	// The locks have a database of their own, in which the administrator counts and asks nothing.
	for _, sql := range []string{"CREATE EXTENSION pg_stat_statements", "CREATE DATABASE locks"} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			_ = admin.Close(ctx)
			_ = server.Close()
			return nil, err
		}
	}
	count := func(sql string) func() (float64, error) {
		return func() (n float64, err error) {
			err = admin.QueryRow(ctx, sql).Scan(&n)
			return n, err
		}
	}
	pids := func() ([]int, error) { return backendPids(ctx, admin) }
	return &site{
		name: "pglock",
		pids: pids,
		open: func(opts ...locker.Option) (locker.Locker, error) {
			config, err := pgxpool.ParseConfig(server.URL())
			if err != nil {
				return nil, err
			}
			config.ConnConfig.Database = "locks"
			pool, err := pgxpool.NewWithConfig(ctx, config)
			if err != nil {
				return nil, err
			}
			return closing{pglock.New(pool, opts...), func() error { pool.Close(); return nil }}, nil
		},
		requests: count(
			`SELECT coalesce(sum(calls), 0)::float8 FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE datname = 'locks'`,
		),
		notifies: count(
			`SELECT coalesce(sum(calls), 0)::float8 FROM pg_stat_statements WHERE query LIKE '%pg_notify%'`,
		),
		memory: func() (sum float64, err error) {
			pids, err := pids()
			for _, pid := range pids {
				n, readErr := anonymous(pid)
				sum, err = sum+n, errors.Join(err, readErr)
			}
			return sum, err
		},
		connections: count(
			`SELECT count(*) FROM pg_stat_activity WHERE datname = 'locks' AND backend_type = 'client backend'`,
		),
		close: func() {
			_ = admin.Close(ctx)
			_ = server.Close()
		},
	}, nil
}

// anonymous returns how many bytes of memory a process has for itself.
func anonymous(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kilobytes float64
	_, err = fmt.Sscanf(rest, "%g kB", &kilobytes)
	return kilobytes * 1024, err
}

func etcdSite() (*site, error) {
	cluster, err := etcdtest.Start(etcdtest.Options{Flags: []string{"--enable-pprof"}})
	if err != nil {
		return nil, err
	}
	var connections atomic.Int64
	metrics := cluster.Member(0).URL() + "/metrics"
	is := func(name string) func() (float64, error) {
		return func() (float64, error) { return metric(metrics, name) }
	}
	return &site{
		name: "etcdlock",
		open: func(opts ...locker.Option) (locker.Locker, error) {
			client, err := clientv3.New(clientv3.Config{
				Endpoints: cluster.Endpoints(),
				Logger:    zap.NewNop(),
				DialOptions: []grpc.DialOption{
					grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
						connections.Add(1)
						return new(net.Dialer).DialContext(ctx, "tcp", addr)
					}),
				},
			})
			if err != nil {
				return nil, err
			}
			return closing{etcdlock.New(client, opts...), client.Close}, nil
		},
		requests: is("grpc_server_msg_received_total"), // of streams, too
		messages: is(`grpc_server_msg_sent_total{grpc_method="Watch"`),
		memory: func() (float64, error) { // what is alive: the process takes up to twice as much
			profile := cluster.Member(0).URL() + "/debug/pprof/heap?gc=1&debug=1"
			_, err := metric(profile, "# HeapAlloc =") // and the next one frees what this one has found in pools
			heap, errHeap := metric(profile, "# HeapAlloc =")
			data, errData := is("etcd_mvcc_db_total_size_in_use_in_bytes")()
			return heap + data, errors.Join(err, errHeap, errData)
		},
		connections: func() (float64, error) { return float64(connections.Load()), nil },
		close:       func() { _ = cluster.Close() },
	}, nil
}
