package pglock_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestClose closes Lockers that are in the middle of something, of which some have lost their server. It takes a
// bounded time, ends all calls, and leaves nothing behind.
func TestClose(t *testing.T) { // not in parallel: it looks at all goroutines
	const ttl = 4 * time.Second // a busy machine may stand still for longer than a second
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace)) // or it would be created by all of them at once
	faults := map[string]faultproxy.Fault{
		"no fault": {}, "hang": faultproxy.Hang(), "black hole": faultproxy.BlackHole(), "refuse": faultproxy.Refuse(),
	}
	t.Run("while", func(t *testing.T) {
		for name, fault := range faults {
			for _, doing := range []string{"connecting", "holding", "waiting", "polling", "cancelling"} {
				t.Run(doing+", "+name, func(t *testing.T) {
					t.Parallel()
					proxy, dsn := behind(t, server.URL())
					l := openWatched(t, pglock.Config{WaitSessions: 1}, dsn, locker.TTL(ttl))
					other, key, key2 := open(t, server.URL()), unique("key"), unique("key")
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var calls []locktest.Pending[error]
					call := func(key string) {
						calls = append(calls, locktest.Started(func() error { _, err := l.Lock(ctx, key); return err }))
					}
					switch doing {
					case "connecting":
						proxy.Set(fault)
						before := proxy.Accepted()
						call(key)
						eventually(t, "it connects", func() bool { return fault.Refuse || proxy.Accepted() > before })
					case "holding":
						mustTry(t, l, key)
					default:
						mustTry(t, other, key)
						call(key)
						eventually(t, "it waits", func() bool { return admin.inLine(key) == 1 })
					}
					if doing == "polling" {
						mustTry(t, other, key2)
						call(key2)
						eventually(t, "it polls, and has marked the key", func() bool { return pglock.Marked(l.backend) == 1 })
					}
					proxy.Set(fault)
					if doing == "cancelling" {
						cancel()
					}
					start := time.Now()
					_ = l.Close() // which may say that it could not unlock
					// To unlock is bounded by the TTL, and to leave a line by two seconds; the machine may be busy.
					if took := time.Since(start); took > 4*ttl {
						t.Errorf("Close took %v", took)
					}
					_ = other.Close() // as a session that cannot be reached stays in line until it is granted the lock, and then ends
					if name == "hang" {
						proxy.Heal()
					}
					for _, call := range calls {
						if err := call.Get(t); err != nil && name == "no fault" && !errors.Is(err, locker.ErrClosed) &&
							!errors.Is(err, context.Canceled) {
							t.Errorf("Lock while the Locker is closed: %v", err)
						}
					}
					eventually(t, "its locks and sessions have ended", func() bool {
						return admin.locks(l.app) == 0 && admin.connections(l.app) == 0
					})
				})
			}
		}
	})
	var left []string
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(left, "\n\n"))
		}
	}()
	eventually(t, "their goroutines have ended", func() bool {
		left = goroutines()
		return len(left) == 0
	})
}

// goroutines returns the stacks of those of the package that are not tests.
func goroutines() (stacks []string) {
	buf := make([]byte, 4<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "/pglock.") && !strings.Contains(stack, "_test.go") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}
