package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestLongWaitNeedsNoNewSession: who stands in line has a session that works. That no further one can be had, here
// because the password was changed, is no reason to end the wait when the place is renewed.
func TestLongWaitNeedsNoNewSession(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := appRole(t, admin, server.URL())
	key := unique("key")
	held := mustLock(t, open(t, server.URL()), key)
	l := openWatched(t, pglock.Config{}, dsn)
	pglock.SetLifetimes(l.backend, 100*time.Millisecond, 300*time.Millisecond)
	next := locktest.Started(func() error {
		lease, err := lock(l, key)
		if err == nil {
			err = lease.Unlock()
		}
		return err
	})
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	admin.do("ALTER ROLE " + app + " PASSWORD 'changed'")
	select {
	case err := <-next.Done:
		t.Fatalf("the wait has ended: %v", err)
	case <-time.After(2 * time.Second): // several renewals
	}
	mustUnlock(t, held)
	if err := next.Get(t); err != nil {
		t.Error(err)
	}
}

// TestLongWaitKeepsItsSession: a worker that stands by does not connect again and again.
func TestLongWaitKeepsItsSession(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	held := mustLock(t, open(t, url), key)
	l := openWatched(t, pglock.Config{}, url, locker.TTL(2*time.Second)) // a session is looked at four times in that
	// A third, like the defaults.
	pglock.SetLifetimes(l.backend, 600*time.Millisecond, 1800*time.Millisecond)
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	pids := map[int]bool{}
	for start := time.Now(); time.Since(start) < 9*time.Second; time.Sleep(5 * time.Millisecond) {
		if pid := admin.count("SELECT coalesce(max(pid), 0) FROM pg_locks WHERE NOT granted AND "+oneKey, pglock.Key(key)); pid > 0 {
			pids[pid] = true
		}
	}
	mustUnlock(t, held)
	mustUnlock(t, next.Get(t))
	if len(pids) > 2 {
		t.Errorf("one wait has used %d sessions one after the other", len(pids))
	}
}

// TestUnlockOfAnotherRole: after SET ROLE, the server does not show when a process was started, so that one that still
// has the lock is taken for gone.
func TestUnlockOfAnotherRole(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	app, dsn := role(t, admin, server.URL())
	owner := unique("owner")
	admin.do("CREATE ROLE " + owner)
	admin.do("GRANT " + owner + " TO " + app)
	for _, grant := range documentedGrants(t) {
		admin.do(strings.Replace(grant, "TO app", "TO "+owner, 1))
	}
	proxy, dsn := behind(t, dsn)
	l := openChanged(t, dsn, func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "SET ROLE "+owner)
			return err
		}
	}, locker.TTL(6*time.Second))
	key := unique("key")
	lease := mustTry(t, l, key)
	for _, c := range proxy.Conns() { // new ones are fine
		c.Set(faultproxy.BlackHole())
	}
	err := lease.Unlock()
	if n := admin.holders(key); err == nil && n > 0 {
		t.Errorf("Unlock says that it is done, and the server has the lock")
	}
}

// TestFirstInLineLeaves: the session that waits has the TTL of him who came first, and then left. Cut off, it is
// granted the lock for that time.
func TestFirstInLineLeaves(t *testing.T) {
	t.Parallel()
	const ttl, patience = 3 * time.Second, 20 * time.Second
	url, key := pgtest.URL(t), unique("key")
	admin, other := connect(t, url), open(t, url)
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn)
	held := mustLock(t, other, key)
	first, leave := context.WithCancel(t.Context())
	defer leave()
	left := locktest.Started(func() error { _, err := l.Lock(first, key, locker.TTL(time.Hour)); return err })
	eventually(t, "the first waits", func() bool { return admin.inLine(key) == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _, _ = l.Lock(ctx, key, locker.TTL(ttl)) }()
	eventually(t, "the second waits", func() bool { return pglock.InLine(l.backend, key) == 2 })
	leave()
	_ = left.Get(t)
	time.Sleep(ttl) // whatever is to be set has been
	proxy.Set(faultproxy.BlackHole())
	mustUnlock(t, held)
	within, done := context.WithTimeout(t.Context(), patience)
	defer done()
	if lease, err := other.Lock(within, key); err != nil {
		t.Errorf("the only one who waits has a TTL of %v; cut off, he blocks the key for %v and more: %v",
			ttl, patience, err)
	} else {
		mustUnlock(t, lease)
	}
}

// askedOnAHungSession returns a Locker whose session hangs, and has a lock, and a key that was asked for there in vain.
func askedOnAHungSession(t *testing.T) (l locker.Locker, key string) {
	t.Helper()
	proxy, dsn := behind(t, pgtest.URL(t))
	l = open(t, dsn, locker.TTL(time.Hour))
	mustTry(t, l, unique("other"))
	for _, c := range proxy.Conns() { // new ones are fine
		c.Set(faultproxy.BlackHole())
	}
	key = unique("key")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _ = l.TryLock(ctx, key)
	return l, key
}

// TestHungSessionWithALock: a key that was asked for on a session that hangs, and has a lock, cannot be had for the TTL
// of that.
func TestHungSessionWithALock(t *testing.T) {
	t.Parallel()
	l, key := askedOnAHungSession(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if _, err := l.Lock(ctx, key); err != nil {
		t.Errorf("a free key, which nobody has or wants any more: %v", err)
	}
}

// TestCancelOvertakesTheWait: who leaves the line at once, when his wait is still on its way to the server, costs no
// session.
func TestCancelOvertakesTheWait(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn)
	mustLock(t, open(t, url), key)
	for _, late := range []bool{false, true} { // the first makes the sessions
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		next := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
		eventually(t, "it waits",
			func() bool { return pglock.InLine(l.backend, key) == 1 && (late || admin.inLine(key) == 1) })
		cancel()
		if err := next.Get(t); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		eventually(t, "it has left", func() bool { return pglock.Left(l.backend) == "" && admin.inLine(key) == 0 })
		proxy.Conns()[1].Set(faultproxy.Fault{ToServer: faultproxy.Flow{Delay: 100 * time.Millisecond}})
	}
	if proxy.Conns()[1].ClientClosed() {
		t.Error("to cancel the wait has cost the session")
	}
}

// TestHungSessionAndManyThatAsk: a key was asked for on a session that hangs, and has a lock. That all others who want
// the key are sent to the session which replaces it must not make them ask that one at the same time: session locks
// stack.
func TestHungSessionAndManyThatAsk(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l := open(t, dsn, locker.TTL(time.Hour))
	mustTry(t, l, unique("other"))
	for _, c := range proxy.Conns() { // new ones are fine
		c.Set(faultproxy.BlackHole())
	}
	var holders atomic.Int64
	var tokens sync.Map
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 6 { // the first of whom has his answer never
		wg.Go(func() {
			lease, err := l.Lock(ctx, key)
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			if n := holders.Add(1); n > 1 {
				t.Errorf("%d have the lock", n)
			}
			if _, twice := tokens.LoadOrStore(lease.Token(), true); twice {
				t.Errorf("token %d was given twice", lease.Token())
			}
			admin.holders(key) // which takes a while
			if err := lease.Err(); err != nil {
				t.Error(err)
			}
			holders.Add(-1)
			mustUnlock(t, lease)
		})
	}
	n := func() (n int) { tokens.Range(func(_, _ any) bool { n++; return true }); return n }
	eventually(t, "all but the first have had the lock", func() bool { return n() >= 5 || t.Failed() })
	cancel()
	wg.Wait()
	eventually(t, "nobody has the lock", func() bool { return admin.holders(key) == 0 })
}

// TestLockOnAHungServer: that nothing answers is known after the TTL.
func TestLockOnAHungServer(t *testing.T) {
	t.Parallel()
	const ttl, calls = time.Second, 3
	proxy, dsn := behind(t, pgtest.URL(t))
	proxy.Set(faultproxy.BlackHole())
	l := open(t, dsn, locker.TTL(ttl))
	key := unique("key")
	locktest.Tries(t, func() error {
		start := time.Now()
		var errs []locktest.Pending[error]
		for range calls { // they do not wait for each other
			errs = append(errs, locktest.Started(func() error { _, err := lock(l, key); return err }))
		}
		for _, err := range errs {
			if err := err.Get(t); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Lock: %v; want that the server does not answer", err)
			}
		}
		if d := time.Since(start); d < ttl || d > 5*ttl {
			return fmt.Errorf("Lock took %v with a TTL of %v", d, ttl)
		}
		return nil
	})
}

// TestHungSessionIsForgotten: that a key was asked for on a session that hangs, and has a lock, does not matter any
// more once another session has been asked.
func TestHungSessionIsForgotten(t *testing.T) {
	t.Parallel()
	l, key := askedOnAHungSession(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for range 3 {
		lease, err := l.Lock(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.TryLock(ctx, key); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock of a key that is held: %v; want ErrLocked", err)
		}
		mustUnlock(t, lease)
	}
}

// cuttable are connections that this end can lose without the other noticing.
type cuttable struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cuttable) add(conn net.Conn) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	return conn
}

// cut ends connections, of which the server hears nothing.
func (c *cuttable) cut(t *testing.T, proxy *faultproxy.Proxy, which ...int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range which {
		for _, pc := range proxy.Conns() {
			if pc.ClientAddr().String() == c.conns[i].LocalAddr().String() {
				pc.Set(faultproxy.BlackHole())
			}
		}
	}
	for _, i := range which {
		_ = c.conns[i].Close()
		time.Sleep(300 * time.Microsecond)
	}
}

// TestGhostOfABusyLocker: a session that is over for us is ended also while the Locker is busy all the time.
func TestGhostOfABusyLocker(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, other := connect(t, url), open(t, url)
	proxy, dsn := behind(t, url)
	var conns cuttable
	l := openChanged(t, dsn, wrapped(conns.add), locker.TTL(time.Minute))
	mustUnlock(t, mustTry(t, l, unique("key"))) // the session for leases
	held := mustLock(t, other, key)
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	mustUnlock(t, held)
	lease := next.Get(t)
	proxy.Set(faultproxy.Delay(5 * time.Millisecond))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if lease, err := l.TryLock(ctx, fmt.Sprint(key, i)); err == nil {
					_ = lease.Unlock()
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	conns.cut(t, proxy, 1)
	<-lease.Done()
	for start := time.Now(); admin.holders(key) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 20*time.Second { // the TTL is much longer
			t.Fatalf("its holder was told (%v), and 20 s later the server still has the lock", lease.Err())
		}
	}
}

// TestGhostIsBuriedTooSoon: one session ends, and while the holders of its many locks are told one by one, another
// session ends, too, which makes the Locker end the process of the first: whoever waits for its locks has them before
// their holders are told.
func TestGhostIsBuriedTooSoon(t *testing.T) {
	const leases, contexts, rivals = 2000, 40, 8
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	rival := open(t, server.URL(), locker.TTL(time.Minute))
	proxy, dsn := behind(t, server.URL())
	for round := range 5 {
		var conns cuttable
		l := openChanged(t, dsn, wrapped(conns.add), locker.TTL(time.Minute))
		var held []*locker.Lease
		for i := range leases { // on the first session
			lease := mustTry(t, l, fmt.Sprint(round, " ", i))
			for range contexts {
				_, cancel := lease.Context(context.Background())
				defer cancel()
			}
			held = append(held, lease)
		}
		mustUnlock(t, mustTry(t, l, "second", locker.TTL(59*time.Second)))
		mustUnlock(t, mustTry(t, l, "third", locker.TTL(58*time.Second)))
		type grant struct {
			token uint64
			both  time.Duration // how long the former holder still trusted its lease
			err   error
		}
		var grants []locktest.Pending[grant]
		for i := range rivals {
			grants = append(grants, locktest.Started(func() (g grant) {
				lease, err := lock(rival, fmt.Sprint(round, " ", i))
				if err != nil {
					return grant{err: err}
				}
				if start := time.Now(); held[i].Err() == nil {
					<-held[i].Done()
					g.both = time.Since(start)
				}
				g.token = lease.Token()
				g.err = lease.Unlock()
				return g
			}))
		}
		for i := range rivals {
			eventually(t, "a rival waits", func() bool { return admin.inLine(fmt.Sprint(round, " ", i)) == 1 })
		}
		conns.cut(t, proxy, 0, 1)
		for i, g := range grants {
			g := g.Get(t)
			if g.err != nil && !errors.Is(g.err, locker.ErrLost) {
				t.Error(g.err)
			}
			if g.both > 0 {
				t.Errorf(
					"round %d, key %d: a rival has the lock, and the lease of the former holder (token %d < %d) was trusted %v longer",
					round,
					i,
					held[i].Token(),
					g.token,
					g.both,
				)
			}
		}
		_ = l.Close()
	}
}

// TestUnlockAfterTheEnd: the server has ended the session, and a rival had the lock, before Unlock was called. That the
// lock is not there any more does not mean that this Unlock did it.
func TestUnlockAfterTheEnd(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin, rival := connect(t, url), open(t, url)
	proxy, dsn := behind(t, url)
	l := open(t, dsn)
	lease := mustTry(t, l, key)
	proxy.Conns()[0].Set(faultproxy.Fault{ToClient: faultproxy.Flow{Delay: 500 * time.Millisecond}})
	takeAway(t, url, key) // which is on its way to the holder
	next := mustLock(t, rival, key)
	mustUnlock(t, next)
	eventually(t, "the key is free", func() bool { return admin.holders(key) == 0 })
	if lease.Err() != nil {
		t.Skip("its holder was told in time")
	}
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock: %v, though a rival had the lock meanwhile (token %d > %d); want ErrLost", err, next.Token(),
			lease.Token())
	}
}
