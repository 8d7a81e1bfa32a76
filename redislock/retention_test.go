package redislock_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestTokenRetention looks for how long the servers keep the last token of a key.
func TestTokenRetention(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	admins := servers.DialEach(t)
	for name, test := range map[string]struct {
		retention, ttl time.Duration
		most, least    time.Duration
	}{
		"by default":        {0, time.Second, time.Hour, 50 * time.Minute},
		"shorter":           {2 * time.Second, time.Second, 2 * time.Second, 0},
		"longer":            {100 * time.Hour, time.Second, 100 * time.Hour, 99 * time.Hour},
		"less than the TTL": {time.Second, time.Minute, time.Minute, time.Second},
	} {
		clients, closeAll := redistest.DialAll(servers.Addresses())
		t.Cleanup(closeAll)
		for store, l := range map[string]*locker.Client{
			"redis":   redislock.Config{TokenRetention: test.retention}.New(clients[0], locker.TTL(test.ttl)),
			"redlock": redlock.Config{TokenRetention: test.retention}.New(clients, locker.TTL(test.ttl)),
		} {
			t.Run(name+", "+store, func(t *testing.T) {
				t.Parallel()
				defer l.Close()
				key := t.Name()
				mustUnlock(t, mustLock(t, l, key))
				kept := 0
				for _, admin := range admins {
					left := admin.PTTL(t.Context(), redislock.NamesOf(redislock.DefaultPrefix, key)[1]).Val()
					switch {
					case left > test.most || left == -1:
						t.Errorf("a token is kept for %v; want %v", left, test.most)
					case left > test.least:
						kept++
					}
				}
				if want := map[string]int{"redis": 1, "redlock": 2}[store]; test.least > 0 && kept < want {
					t.Errorf("of the tokens, %d are kept for more than %v; want %d", kept, test.least, want)
				}
			})
		}
	}
}

// TestTokensAfterTheirRetention forgets the token of a key twice: while it is still locked, and when it is free.
// Nothing is left in the server then, and the next token is greater all the same.
func TestTokensAfterTheirRetention(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	l := redislock.Config{TokenRetention: time.Second}.New(rdb, locker.TTL(6*time.Second))
	t.Cleanup(func() { _ = l.Close() })
	left := func(keys int64) func() bool {
		return func() bool { return admin.DBSize(t.Context()).Val() == keys }
	}
	lease := mustLock(t, l, "k")
	first := lease.Token()
	eventuallyWithin(t, 20*time.Second, "only the lock is left", left(1))
	if err := lease.Err(); err != nil {
		t.Fatal(err)
	}
	mustUnlock(t, lease)
	lease = mustLock(t, l, "k")
	second := lease.Token()
	mustUnlock(t, lease)
	eventuallyWithin(t, 20*time.Second, "nothing is left", left(0))
	lease = mustLock(t, l, "k")
	if third := lease.Token(); first >= second || second >= third {
		t.Errorf("the tokens are %d, %d, %d", first, second, third)
	}
	mustUnlock(t, lease)
}
