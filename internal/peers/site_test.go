package peers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// site is where a fleet has its locks: one server, or several that are independent of one another.
type site struct {
	servers []string // their addresses
	clients []redis.UniversalClient
	alive   []redis.UniversalClient // of those servers that answer
	ours    func(opts ...locker.Option) locker.Locker
}

// oneServer is the server that all tests share.
func oneServer(t *testing.T) *site {
	s := newSite(t, []string{redistest.Address(t)}, 1)
	s.ours = func(opts ...locker.Option) locker.Locker { return redislock.New(s.clients[0], opts...) }
	return s
}

// newSite connects to servers, of which the first so many answer.
func newSite(t *testing.T, servers []string, alive int) *site {
	t.Helper()
	s := &site{servers: servers}
	for _, server := range servers {
		// Redsync's calls last until the slowest server has failed: not for the sake of those that are down.
		client := redis.NewClient(&redis.Options{Addr: server, MaxRetries: -1, DialerRetries: 1})
		t.Cleanup(func() { client.Close() })
		s.clients = append(s.clients, client)
	}
	s.alive = s.clients[:alive]
	return s
}

// locker opens one of ours, on keys as the others have them.
func (s *site) locker(t *testing.T, opts ...locker.Option) locker.Locker {
	t.Helper()
	l := s.ours(append([]locker.Option{locker.Prefix("")}, opts...)...)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return l
}

// owner returns the value of the key that most servers have, and how many do: a majority, or nobody owns it.
func (s *site) owner(t *testing.T, key string) (value string, servers int) {
	t.Helper()
	count := make(map[string]int)
	for _, client := range s.alive {
		v, err := client.Get(t.Context(), key).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		if err == nil {
			count[v]++
		}
	}
	for v, n := range count {
		if n > len(s.servers)/2 {
			return v, n
		}
	}
	t.Fatalf("nobody owns the key: %v", count)
	return "", 0
}

// longest returns the longest time after which the key expires on any server.
func (s *site) longest(t *testing.T, key string) time.Duration {
	t.Helper()
	var longest time.Duration
	for _, client := range s.alive {
		left, err := client.PTTL(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, left)
	}
	return longest
}

// wipe frees the key, as servers do that lose their data.
func (s *site) wipe(t *testing.T, key string) {
	t.Helper()
	for _, client := range s.alive {
		if err := client.Del(t.Context(), key).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// untouched checks that the owner of a key stays the same, and that its expiry is neither put off nor brought forward,
// while f runs.
func (s *site) untouched(t *testing.T, key, what string, f func()) {
	t.Helper()
	owner, servers := s.owner(t, key)
	left, asked := s.longest(t, key), time.Now()
	f()
	if o, n := s.owner(t, key); o != owner || n < servers {
		t.Errorf("%s: the owner was %q on %d servers, and is now %q on %d", what, owner, servers, o, n)
	}
	// The owner's own request may reach a server that much later than the others.
	const late = short
	now := s.longest(t, key)
	if elapsed := time.Since(asked); now > left+late || now < left-elapsed-late {
		t.Errorf("%s: the key was to expire after %v, and after %v, %v later", what, left, now, elapsed)
	}
}

// lockerPeer makes ours a peer of a mixed fleet. It is not told to extend: leases renew themselves.
type lockerPeer struct {
	l       locker.Locker
	granted func(token uint64) // while it has the lock
}

type lockerHold struct{ *locker.Lease }

func (p lockerPeer) tryLock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return p.hold(p.l.TryLock(ctx, key, locker.TTL(ttl)))
}

func (p lockerPeer) lock(ctx context.Context, key string, ttl time.Duration) (hold, error) {
	return p.hold(p.l.Lock(ctx, key, locker.TTL(ttl)))
}

func (p lockerPeer) hold(lease *locker.Lease, err error) (hold, error) {
	if err != nil {
		return nil, err
	}
	p.granted(lease.Token())
	return lockerHold{lease}, nil
}

func (h lockerHold) extend(context.Context, time.Duration) error { return h.Err() }
func (h lockerHold) unlock(context.Context) error                { return h.Unlock() }
