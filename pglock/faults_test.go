package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
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

// behind puts a proxy in front of a server, and returns the connection string for it.
func behind(t *testing.T, dsn string) (*faultproxy.Proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy := faultproxy.New(t, u.Host)
	u.Host = proxy.Addr()
	return proxy, u.String()
}

// openChanged returns a Locker with a pool whose configuration was changed, closed with the test.
func openChanged(t *testing.T, dsn string, change func(*pgxpool.Config), opts ...locker.Option) locker.Locker {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	change(config)
	p, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	l := pglock.New(p, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// wrapped makes the connections of a pool with wrap.
func wrapped(wrap func(net.Conn) net.Conn) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
}

// tunnel is a connection without deadlines, such as packages for tunnels make them.
type tunnel struct{ net.Conn }

func (tunnel) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (tunnel) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (tunnel) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

func TestConnWithoutDeadlines(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second // its renewals are in time also when the machine is busy
	l := openChanged(t, pgtest.URL(t), wrapped(func(c net.Conn) net.Conn { return tunnel{c} }), locker.TTL(ttl))
	works(t, l, l, 2)
}

// stuck is a tunnel that takes nothing any more once it is told to, and does not say so.
type stuck struct {
	tunnel
	told *atomic.Bool
	over chan struct{}
	end  func()
}

func newStuck(c net.Conn) stuck {
	over := make(chan struct{})
	return stuck{tunnel{c}, new(atomic.Bool), over, sync.OnceFunc(func() { close(over) })}
}

func (c stuck) Write(p []byte) (int, error) {
	if !c.told.Load() {
		return c.tunnel.Write(p)
	}
	<-c.over
	return 0, net.ErrClosed
}

func (c stuck) Close() error {
	c.end()
	return c.tunnel.Close()
}

// TestStuckConnWithoutDeadlines: one connection that takes nothing must not be in the way of all others.
func TestStuckConnWithoutDeadlines(t *testing.T) {
	t.Parallel()
	first := make(chan stuck, 1)
	l := openChanged(t, pgtest.URL(t), wrapped(func(c net.Conn) net.Conn {
		s := newStuck(c)
		select {
		case first <- s:
		default:
		}
		return s
	}))
	mustUnlock(t, mustTry(t, l, unique("key")))
	conn := <-first
	defer conn.end()
	conn.told.Store(true)
	same := locktest.Started(func() error {
		_, err := l.TryLock(t.Context(), unique("key"))
		return err
	})
	next := locktest.Started(func() error {
		_, err := lock(l, unique("key"), locker.TTL(time.Hour)) // on a connection of its own
		return err
	})
	for _, call := range []locktest.Pending[error]{same, next} {
		select {
		case <-call.Done:
		case <-time.After(10 * time.Second):
			t.Fatal("a call has not returned in 10 s")
		}
	}
}

// halfWrites are connections of which one write gets only half of its data across before its deadline.
type halfWrites struct {
	net.Conn
	count, half *atomic.Int64 // how many writes there were; which one it is, or 0
}

func (c halfWrites) Write(p []byte) (int, error) {
	if c.count.Add(1) != c.half.Load() {
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:len(p)/2])
	return n, os.ErrDeadlineExceeded
}

// TestHalfAMessage is written by whom it does not concern: one who reads his own answer, and then sends what others
// left behind. It must not be taken for the end of his patience.
func TestHalfAMessage(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute
	for range 5 {
		var count, half atomic.Int64
		proxy, dsn := behind(t, pgtest.URL(t))
		l := openChanged(t, dsn, wrapped(func(c net.Conn) net.Conn { return halfWrites{c, &count, &half} }), locker.TTL(ttl))
		lease, key := mustTry(t, l, unique("key")), unique("key")
		proxy.Set(faultproxy.Delay(5 * time.Millisecond))
		before := count.Load()
		half.Store(before + 3)
		ctx, cancel := context.WithTimeout(t.Context(), ttl/4)
		defer cancel()
		var calls []locktest.Pending[error]
		for i := range 3 { // two messages under way, and the third request is left to be sent when one is answered
			calls = append(calls, locktest.Started(func() error {
				_, err := l.TryLock(ctx, fmt.Sprint(key, i))
				return err
			}))
			eventually(t, "it was sent", func() bool { return i == 2 || count.Load() > before+int64(i) })
		}
		for _, call := range calls {
			if err := call.Get(t); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("half a message was sent, and nobody noticed: %v", err)
			}
		}
		eventually(t, "the other lease of that session is lost", func() bool { return lease.Err() != nil })
	}
}

// TestUnlockWithoutAnswer: that nothing is heard of an Unlock does not mean that it was done.
func TestUnlockWithoutAnswer(t *testing.T) {
	t.Parallel()
	const ttl = 5 * time.Second // long enough for a session without locks to be given up
	for name, all := range map[string]bool{"server": true, "connection": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, key := pgtest.URL(t), unique("key")
			admin := connect(t, url)
			proxy, dsn := behind(t, url)
			lease := mustTry(t, open(t, dsn, locker.TTL(ttl)), key)
			for _, c := range proxy.Conns() {
				c.Set(faultproxy.BlackHole())
			}
			if all {
				proxy.Set(faultproxy.BlackHole())
			}
			err := lease.Unlock()
			if n := admin.holders(key); err == nil && n > 0 {
				t.Error("Unlock says that it is done, and the server has the lock")
			}
			eventually(t, "the server has freed the lock", func() bool { return admin.holders(key) == 0 })
		})
	}
}

// TestHungSessionIsReplaced: nobody has to wait until the end of a long TTL for a session that does not answer, if it
// has no lock.
func TestHungSessionIsReplaced(t *testing.T) {
	t.Parallel()
	const ttl = time.Hour
	proxy, dsn := behind(t, pgtest.URL(t))
	l := open(t, dsn, locker.TTL(ttl))
	key := unique("key")
	mustUnlock(t, mustTry(t, l, key))
	for _, c := range proxy.Conns() { // new ones are fine
		c.Set(faultproxy.BlackHole())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := l.TryLock(ctx, key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("TryLock without an answer: %v; want DeadlineExceeded", err)
	}
	mustUnlock(t, mustLock(t, l, key))
	mustUnlock(t, mustTry(t, l, unique("key")))
}

// TestReusedSessionTakesTheTTL has a session waited on for a lease of one TTL, and then for one of another.
func TestReusedSessionTakesTheTTL(t *testing.T) {
	t.Parallel()
	config := pglock.Config{WaitSessions: 1}
	const brief = 3 * time.Second // for who waits to be in line in time also when the machine is busy
	// wait has l wait for the key. It returns when that is so.
	wait := func(t *testing.T, admin *session, l, other locker.Locker, key string, ttl time.Duration) (held *locker.Lease, next locktest.Pending[*locker.Lease]) {
		held = mustLock(t, other, key)
		next = locktest.Started(func() *locker.Lease {
			lease, err := lock(l, key, locker.TTL(ttl))
			if err != nil {
				t.Error(err)
			}
			return lease
		})
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		return held, next
	}
	t.Run("shorter", func(t *testing.T) { // and is cut off while it waits: it is granted the lock all the same
		t.Parallel()
		const long, ttl = time.Hour, brief
		url, key := pgtest.URL(t), unique("key")
		admin, other := connect(t, url), open(t, url)
		proxy, dsn := behind(t, url)
		l := openConfig(t, config, dsn)
		held, next := wait(t, admin, l, other, key, long)
		mustUnlock(t, held)
		mustUnlock(t, next.Get(t))
		held = mustLock(t, other, key)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cut := locktest.Started(func() error { _, err := l.Lock(ctx, key, locker.TTL(ttl)); return err })
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		proxy.Set(faultproxy.BlackHole())
		mustUnlock(t, held)
		mustUnlock(t, mustLock(t, other, key)) // long before the end of the longer TTL
		cancel()
		if err := cut.Get(t); err == nil {
			t.Error("who was cut off has got the lock")
		}
	})
	t.Run("shorter, since the first has left before there was a session", func(t *testing.T) { // and the second is cut off
		t.Parallel()
		const long, ttl = time.Hour, brief
		url, key := pgtest.URL(t), unique("key")
		admin, other := connect(t, url), open(t, url)
		proxy, dsn := behind(t, url)
		l := openWatched(t, config, dsn)
		for _, d := range []time.Duration{long, ttl} { // the sessions that say that the key is locked
			mustUnlock(t, mustTry(t, l, unique("key"), locker.TTL(d)))
		}
		held := mustLock(t, other, key)
		proxy.Set(faultproxy.Delay(50 * time.Millisecond))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		first, leave := context.WithCancel(ctx)
		left := locktest.Started(func() error { _, err := l.Lock(first, key, locker.TTL(long)); return err })
		eventually(t, "the first waits", func() bool { return pglock.InLine(l.backend, key) == 1 })
		cut := locktest.Started(func() error { _, err := l.Lock(ctx, key, locker.TTL(ttl)); return err })
		eventually(t, "the second waits", func() bool { return pglock.InLine(l.backend, key) == 2 })
		if admin.inLine(key) > 0 {
			t.Skip("there is a session already")
		}
		leave()
		_ = left.Get(t)
		eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
		proxy.Set(faultproxy.BlackHole())
		mustUnlock(t, held)
		mustUnlock(t, mustLock(t, other, key)) // long before the end of the longer TTL
		cancel()
		if err := cut.Get(t); err == nil {
			t.Error("who was cut off has got the lock")
		}
	})
	t.Run("longer", func(t *testing.T) { // and answers take longer than the shorter TTL
		t.Parallel()
		const short, ttl = 800 * time.Millisecond, time.Hour // who is silent for two seconds is given up
		url := pgtest.URL(t)
		admin, other := connect(t, url), open(t, url)
		locktest.Tries(t, func() error { // answers may take longer still, on a machine that is busy
			key := unique("key")
			proxy, dsn := behind(t, url)
			l := openConfig(t, config, dsn)
			held, next := wait(t, admin, l, other, key, short)
			mustUnlock(t, held)
			if err := next.Get(t).Unlock(); err != nil && !errors.Is(err, locker.ErrLost) {
				t.Error(err)
			}
			held, next = wait(t, admin, l, other, key, ttl)
			session := func(granted bool) int {
				return admin.count("SELECT coalesce(max(pid), 0) FROM pg_locks WHERE granted = $2 AND "+oneKey,
					pglock.Key(key), granted)
			}
			waited := session(false)
			proxy.Set(faultproxy.Delay(short * 3 / 4))
			mustUnlock(t, held)
			lease := next.Get(t)
			proxy.Heal()
			holds := session(true)
			mustUnlock(t, lease)
			if holds != waited {
				return errors.New("the lock is not on the session it was waited for on, so the server has ended that")
			}
			return nil
		})
	})
}

// TestSuccessorOfALostLease has a session ended by the server while another of the same Locker waits for its key, and
// the Locker learns of the grant before it learns of the end.
func TestSuccessorOfALostLease(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn, locker.TTL(4*time.Second))
	first := mustTry(t, l, key)
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
	eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
	oldest := proxy.Conns()[0] // that of the first lease
	oldest.Set(faultproxy.Fault{ToClient: faultproxy.Flow{Delay: 300 * time.Millisecond}})
	takeAway(t, url, key)
	second := next.Get(t)
	if err := first.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("the successor in the same Locker has the key, and the first lease says %v", err)
	}
	if second.Token() <= first.Token() {
		t.Errorf("token %d after %d", second.Token(), first.Token())
	}
	eventually(t, "the end is known", oldest.ClientClosed)
	if !pglock.Holds(l.backend, key) {
		t.Error("with the first lease, the second was forgotten")
	}
	mustUnlock(t, second)
	if n := admin.locks(l.app); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestSuccessorIsFaster is TestSuccessorOfALostLease, but it is the grant of the first that the Locker learns of later.
// What the first was granted is over by then, and must not displace the successor.
func TestSuccessorIsFaster(t *testing.T) {
	t.Parallel()
	t.Run("waiting", func(t *testing.T) {
		t.Parallel()
		locktest.Tries(t, func() error { // a busy machine may take so long that the first hears of its token before
			url, key := pgtest.URL(t), unique("key")
			admin := connect(t, url)
			proxy, dsn := behind(t, url)
			l := openWatched(t, pglock.Config{}, dsn)
			held := mustLock(t, open(t, url), key)
			first := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
			eventually(t, "the first waits", func() bool { return admin.inLine(key) == 1 })
			its := proxy.Conns()[1]
			second := locktest.Started(func() *locker.Lease { return mustLock(t, l, key) })
			eventually(t, "the second waits, and has a session", func() bool {
				return pglock.InLine(l.backend, key) == 2 && admin.connections(l.app) == 3
			})
			its.Set(faultproxy.Fault{ToClient: faultproxy.Flow{Delay: time.Second}})
			mustUnlock(t, held)
			eventually(t, "the second is in Postgres's line", func() bool {
				return pglock.InLine(l.backend, key) == 1 && admin.inLine(key) == 1
			})
			eventually(t, "the first has a token", func() bool {
				return admin.is(`SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
					WHERE granted AND state = 'idle' AND query LIKE '%locker_mint%' AND `+oneKey+")", pglock.Key(key))
			})
			takeAway(t, url, key)
			two := second.Get(t)
			again := locktest.Within(locktest.Patience/3, func() bool { return pglock.InLine(l.backend, key) == 1 })
			if err := two.Err(); err != nil {
				t.Errorf("the second, whose session lives: %v", err)
			}
			mustUnlock(t, two)
			one := first.Get(t)
			if !again {
				_ = one.Unlock()
				return errors.New("the first is not in line again")
			}
			if one.Token() <= two.Token() {
				t.Errorf("token %d after %d", one.Token(), two.Token())
			}
			mustUnlock(t, one)
			if n := admin.locks(l.app); n != 0 {
				t.Errorf("%d locks are left", n)
			}
			return nil
		})
	})
	for name, unlocked := range map[string]bool{"held": false, "held no more": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, key := pgtest.URL(t), unique("key")
			admin := connect(t, url)
			proxy, dsn := behind(t, url)
			l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Hour))
			mustTry(t, l, unique("other")) // so that its session is not given up
			its := proxy.Conns()[0]
			its.Set(faultproxy.Fault{ToClient: faultproxy.Flow{Delay: time.Minute}})
			first := locktest.Started(func() error { _, err := l.TryLock(t.Context(), key); return err })
			eventually(t, "the first was granted the lock", func() bool { return admin.holders(key) == 1 })
			takeAway(t, url, key)
			second := mustTry(t, l, key) // of another session
			if unlocked {
				mustUnlock(t, second)
			}
			its.Heal()
			if err := first.Get(t); err == nil {
				t.Error("the first was granted the lock after the second")
			}
			eventually(t, "the end is known", its.ClientClosed)
			if !unlocked {
				if err := second.Err(); err != nil {
					t.Errorf("the second, whose session lives: %v", err)
				}
				mustUnlock(t, second)
			}
			if n := admin.locks(l.app); n != 0 {
				t.Errorf("%d locks are left", n)
			}
		})
	}
}

// TestCeilingBlocked has a transaction block what tokens depend on, when more of them are needed. That costs who needs
// them his attempt, but nobody a lease.
func TestCeilingBlocked(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second // its renewals are in time also when the machine is busy
	url := pgtest.URL(t)
	admin, blocker := connect(t, url), connect(t, url)
	config := pglock.Config{Namespace: namespace(t, admin)}
	l := openConfig(t, config, url, locker.TTL(ttl))
	lease := mustTry(t, l, unique("key"))
	blocker.do(fmt.Sprintf("SELECT setval('%s.token', ceiling) FROM %[1]s.token_ceiling", config.Namespace))
	blocker.do("BEGIN")
	blocker.do(fmt.Sprintf("SELECT FROM %s.token_ceiling FOR UPDATE", config.Namespace))
	key := unique("key")
	_, err := l.TryLock(t.Context(), key)
	checkError(t, err, "trylock", key, locker.ErrUnavailable)
	locktest.Outlives(t, lease, 2) // the other one
	blocker.do("ROLLBACK")
	if next := mustTry(t, l, key); next.Token() <= lease.Token() {
		t.Errorf("token %d after %d", next.Token(), lease.Token())
	} else {
		mustUnlock(t, next)
	}
	mustUnlock(t, lease)
}

// TestHookLeavesATransaction: idle_session_timeout does not count in one, so that who is cut off would keep his locks
// for good.
func TestHookLeavesATransaction(t *testing.T) {
	t.Parallel()
	l := openChanged(t, pgtest.URL(t), func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "BEGIN")
			return err
		}
	})
	failures.CheckAcquires(t, l, unique("key"), pglock.ErrSettings, "transaction")
}

// TestNamespaces has names that are not easy to write into a statement, for a role that makes that harder.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	app, dsn := role(t, admin, server.URL())
	admin.do("GRANT CREATE ON DATABASE postgres TO " + app)
	for _, setting := range []string{"standard_conforming_strings = off", "exit_on_error = on", "client_encoding = 'LATIN1'", "backslash_quote = on"} {
		admin.do("ALTER ROLE " + app + " SET " + setting)
	}
	for _, ns := range []string{`we"ird`, `100%d`, `ü€😀`, `back\slash'quote`, `$ns $token $limit`, `a.b`, ` `} {
		t.Run(ns, func(t *testing.T) {
			mustUnlock(t, mustTry(t, openConfig(t, pglock.Config{Namespace: ns}, dsn), "key"))
		})
	}
}
