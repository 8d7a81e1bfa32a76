package peers

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gopglock "github.com/allisson/go-pglock/v3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
)

// The Go code of docs/comparison.md, before and after. What is after is the same for all: after, in migration_test.go.

func openRueidis(addr string) (rueidislock.Locker, error) {
	return rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: []string{addr}},
		KeyMajority:  1,
		TryNextAfter: time.Second,
	})
}

func beforeRueidis(ctx context.Context, l rueidislock.Locker, work work) error {
	ctx, unlock, err := l.WithContext(ctx, "orders/42")
	if err != nil {
		return err
	}
	defer unlock()
	return work(ctx)
}

func openAfterRueidis(rdb *redis.Client) locker.Locker {
	l := redislock.New(rdb, locker.Prefix("rueidislock:0:"), locker.TTL(5*time.Second))
	return l
}

func beforeMutex(ctx context.Context, client *clientv3.Client, work work) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer session.Close()
	mutex := concurrency.NewMutex(session, "orders/42")
	if err := mutex.Lock(ctx); err != nil {
		return err
	}
	defer mutex.Unlock(context.WithoutCancel(ctx))
	return work(ctx)
}

func bothMutex(ctx context.Context, session *concurrency.Session, l locker.Locker, work work) error {
	mutex := concurrency.NewMutex(session, "orders/42")
	if err := mutex.Lock(ctx); err != nil {
		return err
	}
	defer mutex.Unlock(context.WithoutCancel(ctx))
	return locker.Do(ctx, l, "orders/42", work)
}

func openAfterMutex(client *clientv3.Client) locker.Locker {
	l := etcdlock.New(client, locker.TTL(10*time.Second))
	return l
}

func beforeGoPglock(ctx context.Context, db *sql.DB, work work) error {
	lock, err := gopglock.NewLock(ctx, 42, db)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lock.WaitAndLock(ctx); err != nil {
		return err
	}
	defer lock.Unlock(context.WithoutCancel(ctx))
	return work(ctx)
}

func bothGoPglock(ctx context.Context, db *sql.DB, l locker.Locker, work work) error {
	lock, err := gopglock.NewLock(ctx, 42, db)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lock.WaitAndLock(ctx); err != nil {
		return err
	}
	defer lock.Unlock(context.WithoutCancel(ctx))
	return locker.Do(ctx, l, "orders/42", work)
}

func sameKeyGoPglock(ctx context.Context, db *sql.DB) (gopglock.Lock, error) {
	lock, err := gopglock.NewLock(ctx, pglock.Key("orders/42"), db)
	return lock, err
}

func openAfterGoPglock(pool *pgxpool.Pool) locker.Locker {
	l := pglock.New(pool, locker.TTL(10*time.Second))
	return l
}

// testExclusion checks that two peers refuse one another, wait for one another, and get the key when the other has
// unlocked it.
func testExclusion(t *testing.T, a, b peer) {
	t.Helper()
	for _, pair := range [][2]peer{{a, b}, {b, a}} {
		holder, other := pair[0], pair[1]
		h := must(holder.lock(t.Context(), t.Name(), long))(t)
		if _, err := other.tryLock(t.Context(), t.Name(), long); !errors.Is(err, errHeld) &&
			!errors.Is(err, locker.ErrLocked) {
			t.Fatalf("%T has it, and %T gets: %v", holder, other, err)
		}
		got := begin(t, func(ctx context.Context) (hold, error) { return other.lock(ctx, t.Name(), long) })
		got.stays(t, "two have it")
		if err := h.unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := got.await(t).unlock(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// testTogether runs all of code at the same time, several times each, of which no two may be at work at once.
func testTogether(t *testing.T, code map[string]func(context.Context, work) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var busy, done atomic.Int32
	var wg sync.WaitGroup
	const each = 5
	for name, f := range code {
		wg.Go(func() {
			for range each {
				err := f(ctx, func(ctx context.Context) error {
					if n := busy.Add(1); n != 1 {
						t.Errorf("%s: %d are at work at once", name, n)
					}
					time.Sleep(time.Millisecond) // or else they would hardly meet
					busy.Add(-1)
					done.Add(1)
					return ctx.Err()
				})
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if n := int(done.Load()); n != each*len(code) {
		t.Errorf("the work was done %d times", n)
	}
}

// TestNodeRedlockPage: the code before waits for ours, and works then.
func TestNodeRedlockPage(t *testing.T) {
	t.Parallel()
	node := needNode(t)
	server := redistest.New(t, redistest.Options{}) // the key is what the page says
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	ours := open(rdb, "host-1")
	lease := must(ours.Lock(t.Context(), "orders/42"))(t)
	redlock := must(node.do(t.Context(), command{Op: "connect", Servers: []string{server.Addr()}}))(t)
	done := begin(t,
		func(ctx context.Context) (int, error) { return node.do(ctx, command{Op: "using", Redlock: redlock}) })
	done.stays(t, "they work while we do")
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
	done.await(t)
	if err := after(t.Context(), ours, func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	_, err := node.do(t.Context(), command{Op: "disconnect", Redlock: redlock})
	if err := errors.Join(err, ours.Close()); err != nil {
		t.Error(err)
	}
}
