package conformance

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// defect is how a broken backend differs from the reference; the zero defect is the reference itself.
//
// What locker.New keeps for every backend (deadlines, ctx, Close, ...) is broken by a Locker around that of New.
type defect struct {
	name    string
	store   func(*store)
	backend func(*testing.T, *client) locker.Backend // nil means queued
	locker  func(*testing.T, locker.Locker) locker.Locker
	lockAll func(context.Context, locker.Locker, []string) (locker.Leases, error)
	caught  []string // the rules that have to fail, as group/Rule
	fine    []string // rules that the defect has nothing to do with, which have to pass
}

var defects = slices.Concat(exclusionDefects, waitingDefects, ownershipDefects, leaseDefects, tokenDefects,
	closeDefects, renewalDefects, nameDefects, lineDefects, atomicDefects, modeDefects,
	allDefects, inspectDefects, revokeDefects, minHoldDefects, detachDefects)

// TestReference proves that the suite asks for nothing impossible: with all hooks provided and nothing relaxed.
func TestReference(t *testing.T) {
	Run(t, new(defect).harness())
}

// TestReferenceInRealTime is for the rule about the two clocks, as fake time has one.
func TestReferenceInRealTime(t *testing.T) {
	for _, p := range new(defect).problems(t, "lease/WallClockIndependent") {
		t.Error(p)
	}
}

// The tests in real time take minutes. They are for a machine on which other programs keep the processors busy, which
// is what they are about: whether the suite still refuses no correct backend, and still catches the broken ones.
//
//	LOCKER_TRIALS=1 go test -run InRealTime -count=10 ./conformance
func thorough(t *testing.T) {
	if os.Getenv("LOCKER_TRIALS") == "" {
		t.Skip("takes minutes: set LOCKER_TRIALS, to 1 for example, to run it")
	}
}

func TestQueueingReferenceInRealTime(t *testing.T) {
	thorough(t)
	h := new(defect).harness()
	h.Wrap = nil
	Run(t, h)
}

func TestPollingReferenceInRealTime(t *testing.T) {
	thorough(t)
	h := (&defect{backend: func(_ *testing.T, c *client) locker.Backend { return c }}).harness()
	h.Wrap = nil
	h.Features.Unordered = "a backend without a line"
	Run(t, h)
}

func TestDefectsInRealTime(t *testing.T) {
	thorough(t)
	for _, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			h := d.harness()
			h.Wrap = nil
			h = h.withDefaults()
			serialFirst(t, func(serial bool) {
				for _, name := range d.caught {
					r := ruleNamed(t, name)
					if r.serial != serial {
						continue
					}
					if v, _ := r.wrapped(t, h, &result{name: name}); len(v.problems) == 0 || v.excused {
						t.Errorf("%s does not catch it: %d attempts, the machine was late by %v, excused: %v, %v",
							name, v.attempts, v.worst, v.excused, v.problems)
					}
				}
			})
		})
	}
}

// serialFirst has the serial rules judged before any other runs in parallel.
func serialFirst(t *testing.T, judge func(serial bool)) {
	judge(true)
	t.Parallel()
	judge(false)
}

// withoutRaces skips what takes half a minute with the race detector, and has nothing for it to look at that others
// have not: whole runs of the suite, on correct backends beside TestReference, for their reports, or by other programs.
func withoutRaces(t *testing.T) {
	if raceDetector {
		t.Skip("run it without the race detector, as scripts/test does")
	}
}

// sampled returns what a test is about: all of it, or one of some at random under the race detector, with which that
// takes minutes, and which looks at the code of the suite alone.
func sampled[T any](t *testing.T, all []T, some int) []T {
	if !raceDetector {
		return all
	}
	n := seed()
	t.Logf("under the race detector: %d of %d (%s=%d); the others without it", len(all)/some, len(all), seedVariable, n)
	random := rand.New(rand.NewPCG(n, 0))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:len(all)/some]
}

// TestDefects proves that the suite catches broken backends, under the rules that they break.
func TestDefects(t *testing.T) {
	for _, d := range sampled(t, slices.Clone(defects), 8) {
		t.Run(d.name, func(t *testing.T) {
			serialFirst(t, func(serial bool) { d.judge(t, serial) })
		})
	}
}

// chances is how often a rule may look for a defect: what depends on who comes first is found in nearly every run.
const chances = 4

// judge runs either the serial rules or the others of those that the defect says something about.
func (d *defect) judge(t *testing.T, serial bool) {
	for _, name := range d.caught {
		if ruleNamed(t, name).serial != serial {
			continue
		}
		problems := d.problems(t, name)
		for again := 1; len(problems) == 0 && again < chances; again++ {
			problems = d.problems(t, name)
		}
		if len(problems) == 0 {
			t.Errorf("%s does not catch it, %d times", name, chances)
		}
		for _, p := range problems {
			p.check(t)
		}
	}
	for _, name := range d.fine {
		if ruleNamed(t, name).serial != serial {
			continue
		}
		problems := d.problems(t, name)
		if len(problems) > 0 {
			problems = d.problems(t, name)
		}
		for _, p := range problems {
			t.Errorf("%s fails, too, and did so before:\n%s", name, p)
		}
	}
}

// problems returns what a rule finds.
func (d *defect) problems(t *testing.T, name string) []problem {
	r := ruleNamed(t, name)
	h := d.harness()
	if name == "lease/WallClockIndependent" {
		h.Wrap = nil
	}
	h = h.withDefaults()
	v, leak := r.wrapped(t, h, &result{name: name})
	if leak != "" {
		t.Error(leak)
	}
	return v.problems
}

var position = regexp.MustCompile(`^([a-z_]+\.go):[1-9][0-9]*$`)

// check checks that a problem says what was seen, and where.
func (p problem) check(t *testing.T) {
	t.Helper()
	if p.saw == "" {
		t.Errorf("incomplete problem %+v", p)
	}
	if p.hangs { // a watchdog says so
		return
	}
	at := position.FindStringSubmatch(p.at)
	if at == nil || at[1] == "check.go" {
		t.Errorf("%q is not the position of a check", p.at)
	} else if found, err := filepath.Glob(at[1]); err != nil || len(found) != 1 {
		t.Errorf("%q is no file of the suite", at[1])
	}
}

// TestEveryRuleCatchesSomething is about rules that could as well be left out.
func TestEveryRuleCatchesSomething(t *testing.T) {
	catches := make(map[string]bool)
	for _, d := range defects {
		for _, name := range d.caught {
			catches[name] = true
		}
	}
	for _, g := range groups() {
		for _, r := range g.rules {
			if name := g.name + "/" + r.name; !catches[name] {
				t.Errorf("no broken backend is known that %s catches", name)
			}
		}
	}
}

func ruleNamed(t *testing.T, name string) rule {
	t.Helper()
	for _, g := range groups() {
		for _, r := range g.rules {
			if g.name+"/"+r.name == name {
				return r
			}
		}
	}
	t.Fatalf("there is no rule %s", name)
	return rule{}
}

// harness returns a harness in which each test has a world of its own.
func (d *defect) harness() Harness {
	var mu sync.Mutex
	worlds := make(map[*testing.T]*world)
	of := func(t *testing.T) *world {
		mu.Lock()
		defer mu.Unlock()
		if worlds[t] == nil {
			worlds[t] = &world{store: newStore()}
			if d.store != nil {
				d.store(worlds[t].store)
			}
		}
		return worlds[t]
	}
	backend := func(t *testing.T) locker.Backend {
		c := of(t).connect()
		if d.backend != nil {
			return d.backend(t, c)
		}
		return queued{c}
	}
	return Harness{
		Backend: func(t *testing.T) locker.Backend {
			b := backend(t)
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
		Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
			l := locker.New(backend(t), opts...)
			if d.locker != nil {
				return d.locker(t, l)
			}
			return l
		},
		Cut:     func(t *testing.T, f Fault) (heal func()) { return of(t).cut(f) },
		Restart: func(t *testing.T) { of(t).restart() },
		Break:   func(t *testing.T, key string) { of(t).takeAway(key) },
		Skew:    func(t *testing.T, d time.Duration) (undo func()) { return of(t).skew(d) },
		Wrap:    synctest.Test,
		lockAll: d.lockAll,
	}
}

// TestGreaterTokenAgain is about a rule that is relaxed in part.
func TestGreaterTokenAgain(t *testing.T) {
	for _, test := range []struct {
		step  int64 // from a token to that of the second answer
		allow bool
		fails bool
	}{{0, false, false}, {1, false, true}, {1, true, false}, {-1, true, true}} {
		d := &defect{
			backend: func(_ *testing.T, c *client) locker.Backend { return &countsAnswers{client: c, step: test.step} },
		}
		h := d.harness()
		if test.allow {
			h.Features.GreaterTokenAgain = "it counts its answers"
		}
		r := ruleNamed(t, "backend/AcquireAgain")
		h.withDefaults().Wrap(t, func(t *testing.T) {
			v := r.run(t, h.withDefaults(), "backend/AcquireAgain")
			if len(v.problems) > 0 != test.fails || len(v.gaps) > 0 != test.allow {
				t.Errorf("%+v: %v, %v", test, v.problems, v.gaps)
			}
		})
	}
}

// countsAnswers adds something to the token of each answer to a client.
type countsAnswers struct {
	*client
	step, sum int64
}

func (b *countsAnswers) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, err := b.client.Acquire(ctx, r)
	g.Token = uint64(int64(g.Token) + b.sum) //nolint:gosec // small numbers
	b.sum += b.step
	return g, err
}
