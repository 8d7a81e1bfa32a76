package pglock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
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
	b     *backend
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
	w.b = c.forPool(pool).(*backend)
	w.b.lifetimes = p
	w.Locker = locker.New(w.b, locker.TTL(ttl))
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
	w.b.mu.Lock()
	used := slices.Collect(maps.Keys(w.b.sessions))
	w.b.mu.Unlock()
	if err := next.Unlock(); err != nil {
		t.Fatal(err)
	}
	w.await(t, sessionCount, func(n int64) bool { return n <= 1 })
	w.await(t, sessionCount, func(n int64) bool { return n == 0 })
	for _, s := range used {
		if err := s.overBy(); !errors.Is(err, errUnneeded) || errors.Is(err, locker.ErrClosed) {
			t.Errorf("a session is over by %v; want errUnneeded, or Lock would say that the Locker is closed", err)
		}
	}
	again, err := w.TryLock(t.Context(), key) // and there is a new one when it is needed
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// before calls f before a session is told that it is over.
type before struct {
	*session
	f func()
}

func (e before) ended(cause error) {
	e.f()
	e.session.ended(cause)
}

// TestToldBeforeTheServer: when a session is given up here, the holders of its locks are told, and only then the
// server, which frees the locks.
func TestToldBeforeTheServer(t *testing.T) {
	t.Parallel()
	w := watch(t, Config{}, defaultLifetimes, time.Minute)
	lease, err := w.TryLock(t.Context(), fmt.Sprintf("told/%016x", rand.Uint64()))
	if err != nil {
		t.Fatal(err)
	}
	w.b.mu.Lock()
	s := w.b.leases[0].session
	w.b.mu.Unlock()
	told := false
	s.events = before{s, func() {
		told = true
		if err := s.conn.Conn().SetWriteDeadline(time.Time{}); err != nil {
			t.Errorf("the connection is closed already: %v", err)
		}
	}}
	s.fail(errSilent)
	if err := lease.Err(); !told || !errors.Is(err, locker.ErrLost) || !errors.Is(err, errSilent) {
		t.Errorf("%v; want ErrLost, because of errSilent", err)
	}
}

// TestSessionClosesUnderARequest: a session is closed, as nobody needs it, when somebody has just chosen it. Who can
// wait gets the lock from another one, and nobody is told that the Locker is closed, which would be final.
func TestSessionClosesUnderARequest(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(w *watched, key string) error{
		"Lock": func(w *watched, key string) error {
			lease, err := w.Lock(t.Context(), key)
			if err == nil {
				err = lease.Unlock()
			}
			return err
		},
		"TryLock": func(w *watched, key string) error {
			_, err := w.TryLock(t.Context(), key)
			if err != nil && errors.Is(err, errUnneeded) && !errors.Is(err, locker.ErrClosed) {
				return nil
			}
			return fmt.Errorf("%w; want errUnneeded", err)
		},
	} {
		// A Locker whose session was closed before would look after what is left of that, and wait for the mutex that
		// is locked below.
		w := watch(t, Config{}, defaultLifetimes, time.Minute)
		lease, err := w.TryLock(t.Context(), "warm") // there is a session
		if err == nil {
			err = lease.Unlock()
		}
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("closing/%s/%016x", name, rand.Uint64())
		w.b.mu.Lock()
		s := w.b.leases[0].session
		w.b.mu.Unlock()
		s.mu.Lock() // keeps all from sending
		asked := locktest.Started(func() error { return ask(w, key) })
		locktest.Eventually(t, "the session was chosen", func() bool { return Unsettled(w.b, key) == 1 })
		w.b.mu.Lock()
		w.b.leases = nil // as attend has it, which then closes it
		w.b.mu.Unlock()
		s.cause = &sessionOver{errUnneeded}
		s.mu.Unlock()
		if err := asked.Get(t); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.mu.Lock()
		s.cause = nil
		s.mu.Unlock()
		s.close(errUnneeded)
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

// TestGoTogether checks that who asks at the same time as others shares a message with them, if many do.
func TestGoTogether(t *testing.T) { // not in parallel: there is one processor, so that they ask in turns
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	w := watch(t, Config{}, defaultLifetimes, time.Minute)
	s, err := w.b.open(time.Minute, toLock)
	if err != nil {
		t.Fatal(err)
	}
	const askers, rounds = 64, 20
	for round, most := 0, 0; most < askers/2; round++ { // the scheduler may have one wait for a few of the others only
		if round == rounds {
			t.Fatalf("of %d who ask at once, at most %d share the first message", askers, most)
		}
		s.mu.Lock()
		s.came, s.hurry = fewOut+1, 0
		s.mu.Unlock()
		outcomes := make(chan outcome, askers)
		for i := range askers {
			key := int64(round*askers + i)
			go s.submitAndRead(&request{key: key, then: func(o outcome) { outcomes <- o }}, func() bool { return true })
		}
		var first time.Time
		messages := make(map[time.Time]int) // and how many share each
		for range askers {
			o := <-outcomes
			if o.err != nil || !o.done {
				t.Fatalf("a lock that nobody has: %+v", o)
			}
			messages[o.sent]++
			if first.IsZero() || o.sent.Before(first) {
				first = o.sent
			}
		}
		most = max(most, messages[first])
	}
}
