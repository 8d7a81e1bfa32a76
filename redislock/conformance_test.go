package redislock_test

import (
	"context"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }

// wires are the proxies between the Lockers of tests and their server: one for each Locker, so that it can be cut off
// while others are not.
type wires struct {
	server *redistest.Server
	mu     sync.Mutex
	last   map[*testing.T]*faultproxy.Proxy // the one of the Locker that the test opened last
}

func newWires(server *redistest.Server) *wires {
	return &wires{server: server, last: make(map[*testing.T]*faultproxy.Proxy)}
}

// dial returns a client with a wire of its own, and what closes both.
func (w *wires) dial(t *testing.T) (rdb *redis.Client, proxy *faultproxy.Proxy, closeBoth func()) {
	proxy, err := faultproxy.Start(w.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	rdb = redis.NewClient(&redis.Options{Addr: proxy.Addr(), DisableIdentity: true})
	closeBoth = sync.OnceFunc(func() {
		_ = rdb.Close()
		_ = proxy.Close()
	})
	t.Cleanup(closeBoth)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[t] = proxy
	return rdb, proxy, closeBoth
}

func (w *wires) open(t *testing.T, opts ...locker.Option) locker.Locker {
	rdb, _, closeBoth := w.dial(t)
	return closer{redislock.New(rdb, opts...), closeBoth}
}

// closer is a Locker whose Close closes what it was made with, too.
type closer struct {
	locker.Locker
	also func()
}

func (c closer) Close() error {
	defer c.also()
	return c.Locker.Close()
}

func (w *wires) cut(t *testing.T, f conformance.Fault) (heal func()) {
	w.mu.Lock()
	proxy := w.last[t]
	w.mu.Unlock()
	proxy.Set(map[conformance.Fault]faultproxy.Fault{
		conformance.Refuse:      faultproxy.Refuse(),
		conformance.BlackHole:   faultproxy.BlackHole(),
		conformance.Hang:        faultproxy.Hang(),
		conformance.DropReplies: faultproxy.DropReplies(),
	}[f])
	return proxy.Heal
}

// trials is how often a test with a random outcome is repeated, unless the environment says otherwise.
func trials(t *testing.T, n int) int {
	if s := os.Getenv("LOCKER_TRIALS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("LOCKER_TRIALS: %v", err)
		}
	}
	return n
}

func TestConformance(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	w := newWires(server)
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer admin.Close()
	conformance.Run(t, conformance.Harness{
		Open: w.open,
		Cut:  w.cut,
		Backend: func(t *testing.T) locker.Backend {
			rdb, _, _ := w.dial(t)
			b := redislock.NewBackend(rdb)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Restart: func(t *testing.T) { // without data: the worst that can happen to one server
			server.Kill()
			if err := server.Restart(); err != nil {
				t.Fatal(err)
			}
		},
		Break: func(t *testing.T, key string) {
			if err := admin.Del(context.Background(), redislock.DefaultPrefix+key).Err(); err != nil {
				t.Error(err)
			}
		},
		Trials: trials(t, 5),
	})
}
