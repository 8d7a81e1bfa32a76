package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestOpenFailsNow opens what cannot work: that takes three seconds at most, and says what is wrong. New and Lock say
// the same, and so does Lead, which does not go on.
func TestOpenFailsNow(t *testing.T) {
	t.Parallel()
	documented := documentedACL(t)
	rules, more := documented.server, documented.cluster
	secret := redistest.New(t, redistest.Options{Args: []string{"--requirepass", "secret"}}).Addr()
	acl := redistest.New(t, redistest.Options{})
	setUser(t, dial(t, acl.Addr()), rules)
	mute := redistest.New(t, redistest.Options{})
	setUser(t, dial(t, mute.Addr()), strings.Replace(rules, "&locker:*", "", 1))
	weak := redistest.New(t, redistest.Options{})
	setUser(t, dial(t, weak.Addr()), strings.Replace(rules, "+evalsha", "", 1))
	cluster := redistest.NewCluster(t, redistest.ClusterOptions{})
	for _, node := range cluster.Nodes() {
		setUser(t, cluster.Admin(node), strings.Replace(rules+more, "+evalsha", "", 1))
	}
	clusterAddrs := strings.Join(cluster.Addrs(), ",")
	nobody := strangers.Nobody(t)
	postgres, http2, http := strangers.Postgres(t), strangers.HTTP2(t), strangers.HTTP(t)
	good, several, foreign := acl.Addr(), ","+weak.Addr()+","+nobody, ","+postgres+","+http2

	unavailable, denied, unfit := locker.ErrUnavailable, locker.ErrDenied, locker.ErrUnfit
	for name, test := range map[string]struct {
		url         string
		class, more error
		says        string
	}{
		"no password":            {"redis://" + secret, denied, redislock.ErrAuth, ""},
		"wrong password":         {"redis://:wrong@" + secret, denied, redislock.ErrAuth, ""},
		"wrong user":             {"redis://you:pw@" + good, denied, redislock.ErrAuth, ""},
		"connection refused":     {"redis://" + nobody, unavailable, nil, "refused"},
		"Postgres":               {"redis://" + postgres, unfit, nil, "Postgres"},
		"HTTP/2":                 {"redis://" + http2, unfit, nil, "HTTP"},
		"HTTP":                   {"redis://" + http, unfit, nil, "HTTP"},
		"lacks a command":        {"redis://app:pw@" + weak.Addr(), denied, redislock.ErrPermission, ""},
		"lacks the channel":      {"redis://app:pw@" + mute.Addr(), denied, redislock.ErrPermission, "channel"},
		"node of a cluster":      {"redis://" + foreignNode(t, cluster), unfit, redislock.ErrSlot, "NewClusterClient"},
		"node, database 1":       {"redis://" + cluster.Addrs()[0] + "/1", unfit, nil, "NewClusterClient"},
		"no such database":       {"redis://app:pw@" + good + "/99", unfit, nil, "database"},
		"no cluster":             {"redis+cluster://" + good, unfit, nil, "NewClient"},
		"cluster, user":          {"redis+cluster://you:pw@" + clusterAddrs, denied, redislock.ErrAuth, ""},
		"cluster, command":       {"redis+cluster://app:pw@" + clusterAddrs, denied, redislock.ErrPermission, ""},
		"cluster, refused":       {"redis+cluster://" + nobody, unavailable, nil, ""},
		"cluster, Postgres":      {"redis+cluster://" + postgres, unfit, nil, "Postgres"},
		"sentinel, refused":      {"redis+sentinel://" + nobody + "/main", unavailable, nil, ""},
		"redlock, one denies":    {"redlock://app:pw@" + good + several, unavailable, redlock.ErrNoQuorum, ""},
		"redlock, two deny":      {"redlock://you:pw@" + good + several, denied, redlock.ErrNoQuorum, ""},
		"redlock, two are unfit": {"redlock://app:pw@" + good + foreign, unfit, redlock.ErrNoQuorum, ""},
		"redlock, channel":       {"redlock://app:pw@" + mute.Addr(), denied, redislock.ErrPermission, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Late answers are errors of another class.
			locktest.Tries(t, func() error { return failsNow(t, test.url, test.class, test.more, test.says) })
			if strings.Contains(name, "channel") {
				return // a lock that is free can be had
			}
			locktest.Tries(t, func() error { return failsToLock(t, newByURL(t, test.url), test.class) })
		})
	}
}

// failsNow opens a URL, and returns an error if that does not fail at once, with a class, another error and a text.
func failsNow(t *testing.T, url string, class, more error, says string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start := time.Now()
	_, err := openURL(ctx, url)
	took := time.Since(start)
	t.Logf("after %v: %v", took.Round(time.Millisecond), err)
	if wrong := locktest.WrongClass("Open", err, class); wrong != nil {
		return wrong
	}
	if more != nil && !errors.Is(err, more) {
		return fmt.Errorf("Open: %w; want %w", err, more)
	}
	if !strings.Contains(err.Error(), says) {
		return fmt.Errorf("Open: %w; want %q in it", err, says)
	}
	if took > 3*time.Second {
		return fmt.Errorf("Open took %v", took)
	}
	return nil
}

// failsToLock returns an error if a Locker does not fail with errors of a class.
func failsToLock(t *testing.T, l locker.Locker, class error) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, tried := l.TryLock(ctx, "k0")
	_, locked := l.Lock(ctx, "k0")
	wrong := errors.Join(locktest.WrongClass("TryLock", tried, class), locktest.WrongClass("Lock", locked, class))
	if !errors.Is(class, locker.ErrUnavailable) {
		led := locker.Lead(ctx, l, "k0", func(context.Context, *locker.Lease) error { return errors.New("led") })
		wrong = errors.Join(wrong, locktest.WrongClass("Lead", led, class))
	}
	return wrong
}

// foreignNode returns the address of a node of a cluster that has the slots of neither the key of Ping nor of k0.
func foreignNode(t *testing.T, c *redistest.Cluster) string {
	ping, _ := c.MasterOf(t, redislock.DefaultPrefix+locker.PingKey)
	k0, _ := c.MasterOf(t, redislock.DefaultPrefix+"k0")
	for _, node := range c.Nodes()[:3] {
		if node != ping && node != k0 {
			return node.Addr()
		}
	}
	t.Fatal("no node")
	return ""
}

// openURL is redislock.Open or redlock.Open.
func openURL(ctx context.Context, url string) (*locker.Client, error) {
	if strings.HasPrefix(url, "redlock://") {
		return redlock.Open(ctx, url)
	}
	return redislock.Open(ctx, url)
}

// newByURL returns a Locker of New, or redlock.New, for a URL.
func newByURL(t *testing.T, url string) locker.Locker {
	t.Helper()
	var clients []redis.UniversalClient
	var l locker.Locker
	if servers, err := redlock.ParseURL(url); err == nil {
		for _, o := range servers {
			clients = append(clients, redis.NewClient(o))
		}
		l = redlock.New(clients)
	} else {
		o, err := redislock.ParseURL(url)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, redis.NewUniversalClient(o))
		l = redislock.New(clients[0])
	}
	t.Cleanup(func() {
		_ = l.Close()
		for _, client := range clients {
			_ = client.Close()
		}
	})
	return l
}

// TestOpen opens what works, in each topology, and a Redlock one server of which hangs.
func TestOpen(t *testing.T) {
	t.Parallel()
	one, cluster := redistest.New(t, redistest.Options{}), redistest.NewCluster(t, redistest.ClusterOptions{})
	sentinels := redistest.NewSentinels(t, redistest.SentinelOptions{})
	servers := redistest.NewIndependent(t, 3)
	if err := servers[1].Pause(); err != nil {
		t.Fatal(err)
	}
	redlock := "redlock://" + strings.Join(servers.Addresses(), ",")
	for _, url := range []string{one.URL(), cluster.URL(), sentinels.URL(), redlock} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		l, err := openURL(ctx, url)
		cancel()
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		mustUnlock(t, mustLock(t, l, "k")) // ctx was for Open only
		if err := l.Close(); err != nil {
			t.Errorf("%s: Close: %v", url, err)
		}
	}
}

// TestOpenIsBounded opens a server that hangs.
func TestOpenIsBounded(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	for _, server := range servers {
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	for _, url := range []string{servers[0].URL(), "redlock://" + strings.Join(servers.Addresses(), ",")} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := openURL(ctx, url)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v; want DeadlineExceeded", url, err)
		}
	}
}

// TestUnusableClients has clients that cannot work: no constructor panics.
func TestUnusableClients(t *testing.T) {
	t.Parallel()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	plain := dial(t, "127.0.0.1:1")
	type wrapped struct{ redis.UniversalClient }
	replicas := redislock.Config{Replicas: 1, ReplicasWithin: time.Second}
	for name, l := range map[string]*locker.Client{
		"nil":              redislock.New(nil),
		"nil client":       redislock.New((*redis.Client)(nil)),
		"nil cluster":      redislock.New((*redis.ClusterClient)(nil)),
		"nil wrapper":      redislock.New((*wrapped)(nil)),
		"ring":             redislock.New(ring),
		"redlock":          redlock.New([]redis.UniversalClient{plain, nil, (*redis.Client)(nil)}),
		"ring in redlock":  redlock.New([]redis.UniversalClient{plain, ring}),
		"replicas, nil":    replicas.New(nil),
		"replicas, type":   replicas.New(wrapped{plain}),
		"replicas, within": redislock.Config{Replicas: 1}.New(plain),
		"within":           redislock.Config{ReplicasWithin: time.Second}.New(plain),
		"retention":        redislock.Config{TokenRetention: time.Second - 1}.New(plain),
		"retention < 0":    redislock.Config{TokenRetention: -time.Hour}.New(plain),
		"channel":          redislock.Config{ChannelPrefix: strings.Repeat("x", 1025)}.New(plain),
	} {
		if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: TryLock: %v; want ErrInvalidOption", name, err)
		}
		if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: Lock: %v; want ErrInvalidOption", name, err)
		}
		if err := l.Ping(t.Context()); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: Ping: %v; want ErrInvalidOption", name, err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
	for name, open := range map[string]func() (*locker.Client, error){
		"redlock with replicas": func() (*locker.Client, error) {
			return replicas.Open(t.Context(), "redlock://127.0.0.1:1")
		},
		"bad config": func() (*locker.Client, error) {
			return redislock.Config{Replicas: -1}.Open(t.Context(), "redis://127.0.0.1:1")
		},
		"bad option": func() (*locker.Client, error) {
			return redislock.Open(t.Context(), "redis://127.0.0.1:1", locker.TTL(1))
		},
	} {
		if _, err := open(); !errors.Is(err, locker.ErrInvalidOption) {
			t.Errorf("%s: %v; want ErrInvalidOption", name, err)
		}
	}
}

// TestClientClosedByItsOwner closes the clients under a lease and a waiter: nothing is tried again and again.
func TestClientClosedByItsOwner(t *testing.T) {
	t.Parallel()
	server, servers := redistest.New(t, redistest.Options{}), redistest.NewIndependent(t, 3)
	cluster := redistest.NewCluster(t, redistest.ClusterOptions{})
	one, group := redis.NewClient(&redis.Options{Addr: server.Addr()}), cluster.Client(t)
	several, closeSeveral := redistest.DialAll(servers.Addresses())
	const ttl = time.Minute
	newOf := func(rdb redis.UniversalClient) func() *locker.Client {
		return func() *locker.Client { return redislock.New(rdb, locker.TTL(ttl)) }
	}
	for name, test := range map[string]struct {
		open        func() *locker.Client
		closeClient func()
	}{
		"one server": {newOf(one), func() { _ = one.Close() }},
		"cluster":    {newOf(group), func() { _ = group.Close() }},
		"redlock":    {func() *locker.Client { return redlock.New(several, locker.TTL(ttl)) }, closeSeveral},
	} {
		t.Run(name, func(t *testing.T) {
			l := test.open()
			lease := mustLock(t, l, "k")
			waits := make(chan error, 1)
			waiting := make(chan struct{})
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), ttl)
				defer cancel()
				close(waiting)
				_, err := l.Lock(ctx, "k")
				waits <- err
			}()
			<-waiting
			test.closeClient()
			start := time.Now()
			if err := lease.Unlock(); !errors.Is(err, locker.ErrClosed) {
				t.Errorf("Unlock: %v; want ErrClosed", err)
			}
			if took := time.Since(start); took > ttl/6 { // it has a minute
				t.Errorf("Unlock took %v", took)
			} else {
				t.Logf("Unlock took %v", took)
			}
			if err := <-waits; !errors.Is(err, locker.ErrClosed) {
				t.Errorf("the waiter: %v; want ErrClosed", err)
			}
			late := test.open()
			for _, l := range []*locker.Client{l, late} {
				if _, err := l.TryLock(t.Context(), "other"); !errors.Is(err, locker.ErrClosed) {
					t.Errorf("TryLock: %v; want ErrClosed", err)
				}
				_ = l.Close()
			}
		})
	}
}

// TestChannelPrefix has two Clients call one another by channels of their own.
func TestChannelPrefix(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	config := redislock.Config{ChannelPrefix: "it's $line -- \\ \"mine\"\n:"}
	a, b := config.New(dial(t, server.Addr())), config.New(dial(t, server.Addr()))
	defer a.Close()
	defer b.Close()
	watch := admin.PSubscribe(t.Context(), "*")
	defer watch.Close()
	if _, err := watch.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease := mustLock(t, a, "k")
	next := make(chan *locker.Lease, 1)
	go func() { next <- mustLock(t, b, "k") }()
	eventually(t, "the waiter is in line", func() bool { return inLine(t, admin, "k") == 1 })
	mustUnlock(t, lease)
	mustUnlock(t, <-next)
	message, err := watch.ReceiveTimeout(t.Context(), 10*time.Second)
	m, ok := message.(*redis.Message)
	if err != nil || !ok {
		t.Fatalf("%v, %v; want a message", message, err)
	}
	if process, found := strings.CutPrefix(m.Channel, config.ChannelPrefix); !found || len(process) != 32 {
		t.Errorf("the channel of the message is %q", m.Channel)
	}
}

// TestProtectedMode has what servers say, before they hang up, who serve their own machine only, until somebody gives
// them a password.
func TestProtectedMode(t *testing.T) {
	const rest = " in protected mode because protected mode is enabled and no password is set for the default user."
	for server, text := range map[string]string{
		"Redis 7":   "DENIED Redis is running" + rest,
		"Valkey 8":  "DENIED Running" + rest,
		"Redis 6.2": "DENIED Redis is running in protected mode because protected mode is enabled, no bind address was set",
	} {
		addr := strangers.Serve(t, func(conn net.Conn) { _, _ = conn.Write([]byte("-" + text + "\r\n")) })
		_, err := redislock.Open(t.Context(), "redis://"+addr)
		if !errors.Is(err, redislock.ErrAuth) || !errors.Is(err, locker.ErrDenied) {
			t.Errorf("%s: %v; want ErrAuth", server, err)
		}
	}
}

// TestOpenDialsAtOnce has dials fail more often than go-redis would have it, and the server come back.
func TestOpenDialsAtOnce(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) (l *locker.Client, proxies []*faultproxy.Proxy){
		"one server": func(t *testing.T) (*locker.Client, []*faultproxy.Proxy) {
			proxy := faultproxy.New(t, redistest.New(t, redistest.Options{}).Addr())
			return mustOpenURL(t, "redis://"+proxy.Addr()+"/?pool_size=1"), []*faultproxy.Proxy{proxy}
		},
		"Redlock": func(t *testing.T) (*locker.Client, []*faultproxy.Proxy) {
			proxies, addresses := redistest.NewIndependent(t, 3).Proxied(t)
			return mustOpenURL(t, "redlock://"+strings.Join(addresses, ",")+"/?pool_size=1"), proxies
		},
		// Its nodes say where they are, so it is not opened by a URL.
		"cluster": func(t *testing.T) (*locker.Client, []*faultproxy.Proxy) {
			c := redistest.NewCluster(t, redistest.ClusterOptions{})
			proxies := wires.New(c.Addrs()...).Proxies(t)
			rdb := redis.NewClusterClient(&redis.ClusterOptions{
				Addrs: c.Addrs(), DialerRetries: 1, PoolSize: 1, Dialer: throughProxies(c.Addrs(), proxies),
			})
			t.Cleanup(func() { _ = rdb.Close() })
			conn.Redialing(rdb)
			l := client(t, rdb)
			mustUnlock(t, mustLock(t, l, "k"))
			return l, proxies
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, proxies := open(t)
			for _, proxy := range proxies {
				proxy.Set(faultproxy.Refuse())
			}
			for range 3 {
				if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("while connections are refused: %v; want to be told", err)
				}
			}
			for _, proxy := range proxies {
				proxy.Heal()
			}
			lease, err := l.TryLock(t.Context(), "k")
			if err != nil {
				t.Fatalf("when the server can be reached again: %v", err)
			}
			mustUnlock(t, lease)
		})
	}
}

func mustOpenURL(t *testing.T, url string) *locker.Client {
	t.Helper()
	l, err := openURL(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
