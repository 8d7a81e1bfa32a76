package pglock

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
)

// watched is a Locker whose sessions can be told from others.
type watched struct {
	locker.Locker
	name  string
	admin *pgx.Conn
}

// watch returns a Locker with lifetimes of its own.
func watch(t *testing.T, c Config, p lifetimes, ttl time.Duration) *watched {
	t.Helper()
	return watchAt(t, pgtest.URL(t), c, p, ttl)
}

func watchAt(t *testing.T, url string, c Config, p lifetimes, ttl time.Duration) *watched {
	t.Helper()
	w := &watched{name: fmt.Sprintf("watched-%016x", rand.Uint64())}
	pool, err := pgxpool.New(t.Context(), url+"&application_name="+w.name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := c.forPool(pool).(*backend)
	b.lifetimes = p
	w.Locker = locker.New(b, locker.TTL(ttl))
	t.Cleanup(func() { _ = w.Close() })
	if w.admin, err = pgx.Connect(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.admin.Close(context.Background()) })
	return w
}

// query returns a number that is selected from the Locker's sessions.
func (w *watched) query(t *testing.T, sql string) (n int64) {
	t.Helper()
	if err := w.admin.QueryRow(t.Context(), "SELECT "+sql+" FROM pg_stat_activity WHERE application_name = $1", w.name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// await waits until a number that is selected from the Locker's sessions is accepted.
func (w *watched) await(t *testing.T, sql string, accept func(int64) bool) (n int64) {
	t.Helper()
	locktest.Eventually(t, sql+" is accepted", func() bool { n = w.query(t, sql); return accept(n) })
	return n
}

const (
	sessionCount = "count(*)"
	waiting      = "count(*) FILTER (WHERE wait_event = 'advisory')"
	// waitsSince is when the oldest wait that is under way began, in microseconds; 0 if there is none.
	waitsSince = "coalesce((min(extract(epoch FROM query_start)) FILTER (WHERE wait_event = 'advisory') * 1000000)::bigint, 0)"
)

// TestLongWaitsTakeTheirPlaceAnew: the statement of a wait that lasts would hold up VACUUM.
func TestLongWaitsTakeTheirPlaceAnew(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute // what counts here is how long a wait lasts
	key := fmt.Sprintf("standing/%016x", rand.Uint64())
	holder := watch(t, Config{}, defaultLifetimes, ttl)
	lease, err := holder.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, waits := range []int{1, DefaultWaitSessions} { // with no other session, and with room for others
		p := defaultLifetimes
		p.standing = 200 * time.Millisecond
		w := watch(t, Config{WaitSessions: waits}, p, ttl)
		got := make(chan error, 1)
		go func() {
			lease, err := w.Lock(context.Background(), key)
			if err == nil {
				err = lease.Unlock()
			}
			got <- err
		}()
		since := w.await(t, waitsSince, func(at int64) bool { return at > 0 })
		for range 3 {
			since = w.await(t, waitsSince, func(at int64) bool { return at > since })
		}
		if err := lease.Unlock(); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		if lease, err = holder.Lock(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexWhileSomebodyWaits: one process changes the database under a lock that others wait for. To create an index
// in this way waits for all statements that have begun before.
func TestIndexWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	const ttl, key = time.Minute, "migrations"
	server := pgtest.New(t, pgtest.Options{})
	holder := watchAt(t, server.URL(), Config{}, defaultLifetimes, ttl)
	lease, err := holder.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	p := defaultLifetimes
	p.standing = 300 * time.Millisecond
	w := watchAt(t, server.URL(), Config{}, p, ttl)
	got := make(chan error, 1)
	go func() {
		lease, err := w.Lock(context.Background(), key)
		if err == nil {
			err = lease.Unlock()
		}
		got <- err
	}()
	w.await(t, waiting, func(n int64) bool { return n == 1 })
	if _, err := holder.admin.Exec(t.Context(), "CREATE TABLE indexed (id int)"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := holder.admin.Exec(ctx, "CREATE INDEX CONCURRENTLY ON indexed (id)"); err != nil {
		t.Errorf("the index could not be created while somebody waited for the lock: %v", err)
	}
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// TestSessionsThatAreNotNeededClose: those to wait on soon, that for leases later.
func TestSessionsThatAreNotNeededClose(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute // only the lifetimes are short: the leases have to last, also on a machine that is busy
	const parked = 200 * time.Millisecond
	key := fmt.Sprintf("unneeded/%016x", rand.Uint64())
	holder := watch(t, Config{}, defaultLifetimes, ttl)
	lease, err := holder.Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	w := watch(t, Config{}, lifetimes{lease: 5 * parked, parked: parked, standing: time.Minute}, ttl)
	got := make(chan *locker.Lease, 1)
	go func() {
		lease, err := w.Lock(context.Background(), key)
		if err != nil {
			t.Error(err)
		}
		got <- lease
	}()
	w.await(t, waiting, func(n int64) bool { return n == 1 })
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	next := <-got
	time.Sleep(5 * silence / 4) // a session that has a lock is needed, also when it has been looked at twice
	if err := next.Err(); err != nil {
		t.Fatal(err)
	}
	if err := next.Unlock(); err != nil {
		t.Fatal(err)
	}
	w.await(t, sessionCount, func(n int64) bool { return n <= 1 })
	w.await(t, sessionCount, func(n int64) bool { return n == 0 })
	again, err := w.TryLock(t.Context(), key) // and there is a new one when it is needed
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// TestKeyInSQL compares Key with the expression in its documentation.
func TestKeyInSQL(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{}, defaultLifetimes, time.Second)
	for _, name := range []string{"orders/42", "a", "\xff\x00", "jobs: ÄÖ"} {
		var key int64
		err := w.admin.QueryRow(t.Context(), `SELECT ('x' || left(encode(sha256($1), 'hex'), 16))::bit(64)::bigint`, []byte(name)).
			Scan(&key)
		if err != nil || key != Key(name) {
			t.Errorf("%q: %d in SQL (%v), %d by Key", name, key, err, Key(name))
		}
	}
}
