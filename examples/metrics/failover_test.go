package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
)

// scraped is what the pages of all workers have, at a moment: by the name of a metric, with its labels.
type scraped struct {
	at     time.Duration
	values map[string]float64
}

// sum returns the sum of what has a name, and a text in its labels.
func (s scraped) sum(name, label string) (sum float64) {
	for k, v := range s.values {
		if strings.HasPrefix(k, name+"{") && strings.Contains(k, label) {
			sum += v
		}
	}
	return sum
}

var metricLine = regexp.MustCompile(`(?m)^(locker_\w+\{[^}]*\}) (\S+)$`)

// recorded is what a run shows to who looks: the log, spans, and metrics.
type recorded struct {
	begin time.Time
	down  time.Duration // when the master was killed
	up    time.Duration // when it came back
	end   time.Duration

	mu      sync.Mutex
	log     bytes.Buffer
	samples []scraped
	spans   *tracetest.SpanRecorder
}

func (r *recorded) now() time.Duration { return time.Since(r.begin) }

// Write takes a line of the log.
func (r *recorded) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(line)
}

// logger is that of a worker: of what locker.Log says at the level Warn and above, with the time since the start.
func (r *recorded) logger(worker int) *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				a.Value = slog.StringValue(fmt.Sprintf("%.2fs", r.now().Seconds()))
			}
			return a
		},
	})).With("worker", worker)
}

// watch scrapes the workers until stop is called, which has to be before the test ends, as the workers end then.
func (r *recorded) watch(t *testing.T, workers []worker) (stop func()) {
	const every = 200 * time.Millisecond
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			s := scraped{r.now(), make(map[string]float64)}
			for _, w := range workers {
				for _, m := range metricLine.FindAllStringSubmatch(scrape(t, w.url), -1) {
					v, _ := strconv.ParseFloat(m[2], 64)
					s.values[m[1]] += v
				}
			}
			r.mu.Lock()
			r.samples = append(r.samples, s)
			r.mu.Unlock()
			select {
			case <-stopped:
				return
			case <-time.After(every):
			}
		}
	}()
	return func() { close(stopped); <-done }
}

// last returns what was scraped last.
func (r *recorded) last() (s scraped) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.samples) > 0 {
		s = r.samples[len(r.samples)-1]
	}
	return s
}

// TestFailover has the master of a Sentinel group die. Whoever looks at the log, the metrics and the spans sees it; and
// that all goes on with the next master. With LOCKER_FAILOVER_PAGE, the run is longer, and what was seen is written to
// that directory: see docs/observability.md.
func TestFailover(t *testing.T) {
	const ttl = 10 * time.Second
	dir, before, after := os.Getenv("LOCKER_FAILOVER_PAGE"), time.Second, time.Second
	if dir != "" {
		before, after = 10*time.Second, 24*time.Second
	}
	group := redistest.NewSentinels(t, redistest.SentinelOptions{})
	r := &recorded{begin: time.Now(), spans: tracetest.NewSpanRecorder()}
	traces := trace.NewTracerProvider(trace.WithSpanProcessor(r.spans))
	old := otel.GetTracerProvider()
	otel.SetTracerProvider(traces) // which is what otellocker uses without an option
	t.Cleanup(func() { otel.SetTracerProvider(old) })
	var workers []worker
	for i := range 3 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		workers = append(workers, startOn(t, group.URL(), ttl, listener, r.logger(i+1)))
	}
	defer r.watch(t, workers)()
	works := func(what string) {
		t.Helper()
		held := func() float64 { return r.last().sum("locker_hold_duration_seconds_count", "") }
		before := held()
		locktest.Eventually(t, what, func() bool { return held() > before+3 })
	}
	works("orders are processed")
	locktest.Eventually(t, "two wait to lead", func() bool { return r.last().sum("locker_waiters", "") >= 2 })
	time.Sleep(before) // for the picture

	master := group.Master(t)
	r.down = r.now()
	master.Kill()
	group.AwaitFailover(t, master)
	works("orders are processed by way of the new master")
	time.Sleep(after / 2)
	r.up = r.now()
	group.RestartReplica(t, master)
	works("orders are processed when the old master is back")
	time.Sleep(after / 2)
	r.end = r.now()

	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.samples[len(r.samples)-1]
	failed := end.sum("locker_acquire_duration_seconds_count", "unavailable")
	if failed+end.sum("locker_retries_total", "unavailable") == 0 {
		t.Error("no metric tells of the failover")
	}
	if !strings.Contains(r.log.String(), "level=WARN") {
		t.Errorf("the log tells nothing of the failover: %s", r.log.String())
	}
	t.Logf("the log:\n%s", r.log.String())
	if dir != "" {
		r.write(t, dir)
	}
}
