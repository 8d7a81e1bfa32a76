package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

func TestMain(m *testing.M) {
	logging.Disable()
	os.Exit(redistest.Main(m))
}

// worker is a run that is scraped.
type worker struct {
	t   *testing.T
	url string
}

func start(t *testing.T, store string, ttl time.Duration) worker {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, store, ttl, listener, slog.New(slog.DiscardHandler))
}

func startOn(t *testing.T, store string, ttl time.Duration, listener net.Listener, logger *slog.Logger) worker {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, store, ttl, listener, logger) }()
	t.Cleanup(func() {
		stop()
		if err := locktest.Receive(t, ended); err != nil {
			t.Error(err)
		}
	})
	return worker{t, "http://" + listener.Addr().String() + "/metrics"}
}

// value returns the sum of what the page has for a metric with a text in its labels.
func (w worker) value(metric, label string) (sum float64) {
	w.t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^`+metric+`\{.*`+label+`.*\} (\S+)$`).FindAllStringSubmatch(scrape(w.t,
		w.url), -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			w.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	reply, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	page, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

func TestInMemory(t *testing.T) {
	w := start(t, "memory", time.Second)
	locktest.Eventually(t, "orders are processed", func() bool {
		return w.value("locker_hold_duration_seconds_count", `locker_store="memory"`) > 3
	})
}

// A server that dies costs the leases, and who waits rides that out: all of it is on the page.
func TestOutage(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	leader := start(t, server.URL(), time.Second)
	locktest.Eventually(t, "a leader", func() bool { return leader.value("locker_renewal_slack_count", `"redis"`) > 0 })
	follower := start(t, server.URL(), time.Second)
	locktest.Eventually(t, "a follower", func() bool { return follower.value("locker_waiters", `"redis"`) > 0 })
	server.Kill()
	locktest.Eventually(t, "the loss is counted", func() bool {
		return leader.value("locker_leases_lost_total", `error_type="unavailable".*"redis"`) > 0
	})
	locktest.Eventually(t, "the outage is counted", func() bool {
		return follower.value("locker_retries_total", `error_type="unavailable".*"redis"`) > 0
	})
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	locktest.Eventually(t, "a leader, and one who waits", func() bool {
		return leader.value("locker_leases", `"redis"`)+follower.value("locker_leases", `"redis"`) > 0 &&
			leader.value("locker_waiters", `"redis"`)+follower.value("locker_waiters", `"redis"`) > 0
	})
}
