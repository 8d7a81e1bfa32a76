package conformance

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

func BenchmarkReference(b *testing.B) {
	w := &world{store: newStore()}
	Bench(b, Harness{OpenB: func(_ *testing.B, opts ...locker.Option) locker.Locker {
		return locker.New(queued{w.connect()}, opts...)
	}})
}

// TestBench proves that each benchmark comes to its end and reports what it says, not how fast anything is.
func TestBench(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkReference$", "-test.benchtime=3x").
		CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pair := "ns/op ops/s p50-ns p99-ns B/op allocs/op"
	want := map[string]string{
		"LockUnlock/goroutines=1": pair, "LockUnlock/goroutines=4": pair, "LockUnlock/goroutines=16": pair,
		"LockUnlock/goroutines=64": pair, "LockUnlock/goroutines=256": pair, "Contended/lockers=4": pair,
		"Handoff": "p50-ns p99-ns", "Held/leases=1000": "B/lease goroutines",
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "BenchmarkReference/") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "BenchmarkReference/")
		if i := strings.LastIndex(name, "-"); i > 0 { // GOMAXPROCS
			name = name[:i]
		}
		for _, unit := range strings.Fields(want[name]) {
			if !strings.Contains(line, " "+unit) {
				t.Errorf("%s does not report %s:\n%s", name, unit, line)
			}
		}
		if fields[1] != "3" {
			t.Errorf("%s ran %s times; want 3", name, fields[1])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("no %s in:\n%s", name, out)
	}
}

func TestLatencies(t *testing.T) {
	var l latencies
	for i := 1; i <= 1000; i++ {
		l.add(time.Duration(i) * time.Millisecond)
	}
	for p, want := range map[int]time.Duration{1: 10 * time.Millisecond, 50: 500 * time.Millisecond, 99: 990 * time.Millisecond, 100: time.Second} {
		if got := l.percentile(p); got > want || got < want-want/perDoubling {
			t.Errorf("percentile %d is %v; want %v, or at most a thirty-second less", p, got, want)
		}
	}
	last := -1
	for _, d := range []time.Duration{-1, 0, 1, 31, 32, 33, 63, 64, 65, 66, 127, 128, 1 << 40, 1<<63 - 1} {
		b := bucket(d)
		if s := shortest(b); s > max(0, d) || s < d-d/perDoubling || b < last {
			t.Errorf("%d ns are in bucket %d, from %d", d, b, s)
		}
		last = b
	}
}
