package faketime

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"

	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	redisserver "github.com/lockerkit/locker/redislock/internal/server"
)

// many are the rules that run scripts by the thousand, to see something that happens once in so many. Here they take
// longer than all others, and time has no part in them: package redislock runs them. With -skip=^$ they run here, too.
const many = "/^.*$/^(NeverWraps|OwnersAlike|AtomicAtExpiry|ManyKeys|RenewedForItsTTL)$"

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
	conformance.Run(t, conformance.Harness{
		Wrap: synctest.Test,
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			c := serverOf(t).connect()
			return wires.Closing(redislock.New(c.Client, opts...), func() { _ = c.Close() })
		},
		Cut:     func(t *testing.T, f conformance.Fault) (heal func()) { return serverOf(t).cut(f) },
		Restart: func(t *testing.T) { serverOf(t).restart(t) },
		Break:   func(t *testing.T, key string) { serverOf(t).Del(redislock.DefaultPrefix + key) },
		Backend: func(t *testing.T) locker.Backend {
			c := serverOf(t).connect()
			b, err := redisserver.Config{}.New(c.Client, redisserver.NewProcess(), c.Close)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Trials: wires.Trials(t, 5),
	})
}
