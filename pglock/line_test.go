package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// watched is a Locker whose line can be looked at, with an application_name of its own.
type watched struct {
	locker.Locker
	backend locker.Backend
	app     string
}

func openWatched(t *testing.T, c pglock.Config, dsn string, opts ...locker.Option) watched {
	t.Helper()
	app := unique("app")
	b := c.NewBackend(pool(t, with(t, dsn, "application_name", app)))
	l := locker.New(b, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return watched{l, b, app}
}

// TestLine has a hundred goroutines wait for one key of one Locker.
func TestLine(t *testing.T) {
	t.Parallel()
	const waiters = 100
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url)
	first := mustTry(t, l, key)
	var mu sync.Mutex
	var served []int
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() {
			lease := mustLock(t, l, key)
			mu.Lock()
			served = append(served, i)
			mu.Unlock()
			mustUnlock(t, lease)
		})
		eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == i+1 })
	}
	eventually(t, "the Locker is in line", func() bool { return admin.inLine(key) == 1 })
	isLocked(t, l, key)
	most := sample(t, url, l.app)
	mustUnlock(t, first)
	wg.Wait()
	if !slices.IsSorted(served) || len(served) != waiters {
		t.Errorf("served in the order %v", served)
	}
	if n := most(); n > 1+pglock.DefaultWaitSessions {
		t.Errorf("%d connections for a line of %d; want %d at most", n, waiters, 1+pglock.DefaultWaitSessions)
	}
}

// sample looks at the number of connections with an application_name all the time, and returns the greatest when it is
// told to end.
func sample(t *testing.T, dsn, app string) (end func() int) {
	t.Helper()
	admin := connect(t, dsn)
	stop := make(chan struct{})
	most := locktest.Started(func() (most int) {
		for {
			most = max(most, admin.connections(app))
			select {
			case <-stop:
				return most
			case <-time.After(3 * time.Millisecond): // others need the processor, too
			}
		}
	})
	return func() int {
		close(stop)
		return most.Get(t)
	}
}

// TestOrderOfArrival: those who come while it is not known yet whether the key is locked are served in order of
// arrival, too.
func TestOrderOfArrival(t *testing.T) {
	t.Parallel()
	const waiters = 8
	url, key := pgtest.URL(t), unique("key")
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Hour))
	mustTry(t, l, unique("other")) // so that its session is not given up, however long this takes
	held := mustLock(t, open(t, url), key)
	proxy.Set(faultproxy.Delay(time.Minute))
	var mu sync.Mutex
	var served []int
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() {
			lease := mustLock(t, l, key)
			mu.Lock()
			served = append(served, i)
			mu.Unlock()
			mustUnlock(t, lease)
		})
		eventually(t, "the first has asked, and the others wait for the answer", func() bool {
			return pglock.Unsettled(l.backend, key) == i+1
		})
	}
	proxy.Heal()
	eventually(t, "all are in line", func() bool { return pglock.InLine(l.backend, key) == waiters })
	mustUnlock(t, held)
	wg.Wait()
	if !slices.IsSorted(served) {
		t.Errorf("served in the order %v", served)
	}
}

// TestLockersTakeTurns has two Lockers wait for one key, with several waiters each.
func TestLockersTakeTurns(t *testing.T) {
	t.Parallel()
	const each = 10
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	lockers := []watched{openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)}
	var wg sync.WaitGroup
	first := mustTry(t, open(t, url), key)
	var mu sync.Mutex // for the race detector, which does not know of the lock
	left := []int{each, each}
	var served []int
	for i, l := range lockers {
		for j := range each {
			wg.Go(func() {
				lease := mustLock(t, l, key)
				mu.Lock()
				served = append(served, i)
				left[i]--
				want := min(left[0], 1) + min(left[1], 1)
				mu.Unlock()
				eventually(t, "all Lockers that have waiters are in line", func() bool { return admin.inLine(key) == want })
				mustUnlock(t, lease)
			})
			eventually(t, "the waiter is in line", func() bool { return pglock.InLine(l.backend, key) == j+1 })
		}
		eventually(t, "the Locker is in line", func() bool { return admin.inLine(key) == i+1 })
	}
	mustUnlock(t, first)
	wg.Wait()
	for i, which := range served {
		if which != i%2 {
			t.Fatalf("served in the order %v: the Lockers do not take turns", served)
		}
	}
}

// TestMoreKeysThanWaitSessions waits for more keys than there are sessions to wait on.
func TestMoreKeysThanWaitSessions(t *testing.T) { // not in parallel: it measures
	locktest.Tries(t, func() error {
		if median := handoffs(t); median > 20*time.Millisecond { // it is two or three; by polls alone, between 25 and 50
			return fmt.Errorf("median %v: those who poll seem not to be told when a key is free", median)
		}
		return nil
	})
}

// handoffs returns how long it takes from Unlock to the next holder, half of the time, where most have to poll.
func handoffs(t *testing.T) (median time.Duration) {
	t.Helper()
	const keys, sessions = 80, 2
	url := pgtest.URL(t)
	holder := open(t, url)
	l := openWatched(t, pglock.Config{WaitSessions: sessions}, url)
	prefix := unique("key")
	var leases []*locker.Lease
	served := make([]chan time.Time, keys)
	var wg sync.WaitGroup
	most := sample(t, url, l.app)
	for i := range keys {
		key := fmt.Sprint(prefix, i)
		leases = append(leases, mustLock(t, holder, key))
		served[i] = make(chan time.Time, 1)
		wg.Go(func() {
			lease, err := lock(l, key)
			served[i] <- time.Now()
			if err != nil {
				t.Error(err)
				return
			}
			mustUnlock(t, lease)
		})
		eventually(t, "it waits", func() bool { return pglock.InLine(l.backend, key) == 1 })
	}
	// Those that poll do so at their longest pause now.
	time.Sleep(300 * time.Millisecond)
	var took []time.Duration
	for _, i := range rand.Perm(keys) {
		start := time.Now()
		mustUnlock(t, leases[i])
		took = append(took, (<-served[i]).Sub(start))
	}
	wg.Wait()
	if n := most(); n > 2+sessions {
		t.Errorf("%d connections; want %d at most", n, 2+sessions)
	}
	slices.Sort(took)
	median = took[len(took)/2]
	t.Logf("from Unlock to the next holder: p50 %v, p90 %v, at most %v", median, took[len(took)*9/10], took[len(took)-1])
	return median
}

// TestIdleSessionsEnd waits once, and then has no need of the sessions for that.
func TestIdleSessionsEnd(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Minute)) // the leases last: only sessions are to end
	pglock.Parked(l.backend, 500*time.Millisecond)
	var leases []*locker.Lease
	var wg sync.WaitGroup
	for i := range 3 {
		key := fmt.Sprint(key, i)
		leases = append(leases, mustTry(t, l, key))
		wg.Go(func() { mustUnlock(t, mustLock(t, l, key)) })
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	}
	if n := admin.connections(l.app); n != 4 {
		t.Errorf("%d connections; want 4", n)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	wg.Wait()
	kept := mustTry(t, l, key)
	eventually(t, "only the session that has a lock is left", func() bool { return admin.connections(l.app) == 1 })
	if err := kept.Err(); err != nil {
		t.Error(err)
	}
	waiter := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) }) // on a new session
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	mustUnlock(t, kept)
	mustUnlock(t, waiter.Get(t))
}

// TestCancelledWaitsLeaveNothing cancels many waits just when keys are handed over.
func TestCancelledWaitsLeaveNothing(t *testing.T) {
	t.Parallel()
	const sessions = 2
	n := wires.Trials(t, 2000)
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	var lockers []watched
	var samples []func() int
	for range 4 {
		l := openWatched(
			t,
			pglock.Config{WaitSessions: sessions},
			server.URL(),
			locker.TTL(30*time.Second),
		) // an orphan would be seen
		lockers = append(lockers, l)
		samples = append(samples, sample(t, server.URL(), l.app))
	}
	keys := []string{"a", "b", "c", "d", "e"}
	var mu sync.Mutex
	var granted, cancelled int
	holders := make(map[string]int)
	holds := func(key string, n int) {
		mu.Lock()
		defer mu.Unlock()
		if holders[key] += n; holders[key] > 1 {
			t.Errorf("%d holders of %q", holders[key], key)
		}
	}
	pending := make(map[int]context.CancelFunc)
	cancelSome := func() { // two of those that wait, at random
		mu.Lock()
		defer mu.Unlock()
		left := 2
		for i, cancel := range pending {
			if left--; left < 0 {
				return
			}
			delete(pending, i)
			go cancel()
		}
	}
	room := make(chan struct{}, 40)
	var wg sync.WaitGroup
	for i := range n * 3 / 2 {
		room <- struct{}{}
		ctx, cancel := context.WithCancel(context.Background())
		mu.Lock()
		pending[i] = cancel
		mu.Unlock()
		wg.Go(func() {
			defer func() { <-room }()
			defer cancel()
			key := keys[rand.N(len(keys))]
			lease, err := lockers[i%len(lockers)].Lock(ctx, key)
			mu.Lock()
			delete(pending, i)
			if err == nil {
				granted++
			} else {
				cancelled++
			}
			mu.Unlock()
			switch {
			case err == nil:
				holds(key, 1)
				cancelSome()
				time.Sleep(rand.N(200 * time.Microsecond)) // so that cancels come before, with and after the grant
				holds(key, -1)
				mustUnlock(t, lease)
			case !errors.Is(err, context.Canceled):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range lockers {
		eventually(t, "nothing is under way", func() bool { return pglock.Left(l.backend) == "" })
	}
	if n := admin.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"); n > 0 {
		t.Errorf("%d locks are left", n)
	}
	for _, key := range keys {
		for _, l := range lockers {
			mustUnlock(t, mustTry(t, l, key))
		}
		if !admin.isFree(key) {
			t.Errorf("%q is not free", key)
		}
	}
	for i, most := range samples {
		if n := most(); n > 2+sessions {
			t.Errorf("Locker %d had %d connections; want %d at most", i, n, 2+sessions)
		}
	}
	t.Logf("%d granted, %d cancelled", granted, cancelled)
}

// TestWaitThatIsCancelled: an administrator cancels the statement of a wait, which is that of all who wait for the key
// here. It is begun anew.
func TestWaitThatIsCancelled(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]string{"as it is": "SELECT 1", "no PL/pgSQL": "DROP EXTENSION plpgsql"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, key := pgtest.New(t, pgtest.Options{}).URL(), unique("key")
			admin := connect(t, url)
			admin.do(prepare)
			held := mustTry(t, open(t, url), key)
			l := openWatched(t, pglock.Config{}, url, locker.TTL(time.Minute))
			r := locker.Request{Key: key, Owner: locker.Owner{1}, TTL: time.Minute}
			// Not by Lock, which would get into line again.
			waiter := locktest.Started(func() error {
				_, err := l.backend.(locker.Queue).Wait(t.Context(), r)
				return err
			})
			const waits = `FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE NOT granted AND ` + oneKey
			var began string
			eventually(t, "it waits", func() bool {
				began = admin.text("SELECT query_start "+waits, pglock.Key(key))
				return began != ""
			})
			admin.do("SELECT pg_cancel_backend(pid) "+waits, pglock.Key(key))
			eventually(t, "it waits again", func() bool {
				now := admin.text("SELECT query_start "+waits, pglock.Key(key))
				return now != "" && now != began
			})
			mustUnlock(t, held)
			if err := waiter.Get(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPollThatIsCancelled: an administrator cancels a statement by which a line polls. That does not end the waits.
func TestPollThatIsCancelled(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin, blocker := connect(t, url), connect(t, url)
	config := pglock.Config{Namespace: namespace(t, admin), WaitSessions: 1}
	l, other := openWatched(t, config, url, locker.TTL(time.Minute)), openConfig(t, config, url)
	key, polled := unique("key"), unique("key")
	held, next := mustTry(t, other, key), mustTry(t, other, polled)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waits := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
	eventually(t, "one waits", func() bool { return admin.inLine(key) == 1 })
	r := locker.Request{Key: polled, Owner: locker.Owner{1}, TTL: time.Minute}
	polls := locktest.Started(func() error { _, err := l.backend.(locker.Queue).Wait(ctx, r); return err })
	eventually(t, "the other polls", func() bool { return pglock.InLine(l.backend, polled) == 1 })
	blocker.do("BEGIN")
	blocker.do(fmt.Sprintf("ALTER SEQUENCE %s.token CACHE 1", config.Namespace)) // from which the statement takes a token
	mustUnlock(t, next)
	const blocked = `FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'relation'`
	eventually(t, "a poll is blocked", func() bool { return admin.count("SELECT count(*) "+blocked, l.app) == 1 })
	admin.do("SELECT pg_cancel_backend(pid) "+blocked, l.app)
	blocker.do("ROLLBACK")
	if err := polls.Get(t); err != nil {
		t.Errorf("the wait that polls: %v", err)
	}
	cancel()
	if err := waits.Get(t); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	mustUnlock(t, held)
}

// TestPollForWhoHasLeft: when the answer to a poll comes, another is the first in line than the one that it was made
// for. He does not get a lock that the server would free before his lease is over, nor one of the other kind.
func TestPollForWhoHasLeft(t *testing.T) {
	t.Parallel()
	for name, behind := range map[string][]locker.CallOption{
		"with a longer TTL": {locker.TTL(10 * time.Minute)}, "a reader": {locker.Shared(), locker.TTL(time.Minute)},
		"for a slot": {locker.Slots(2), locker.TTL(time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			admin, blocker := connect(t, url), connect(t, url)
			config := pglock.Config{Namespace: namespace(t, admin), WaitSessions: 1}
			l, other := openWatched(t, config, url, locker.TTL(time.Minute)), openConfig(t, config, url)
			key, polled := unique("key"), unique("key")
			held, before := mustTry(t, other, key), mustTry(t, other, polled)
			occupied := inLineOf(t, l, 1, key)[0]
			leave := cancelled(t, l, polled)
			eventually(t, "it polls", func() bool { return pglock.Marked(l.backend) == 1 })
			next := inLineOf(t, l, 1, polled, behind...)[0]
			blocker.do("BEGIN")
			blocker.do(fmt.Sprintf("ALTER SEQUENCE %s.token CACHE 1", config.Namespace))
			mustUnlock(t, before)
			const blocked = `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'relation'`
			eventually(t, "a poll is blocked", func() bool { return admin.count(blocked, l.app) == 1 })
			leave()
			blocker.do("ROLLBACK")
			lease := next.Get(t)
			if !pglock.Covered(l.backend, polled) {
				t.Error("the server would end the session before the lease is over")
			}
			together := lease.Mode() != locker.ModeExclusive
			if shared := admin.is(`SELECT pg_try_advisory_lock_shared($1) AND pg_advisory_unlock_shared($1)`,
				pglock.Key(polled)); shared != together {
				t.Errorf("the key is shared: %v; want %v", shared, together)
			}
			mustUnlock(t, lease)
			mustUnlock(t, held)
			mustUnlock(t, occupied.Get(t))
		})
	}
}
