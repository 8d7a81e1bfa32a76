package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// tokens are those that were seen of some keys, by key.
type tokens struct {
	mu  sync.Mutex
	now map[string][]uint64 // since the last call of next
	max map[string]uint64   // before that
	n   int

	unlocks sync.WaitGroup // that are under way: while a server is away, they try again for a while
}

func newTokens() *tokens {
	return &tokens{now: make(map[string][]uint64), max: make(map[string]uint64)}
}

func (s *tokens) add(lease *locker.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now[lease.Key()] = append(s.now[lease.Key()], lease.Token())
	s.n++
}

// next begins a new phase: none of the tokens of the last one may be as small as one before it, or be there twice.
func (s *tokens) next(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, now := range s.now {
		slices.Sort(now)
		if now[0] <= s.max[key] {
			t.Errorf("%q: token %d after %d", key, now[0], s.max[key])
		}
		if len(slices.Compact(slices.Clone(now))) != len(now) {
			t.Errorf("%q: a token was given twice, among %d", key, now)
		}
		s.max[key] = now[len(now)-1]
		delete(s.now, key)
	}
}

// churn has several Lockers take the locks of several keys, until an error says that the server is gone. Those who know
// that a key is held wait on until it is ended. It returns when it began, and what ends it.
func churn(t *testing.T, seen *tokens, lockers []locker.Locker, keys []string) (end func()) {
	var begun, running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i, l := range lockers {
		for j, key := range keys {
			begun.Add(1)
			running.Go(func() {
				granted := sync.OnceFunc(begun.Done)
				defer granted()
				lock := l.Lock
				if (i+j)%2 == 0 {
					lock = l.TryLock
				}
				var last uint64
				for ctx.Err() == nil {
					lease, err := lock(ctx, key)
					switch {
					case errors.Is(err, locker.ErrLocked):
						time.Sleep(time.Millisecond)
						continue
					case err != nil:
						return
					}
					seen.add(lease)
					if lease.Token() <= last {
						t.Errorf("%q: token %d after %d", key, lease.Token(), last)
					}
					last = lease.Token()
					granted()
					seen.unlocks.Go(func() { _ = lease.Unlock() })
				}
			})
		}
	}
	begun.Wait()
	return func() {
		cancel()
		running.Wait()
	}
}

// TestTokensSurviveRestarts ends a server again and again, while locks are taken.
func TestTokensSurviveRestarts(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	seen, keys := newTokens(), []string{"a", "b", "c"}
	defer seen.unlocks.Wait()
	var lockers []locker.Locker
	for range 3 {
		lockers = append(lockers, open(t, server.URL(), locker.TTL(2*time.Second)))
	}
	restart := func(crash bool) {
		end := churn(t, seen, lockers, keys)
		time.Sleep(rand.N(5 * time.Millisecond))
		if crash {
			server.Crash()
		} else if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		end()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		seen.next(t)
	}
	n := wires.Trials(t, 8)
	for i := range n {
		restart(i%4 != 3)
	}
	// As if the clock had been ahead when the last tokens were minted.
	const ahead = 9_000_000_000_000_000
	admin := connect(t, server.URL())
	admin.do(fmt.Sprintf("UPDATE locker.token_ceiling SET ceiling = %d", ahead))
	server.Crash()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		restart(true)
		for key, token := range seen.max {
			if token <= ahead {
				t.Errorf("%q: token %d, and the ceiling was %d", key, token, ahead)
			}
		}
	}
	t.Logf("%d tokens over %d restarts", seen.n, n+3)
}

// withStandby starts a server with a synchronous standby.
func withStandby(t *testing.T) (primary, standby *pgtest.Server) {
	t.Helper()
	primary = pgtest.New(t, pgtest.Options{})
	standby = primary.Standby(t, pgtest.Options{})
	if err := primary.SetSynchronous(standby); err != nil {
		t.Fatal(err)
	}
	return primary, standby
}

// TestTokensSurviveFailover crashes the primary, and goes on with a standby that has all commits.
func TestTokensSurviveFailover(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t)
	dsn := with(t, strings.Replace(primary.URL(), primary.Addr(), primary.Addr()+","+standby.Addr(), 1),
		"target_session_attrs", "read-write")
	seen, keys := newTokens(), []string{"a", "b", "c"}
	defer seen.unlocks.Wait()
	var lockers []locker.Locker
	for range 3 {
		lockers = append(lockers, open(t, dsn, locker.TTL(2*time.Second)))
	}
	end := churn(t, seen, lockers, keys)
	primary.Crash()
	end()
	seen.next(t)
	before := seen.n
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	end = churn(t, seen, lockers, keys) // the same Lockers
	standby.Crash()
	end()
	seen.next(t)
	t.Logf("%d tokens before the failover, %d after it", before, seen.n-before)
}

// TestReplacedPrimaryGoesOn: a standby is promoted, and the old primary lives and is reached by the holder. Then there
// are two holders for as long as that lasts, as is documented: nothing on the old primary tells. So what is written by
// the first has to be refused by its token.
func TestReplacedPrimaryGoesOn(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	primary, standby := withStandby(t)
	key := unique("key")
	l := open(t, primary.URL(), locker.TTL(ttl))
	first := mustTry(t, l, key)
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	second := mustTry(t, open(t, standby.URL(), locker.TTL(ttl)), key)
	locktest.Outlives(t, first, 2)
	if err := second.Err(); err != nil {
		t.Errorf("the second holder: %v", err)
	}
	const timeline = "SELECT timeline_id FROM pg_control_checkpoint()"
	connect(t, standby.URL()).do("CHECKPOINT") // by which it is written
	before, after := connect(t, primary.URL()).count(timeline), connect(t, standby.URL()).count(timeline)
	if before != 1 || after != 2 {
		t.Errorf("timelines %d and %d; want 1 where nobody was promoted, and 2", before, after)
	}
	mustUnlock(t, first)
	later := mustTry(t, l, unique("key")) // from the old primary
	if first.Token() >= second.Token() || later.Token() >= second.Token() {
		t.Errorf("tokens %d and %d of the old primary, %d of the new one", first.Token(), later.Token(), second.Token())
	}
}

// TestNoTokensWithoutTheStandby: as long as the synchronous standby is down, no limit of tokens is known to it, and so
// no token is used that it could give once more when it takes over. That somebody gives up waiting changes nothing.
func TestNoTokensWithoutTheStandby(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t)
	admin, key := connect(t, primary.URL()), unique("key")
	l := open(t, primary.URL(), locker.TTL(time.Minute))
	lease := mustTry(t, l, unique("key"))
	standby.Crash()
	admin.do("SET synchronous_commit = local")
	admin.do("SELECT setval('locker.token', ceiling) FROM locker.token_ceiling")
	inTx := func(d time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		conn := connect(t, primary.URL())
		conn.do("SET synchronous_commit = local") // its own end does not wait
		return pgx.BeginFunc(t.Context(), conn.Conn, func(tx pgx.Tx) error {
			_, err := pglock.TryLockTx(ctx, tx, key)
			return err
		})
	}
	const patience = 10 * time.Second // of who makes a connection
	begin := time.Now()
	for tries := 0; time.Since(begin) < patience+patience/4 || tries < 2; tries++ {
		if err := inTx(time.Second); err == nil {
			t.Fatalf("after %v, a transaction has a token of which the standby does not know", time.Since(begin))
		}
		next, err := l.TryLock(t.Context(), key, locker.TTL(patience/2))
		if err == nil {
			t.Fatalf("after %v, there is token %d, of which the standby does not know", time.Since(begin), next.Token())
		}
		checkError(t, err, "trylock", key, locker.ErrUnavailable)
	}
	if err := lease.Err(); err != nil {
		t.Errorf("a lease of before: %v", err)
	}
	if err := standby.Restart(); err != nil {
		t.Fatal(err)
	}
	awaitLockable(t, l, key)
	if err := inTx(time.Minute); err != nil {
		t.Error(err)
	}
	mustUnlock(t, lease)
}

// TestCreatedByManyAtOnce has ten Lockers find nothing, and somebody who creates it all by hand.
func TestCreatedByManyAtOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	byHand := connect(t, url)
	for round := range 5 {
		config := pglock.Config{Namespace: namespace(t, admin)}
		seen, start := newTokens(), make(chan struct{})
		var wg sync.WaitGroup
		for range 10 {
			l := openConfig(t, config, url)
			wg.Go(func() {
				<-start
				lease, err := lock(l, config.Namespace)
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				seen.add(lease)
				mustUnlock(t, lease)
			})
		}
		if round%2 == 1 {
			wg.Go(func() {
				<-start
				_, _ = byHand.Exec(context.Background(), pglock.SchemaSQL(config.Namespace)) // which may fail
			})
		}
		close(start)
		wg.Wait()
		if seen.n != 10 {
			t.Errorf("round %d: %d of 10 Lockers had the lock", round, seen.n)
		}
		seen.next(t)
	}
}
