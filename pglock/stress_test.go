package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// contended is a key that many fight for.
type contended struct {
	name string

	mu       sync.Mutex
	holders  map[*locker.Lease]struct{} // who believes to have it
	newest   uint64                     // the greatest token that was seen
	newestOf map[manner]uint64          // the same, for each way to hold it
}

// manner is a way to hold a key: the mode, and the number of the slot.
type manner struct {
	mode locker.Mode
	slot int
}

// heldAs returns how a lease is held: the only slot of one, too, is for one holder.
func heldAs(lease *locker.Lease) manner {
	if locker.GrantOf(lease).Slots == 1 {
		return manner{}
	}
	return manner{lease.Mode(), lease.Slot()}
}

// excludes reports whether there are never two holders at once, of whom one has the key in one way and one in another.
func (a manner) excludes(other manner) bool {
	return a.mode != other.mode || a.mode == locker.ModeExclusive || a.mode == locker.ModeSlots && a.slot == other.slot
}

func (c *contended) greatest() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

// took notes that a lease was granted, which was asked for when the greatest token was before. In order is when nobody
// ends sessions, by which there may be two holders for a moment.
func (c *contended) took(t *testing.T, lease *locker.Lease, before uint64, inOrder bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := heldAs(lease)
	for other := range c.holders {
		if inOrder && held.excludes(heldAs(other)) && lease.Err() == nil &&
			other.Err() == nil { // in this order: both were held at one moment
			t.Errorf("%q: two holders at once, %v and %v, with the tokens %d and %d", c.name, heldAs(other), held,
				other.Token(), lease.Token())
		}
	}
	for other, token := range c.newestOf {
		if inOrder && held.excludes(other) {
			before = max(before, token)
		}
	}
	if lease.Token() <= before && lease.Err() == nil {
		t.Errorf("%q: token %d after %d", c.name, lease.Token(), before)
	}
	c.newest = max(c.newest, lease.Token())
	if c.holders == nil {
		c.holders, c.newestOf = make(map[*locker.Lease]struct{}), make(map[manner]uint64)
	}
	c.newestOf[held] = max(c.newestOf[held], lease.Token())
	c.holders[lease] = struct{}{}
}

func (c *contended) left(lease *locker.Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.holders, lease)
}

// use takes the lock in one of many ways, and gives it back. It returns what went wrong, if that is worth a note.
func (c *contended) use(t *testing.T, l locker.Locker, ttls []time.Duration, inOrder bool) error {
	const patience = 20 * time.Second
	call := l.Lock
	if rand.N(4) == 0 {
		call = l.TryLock
	}
	opts := []locker.CallOption{locker.TTL(ttls[rand.N(len(ttls))])}
	if rand.N(4) == 0 {
		opts = append(opts, locker.NoRenew())
	}
	switch rand.N(8) {
	case 0, 1, 2:
		opts = append(opts, locker.Shared())
	case 3, 4:
		opts = append(opts, locker.Slots(3))
	case 5:
		opts = append(opts, locker.Slots(1+rand.N(2)))
	}
	limit := [...]time.Duration{rand.N(3 * time.Millisecond), rand.N(100 * time.Millisecond), patience, patience}[rand.N(4)]
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	before := c.greatest()
	lease, err := call(ctx, c.name, opts...)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && limit == patience:
		t.Errorf("%q could not be had in %v: %v", c.name, patience, err)
		return nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, locker.ErrLocked), errors.Is(err, locker.ErrClosed):
		return nil
	case err != nil:
		return err
	}
	c.took(t, lease, before, inOrder)
	time.Sleep(
		[...]time.Duration{0, 0, 100 * time.Microsecond, rand.N(2 * time.Millisecond), rand.N(30 * time.Millisecond)}[rand.N(5)],
	)
	c.left(lease)
	return lease.Unlock()
}

// disturbance is what happens beside to sessions, all the time.
type disturbance func(admin *session, proxies []*faultproxy.Proxy)

func resets(_ *session, proxies []*faultproxy.Proxy) {
	if c := anyConn(proxies); c != nil {
		c.Reset()
	}
}

func faults(_ *session, proxies []*faultproxy.Proxy) {
	c := anyConn(proxies)
	if c == nil {
		return
	}
	c.Set([...]faultproxy.Fault{
		faultproxy.Hang(), faultproxy.BlackHole(), faultproxy.DropReplies(), faultproxy.DropRequests(),
		faultproxy.Delay(rand.N(60 * time.Millisecond)),
	}[rand.N(5)])
	if rand.N(2) == 0 {
		time.Sleep(rand.N(300 * time.Millisecond))
		c.Heal()
	}
}

func cancels(admin *session, _ []*faultproxy.Proxy) { onOne(admin, "pg_cancel_backend") }

func kills(admin *session, _ []*faultproxy.Proxy) { onOne(admin, "pg_terminate_backend") }

func anyConn(proxies []*faultproxy.Proxy) *faultproxy.Conn {
	conns := proxies[rand.N(len(proxies))].Conns()
	if len(conns) == 0 {
		return nil
	}
	return conns[rand.N(len(conns))]
}

// onOne calls a function with the process of one Locker's session.
func onOne(admin *session, function string) {
	admin.do(
		"SELECT " + function + `(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'app\_%' ORDER BY random() LIMIT 1) AS one`,
	)
}

// TestMixtures lets many goroutines of several Lockers do everything at once, while much goes wrong. Nobody hangs, and
// nothing is left in the end.
func TestMixtures(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for name, tc := range map[string]struct {
		sessions int
		ttls     []time.Duration
		disturb  []disturbance
		inOrder  bool // nobody ends a session whose lease is trusted
		closes   bool // Lockers are closed all the time
	}{
		"one session, many TTLs": {sessions: 1, ttls: []time.Duration{20 * ms, 50 * ms, 100 * ms, 300 * ms, time.Second, 2 * time.Second, 5 * time.Second}, inOrder: true},
		"closed and cancelled":   {sessions: 2, ttls: []time.Duration{100 * ms, time.Second}, disturb: []disturbance{cancels}, inOrder: true, closes: true},
		"killed":                 {sessions: 2, ttls: []time.Duration{100 * ms, time.Second}, disturb: []disturbance{cancels, kills, resets}, closes: true},
		"killed, one session":    {sessions: 1, ttls: []time.Duration{20 * ms, 50 * ms, 10 * time.Second}, disturb: []disturbance{cancels, kills, resets}},
		"cut off":                {sessions: 2, ttls: []time.Duration{100 * ms, 300 * ms, 600 * ms}, disturb: []disturbance{faults}, inOrder: true},
		"cut off and closed":     {sessions: 3, ttls: []time.Duration{50 * ms, 300 * ms}, disturb: []disturbance{faults, cancels}, inOrder: true, closes: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			admin := connect(t, server.URL())
			keys := []*contended{{name: "a"}, {name: "b"}, {name: "c"}, {name: "d"}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(wires.Trials(t, 10))*100*time.Millisecond)
			defer cancel()
			var proxies []*faultproxy.Proxy
			var granted, failed atomic.Int64
			var wg sync.WaitGroup
			for range 3 {
				proxy, dsn := behind(t, server.URL())
				proxies = append(proxies, proxy)
				p := pool(t, with(t, dsn, "application_name", unique("app")))
				wg.Go(func() {
					for ctx.Err() == nil {
						round, cancel := ctx, context.CancelFunc(func() {})
						if tc.closes {
							round, cancel = context.WithTimeout(ctx, rand.N(500*ms))
						}
						l := pglock.Config{WaitSessions: tc.sessions}.New(p)
						var in sync.WaitGroup
						for range 8 {
							in.Go(func() {
								for round.Err() == nil {
									if err := keys[rand.N(len(keys))].use(t, l, tc.ttls, tc.inOrder); err == nil {
										granted.Add(1)
									} else {
										failed.Add(1)
									}
								}
							})
						}
						closes := context.AfterFunc(ctx, func() { _ = l.Close() }) // while it is used
						if rand.N(2) == 0 {
							<-round.Done()
							_ = l.Close() // likewise
						}
						in.Wait()
						closes()
						_ = l.Close()
						cancel()
					}
				})
			}
			for _, disturb := range tc.disturb {
				wg.Go(func() {
					for ctx.Err() == nil {
						time.Sleep(rand.N(100 * ms))
						disturb(admin, proxies)
					}
				})
			}
			wg.Wait()
			for _, proxy := range proxies {
				proxy.Heal()
			}
			t.Logf("%d times all went well, and %d times not", granted.Load(), failed.Load())
			if granted.Load() == 0 {
				t.Error("nothing ever went well")
			}
			eventually(t, "no lock and no session is left", func() bool {
				return admin.count(`SELECT count(*) FROM pg_stat_activity LEFT JOIN pg_locks USING (pid)
					WHERE application_name LIKE 'app\_%' OR locktype = 'advisory'`) == 0
			})
		})
	}
}

// TestNothingIsLeft has bursts of calls, after each of which the Lockers remember nothing.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sessions, limit int // how many connections the role may have; 0 if that is not limited
		disturb         disturbance
	}{
		"one session": {sessions: 1}, "three sessions, killed": {sessions: 3, disturb: kills}, "too few connections": {sessions: 4, limit: 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			admin := connect(t, server.URL())
			dsn := server.URL()
			if tc.limit > 0 {
				_, dsn = appRole(t, admin, dsn, fmt.Sprintf("CONNECTION LIMIT %d", tc.limit))
			}
			lockers := []watched{
				openWatched(t, pglock.Config{WaitSessions: tc.sessions}, dsn, locker.TTL(time.Second)),
				openWatched(t, pglock.Config{WaitSessions: tc.sessions}, dsn, locker.TTL(time.Second)),
			}
			keys := []*contended{{name: "a"}, {name: "b"}, {name: "c"}, {name: "d"}}
			left := ""
			defer func() {
				if t.Failed() {
					t.Log(left)
				}
			}()
			for range wires.Trials(t, 5) {
				over := make(chan struct{})
				var calls, disturbing sync.WaitGroup
				var made atomic.Int64 // calls
				for _, l := range lockers {
					for range 12 {
						calls.Go(func() {
							for range 5 {
								_ = keys[rand.N(len(keys))].use(t, l, []time.Duration{time.Second}, tc.disturb == nil)
								made.Add(1)
							}
						})
					}
				}
				if tc.disturb != nil {
					disturbing.Go(func() {
						for n := int64(0); ; {
							select {
							case <-over:
								return
							case <-time.After(rand.N(20 * time.Millisecond)):
							}
							// On a machine so busy that no session is made in that time, no call would ever end.
							if n < 10+3*made.Load() {
								tc.disturb(admin, nil)
								n++
							}
						}
					})
				}
				calls.Wait()
				close(over)
				disturbing.Wait()
				eventually(t, "nothing is left", func() bool {
					left = pglock.Left(lockers[0].backend) + pglock.Left(lockers[1].backend)
					return left == "" && admin.count("SELECT count(*) FROM pg_locks WHERE "+anyLock) == 0
				})
			}
		})
	}
}

// TestTokensAtTheCeiling has the ceiling raised all the time, while the server ends in several ways. The tokens are far
// ahead of the clock, so that nothing else protects them.
func TestTokensAtTheCeiling(t *testing.T) {
	t.Parallel()
	const ahead = 9_000_000_000_000_000
	for name, end := range map[string]func(*testing.T, *pgtest.Server, *session) *session{
		"crash": func(t *testing.T, server *pgtest.Server, _ *session) *session {
			server.Crash()
			return restarted(t, server)
		},
		"stop": func(t *testing.T, server *pgtest.Server, _ *session) *session {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
			return restarted(t, server)
		},
		// All processes of the server then begin anew, but it says that it was started when it was before.
		"crash of one process": func(t *testing.T, server *pgtest.Server, admin *session) *session {
			pid := admin.count("SELECT pid FROM pg_stat_activity WHERE application_name = 'locker' LIMIT 1")
			process, err := os.FindProcess(pid)
			if err == nil {
				err = process.Kill()
			}
			if err != nil {
				t.Error(err)
			}
			eventually(t, "the server has noticed", func() bool { // and ends all sessions
				_, err := admin.Exec(t.Context(), "SELECT")
				return err != nil
			})
			eventually(t, "the server has recovered", func() bool {
				l, err := pglock.Open(t.Context(), server.URL())
				if err == nil {
					_ = l.Close()
				}
				return err == nil
			})
			return connect(t, server.URL())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(
				t,
				pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s"}},
			) // loses as much as can be
			admin := connect(t, server.URL())
			admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
			admin.do(fmt.Sprintf("UPDATE locker.token_ceiling SET ceiling = %d", ahead))
			seen, keys := newTokens(), []string{"a", "b", "c"}
			var lockers []locker.Locker
			for range 3 {
				lockers = append(lockers, open(t, server.URL(), locker.TTL(5*time.Second)))
			}
			for range wires.Trials(t, 4) {
				finished := churn(t, seen, lockers, keys)
				for range 5 { // nearly all tokens are used up
					admin.do(
						`SELECT setval('locker.token', c.ceiling - $1) FROM locker.token AS t, locker.token_ceiling AS c, locker.token_limit AS l
						WHERE t.last_value < c.ceiling - 1000 AND l.started = pg_postmaster_start_time()`,
						rand.N(10),
					)
					time.Sleep(rand.N(20 * time.Millisecond))
				}
				admin = end(t, server, admin)
				finished()
				for key := range seen.now {
					if slices.Min(seen.now[key]) < ahead {
						t.Errorf("%q: a token below %d", key, ahead)
					}
				}
				seen.next(t)
			}
		})
	}
}

func restarted(t *testing.T, server *pgtest.Server) *session {
	t.Helper()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	return connect(t, server.URL())
}
