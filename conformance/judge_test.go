package conformance

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// TestDeliberate is about what a busy machine excuses.
func TestDeliberate(t *testing.T) {
	t.Parallel()
	const (
		quiet = time.Millisecond
		busy  = 200 * time.Millisecond
	)
	fails := func(late time.Duration, p problem) attempt {
		return attempt{problems: []problem{p}, late: lateness{worst: late, usual: late / 20}}
	}
	starved := func(p problem) attempt { // by other programs, but awake
		return attempt{problems: []problem{p}, late: lateness{worst: quiet, busy: true}}
	}
	lost, lostThere := problem{saw: "a lease was lost", at: "a"}, problem{saw: "a lease was lost", at: "b"}
	passes := attempt{late: lateness{worst: quiet}}
	for _, test := range []struct {
		name     string
		fake     bool
		tries    []attempt
		attempts int
		fails    bool
		excused  bool
	}{
		{name: "it holds", tries: []attempt{passes}, attempts: 1},
		{name: "it holds on a busy machine", tries: []attempt{{late: lateness{worst: busy}}}, attempts: 1},
		{name: "it fails on a quiet machine", tries: []attempt{fails(quiet, lost), fails(quiet, lost)}, attempts: 2, fails: true},
		{name: "it failed once", tries: []attempt{fails(quiet, lost), passes}, attempts: 2},
		{name: "it fails in fake time", fake: true, tries: []attempt{fails(0, lost)}, attempts: 1, fails: true},
		{
			name:  "it fails only when the machine is busy",
			tries: []attempt{fails(busy, lost), fails(busy, lost), fails(busy, lost), passes}, attempts: 4,
		},
		{
			name: "the machine stays busy",
			tries: []attempt{
				fails(busy, lost), fails(busy, lostThere), fails(busy, lost), fails(busy, lost), fails(busy, lost),
			},
			attempts: 5, fails: true, excused: true,
		},
		{
			name: "the machine stays busy, and the same check fails each time",
			tries: []attempt{
				fails(busy, lost), fails(busy, lost), fails(busy, lost), fails(busy, lost), fails(busy, lost),
			},
			attempts: 5, fails: true,
		},
		{
			name: "the machine stays busy, and something takes too long each time",
			tries: []attempt{
				fails(busy, problem{over: busy}), fails(busy, problem{over: busy}), fails(busy, problem{over: busy}),
				fails(busy, problem{over: busy}), fails(busy, problem{over: busy}),
			},
			attempts: 5, fails: true, excused: true,
		},
		{
			name: "it usually takes too long, on a machine that is seldom late",
			tries: []attempt{
				fails(busy, problem{over: busy, median: true}), fails(busy, problem{over: busy, median: true}),
			},
			attempts: 2, fails: true,
		},
		{
			name: "it fails on a machine that is quiet now and then",
			tries: []attempt{
				fails(busy, lost), fails(quiet, lost), fails(busy, lost), fails(quiet, lost),
			},
			attempts: 4, fails: true,
		},
		{
			name: "the store has no processor now and then",
			tries: []attempt{
				fails(quiet, problem{over: busy}), starved(problem{over: busy}), starved(lost), passes,
			},
			attempts: 4,
		},
		{
			name: "the store has no processor, and now one thing fails, now another",
			tries: []attempt{
				fails(quiet, lost), starved(lostThere), starved(lost), starved(problem{over: busy}), starved(lost),
			},
			attempts: 5, fails: true, excused: true,
		},
		{
			name: "the store has no processor, and the same takes too long each time",
			tries: []attempt{
				fails(quiet, problem{over: busy, at: "a"}), starved(problem{over: busy, at: "a"}),
				starved(problem{over: busy, at: "a"}), starved(problem{over: busy, at: "a"}),
				starved(problem{over: busy, at: "a"}),
			},
			attempts: 5, fails: true,
		},
		{
			name: "the store has no processor, and it takes longer than that explains",
			tries: []attempt{
				starved(problem{over: 2 * time.Second}), starved(problem{over: 2 * time.Second}),
			},
			attempts: 2, fails: true,
		},
		{
			name:  "two holders",
			tries: []attempt{fails(busy, problem{saw: "two holders", wrong: true})}, attempts: 1, fails: true,
		},
		{
			name:     "it takes much longer than a busy machine can explain",
			tries:    []attempt{fails(busy, problem{over: time.Second}), fails(busy, problem{over: time.Second})},
			attempts: 2, fails: true,
		},
		{
			name:  "it takes as long as a busy machine can explain",
			tries: []attempt{fails(busy, problem{over: busy}), passes}, attempts: 2,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := deliberate(time.Second, test.fake, func(n int) attempt { return test.tries[n-1] })
			if v.attempts != test.attempts || len(v.problems) > 0 != test.fails || v.excused != test.excused {
				t.Errorf("%d attempts, problems %v, excused %v", v.attempts, v.problems, v.excused)
			}
		})
	}
}

// TestGivingUp: what a test that gives up has started does not wait for what will not come, as if the backend had hung.
func TestGivingUp(t *testing.T) {
	t.Parallel()
	r := rule{name: "exclusion/GivesUp", body: func(c *check) {
		key := c.key()
		c.lock(c.open(), key)
		w := c.start(c.ctx, c.open(), key)
		c.do(func() { <-w.done })
		c.fatalf("it gives up")
	}}
	h := new(defect).harness().withDefaults()
	v, leak := r.wrapped(t, h, &result{name: r.name})
	if len(v.problems) != 1 || v.hung() || leak != "" {
		t.Errorf("%v %s; want one problem", v.problems, leak)
	}
}

// TestMeter: it sees other programs only.
func TestMeter(t *testing.T) {
	t.Parallel()
	if _, _, known := machineTime(); !known {
		t.Skip("this system is not asked")
	}
	all, processors, _ := machineTime()
	if all <= 0 || processors < 1 {
		t.Fatalf("%d processors have worked for %v", processors, all)
	}
	here, _ := cpuTime()
	for _, test := range []struct {
		others float64 // what they used of all processors in the last minute
		busy   bool
	}{{0.1, false}, {0.9, true}} {
		used := time.Duration(test.others * float64(processors) * float64(time.Minute))
		m := meter{start: time.Now().Add(-time.Minute), all: all - used - 20*time.Second, here: here - 20*time.Second}
		if m.busy() != test.busy {
			t.Errorf("others have %v of all processors: busy is %v", test.others, m.busy())
		}
	}
}

// TestWatch: a watch sees that the machine was late, and nothing in fake time.
func TestWatch(t *testing.T) {
	t.Parallel()
	w := startWatch()
	w.add(time.Hour)
	if got := w.late(); got.worst != time.Hour {
		t.Errorf("late by %v", got)
	}
	w.stop()
	synctest.Test(t, func(*testing.T) {
		w := startWatch()
		time.Sleep(time.Minute)
		if got := w.late(); got != (lateness{}) {
			t.Errorf("late by %v in fake time", got)
		}
		w.stop()
	})
}

// strangeRuns are harnesses with which Run does something out of the ordinary. TestStrangeRuns has each of them run in
// a process of its own, and looks at what is printed.
var strangeRuns = []struct {
	name    string
	defect  defect
	change  func(*Harness)
	want    []string // in the output
	summary string   // of the report, as a regular expression; "" if the process ends before it
}{
	{
		name:   "Acquire panics",
		defect: defect{backend: func(_ *testing.T, c *client) locker.Backend { return panics{queued{c}, "Acquire"} }},
		want:   []string{"panic: conformance: Acquire", `labels:{"conformance": "exclusion/TryLockHeld"}`},
	},
	{
		name:   "Renew panics",
		defect: defect{backend: func(_ *testing.T, c *client) locker.Backend { return panics{queued{c}, "Renew"} }},
		want:   []string{"panic: conformance: Renew", `labels:{"conformance": "`},
	},
	{
		name:    "Lock panics",
		defect:  defect{locker: func(_ *testing.T, l locker.Locker) locker.Locker { return lockPanics{l} }},
		want:    []string{"panic: conformance: Lock", "FAIL: TestStrangeRun/exclusion/TryLockHeld", "judge_test.go"},
		summary: ` not judged, 1 failed\n`,
	},
	{
		name: "a goroutine stays",
		defect: defect{backend: func(_ *testing.T, c *client) locker.Backend {
			go func() { select {} }()
			return queued{c}
		}},
		want:    []string{"FAIL: TestStrangeRun/close/LeaksNothing", "goroutines have not ended"},
		summary: ` \d not provable, 1 failed\n`,
	},
	{
		name:    "Close hangs",
		defect:  defect{locker: func(_ *testing.T, l locker.Locker) locker.Locker { return closeHangs{l} }},
		want:    []string{"FAIL: TestStrangeRun/exclusion/TryLockHeld", "Close did not return"},
		summary: `\b\d+ not judged, 1 failed\n`,
	},
	{
		name:    "nothing excludes anything",
		defect:  defect{store: func(s *store) { s.nameOf = func(r locker.Request) string { return r.Owner.String() } }},
		want:    []string{"takes for granted what fails: mend exclusion/TryLockHeld first"},
		summary: `\b\d+ not judged, 1 failed\n`,
	},
	{
		name:    "leases do not end",
		defect:  defect{store: func(s *store) { s.keptFor = func(time.Duration) time.Duration { return 1 << 60 } }},
		want:    []string{"takes for granted what fails: mend waiting/WakesOnExpiry first"},
		summary: ` not judged, [1-4] failed\n`,
	},
	{
		name:    "it renews by itself",
		defect:  defect{backend: newSelfRenewing},
		want:    []string{"Features{RenewsItself:"},
		summary: ` not judged, [1-4] failed\n`,
	},
	{
		name:    "it renews by itself, which is said",
		defect:  defect{backend: newSelfRenewing},
		change:  func(h *Harness) { h.Features.RenewsItself = "its client has a keep-alive" },
		want:    []string{"its client has a keep-alive (Features.RenewsItself)"},
		summary: ` proven, .*\d+ relaxed, \d not provable\n`,
	},
}

// TestStrangeRun is one of strangeRuns.
func TestStrangeRun(t *testing.T) {
	for _, s := range strangeRuns {
		if s.name == os.Getenv(childOf) {
			h := s.defect.harness()
			if s.change != nil {
				s.change(&h)
			}
			Run(t, h)
			return
		}
	}
	t.Skip("TestStrangeRuns runs it in processes of their own")
}

// TestStrangeRuns proves that Run comes to an end with a report of a readable length, whatever a backend does, and that
// what nobody can recover has at least the name of the rule.
func TestStrangeRuns(t *testing.T) {
	withoutRaces(t)
	t.Parallel()
	for _, s := range strangeRuns {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.timeout=5m", "-test.run=^TestStrangeRun$")
			cmd.Env = append(os.Environ(), childOf+"="+s.name)
			out, err := cmd.CombinedOutput()
			for _, want := range s.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q", want)
				}
			}
			hasReport := strings.Contains(string(out), " rules: ")
			found, badPattern := regexp.Match(`\d+ rules: .*`+s.summary, out)
			switch {
			case badPattern != nil:
				t.Fatal(badPattern)
			case s.summary != "" && !found:
				t.Errorf("no report that matches %q", s.summary)
			case s.summary == "" && hasReport:
				t.Error("the process has gone on")
			case (err == nil) != (s.summary != "" && !strings.Contains(s.summary, "failed")):
				t.Errorf("the process has ended with %v", err)
			}
			const most = 200 << 10
			if len(out) > most {
				t.Errorf("%d bytes of output", len(out))
			}
			if t.Failed() {
				t.Logf("%.20000s", out)
			}
		})
	}
}

// panics is a backend of which one method panics.
type panics struct {
	queued
	method string
}

func (b panics) at(method string) {
	if b.method == method {
		panic("conformance: " + method)
	}
}

func (b panics) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	b.at("Acquire")
	return b.queued.Acquire(ctx, r)
}

func (b panics) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	b.at("Renew")
	b.queued.Renew(ctx, gs, done)
}

// lockPanics is a Locker whose Lock panics, on the goroutine that calls it.
type lockPanics struct{ locker.Locker }

func (lockPanics) Lock(context.Context, string, ...locker.CallOption) (*locker.Lease, error) {
	panic("conformance: Lock")
}

// closeHangs is a Locker whose Close never returns.
type closeHangs struct{ locker.Locker }

func (l closeHangs) Close() error {
	_ = l.Locker.Close()
	select {}
}

// newSelfRenewing returns a backend whose client keeps all locks alive until they are released.
func newSelfRenewing(_ *testing.T, c *client) locker.Backend {
	return newTended(c, func(g locker.Grant) func(context.Context) {
		return func(ctx context.Context) { keepAlive(ctx, c, g) }
	})
}

// keepAlive renews a lock until it is lost, or ctx ends.
func keepAlive(ctx context.Context, c *client, g locker.Grant) {
	lost := false
	for sent := time.Now(); !lost && time.Since(sent) < g.TTL; {
		select {
		case <-time.After(g.TTL / 3):
		case <-ctx.Done():
			return
		}
		attempt, cancel := context.WithTimeout(ctx, g.TTL/3)
		at := time.Now()
		c.Renew(attempt, []locker.Grant{g}, func(_ int, r locker.Renewal) {
			if lost = errors.Is(r.Err, locker.ErrLost); r.Err == nil {
				sent = at
			}
		})
		cancel()
	}
}
