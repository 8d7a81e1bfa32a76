package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/pglock"
)

// TestOtherServers: who has mixed up the ports is told so, and soon.
func TestOtherServers(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for addr, kind := range map[string]string{
		strangers.Redis(t): "a Redis server", strangers.HTTP2(t): "an HTTP server",
		plain.Listener.Addr().String(): "is an HTTP server",
	} {
		for _, params := range []string{"", "?sslmode=disable"} {
			t.Run(kind+params, func(t *testing.T) {
				t.Parallel()
				dsn := fmt.Sprintf("postgres://app:%s@%s/db%s", secret, addr, params)
				start := time.Now()
				checkUnusable(t, pglock.Config{}, dsn, locker.ErrUnfit, kind, addr, "connection string")
				t.Logf("known by Lock, TryLock, Open and Lead in %v altogether", time.Since(start))
			})
		}
	}
}

// TestOpenFailsSoon: each mistake in the configuration is known when the program starts, long before the end of a usual
// TTL.
func TestOpenFailsSoon(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := role(t, admin, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	for name, tc := range map[string]struct {
		dsn   string
		class error
	}{
		"wrong password":     {as(t, dsn, app, "wrong"), locker.ErrDenied},
		"wrong role":         {as(t, dsn, "stranger", secret), locker.ErrDenied},
		"missing permission": {dsn, locker.ErrDenied},
		"wrong port":         {strings.Replace(dsn, server.Addr(), strangers.Nobody(t), 1), locker.ErrUnavailable},
		"wrong database":     {strings.Replace(dsn, "/postgres?", "/no_such_database?", 1), locker.ErrUnfit},
		"wrong server":       {fmt.Sprintf("postgres://app@%s/db", strangers.Redis(t)), locker.ErrUnfit},
	} {
		t.Run(name, func(t *testing.T) {
			for _, opts := range [][]locker.Option{nil, {locker.TTL(time.Second)}} {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				var start time.Time
				var err error
				locktest.Eventually(t, "a server that is asked has the time for an answer", func() bool {
					start = time.Now()
					var l *locker.Client
					if l, err = pglock.Open(ctx, tc.dsn, opts...); err == nil {
						_ = l.Close()
					}
					return opts == nil || !strings.Contains(fmt.Sprint(err), "did not answer")
				})
				locktest.CheckClass(t, "Open", err, tc.class)
				if took := time.Since(start); took > 8*time.Second { // before any bound ends it; one second is usual
					t.Errorf("Open took %v", took)
				}
			}
		})
	}
}

// TestOpenWithShortTTL: that it takes longer to connect than a lease lasts is no mistake.
func TestOpenWithShortTTL(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	proxy, dsn := behind(t, pgtest.URL(t))
	proxy.Set(faultproxy.Hang())
	opened := locktest.Started(func() error {
		l, err := pglock.Open(t.Context(), dsn, locker.TTL(ttl))
		if err == nil {
			_ = l.Close()
		}
		return err
	})
	select {
	case err := <-opened.Done:
		t.Fatalf("Open: %v, before the server has answered", err)
	case <-time.After(ttl + ttl/4):
	}
	proxy.Heal()
	if err := opened.Get(t); err != nil {
		t.Error(err)
	}
}

// TestWithoutAPool: no panic.
func TestWithoutAPool(t *testing.T) {
	t.Parallel()
	l := pglock.New(nil)
	failures.CheckAcquires(t, l, "k", locker.ErrInvalidOption, "nil")
	if err := l.Ping(t.Context()); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("Ping: %v; want ErrInvalidOption", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestClosedPool: it is only asked for its configuration.
func TestClosedPool(t *testing.T) {
	t.Parallel()
	p, err := pgxpool.New(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	l := pglock.New(p)
	defer l.Close()
	if err := l.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	works(t, l, l, 0)
}

// TestWaitOverARestart: who knows that the key is held waits on while the server is away, and gets it afterwards.
func TestWaitOverARestart(t *testing.T) {
	t.Parallel()
	for _, line := range []struct {
		name   string
		config pglock.Config
		own    bool // the holder is of the same Locker
	}{
		{"in Postgres's line", pglock.Config{}, false},
		{"behind the same Locker", pglock.Config{}, true},
	} {
		t.Run(line.name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			l := openWatched(t, line.config, server.URL())
			holder := locker.Locker(l)
			if !line.own {
				holder = open(t, server.URL())
			}
			key := unique("key")
			held := mustLock(t, holder, key)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			const waiters = 3
			next := make(chan uint64, waiters)
			for i := range waiters {
				go func() {
					lease, err := l.Lock(ctx, key)
					if err != nil {
						t.Error(err)
						next <- 0
						return
					}
					mustUnlock(t, lease)
					next <- lease.Token() // the last thing: the test may end now
				}()
				eventually(t, "it waits", func() bool { return pglock.InLine(l.backend, key) == i+1 })
			}
			server.Crash()
			<-held.Done()
			eventually(t, "the waiters know", func() bool { return pglock.InLine(l.backend, key) == 0 })
			if len(next) > 0 {
				t.Errorf("%d waits have ended while the server was away", len(next))
			}
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
			for range waiters {
				if token := <-next; token <= held.Token() {
					t.Errorf("token %d after %d", token, held.Token())
				}
			}
		})
	}
}
