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

	"github.com/lockerkit/locker"
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

// TestTokensSurviveFailover crashes the primary, and goes on with a standby that has all commits.
func TestTokensSurviveFailover(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t, pgtest.Options{})
	standby := primary.Standby(t, pgtest.Options{})
	if err := primary.SetSynchronous(standby); err != nil {
		t.Fatal(err)
	}
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
