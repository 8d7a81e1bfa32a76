package conformance

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A rule whose test finds something for which a busy machine may be the reason is tried again, alone, when the machine
// has become quiet. It fails if it then fails again, and on any machine at once if it has seen what is wrong on any
// machine. If the machine does not become quiet, it is not judged; but it fails if the same check has failed each time,
// unless that is one of how long something took, and this process was late by as much: on a busy machine it is now one
// that fails, now another.
const (
	maxAttempts = 5
	toConfirm   = 2 // attempts that fail while the machine is quiet
)

// attempts are made alone from the second on, in this process: alone is locked for them, and read-locked for others.
var alone sync.RWMutex

// attempt is what the test of a rule has found, once.
type attempt struct {
	problems []problem
	gaps     []gap
	drew     bool // something at random
	late     lateness
}

// verdict is what became of the test of a rule.
type verdict struct {
	attempt            // the last one
	before   []problem // of the attempts before it
	attempts int
	worst    time.Duration // of all attempts: by how much the machine was late
	excused  bool          // the machine may be the reason for the problems
	seed     uint64
}

// hung reports whether something has not returned.
func (v verdict) hung() bool {
	return slices.ContainsFunc(v.problems, func(p problem) bool { return p.hangs })
}

// run tries the rule until there is a verdict.
func (r rule) run(t *testing.T, h Harness, name string) verdict {
	fake, seed := inFakeTime(), seed()
	v := deliberate(h.TTL, fake, func(n int) attempt {
		busy := false
		switch {
		case fake: // nothing is late, and nothing disturbs
		case n > 1:
			alone.Lock()
			defer alone.Unlock()
			busy = awaitQuiet(h.TTL/50, 10*time.Second)
		default:
			alone.RLock()
			defer alone.RUnlock()
		}
		random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // to be repeatable is the point
		c := &check{t: t, h: h, rule: name, ttl: h.TTL, attempt: n, random: random, opening: newTurn()}
		if fake {
			c.lasts = r.lasts
		}
		w := startWatch()
		c.run(func(c *check) {
			if r.mode == nil || c.offers(r.mode) {
				r.body(c)
			}
		})
		w.stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		late := w.late()
		late.busy = busy
		return attempt{slices.Clone(c.problems), slices.Clone(c.gaps), c.drew, late}
	})
	v.seed = seed
	return v
}

// deliberate has attempts made until it is known what to say of them.
func deliberate(ttl time.Duration, fake bool, try func(n int) attempt) (v verdict) {
	lasting := make(map[string]int) // in how many attempts, from the first on, a check has failed
	for confirmed := 0; ; {
		v.before = append(v.before, v.problems...)
		v.attempts++
		v.attempt = try(v.attempts)
		v.worst = max(v.worst, v.late.worst)
		if len(v.problems) == 0 || fake || isWrong(v.problems) {
			return v
		}
		itself := v.late
		itself.busy = false
		for _, p := range v.problems {
			if (p.over == 0 || !itself.explains(p, ttl)) && lasting[p.at] == v.attempts-1 {
				lasting[p.at]++
			}
		}
		if !explain(v.problems, v.late, ttl) {
			confirmed++
		}
		if confirmed == toConfirm || v.attempts == maxAttempts {
			v.excused = confirmed < toConfirm && !slices.Contains(slices.Collect(maps.Values(lasting)), maxAttempts)
			return v
		}
	}
}

// isWrong reports whether one of some problems has nothing to do with the machine.
func isWrong(problems []problem) bool {
	return slices.ContainsFunc(problems, func(p problem) bool { return p.wrong })
}

// explain reports whether a machine that was late may be the reason for all of some problems.
func explain(problems []problem, late lateness, ttl time.Duration) bool {
	return !slices.ContainsFunc(problems, func(p problem) bool { return !late.explains(p, ttl) })
}

// seedVariable is the environment variable with the seed for what is drawn at random.
const seedVariable = "LOCKER_CONFORMANCE_SEED"

// seed returns the seed of a rule. Run has refused what is no number.
func seed() uint64 {
	n, _ := parseSeed(os.Getenv(seedVariable))
	return n
}

// parseSeed returns the seed that a text has, or another one each time if it is empty.
func parseSeed(text string) (uint64, error) {
	if text == "" {
		return rand.Uint64(), nil //nolint:gosec // to be repeatable is the point
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is %q; want a number, as a failure shows it", seedVariable, text)
	}
	return n, nil
}

// test runs the rule as t, and says in the report what became of it.
func (r rule) test(t *testing.T, h Harness, rep *report, res *result) {
	// The first to be registered runs last: also what fails when a hook cleans up counts.
	t.Cleanup(func() { res.conclude(t.Failed(), t.Skipped()) })
	leaveOut := func(o outcome, why string) {
		res.outcome = o
		res.note("%s", why)
		t.Skipf("%s: %s\nrule: %s", o, why, r.text)
	}
	if o, why := r.leftOut(h); o != notRun {
		leaveOut(o, why)
	}
	if why := rep.stopped(r, res.name); why != "" {
		leaveOut(notJudged, why)
	}
	v, leak := r.wrapped(t, h, res)
	res.attempts, res.late = v.attempts, v.worst
	if leak != "" {
		if res.name == leaksNothingName {
			v.problems = append(v.problems, problem{saw: leak, at: "testing/synctest", wrong: true})
		} else {
			v.gaps = append(v.gaps, gap{"goroutines have not ended when the Lockers were closed: see " + leaksNothingName, inPart})
		}
	}
	if v.hung() {
		rep.hung.Add(1)
	}
	for _, g := range v.gaps {
		t.Log(g.what)
		res.note("%s", g.what)
		res.outcome = max(res.outcome, g.leaves)
	}
	seen := v.problems
	if len(seen) == 0 {
		seen = v.before
	}
	for _, saw := range summary(seen) {
		res.saw = append(res.saw, firstLine(saw))
	}
	switch {
	case len(v.problems) == 0 && v.attempts > 1:
		t.Logf("holds, at attempt %d: the machine was late by %v. Before that:\n%s", v.attempts, v.worst,
			strings.Join(res.saw, "\n"))
	case len(v.problems) == 0:
	case v.excused:
		leaveOut(machineLate, fmt.Sprintf("the machine was late by %v, each of %d times: %s",
			v.worst.Round(time.Millisecond), v.attempts, strings.Join(res.saw, "; ")))
	default:
		t.Error(r.failure(v))
	}
}

// leftOut returns why the rule is not asked of this harness, if it is not.
func (r rule) leftOut(h Harness) (outcome, string) {
	if newer(r.since, h.Since) {
		return tooNew, fmt.Sprintf("came with %s, after %s (Harness.Since)", r.since, h.Since)
	}
	if r.relaxes != nil {
		if reason := r.relaxes.reason(h.Features); reason != "" {
			return relaxed, fmt.Sprintf("%s (Features.%s)", reason, r.relaxes.name)
		}
	}
	if r.needs != nil && !r.needs.provided(h) {
		return notProvable, fmt.Sprintf("needs Harness.%s, which %s", r.needs.name, r.needs.does)
	}
	if r.expires && h.Features.RenewsItself != "" && !needsCut.provided(h) {
		return notProvable, fmt.Sprintf("needs Harness.%s, which %s, as the backend renews by itself",
			needsCut.name, needsCut.does)
	}
	return notRun, ""
}

// leaksNothingName is the rule that has to do with goroutines that stay.
const leaksNothingName = "close/LeaksNothing"

// wrapped runs the rule in Harness.Wrap. A panic is a problem. It returns what synctest.Test says when there are
// goroutines left, which it says by a panic.
func (r rule) wrapped(t *testing.T, h Harness, res *result) (v verdict, leak string) {
	defer func() {
		switch p := fmt.Sprint(recover()); {
		case p == fmt.Sprint(nil):
		case strings.Contains(p, "main bubble goroutine has exited but blocked goroutines remain"):
			leak = p
		default:
			v.problems = append(v.problems, problem{
				saw: fmt.Sprintf("panic: %s\n%s", p, abridged(string(debug.Stack()))), at: "panic", wrong: true,
			})
		}
	}()
	if raceDetector && h.wrapped {
		defer onOneProcessor()()
	}
	h.Wrap(t, func(t *testing.T) {
		v = r.run(t, h, res.name)
		if t.Skipped() { // which synctest.Test does not tell the test around it
			res.outcome = skipped
		}
	})
	return v, ""
}
