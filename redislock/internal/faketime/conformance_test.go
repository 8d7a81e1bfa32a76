package faketime

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	redisserver "github.com/lockerkit/locker/redislock/internal/server"
	"github.com/lockerkit/locker/redislock/redlock"
)

// many are the rules that run scripts by the thousand, to see something that happens once in so many. Here they take
// longer than all others, and time has no part in them: package redislock runs them. With -skip=^$ they run here, too.
const many = "/^.*$/" +
	"^(AtomicAtExpiry|EachNameWakes|EveryByteCounts|ManyKeys|NeverWraps|OwnersAlike|Remembered|RenewedForItsTTL)$"

func TestMain(m *testing.M) {
	flag.Parse()
	if skip := flag.Lookup("test.skip").Value; skip.String() == "" {
		_ = skip.Set(many)
	}
	logging.Disable()       // of connections that fail, as they are to
	debug.SetGCPercent(800) // each run of a script makes an interpreter, and drops it
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	h := harness(t, 1, newOnOne)
	h.Backend = func(t *testing.T) locker.Backend {
		c := serversOf(t, 1)[0].connect()
		b, err := redisserver.Config{}.New(c, redisserver.NewProcess(), c.Close)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	conformance.Run(t, h)
}

// TestConformanceOfRedlock has three servers, of which all are cut off, restarted and so on. The rules about Backends
// are for package redlock: its Backend is its own.
func TestConformanceOfRedlock(t *testing.T) {
	conformance.Run(t, harness(t, 3, redlock.New))
}

// opener makes a Client that uses some servers.
type opener func([]redis.UniversalClient, ...locker.Option) *locker.Client

func newOnOne(clients []redis.UniversalClient, opts ...locker.Option) *locker.Client {
	return redislock.New(clients[0], opts...)
}

// harness is that over so many servers.
func harness(t *testing.T, n int, open opener) conformance.Harness {
	return conformance.Harness{
		Wrap: synctest.Test,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			clients, _, closeAll := serversOf(t, n).connect()
			return wires.Closing(open(clients, opts...), closeAll)
		},
		Cut:     func(t *testing.T, f conformance.Fault) (heal func()) { return serversOf(t, n).cut(f) },
		Restart: func(t *testing.T) { serversOf(t, n).restart(t) },
		Break: func(t *testing.T, key string) {
			for _, s := range serversOf(t, n) {
				s.Del(redislock.DefaultPrefix + key)
			}
		},
		Trials: wires.Trials(t, 5),
	}
}
