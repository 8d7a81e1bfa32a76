package redislock_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
)

// far is a connection to a server that is far away.
type far struct {
	net.Conn
	delay time.Duration
}

func (c far) Write(p []byte) (int, error) {
	time.Sleep(c.delay)
	return c.Conn.Write(p)
}

// TestNameIsRepointed is a failover by name, as by DNS, by a service or by a managed endpoint: the name stands for
// another server, and the one that it stood for becomes a replica and stays up, with its connections. A server that
// is near and one that is far are spoken to in different ways, and so are a few keys and many.
func TestNameIsRepointed(t *testing.T) {
	for _, test := range []struct {
		delay time.Duration
		keys  int
	}{{0, 1}, {20 * time.Millisecond, 1}, {0, 64}} {
		t.Run(fmt.Sprintf("%v,%d keys", test.delay, test.keys), func(t *testing.T) {
			t.Parallel()
			old, next := redistest.New(t, redistest.Options{}), redistest.New(t, redistest.Options{})
			oldAdmin, nextAdmin := dial(t, old.Addr()), dial(t, next.Addr())
			replicate(t, nextAdmin, old.Addr())
			var name atomic.Value
			name.Store(old.Addr())
			rdb := redis.NewClient(&redis.Options{
				Addr: "redis.example:6379",
				Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
					conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", name.Load().(string))
					return far{conn, test.delay}, err
				},
			})
			t.Cleanup(func() { _ = rdb.Close() })
			const ttl = 5 * time.Second
			l, waiting := open(t, rdb, locker.TTL(ttl)), open(t, rdb, locker.TTL(ttl))
			held := mustLock(t, l, "held")
			waited := make(chan *locker.Lease, 1)
			go func() { waited <- mustLock(t, waiting, "held") }()
			work := func(key string, opts ...locker.CallOption) error {
				ctx, cancel := context.WithTimeout(t.Context(), ttl)
				defer cancel()
				lease, err := l.TryLock(ctx, key, opts...)
				if err == nil {
					err = lease.Unlock()
				}
				return err
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			for i := range test.keys - 1 {
				var opts []locker.CallOption
				if i%2 == 0 {
					opts = []locker.CallOption{locker.Shared()} // which is another script
				}
				go func() {
					for ctx.Err() == nil {
						_ = work("k"+strconv.Itoa(i), opts...)
					}
				}()
			}
			eventuallyWithin(t, ttl, "somebody waits in line", func() bool { return inLine(t, oldAdmin, "held") == 1 })
			conn := oldAdmin.Conn() // WAIT is about what its own connection has written
			if err := conn.Set(t.Context(), "the last", 1, 0).Err(); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Wait(t.Context(), 1, 2*ttl).Result(); n != 1 || err != nil {
				t.Fatalf("%d replicas, %v", n, err)
			}
			_ = conn.Close()

			if err := nextAdmin.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
				t.Fatal(err)
			}
			replicate(t, oldAdmin, next.Addr())
			name.Store(next.Addr())
			repointed := time.Now()
			eventuallyWithin(t, ttl, "locks at the new server", func() bool { return work("k") == nil })
			t.Logf("locks could be had %v after the name was repointed", time.Since(repointed).Round(time.Millisecond))
			eventuallyWithin(t, 4*ttl, "20 locks in a row after that", func() bool { // one answer may be late
				for range 20 {
					if err := work("k"); err != nil {
						t.Logf("after that: %v", err)
						return false
					}
				}
				return true
			})
			mustUnlock(t, held)
			mustUnlock(t, <-waited)
		})
	}
}

// replicate makes a server a replica.
func replicate(t *testing.T, admin *redis.Client, of string) {
	t.Helper()
	host, port, err := net.SplitHostPort(of)
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.ReplicaOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
}
