package redislock_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestRefusedConnections cuts all connections and has the servers refuse new ones, each time with another answer to one
// of the commands with which a connection begins. Whatever was under way, on whatever path, is told that answer.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		refuse []any // a command
		accept []any // the command that undoes it; nil where nobody waits for that
		want   error
		class  error
		late   []error // what who is late gets instead: the server has closed the connection, or there was no time left
	}{
		"a password that was rotated": {
			refuse: []any{"acl", "setuser", "app", "resetpass", ">new"},
			want:   redislock.ErrAuth, class: locker.ErrDenied,
		},
		"no permission to select the database": {
			refuse: []any{"acl", "setuser", "app", "-select"},
			want:   redislock.ErrPermission, class: locker.ErrDenied,
		},
		"too many clients": {
			refuse: []any{"config", "set", "maxclients", "1"}, // the test's own
			accept: []any{"config", "set", "maxclients", "1000"},
			want:   redislock.ErrTooManyConnections, class: locker.ErrUnavailable,
			late: []error{io.EOF, syscall.EPIPE, syscall.ECONNRESET, conn.ErrNoAnswer},
		},
	} {
		do := func(t *testing.T, admins []*redis.Client, args ...any) {
			t.Helper()
			for _, admin := range admins {
				if err := admin.Do(t.Context(), args...).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		run := func(t *testing.T, admins []*redis.Client, open func(opts ...locker.Option) locker.Locker) {
			const ttl, limit = 8 * time.Second, 30 * time.Second
			lost, retried := make(chan error, 1), make(chan error, 100)
			l := open(locker.TTL(ttl), locker.Observe(&locker.Observer{
				LeaseDone: func(info locker.LeaseDoneInfo) {
					if info.Key == "held" {
						lost <- info.Err
					}
				},
				Retry: func(info locker.RetryInfo) { retried <- info.Err },
			}))
			mustLock(t, l, "held")
			freed := mustLock(t, l, "freed")
			waited := locktest.Started(func() error {
				_, err := l.Lock(t.Context(), "held")
				return err
			})
			eventually(t, "the waiter is in line, and listens", func() bool {
				channels, waiters := 0, 0 // the holder listens, too
				for _, admin := range admins {
					channels += len(admin.PubSubChannels(t.Context(), "locker:*").Val())
					waiters += inLineOfDatabase1(t, admin, "held")
				}
				return channels > 0 && waiters > 0
			})
			check := func(what string, err error) {
				t.Helper()
				checkClass(t, what, err, test.class)
				is := func(target error) bool { return errors.Is(err, target) }
				if !is(test.want) && !slices.ContainsFunc(test.late, is) {
					t.Errorf("%s: %v; want %v", what, err, test.want)
				}
			}
			do(t, admins, test.refuse...)
			for _, kind := range []string{"normal", "pubsub"} { // also those that have not said yet whose they are
				do(t, admins, "client", "kill", "type", kind, "skipme", "yes")
			}
			check("Unlock", freed.Unlock())
			type call = func(context.Context, string, ...locker.CallOption) (*locker.Lease, error)
			for what, acquire := range map[string]call{"TryLock": l.TryLock, "Lock": l.Lock} {
				eventuallyWithin(t, limit, what+" is told why", func() bool {
					_, err := acquire(t.Context(), "free")
					check(what, err)
					return errors.Is(err, test.want)
				})
			}
			if test.accept == nil {
				check("who waits", waited.Within(t, limit, "who waits is told"))
			}
			err := locktest.Receive(t, lost) // renewals have failed
			check("the lease", err)
			if !errors.Is(err, locker.ErrLost) {
				t.Errorf("the lease: %v; want ErrLost", err)
			}
			if test.accept == nil {
				return
			}
			eventuallyWithin(t, limit, "a retry of who waits is told why", func() bool {
				return errors.Is(locktest.Receive(t, retried), test.want)
			})
			do(t, admins, test.accept...)
			if err := waited.Within(t, limit, "who waited is served"); err != nil {
				t.Errorf("who waited: %v", err)
			}
		}
		documented := documentedACL(t)
		rules, more := documented.server, documented.cluster
		clientOf := func(t *testing.T, server *redistest.Server) *redis.Client {
			rdb := redis.NewClient(&redis.Options{
				Addr: server.Addr(), Username: "app", Password: "pw", DB: 1, DisableIdentity: true,
			})
			t.Cleanup(func() { _ = rdb.Close() })
			return rdb
		}
		t.Run("one server, "+name, func(t *testing.T) {
			t.Parallel()
			server := redistest.New(t, redistest.Options{})
			admin := dial(t, server.Addr())
			setUser(t, admin, rules)
			run(t, []*redis.Client{admin}, func(opts ...locker.Option) locker.Locker {
				return open(t, clientOf(t, server), opts...)
			})
		})
		t.Run("Redlock, "+name, func(t *testing.T) {
			t.Parallel()
			servers := redistest.NewIndependent(t, 3)
			admins := servers.DialEach(t)
			var rdbs []redis.UniversalClient
			for i, server := range servers {
				setUser(t, admins[i], rules)
				rdbs = append(rdbs, clientOf(t, server))
			}
			run(t, admins, func(opts ...locker.Option) locker.Locker {
				l := redlock.New(rdbs, opts...)
				t.Cleanup(func() { _ = l.Close() })
				return l
			})
		})
		if test.accept != nil || errors.Is(test.want, redislock.ErrPermission) {
			continue // the nodes of a cluster are clients of each other, and have no other database
		}
		t.Run("cluster, "+name, func(t *testing.T) {
			t.Parallel()
			c := redistest.NewCluster(t, redistest.ClusterOptions{})
			var admins []*redis.Client
			for _, node := range c.Nodes() {
				admins = append(admins, c.Admin(node))
				setUser(t, c.Admin(node), rules+more)
			}
			run(t, admins, func(opts ...locker.Option) locker.Locker {
				rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), Username: "app", Password: "pw"})
				t.Cleanup(func() { _ = rdb.Close() })
				return open(t, rdb, opts...)
			})
		})
	}
}

// inLineOfDatabase1 returns how many wait for a key in that database, or, on a node of a cluster, in the only one: 0 if
// the key is on another node.
func inLineOfDatabase1(t *testing.T, admin *redis.Client, key string) int {
	t.Helper()
	var waiters *redis.IntCmd
	_, _ = admin.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Do(t.Context(), "select", 1)
		waiters = p.ZCard(t.Context(), "{"+redislock.DefaultPrefix+key+"}:locker:queue:")
		p.Do(t.Context(), "select", 0)
		return nil
	})
	return int(waiters.Val())
}
