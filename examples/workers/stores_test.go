package main

import (
	"context"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// testStore is a kind of store with a server, as far as tests have to know about it.
type testStore struct {
	name   string
	open   func(config) (store, error)
	shared func(testing.TB) string     // the URL of a server that tests share
	start  func(*testing.T) testServer // starts a server for one test

	// history tells what the queue of a name knows, and deletes it.
	history func(t *testing.T, url, name string) history
	// waiters returns how many wait in line for the lock of a key.
	waiters func(t *testing.T, url, key string) int

	// left bounds the time to replace a leader that leaves.
	left time.Duration
	// ttl is one with which a leader that is killed is replaced within killed.
	ttl, killed time.Duration
	// restartFrees says that locks do not outlive a crash of the server.
	restartFrees bool
}

// testServer is a server that belongs to one test, and keeps its data when it crashes.
type testServer struct {
	url     string
	crash   func()
	restart func() error
}

// history is what a queue remembers.
type history struct {
	done int64            // how many jobs are done
	by   map[int64]Leader // who did which
}

var redisStore = testStore{
	name:   "redis",
	open:   openRedis,
	shared: func(tb testing.TB) string { return "redis://" + redistest.Address(tb) + "/0" },
	start: func(t *testing.T) testServer {
		s := redistest.New(t, redistest.Options{Args: []string{"--appendonly", "yes"}})
		return testServer{url: s.URL(), crash: s.Kill, restart: s.Restart}
	},
	history: redisHistory,
	waiters: redisWaiters,
	left:    50 * time.Millisecond,
	// Nobody tells Redis that a process has died.
	ttl:    time.Second,
	killed: time.Second + slack,
}

var pgStore = testStore{
	name:   "postgres",
	open:   openPostgres,
	shared: pgtest.URL,
	start: func(t *testing.T) testServer {
		s := pgtest.New(t, pgtest.Options{})
		return testServer{url: s.URL(), crash: s.Crash, restart: s.Restart}
	},
	history: pgHistory,
	waiters: pgWaiters,
	// Only a leader has a connection for the queue, as connections are dear to Postgres: the next one has to make its
	// own.
	left: 100 * time.Millisecond,
	// The kernel closes the connections of a process that dies, and locks end with their connection.
	ttl:          10 * time.Second,
	killed:       100 * time.Millisecond,
	restartFrees: true,
}

var etcdStore = testStore{
	name:   "etcd",
	open:   openEtcd,
	shared: func(tb testing.TB) string { return "etcd://" + etcdtest.Address(tb) },
	start: func(t *testing.T) testServer {
		m := etcdtest.New(t, etcdtest.Options{}).Member(0)
		return testServer{url: "etcd://" + m.Addr(), crash: m.Kill, restart: m.Restart}
	},
	history: etcdHistory,
	waiters: etcdWaiters,
	left:    50 * time.Millisecond,
	// Nobody tells etcd that a process has died, and it looks twice a second for leases that have run out.
	ttl:    time.Second,
	killed: time.Second + slack,
}

var testStores = []testStore{redisStore, pgStore, etcdStore}

// onEachStore runs a test for each kind of store.
func onEachStore(t *testing.T, test func(*testing.T, testStore)) {
	t.Parallel()
	for _, s := range testStores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// behindProxy returns the URL with which one gets to a server through a proxy.
func behindProxy(t *testing.T, raw string) (string, *faultproxy.Proxy) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	proxy := faultproxy.New(t, u.Host)
	u.Host = proxy.Addr()
	return u.String(), proxy
}

// onRedis calls f with a client.
func onRedis(t *testing.T, url string, f func(ctx context.Context, rdb redis.UniversalClient) error) {
	t.Helper()
	if several, err := redlock.ParseURL(url); err == nil {
		url = "redis://" + several[0].Addr // has the queue, and a line like all of them
	}
	o, err := redislock.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewUniversalClient(o)
	defer rdb.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f(ctx, rdb); err != nil {
		t.Fatal(err)
	}
}

func redisHistory(t *testing.T, url, name string) (h history) {
	t.Helper()
	onRedis(t, url, func(ctx context.Context, rdb redis.UniversalClient) error {
		hash, err := rdb.HGetAll(ctx, queuePrefix+name).Result()
		if err != nil {
			return err
		}
		h.done, _ = strconv.ParseInt(hash["done"], 10, 64)
		h.by = make(map[int64]Leader)
		for field, value := range hash {
			if job, err := strconv.ParseInt(field, 10, 64); err == nil {
				token, leader, _ := strings.Cut(value, " ")
				h.by[job] = Leader{Name: leader, Token: parseToken(t, token)}
			}
		}
		return rdb.Del(ctx, queuePrefix+name).Err()
	})
	return h
}

func redisWaiters(t *testing.T, url, key string) (n int) {
	t.Helper()
	onRedis(t, url, func(ctx context.Context, rdb redis.UniversalClient) error {
		inLine, err := rdb.ZCard(ctx, "{"+redislock.DefaultPrefix+key+"}:locker:queue:").Result()
		n = int(inLine)
		return err
	})
	return n
}

// onPg calls f with a connection.
func onPg(t *testing.T, url string, f func(ctx context.Context, conn *pgx.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := f(ctx, conn); err != nil {
		t.Fatal(err)
	}
}

func pgHistory(t *testing.T, url, name string) (h history) {
	t.Helper()
	onPg(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		if err := conn.QueryRow(ctx, "SELECT done FROM workers.queue WHERE name = $1", name).Scan(&h.done); err != nil {
			return err
		}
		rows, err := conn.Query(ctx, "SELECT job, token::text, leader FROM workers.result WHERE queue = $1", name)
		if err != nil {
			return err
		}
		h.by = make(map[int64]Leader)
		var job int64
		var token, leader string
		if _, err := pgx.ForEachRow(rows, []any{&job, &token, &leader}, func() error {
			h.by[job] = Leader{Name: leader, Token: parseToken(t, token)}
			return nil
		}); err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "DELETE FROM workers.queue WHERE name = $1", name)
		return err
	})
	return h
}

func pgWaiters(t *testing.T, url, key string) (n int) {
	t.Helper()
	onPg(t, url, func(ctx context.Context, conn *pgx.Conn) error {
		number := uint64(pglock.Key(key))
		return conn.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND objsubid = 1 AND classid = $1 AND objid = $2`, uint32(number>>32), uint32(number)).Scan(&n)
	})
	return n
}

// onEtcd calls f with a client.
func onEtcd(t *testing.T, url string, f func(ctx context.Context, client *clientv3.Client) error) {
	t.Helper()
	config, err := etcdlock.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f(ctx, client); err != nil {
		t.Fatal(err)
	}
}

func etcdHistory(t *testing.T, url, name string) (h history) {
	t.Helper()
	onEtcd(t, url, func(ctx context.Context, client *clientv3.Client) error {
		q := newEtcdQueue(client, name)
		all, err := client.Get(ctx, q.prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		h.by = make(map[int64]Leader)
		for _, kv := range all.Kvs {
			if string(kv.Key) == q.key() {
				var state etcdState
				if err := json.Unmarshal(kv.Value, &state); err != nil {
					return err
				}
				h.done = state.Done
				continue
			}
			job, err := strconv.ParseInt(strings.TrimPrefix(string(kv.Key), q.prefix), 10, 64)
			if err != nil {
				return err
			}
			token, leader, _ := strings.Cut(string(kv.Value), " ")
			h.by[job] = Leader{Name: leader, Token: parseToken(t, token)}
		}
		_, err = client.Delete(ctx, q.prefix, clientv3.WithPrefix())
		return err
	})
	return h
}

func etcdWaiters(t *testing.T, url, key string) (n int) {
	t.Helper()
	onEtcd(t, url, func(ctx context.Context, client *clientv3.Client) error {
		line, err := client.Get(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix(),
			clientv3.WithCountOnly())
		if err == nil {
			n = max(int(line.Count)-1, 0) // all but who holds it
		}
		return err
	})
	return n
}

func parseToken(t *testing.T, s string) uint64 {
	t.Helper()
	token, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Errorf("not a token: %v", err)
	}
	return token
}
