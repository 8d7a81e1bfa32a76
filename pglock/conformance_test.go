package pglock_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// wires are the proxies between the Lockers of tests and their server: one for each Locker, so that it can be cut off
// while others are not.
type wires struct {
	server *pgtest.Server
	mu     sync.Mutex
	last   map[*testing.T]*faultproxy.Proxy // the one of the Locker that the test opened last
}

func newWires(server *pgtest.Server) *wires {
	return &wires{server: server, last: make(map[*testing.T]*faultproxy.Proxy)}
}

// dial returns a pool with a wire of its own, and what closes both.
func (w *wires) dial(t *testing.T) (pool *pgxpool.Pool, proxy *faultproxy.Proxy, closeBoth func()) {
	proxy, err := faultproxy.Start(w.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	pool, err = pgxpool.New(context.Background(), fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", proxy.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	closeBoth = sync.OnceFunc(func() {
		pool.Close()
		_ = proxy.Close()
	})
	t.Cleanup(closeBoth)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[t] = proxy
	return pool, proxy, closeBoth
}

func (w *wires) open(t *testing.T, opts ...locker.Option) locker.Locker {
	pool, _, closeBoth := w.dial(t)
	return closer{pglock.New(pool, opts...), closeBoth}
}

// closer is a Locker whose Close closes what it was made with, too.
type closer struct {
	locker.Locker
	also func()
}

func (c closer) Close() error {
	defer c.also()
	return c.Locker.Close()
}

func (w *wires) cut(t *testing.T, f conformance.Fault) (heal func()) {
	w.mu.Lock()
	proxy := w.last[t]
	w.mu.Unlock()
	proxy.Set(map[conformance.Fault]faultproxy.Fault{
		conformance.Refuse:      faultproxy.Refuse(),
		conformance.BlackHole:   faultproxy.BlackHole(),
		conformance.Hang:        faultproxy.Hang(),
		conformance.DropReplies: faultproxy.DropReplies(),
	}[f])
	return proxy.Heal
}

// trials is how often a test with a random outcome is repeated, unless the environment says otherwise.
func trials(t *testing.T, n int) int {
	if s := os.Getenv("LOCKER_TRIALS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("LOCKER_TRIALS: %v", err)
		}
	}
	return n
}

// takeAway ends the session that has the lock of a name, as an administrator would.
func takeAway(t *testing.T, url, name string) {
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	key := pglock.Key(name)
	var ended bool
	if err := conn.QueryRow(context.Background(), `SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
		WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = $1 AND objid = $2`,
		uint32(uint64(key)>>32), uint32(key)).Scan(&ended); err != nil || !ended {
		t.Errorf("end the session that has the lock of %q: %v, %v", name, ended, err)
	}
}

func TestConformance(t *testing.T) {
	server := pgtest.New(t, pgtest.Options{})
	w := newWires(server)
	conformance.Run(t, conformance.Harness{
		Open: w.open,
		Cut:  w.cut,
		Backend: func(t *testing.T) locker.Backend {
			pool, _, _ := w.dial(t)
			b := pglock.NewBackend(pool)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) {
			server.Crash()
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
		},
		Break:  func(t *testing.T, key string) { takeAway(t, server.URL(), key) },
		Trials: trials(t, 5),
		Features: conformance.Features{
			// The server frees the locks of a session when its connection ends, so to go on holding one would be a lie. In
			// return, those of a process that dies are free at once.
			ConnectionBound: "an advisory lock ends with its session",
		},
	})
}
