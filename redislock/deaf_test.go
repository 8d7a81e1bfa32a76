package redislock_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
)

// errorReplies returns how many errors the server has answered with that have no code of their own, as for a command
// that it does not know.
func errorReplies(t *testing.T, rdb *redis.Client) int {
	t.Helper()
	for line := range strings.Lines(rdb.Info(context.Background(), "errorstats").Val()) {
		if count, ok := strings.CutPrefix(line, "errorstat_ERR:count="); ok {
			n, err := strconv.Atoi(strings.TrimSpace(count))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// TestWithoutSubscriptions has a server, or something before it, that knows no SUBSCRIBE. Waiters ask instead, the
// Observers are told why it is slow, and the server is not bothered much with new attempts.
func TestWithoutSubscriptions(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{Args: []string{"--rename-command", "SUBSCRIBE", ""}})
	admin := dial(t, server.Addr())
	told := make(chan error, 1000)
	holder := open(t, dial(t, server.Addr()))
	waiter := open(t, dial(t, server.Addr()), locker.Observe(&locker.Observer{
		Retry: func(info locker.RetryInfo) {
			if info.Key == "k" {
				told <- info.Err
			}
		},
	}))
	lease := mustLock(t, holder, "k")
	served := make(chan *locker.Lease, 1)
	go func() { served <- mustLock(t, waiter, "k") }()
	select {
	case err := <-told:
		checkClass(t, "what the Observer was told", err, locker.ErrUnfit)
		if !strings.Contains(err.Error(), "subscribe") {
			t.Errorf("the Observer was told %v; want why nobody is called", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was told that waiters are not called")
	}
	stalled := watchStalls(t)
	asked := polls(t, admin)
	// An attempt every half of a second would be two dozen: the holder, too, wants to listen when it has renewed.
	const watched, most = 6 * time.Second, 12
	before := errorReplies(t, admin)
	time.Sleep(watched)
	after := errorReplies(t, admin)
	if after-before > most {
		t.Errorf("%d attempts to subscribe in %v; want %d at most", after-before, watched, most)
	}
	perSecond := float64(polls(t, admin)-asked) / watched.Seconds()
	if perSecond < 2 && stalled() < 100*time.Millisecond {
		t.Errorf("the waiter has asked %.1f times a second; want more than if it were called", perSecond)
	}
	t.Logf("%d attempts to subscribe, and %.1f polls a second", after-before, perSecond)
	released := time.Now()
	mustUnlock(t, lease)
	mustUnlock(t, <-served)
	t.Logf("served %v after Unlock", time.Since(released))
}
