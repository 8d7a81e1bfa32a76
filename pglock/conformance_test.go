package pglock_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// dialWire returns a pool with a wire of its own, and what closes both.
func dialWire(t *testing.T, w *wires.Wires) (pool *pgxpool.Pool, closeBoth func()) {
	proxy := w.Proxy(t)
	pool, err := pgxpool.New(
		context.Background(),
		fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", proxy.Addr()),
	)
	if err != nil {
		t.Fatal(err)
	}
	closeBoth = sync.OnceFunc(func() {
		pool.Close()
		_ = proxy.Close()
	})
	t.Cleanup(closeBoth)
	return pool, closeBoth
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
	w := wires.New(server.Addr())
	conformance.Run(t, conformance.Harness{
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			pool, closeBoth := dialWire(t, w)
			return wires.Closing(pglock.New(pool, opts...), closeBoth)
		},
		Cut: w.Cut,
		Backend: func(t *testing.T) locker.Backend {
			pool, _ := dialWire(t, w)
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
		Trials: wires.Trials(t, 5),
		Features: conformance.Features{
			// The server frees the locks of a session when its connection ends, so to go on holding one would be a lie.
			// In return, those of a process that dies are free at once.
			ConnectionBound: "an advisory lock ends with its session",
			// A place for each waiter would cost a connection for each of them.
			OrderedPerLocker: "a Locker has one place in the server's line, on one connection, for all its waiters on a key",
			ListsInPart:      "names are in a table to which they are added when a lease is renewed",
		},
	})
}
