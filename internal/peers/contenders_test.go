package peers

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// contender is what the suite judges: a library as a Backend, beside ours.
type contender struct {
	name    string                                 // in the head of its table
	store   string                                 // which the table is of
	harness func(t *testing.T) conformance.Harness // nil if it is ours, a package of that name, which has a harness
}

// stores has the tables in their order, and what skips a test that needs a store which is not there.
var stores = []struct {
	name string
	need func(t *testing.T)
}{
	{"Redis", func(t *testing.T) { redistest.Address(t) }},
	{"Postgres", func(t *testing.T) { pgtest.URL(t) }},
	{"etcd", func(t *testing.T) { etcdtest.Address(t) }},
}

// contenders are in the order of the columns. What they say of themselves in Features they do not claim to do.
var contenders = []contender{
	{name: "redislock", store: "Redis"},
	{"redsync", "Redis", func(t *testing.T) conformance.Harness { return withoutLine(onRedis(t, newRedsyncLibrary)) }},
	{"bsm/redislock", "Redis", func(t *testing.T) conformance.Harness { return withoutLine(onRedis(t, newBsmLibrary)) }},
	{"rueidislock", "Redis", func(t *testing.T) conformance.Harness { return withoutLine(onRueidis(t)) }},
	{"SET NX PX, scripts", "Redis", func(t *testing.T) conformance.Harness {
		return withoutLine(onRedis(t, newByHandLibrary))
	}},
	{"SET NX PX, DEL", "Redis", func(t *testing.T) conformance.Harness { return withoutLine(onRedis(t, newNaive)) }},

	{name: "pglock", store: "Postgres"},
	{"go-pglock", "Postgres", onGoPglock},

	{name: "etcdlock", store: "etcd"},
	{mutexPerProcess, "etcd", func(t *testing.T) conformance.Harness { return onMutex(t, false) }},
	{mutexPerLock, "etcd", func(t *testing.T) conformance.Harness { return onMutex(t, true) }},
}

// dial connects a Backend to a store, and returns what ends all that it has made for it.
type dial func(t *testing.T, addrs []string) (locker.Backend, func())

// harness is what the stores have in common: each Locker has proxies of its own.
func harness(dial dial, servers ...string) conformance.Harness {
	w := wires.New(servers...)
	open := func(t *testing.T) (locker.Backend, func()) {
		proxies := w.Proxies(t)
		addrs := make([]string, len(proxies))
		for i, proxy := range proxies {
			addrs[i] = proxy.Addr()
		}
		b, end := dial(t, addrs)
		end = sync.OnceFunc(end)
		t.Cleanup(end)
		return b, func() {
			end()
			for _, proxy := range proxies {
				proxy.Close()
			}
		}
	}
	return conformance.Harness{
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			b, end := open(t)
			return wires.Closing(locker.New(b, opts...), end)
		},
		Backend: func(t *testing.T) locker.Backend {
			b, end := open(t)
			t.Cleanup(func() {
				b.Close()
				end()
			})
			return b
		},
		Cut:    w.Cut,
		Trials: 20, // as who is late may be in time by chance
	}
}

// withoutLine is for libraries that do not claim to serve in the order of arrival.
func withoutLine(h conformance.Harness) conformance.Harness {
	h.Features.Unordered = "no line"
	return h
}

func redisHarness(t *testing.T, prefix string, dial dial) conformance.Harness {
	server := redistest.New(t, redistest.Options{})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { admin.Close() })
	h := harness(dial, server.Addr())
	h.Restart = func(t *testing.T) { // without data
		server.Kill()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	h.Break = func(t *testing.T, key string) {
		if err := admin.Del(context.Background(), prefix+key).Err(); err != nil {
			t.Error(err)
		}
	}
	return h
}

// onRedis is for what works by go-redis, with the options that this has by default.
func onRedis(t *testing.T, open func(*redis.Client) library) conformance.Harness {
	return redisHarness(t, "", func(_ *testing.T, addrs []string) (locker.Backend, func()) {
		rdb := redis.NewClient(&redis.Options{Addr: addrs[0]})
		return newBackend("peer", open(rdb)), func() { rdb.Close() }
	})
}

func onRueidis(t *testing.T) conformance.Harness {
	var clocks sync.Map // of the library that a test opened last
	h := redisHarness(t, "rueidislock:0:", func(t *testing.T, addrs []string) (locker.Backend, func()) {
		clock := new(atomic.Int64)
		clocks.Store(t, clock)
		l := must(newRueidisLibrary(addrs[0], time.Second, clock))(t) // the TTL of the suite
		return sessions{newBackend("peer", l)}, func() {}
	})
	h.Skew = func(t *testing.T, d time.Duration) (undo func()) {
		v, _ := clocks.Load(t)
		clock := v.(*atomic.Int64)
		clock.Store(int64(d))
		return func() { clock.Store(0) }
	}
	return h
}

func onGoPglock(t *testing.T) conformance.Harness {
	// It has a connection for each lock.
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{"max_connections": "1000"}})
	const each = 100 // process
	h := harness(func(t *testing.T, addrs []string) (locker.Backend, func()) {
		db := must(sql.Open("pgx", fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", addrs[0])))(t)
		db.SetMaxOpenConns(each)
		return sessions{newBackend("peer", goPglockLibrary{db})}, func() { db.Close() }
	}, server.Addr())
	h.Restart = func(t *testing.T) {
		server.Crash()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	h.Break = func(t *testing.T, key string) { endHolder(t, server.URL(), key) }
	h.Features.ConnectionBound = "a lock ends with its connection"
	return h
}

// endHolder ends the session that has the lock of a key, as an administrator would.
func endHolder(t *testing.T, url, key string) {
	conn := must(pgx.Connect(context.Background(), url))(t)
	defer conn.Close(context.Background())
	id := uint64(pglock.Key(key))
	var ended bool
	err := conn.QueryRow(context.Background(), `SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = $1 AND objid = $2`,
		id>>32, id&(1<<32-1)).Scan(&ended)
	if err != nil || !ended {
		t.Errorf("end the session that has the lock of %q: %v, %v", key, ended, err)
	}
}

func onMutex(t *testing.T, sessionEach bool) conformance.Harness {
	cluster := etcdtest.New(t, etcdtest.Options{})
	direct := cluster.Client(t)
	h := harness(func(t *testing.T, addrs []string) (locker.Backend, func()) {
		client := must(clientv3.New(clientv3.Config{Endpoints: addrs, Logger: zap.NewNop()}))(t)
		return sessions{newBackend("peer", newMutexLibrary(client, sessionEach))}, func() { client.Close() }
	}, cluster.Endpoints()...)
	// etcd's client connects again after a second, which is to be no more than half of the TTL.
	h.TTL = 2 * time.Second
	h.Restart = func(t *testing.T) {
		if err := cluster.Restart(); err != nil {
			t.Fatal(err)
		}
		cluster.AwaitHealthy(t)
	}
	h.Break = func(t *testing.T, key string) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if r, err := direct.Delete(ctx, key+"/", clientv3.WithPrefix()); err != nil || r.Deleted == 0 {
			t.Errorf("delete the lock %q: %v, %v", key, r, err)
		}
	}
	return h
}
