package locker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// TestHealthy has work that does not stop when its lease is lost, and work that does.
func TestHealthy(t *testing.T) {
	const grace = time.Second
	runs := map[string]func(ctx context.Context, l locker.Locker, work func(context.Context) error) error{
		"Do": func(ctx context.Context, l locker.Locker, work func(context.Context) error) error {
			return locker.Do(ctx, l, "k", work)
		},
		"DoAll": func(ctx context.Context, l locker.Locker, work func(context.Context) error) error {
			return locker.DoAll(ctx, l, []string{"a", "k", "a"},
				func(ctx context.Context, _ locker.Leases) error { return work(ctx) })
		},
		"Lead": func(ctx context.Context, l locker.Locker, work func(context.Context) error) error {
			return locker.Lead(ctx, l, "k", func(ctx context.Context, _ *locker.Lease) error { return work(ctx) })
		},
	}
	for name, run := range runs {
		for _, loss := range []string{"broken", "revoked", "expired"} {
			synctest.Test(t, func(t *testing.T) {
				memory := memlock.New()
				l := memory.Peer(locker.TTL(10 * time.Second))
				healthy := func(want bool, when string) {
					t.Helper()
					err := l.Healthy(grace)
					if want == (err == nil) && (want || errors.Is(err, locker.ErrLost)) &&
						(want || strings.Contains(err.Error(), `"k"`) || name == "DoAll" && loss == "expired") {
						return
					}
					t.Errorf("%s, %s, %s: Healthy: %v", name, loss, when, err)
				}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				finish, ended := make(chan struct{}), make(chan error, 1)
				healthy(true, "before")
				go func() {
					ended <- run(ctx, l, func(context.Context) error {
						<-finish // whatever becomes of its ctx
						return ctx.Err()
					})
				}()
				synctest.Wait()
				time.Sleep(time.Minute)
				healthy(true, "at work")
				var err error
				switch loss {
				case "broken":
					err = memory.Break(t.Context(), "k")
				case "revoked":
					err = memory.Revoke(t.Context(), "k", "why")
				default:
					defer l.Cut()()
					time.Sleep(12 * time.Second)
				}
				if err != nil {
					t.Fatal(err)
				}
				if loss != "expired" {
					time.Sleep(grace - time.Millisecond)
					healthy(true, "within the grace")
					time.Sleep(time.Millisecond)
				}
				healthy(false, "after the grace")
				stop()
				close(finish)
				<-ended
				healthy(true, "when the work has ended")
			})
		}
	}
}
