package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// open returns a Locker, closed with the test.
func open(t testing.TB, rdb redis.UniversalClient, opts ...locker.Option) locker.Locker {
	t.Helper()
	l := redislock.New(rdb, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// openRedlock returns a Locker over several servers, closed with the test.
func openRedlock(t testing.TB, addresses []string, opts ...locker.Option) locker.Locker {
	t.Helper()
	return redistest.Open(t, addresses, opts, redlock.New)
}

// What the tests of all stores use.
var (
	mustLock         = locktest.MustLock
	mustUnlock       = locktest.MustUnlock
	eventually       = locktest.Eventually
	eventuallyWithin = locktest.EventuallyWithin
	checkClass       = locktest.CheckClass
	failures         = locktest.Failures{Backend: "redis"}
	dial             = redistest.Dial
)

func TestKeyIsAPlainString(t *testing.T) {
	rdb := dial(t, redistest.Address(t))
	key := t.Name()
	ctx := t.Context()
	for _, prefix := range []string{redislock.DefaultPrefix, "", "other:"} {
		var opts []locker.Option
		if prefix != redislock.DefaultPrefix {
			opts = append(opts, locker.Prefix(prefix))
		}
		l := open(t, rdb, opts...)
		lease := mustLock(t, l, key, locker.TTL(5*time.Second), locker.Holder("me"))
		value, err := rdb.Get(ctx, prefix+key).Result()
		if err != nil || len(value) != len("0123456789abcdef0123456789abcdef:me") || !strings.HasSuffix(value, ":me") {
			t.Errorf("the lock is %q, %v", value, err)
		}
		if ttl := rdb.PTTL(ctx, prefix+key).Val(); ttl <= 4*time.Second || ttl > 5*time.Second {
			t.Errorf("it expires in %v; want 5s", ttl)
		}
		mustUnlock(t, lease)
	}
}

func TestExcludesPlainSetNX(t *testing.T) {
	rdb := dial(t, redistest.Address(t))
	key, ctx := t.Name(), t.Context()
	l := open(t, rdb, locker.Prefix(""))
	lease := mustLock(t, l, key)
	if ok, err := rdb.SetNX(ctx, key, "foreign", time.Second).Result(); ok || err != nil {
		t.Errorf("SET NX of a key that is locked: %v, %v", ok, err)
	}
	mustUnlock(t, lease)
	if ok, err := rdb.SetNX(ctx, key, "foreign", time.Minute).Result(); !ok || err != nil {
		t.Fatalf("SET NX of a key that is free: %v, %v", ok, err)
	}
	if _, err := l.TryLock(ctx, key); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock of a key that a foreign client holds: %v; want ErrLocked", err)
	}
	locktest.Tries(t, func() error {
		rdb.Set(ctx, key, "foreign", 300*time.Millisecond)
		start := time.Now()
		// Until the foreign lock expires: nobody sends a message then. Who does not know when that is asks after 750
		// ms.
		mustUnlock(t, mustLock(t, l, key))
		if took := time.Since(start); took >= 700*time.Millisecond {
			return fmt.Errorf("a foreign lock of 300ms was waited for %v", took)
		}
		return nil
	})

	if err := rdb.Set(ctx, key, "for ever", 0).Err(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan *locker.Lease, 1)
	go func() { waited <- mustLock(t, l, key) }()
	time.AfterFunc(100*time.Millisecond, func() { rdb.Del(context.Background(), key) })
	mustUnlock(t, <-waited)
}

func TestHolderIsNamed(t *testing.T) {
	rdb := dial(t, redistest.Address(t))
	a, b := open(t, rdb), open(t, rdb)
	lease := mustLock(t, a, t.Name(), locker.Holder("worker-7 on host-3"))
	defer mustUnlock(t, lease)
	_, err := b.TryLock(t.Context(), t.Name())
	if want := `locker: trylock "TestHolderIsNamed" (redis): locked [held by worker-7 on host-3]`; err == nil ||
		err.Error() != want {
		t.Errorf("TryLock: %v\nwant     %s", err, want)
	}
	// When the first answer is late, nobody knows of a holder yet.
	eventuallyWithin(t, 10*time.Second, "Lock returns DeadlineExceeded, naming the holder", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := b.Lock(ctx, t.Name())
		var e *locker.Error
		named := errors.As(err, &e) && e.Holder == "worker-7 on host-3" && errors.Is(err, context.DeadlineExceeded)
		if !named {
			t.Logf("Lock: %v", err)
		}
		return named
	})
}

// TestTokensIncrease loses Redis's memory of the tokens in every way that one server has.
func TestTokensIncrease(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := open(t, rdb)
	ctx, key := t.Context(), "k"
	var last uint64
	next := func(after string) {
		t.Helper()
		var lease *locker.Lease
		eventuallyWithin(t, 10*time.Second, "a lock after "+after, func() (ok bool) {
			var err error
			lease, err = l.TryLock(ctx, key)
			return err == nil
		})
		if lease.Token() <= last {
			t.Errorf("after %s the token is %d; the one before was %d", after, lease.Token(), last)
		}
		last = lease.Token()
		_ = lease.Unlock()
	}
	for range 1000 {
		next("unlock")
	}
	rdb.FlushAll(ctx)
	next("FLUSHALL")
	for _, name := range rdb.Keys(ctx, "*fence*").Val() {
		rdb.Del(ctx, name)
	}
	next("DEL of the fence")
	server.Kill()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	next("a restart without data")
	// A clock that is behind the last token, as after a step back.
	for _, name := range rdb.Keys(ctx, "*fence*").Val() {
		ahead := last + 3_600_000_000
		rdb.Set(ctx, name, ahead, time.Hour)
		last = ahead
	}
	next("a step of the clock by an hour")
	next("another unlock")
}

func TestLeavesNoGarbage(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	a, b := open(t, rdb), open(t, rdb)
	for i := range 50 {
		key := fmt.Sprint("key ", i)
		lease := mustLock(t, a, key)
		done := make(chan *locker.Lease)
		go func() { done <- mustLock(t, b, key) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, _ = b.Lock(ctx, key)
		cancel()
		mustUnlock(t, lease)
		mustUnlock(t, <-done)
	}
	ctx := t.Context()
	eventuallyWithin(t, 5*time.Second, "only fences and tombstones are left", func() bool {
		for _, name := range rdb.Keys(ctx, "*").Val() {
			if !strings.Contains(name, "}:locker:fence:") && !strings.Contains(name, "}:locker:tombstone:") {
				return false
			}
		}
		return true
	})
	for _, name := range rdb.Keys(ctx, "*").Val() {
		if ttl := rdb.PTTL(ctx, name).Val(); ttl <= 0 || ttl > time.Hour {
			t.Errorf("%q expires in %v; want an hour at most", name, ttl)
		}
	}
}

func TestSurvivesScriptFlush(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	const ttl = 6 * time.Second // its renewals are in time also when the machine is busy
	a, b := open(t, rdb, locker.TTL(ttl)), open(t, rdb, locker.TTL(ttl))
	lease := mustLock(t, a, "k")
	waited := make(chan *locker.Lease, 1)
	go func() { waited <- mustLock(t, b, "k") }()
	stop := time.After(3 * ttl / 2) // some renewals and polls
	for flushing := true; flushing; {
		select {
		case <-stop:
			flushing = false
		case <-time.After(20 * time.Millisecond):
			if err := rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := lease.Err(); err != nil {
		t.Errorf("the lease was lost while the scripts were flushed: %v", err)
	}
	mustUnlock(t, lease)
	mustUnlock(t, <-waited)
}

func TestTheCallersClientIsLeftAlone(t *testing.T) {
	rdb := dial(t, redistest.Address(t))
	before := *rdb.Options()
	l := redislock.New(rdb)
	lease := mustLock(t, l, t.Name())
	if after := rdb.Options(); after.ReadTimeout != before.ReadTimeout ||
		after.ContextTimeoutEnabled != before.ContextTimeoutEnabled {
		t.Error("the options of the caller's client have changed")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := rdb.Ping(t.Context()).Err(); err != nil {
		t.Errorf("the caller's client after Close of the Locker: %v", err)
	}
	if n := rdb.Exists(t.Context(), redislock.DefaultPrefix+t.Name()).Val(); n != 0 || lease.Err() == nil {
		t.Error("Close did not unlock")
	}
}

func TestOpenOwnsItsClient(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	connections := func() int { return strings.Count(admin.ClientList(context.Background()).Val(), "\n") }
	eventuallyWithin(t, 5*time.Second, "only this client is connected", func() bool { return connections() == 1 })
	l, err := redislock.Open(t.Context(), server.URL()+"?client_name=opened")
	if err != nil {
		t.Fatal(err)
	}
	lease := mustLock(t, l, "k")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _ = l.Lock(ctx, "k") // which opens a subscription
	if connections() < 2 {
		t.Error("no connection was opened")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 5*time.Second, "Close closes every connection", func() bool { return connections() == 1 })
	if lease.Err() == nil {
		t.Error("Close did not unlock")
	}
	if _, err := redislock.Open(t.Context(), "http://localhost"); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("Open with a URL of another kind: %v", err)
	}
}

func TestTTLInWholeMilliseconds(t *testing.T) {
	rdb := dial(t, "127.0.0.1:1") // which nobody listens on: the store is not asked
	l := open(t, rdb)
	if _, err := l.TryLock(t.Context(), "k", locker.TTL(time.Second+time.Microsecond)); !errors.Is(err,
		locker.ErrInvalidOption) {
		t.Errorf("TryLock: %v; want ErrInvalidOption", err)
	}
	if _, err := l.Lock(t.Context(), "k", locker.TTL(time.Second+time.Nanosecond)); !errors.Is(err,
		locker.ErrInvalidOption) {
		t.Errorf("Lock: %v; want ErrInvalidOption", err)
	}
}
