package peers

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bsm "github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// The Go code of docs/migrating-to-redislock.md, before and after.

type work = func(context.Context) error

func beforeRedsync(ctx context.Context, rs *redsync.Redsync, work work) error {
	mutex := rs.NewMutex("orders/42") // expires after 8 s
	if err := mutex.LockContext(ctx); err != nil {
		return err
	}
	defer mutex.UnlockContext(ctx)
	return work(ctx)
}

func beforeBsm(ctx context.Context, client *bsm.Client, work work) error {
	retry := &bsm.Options{RetryStrategy: bsm.LinearBackoff(100 * time.Millisecond)}
	lock, err := client.Obtain(ctx, "orders/42", 8*time.Second, retry)
	if err != nil {
		return err
	}
	defer lock.Release(ctx)
	return work(ctx)
}

var deleteIfEqual = redis.NewScript(
	`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`,
)

func beforeByHand(ctx context.Context, rdb *redis.Client, me string, work work) error {
	err := rdb.SetArgs(ctx, "orders/42", me, redis.SetArgs{Mode: "NX", TTL: 8 * time.Second}).Err()
	if err != nil {
		return err // redis.Nil: somebody else has it
	}
	defer deleteIfEqual.Run(ctx, rdb, []string{"orders/42"}, me)
	return work(ctx)
}

func open(rdb *redis.Client, host string) locker.Locker {
	l := redislock.New(rdb, locker.Prefix(""), locker.TTL(8*time.Second), locker.Holder(host))
	return l
}

func openRedlock(clients []redis.UniversalClient, host string) locker.Locker {
	l := redlock.New(clients, locker.Prefix(""), locker.TTL(8*time.Second), locker.Holder(host))
	return l
}

func after(ctx context.Context, l locker.Locker, work work) error {
	return locker.Do(ctx, l, "orders/42", work)
}

func afterStep(ctx context.Context, l locker.Locker, work work) error {
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lease, err := l.Lock(wait, "orders/42", locker.NoRenew())
	if err != nil {
		return err
	}
	defer lease.Unlock()

	ctx, stop := lease.Context(ctx)
	defer stop()
	return work(ctx)
}

// TestPageWorks runs the code of the page side by side.
func TestPageWorks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := redistest.New(t, redistest.Options{}) // the key is what the page says
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { rdb.Close() })
	rs, client := redsync.New(goredis.NewPool(rdb)), bsm.New(rdb)
	ours, redlock := open(rdb, "host-1"), openRedlock([]redis.UniversalClient{rdb}, "host-2")
	t.Cleanup(func() {
		if err := errors.Join(ours.Close(), redlock.Close()); err != nil {
			t.Error(err)
		}
	})

	c := &counter{rdb, "orders/42/counter", atomic.Int32{}}
	work := func(ctx context.Context) error {
		if err := c.increment(ctx); err != nil {
			t.Error(err)
		}
		return nil
	}
	code := map[string]func() error{
		"redsync":        func() error { return beforeRedsync(ctx, rs, work) },
		"bsm/redislock":  func() error { return beforeBsm(ctx, client, work) },
		"by hand":        func() error { return beforeByHand(ctx, rdb, "me", work) },
		"after":          func() error { return after(ctx, ours, work) },
		"after, step":    func() error { return afterStep(ctx, ours, work) },
		"after, Redlock": func() error { return after(ctx, redlock, work) },
	}
	var wg sync.WaitGroup
	const each = 5
	for name, f := range code {
		wg.Go(func() {
			for range each {
				for attempt := time.Now(); ; {
					err := f()
					if err == nil {
						break
					}
					// Who gives up, as some do on a page, tries again.
					if time.Since(attempt) > patience {
						t.Errorf("%s: %v", name, err)
						return
					}
					time.Sleep(retry)
				}
			}
		})
	}
	wg.Wait()
	if n := must(c.value(ctx))(t); n != each*len(code) {
		t.Errorf("%d times counted to %d", each*len(code), n)
	}
}

// TestValuesOnThePage: one can tell who holds a key.
func TestValuesOnThePage(t *testing.T) {
	t.Parallel()
	s := oneServer(t)
	lease := must(s.locker(t, locker.Holder("host-1")).TryLock(t.Context(), t.Name()))(t)
	if v, _ := s.owner(t, t.Name()); len(v) != 32+len(":host-1") || !strings.HasSuffix(v, ":host-1") {
		t.Errorf("ours is %q", v)
	}
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		kind kind
		like string // # is any character
	}{
		{kinds[0], strings.Repeat("#", 22) + "=="},
		{kinds[2], strings.Repeat("#", 22) + "who, since when"},
	} {
		h := must(c.kind.open(t, s).lock(t.Context(), t.Name(), long))(t)
		v, _ := s.owner(t, t.Name())
		if n := strings.Count(c.like, "#"); len(v) != len(c.like) || v[n:] != c.like[n:] {
			t.Errorf("that of %s is %q", c.kind.name, v)
		}
		if err := h.unlock(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestShortTokenOfBsm: as the page says, what begins the value of ours takes it over, and we are told.
func TestShortTokenOfBsm(t *testing.T) {
	t.Parallel()
	s := oneServer(t)
	lease := must(s.locker(t, locker.TTL(2*short)).TryLock(t.Context(), t.Name()))(t)
	value, _ := s.owner(t, t.Name())
	lock, err := bsm.New(s.clients[0]).Obtain(t.Context(), t.Name(), long, &bsm.Options{Token: value[:1]})
	if err != nil {
		t.Fatalf("if this is so no longer, the page has to be changed: %v", err)
	}
	select {
	case <-lease.Done():
	case <-time.After(patience):
		t.Error("our lease does not end")
	}
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock = %v", err)
	}
	if err := lock.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestHashOfRedisson: its locks are hashes. We do not take them for free, nor for ours.
func TestHashOfRedisson(t *testing.T) {
	t.Parallel()
	s := oneServer(t)
	rdb, ctx := s.clients[0], t.Context()
	if err := rdb.HSet(ctx, t.Name(), "5c8f1a4e-0000-0000-0000-000000000000:1", 1).Err(); err != nil {
		t.Fatal(err)
	}
	if lease, err := s.locker(t).TryLock(ctx, t.Name()); lease != nil || errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock = %v, %v; the page says that it is an error", lease, err)
	}
	if n, err := rdb.HLen(ctx, t.Name()).Result(); n != 1 || err != nil {
		t.Errorf("the hash has now %d fields, %v", n, err)
	}
	s.wipe(t, t.Name())
}
