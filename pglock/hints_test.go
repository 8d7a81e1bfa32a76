package pglock_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// dials has pools connect in a way of the test's own: it counts messages, and the keys that are asked for without
// waiting, and connections can be frozen.
type dials struct {
	writes atomic.Int64
	tries  atomic.Int64
	frozen atomic.Bool
	over   chan struct{}
}

func newDials(t *testing.T) *dials {
	d := &dials{over: make(chan struct{})}
	t.Cleanup(func() { close(d.over) })
	return d
}

// pool returns a pool that connects like this.
func (d *dials) pool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &dialled{conn, d}, err
	}
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

type dialled struct {
	net.Conn
	dials *dials
}

func (c *dialled) Read(p []byte) (int, error) {
	if c.dials.frozen.Load() {
		<-c.dials.over
	}
	return c.Conn.Read(p[:min(len(p), 512)])
}

func (c *dialled) Write(p []byte) (int, error) {
	if c.dials.frozen.Load() {
		<-c.dials.over
	}
	c.dials.writes.Add(1)
	c.dials.tries.Add(triesIn(p))
	return c.Conn.Write(p)
}

// triesIn returns how many keys are asked for by the messages in a write.
func triesIn(p []byte) (n int64) {
	const header = 5
	for len(p) >= header && p[0] != 0 { // what begins a connection has no type
		end := min(1+int(binary.BigEndian.Uint32(p[1:])), len(p))
		var m pgproto3.Bind
		if p[0] == 'B' && m.Decode(p[header:end]) == nil {
			switch m.PreparedStatement {
			case "locker_try_one":
				n++
			case "locker_try":
				n += int64(binary.BigEndian.Uint32(m.Parameters[1][12:])) // the length of the array
			}
		}
		p = p[end:]
	}
	return n
}

// TestFrozenOnASocket freezes a holder that is connected by a Unix socket, on which nothing ends a connection whose
// client does not read, while there are so many notifications that the server cannot write them all.
func TestFrozenOnASocket(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{"unix_socket_directories": "."}})
	admin, key := connect(t, server.URL()), unique("key")
	d := newDials(t)
	l := pglock.New(d.pool(t, server.SocketURL()), locker.TTL(ttl))
	defer func() { go l.Close() }() // which would wait for the frozen connection
	mustTry(t, l, key)
	d.frozen.Store(true)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		other := connect(t, server.URL())
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				other.do("SELECT pg_notify('locker', repeat('x', 7900))")
			}
		}
	})
	eventually(t, "the server frees the key", func() bool { return admin.isFree(key) })
	close(stop)
	flood.Wait()
}

// TestPollsAreRare has four Lockers lead on the same keys, of which three poll for most of them: nothing changes hands.
func TestPollsAreRare(t *testing.T) {
	t.Parallel()
	const keys, sessions, rivals = 40, 2, 3
	url, prefix := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	admin.do("LISTEN locker")
	leader := open(t, url, locker.TTL(time.Minute))
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprint(prefix, i)
		mustTry(t, leader, names[i])
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	d := newDials(t)
	for range rivals {
		b := pglock.Config{WaitSessions: sessions}.NewBackend(d.pool(t, url))
		l := locker.New(b, locker.TTL(time.Minute))
		defer func() { _ = l.Close() }()
		defer wg.Wait()
		defer cancel()
		for _, name := range names {
			wg.Go(func() {
				if _, err := l.Lock(ctx, name); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		eventually(t, "it has marked the keys that it polls for", func() bool {
			return pglock.Marked(b) == keys-sessions
		})
	}
	time.Sleep(time.Second) // what marking them has brought about
	start, messages, tries := time.Now(), d.writes.Load(), d.tries.Load()
	time.Sleep(3 * time.Second)
	took := time.Since(start).Seconds()
	messages, tries = d.writes.Load()-messages, d.tries.Load()-tries
	const lines = rivals * (keys - sessions)
	t.Logf("%d lines: %.1f polls a second, in %.1f messages", lines, float64(tries)/took, float64(messages)/took)
	if most := int64((took + 1) * lines); tries > most { // the first may come at once
		t.Errorf("%d polls in %.1f s; want %d at most, one per key and second", tries, took, most)
	}
	prefixKeys := make(map[string]bool)
	for _, name := range names {
		prefixKeys[fmt.Sprint(pglock.Key(name))] = true
	}
	for {
		soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		n, err := admin.WaitForNotification(soon)
		cancel()
		if err != nil {
			break
		}
		if prefixKeys[n.Payload] {
			t.Errorf("a notification, though nothing has changed hands: %v", n)
		}
	}
}

// TestRefusedSessions has more keys waited for than the server allows connections.
func TestRefusedSessions(t *testing.T) {
	t.Parallel()
	const keys = 6
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	holder := open(t, server.URL())
	mustUnlock(t, mustTry(t, holder, "any")) // the tables are there
	name, url := role(t, admin, server.URL(), "CONNECTION LIMIT 2")
	admin.do("GRANT pg_read_all_stats TO " + name)
	admin.do("GRANT USAGE ON SCHEMA locker TO " + name)
	admin.do("GRANT ALL ON ALL TABLES IN SCHEMA locker TO " + name)
	admin.do("GRANT ALL ON ALL SEQUENCES IN SCHEMA locker TO " + name)
	var leases []*locker.Lease
	for i := range keys {
		leases = append(leases, mustTry(t, holder, fmt.Sprint(i)))
	}
	proxy, url := behind(t, url)
	told := make(chan error, 1000)
	b := pglock.Config{WaitSessions: keys}.NewBackend(pool(t, url))
	l := locker.New(b, locker.TTL(10*time.Second), locker.Observe(&locker.Observer{
		Retry: func(info locker.RetryInfo) { told <- info.Err },
	}))
	defer func() { _ = l.Close() }()
	mustUnlock(t, mustTry(t, l, "any"))
	before, start := proxy.Accepted(), time.Now()
	served := make(chan struct{}, keys)
	for i := range keys {
		go func() {
			lease, err := lock(l, fmt.Sprint(i))
			if err != nil {
				t.Error(err)
			} else {
				mustUnlock(t, lease)
			}
			served <- struct{}{}
		}()
	}
	if err := locktest.Receive(t, told); !errors.Is(err, pglock.ErrTooManyConnections) ||
		!errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("observed: %v", err)
	}
	time.Sleep(5 * time.Second)
	// One for each key and one for hints at first; then one after 1 to 2 seconds, and so on.
	n := proxy.Accepted() - before
	took := time.Since(start) // may be longer, on a machine that is busy
	if most := keys + 1 + int((took-time.Second)/time.Second); n > most {
		t.Errorf("%d connections were tried in %v; want %d at most", n, took, most)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	for range keys {
		locktest.Receive(t, served)
	}
}

// TestNothingInTheLog has waits cancelled, and taken up anew, which is nothing that an administrator has to be told of.
// On a machine that is late, a wait is cancelled twice, and the second time may be an error: see firstCancel.
func TestNothingInTheLog(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, prepare string
		logged        bool
	}{
		{"as it is", "SELECT 1", false},
		{"no PL/pgSQL", "DROP EXTENSION plpgsql", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			locktest.Tries(t, func() error {
				server := pgtest.New(t, pgtest.Options{Settings: map[string]string{"log_error_verbosity": "verbose"}})
				cancelWaits(t, server, test.prepare)
				if log := server.LogTail(); strings.Contains(log, "ERROR") != test.logged {
					return fmt.Errorf("want errors in the log: %v\n%s", test.logged, log)
				}
				return nil
			})
		})
	}
}

// cancelWaits has a caller give up a wait, and a waiter take its place anew.
func cancelWaits(t *testing.T, server *pgtest.Server, prepare string) {
	t.Helper()
	admin, key := connect(t, server.URL()), unique("key")
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace)) // that it is missing would be an error
	admin.do(prepare)
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
	pglock.SetLifetimes(l.backend, time.Minute, 300*time.Millisecond)
	other := open(t, server.URL())
	lease := mustTry(t, other, key)
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	cancel()
	if err := cancelled.Get(t); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	eventually(t, "it has left", func() bool { return admin.inLine(key) == 0 })
	waiter := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	const since = "SELECT waitstart FROM pg_locks WHERE NOT granted AND " + oneKey
	var first string
	eventually(t, "it waits again", func() bool { first = admin.text(since, pglock.Key(key)); return first != "" })
	eventually(t, "it has taken its place anew", func() bool {
		now := admin.text(since, pglock.Key(key))
		return now != "" && now != first
	})
	mustUnlock(t, lease)
	mustUnlock(t, waiter.Get(t))
}
