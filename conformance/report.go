package conformance

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// reportDir is the environment variable with the directory for the reports.
const reportDir = "LOCKER_CONFORMANCE_REPORT"

// outcome is what became of a rule. Those further down overrule those above.
type outcome int

const (
	notRun      outcome = iota // not chosen, or not reached
	proven                     // it holds, as far as a test can tell
	inPart                     // it holds, and something of it has not been looked at
	relaxed                    // Features does without it, for a reason
	notOffered                 // it is about something that the backend does not have
	tooNew                     // it came with a later version than Harness.Since
	notProvable                // a hook is missing
	skipped                    // a hook has skipped it
	machineLate                // the machine was too busy
	notJudged                  // a rule that it takes for granted has failed, or something hangs
	failed
)

// outcomes are in the order in which they are shown.
var outcomes = []outcome{
	proven, inPart, relaxed, notOffered, tooNew, notProvable, skipped, machineLate, notJudged, failed, notRun,
}

func (o outcome) String() string {
	return [...]string{
		"not run", "proven", "proven in part", "relaxed", "not offered", "newer than the harness", "not provable",
		"skipped by the harness", "machine too busy", "not judged", "failed",
	}[o]
}

// result is what is reported of a rule. One test at a time writes to it.
type result struct {
	name, text string // group/Rule, and what it says
	outcome    outcome
	notes      []string
	saw        []string      // the problems
	attempts   int           // of its test
	late       time.Duration // by how much the machine was late meanwhile, at worst
}

func (r *result) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// conclude is called when the test of the rule has ended, with what it knows then.
func (r *result) conclude(hasFailed, wasSkipped bool) {
	switch {
	case hasFailed:
		r.outcome = failed
		if len(r.saw) == 0 {
			r.note("a hook of the harness has failed the test")
		}
	case wasSkipped && r.outcome < relaxed:
		r.outcome = skipped
	case r.outcome == notRun:
		r.outcome = proven
	}
}

// reason is why the outcome is what it is.
func (r *result) reason() string {
	notes := r.notes
	switch {
	case r.outcome == failed:
		notes = slices.Concat(r.saw, notes)
	case r.attempts > 1 && r.outcome <= inPart:
		notes = append(slices.Clone(notes), fmt.Sprintf("at attempt %d, as the machine was late by %v",
			r.attempts, r.late.Round(time.Millisecond)))
	}
	return strings.Join(notes, "; ")
}

// report is what one Run has found.
type report struct {
	test    string
	harness Harness
	results []*result
	rule    map[string]*result
	hung    atomic.Int32 // rules in which something has not returned
}

func newReport(test string, h Harness) *report {
	rep := &report{test: test, harness: h, rule: make(map[string]*result)}
	for _, g := range groups() {
		for _, r := range g.rules {
			res := &result{name: g.name + "/" + r.name, text: r.text}
			rep.results = append(rep.results, res)
			rep.rule[res.name] = res
		}
	}
	return rep
}

func (rep *report) of(g group, r rule) *result { return rep.rule[g.name+"/"+r.name] }

// maxHung is how many rules may hang before the suite gives up: each of them takes as long as the watchdog has
// patience.
const maxHung = 2

// stopped returns why a rule is not to be judged, or "".
func (rep *report) stopped(r rule, name string) string {
	for _, basic := range r.takesForGranted(name) {
		if rep.rule[basic].outcome == failed {
			return "takes for granted what fails: mend " + basic + " first"
		}
	}
	if rep.hung.Load() >= maxHung {
		return "something hangs: mend first what has failed"
	}
	return ""
}

// conditions says under what conditions the rules were judged.
func (rep *report) conditions() string {
	var have, lack []string
	for _, hook := range hooks {
		if hook.provided(rep.harness) {
			have = append(have, hook.name)
		} else {
			lack = append(lack, hook.name)
		}
	}
	text := fmt.Sprintf("TTL %v", rep.harness.TTL)
	if len(have) > 0 {
		text += "; hooks " + strings.Join(have, ", ")
	}
	if len(lack) > 0 {
		text += "; no hook " + strings.Join(lack, ", ")
	}
	again := 0
	var late time.Duration
	for _, r := range rep.results {
		late = max(late, r.late)
		if r.attempts > 1 {
			again++
		}
	}
	if late == 0 { // it is measured in real time
		return text + "; fake time"
	}
	text += fmt.Sprintf("; the machine was late by %v at most", late.Round(time.Millisecond))
	if again > 0 {
		text += fmt.Sprintf(", and %d rules were tried again", again)
	}
	return text
}

// summary counts.
func (rep *report) summary() string {
	count := make(map[outcome]int)
	for _, r := range rep.results {
		count[r.outcome]++
	}
	var parts []string
	for _, o := range outcomes {
		if n := count[o]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	return fmt.Sprintf("%d rules: %s", len(rep.results), strings.Join(parts, ", "))
}

// String is the report for a terminal: for each outcome its rules, those together that have it for the same reason.
func (rep *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n(%s)", rep.summary(), rep.conditions())
	for _, o := range outcomes {
		var reasons []string
		names := make(map[string][]string) // of the rules, by reason
		for _, r := range rep.results {
			if r.outcome != o {
				continue
			}
			reason := r.reason()
			if names[reason] == nil {
				reasons = append(reasons, reason)
			}
			names[reason] = append(names[reason], r.name)
		}
		if len(reasons) > 0 {
			fmt.Fprintf(&b, "\n%s:", o)
		}
		for _, reason := range reasons {
			const perLine = 4
			for line := range slices.Chunk(names[reason], perLine) {
				fmt.Fprintf(&b, "\n    %s", strings.Join(line, ", "))
			}
			if reason != "" {
				fmt.Fprintf(&b, ": %s", reason)
			}
		}
	}
	return b.String()
}

// markdown is the report for people who were not there.
func (rep *report) markdown(pkg string) string {
	cell := strings.NewReplacer("|", `\|`, "\n", " ").Replace
	var b strings.Builder
	fmt.Fprintf(&b, "# %s of %s\n\n%s.\n%s.\n\n| rule | says | outcome | |\n|---|---|---|---|\n",
		rep.test, pkg, rep.summary(), rep.conditions())
	for _, r := range rep.results {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.name, cell(r.text), r.outcome, cell(r.reason()))
	}
	return b.String()
}

// publish logs the report, and writes it where the environment says.
func (rep *report) publish(t *testing.T) {
	t.Log(rep)
	dir := os.Getenv(reportDir)
	if dir == "" {
		return
	}
	if err := rep.write(dir); err != nil {
		t.Errorf("conformance: the report: %v", err)
	}
}

// write writes the report to a file of its own in dir.
func (rep *report) write(dir string) error {
	if !filepath.IsAbs(dir) { // or each package would have its own, as go test runs a test where its package is
		return fmt.Errorf("%s is %q; it has to be an absolute path", reportDir, dir)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	pkg := testedPackage()
	return os.WriteFile(filepath.Join(dir, written.take(pkg, rep.test)), []byte(rep.markdown(pkg)), 0o666)
}

// testedPackage returns the import path of the package under test.
func testedPackage() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" {
		return strings.TrimSuffix(info.Path, ".test")
	}
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
}

// fileNames are those under which reports have been written, in lower case.
type fileNames struct {
	mu    sync.Mutex
	taken map[string]bool
}

var (
	written = &fileNames{taken: make(map[string]bool)} // by this process

	notInFileName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// maxName is how much of a file name is the test's: with a number and ".md", file systems take no more than 255 bytes.
const maxName = 200

// take returns another name for each Run: for those of one test, which go test -count has too, by a number. Names that
// differ in case alone are one and the same on some systems.
func (f *fileNames) take(pkg, test string) string {
	base := notInFileName.ReplaceAllString(pkg+"."+test, ".")
	if len(base) > maxName {
		sum := sha256.Sum256([]byte(base))
		end := fmt.Sprintf(".%x", sum[:8])
		base = base[:maxName-len(end)] + end
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name := base
	for n := 2; f.taken[strings.ToLower(name)]; n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	f.taken[strings.ToLower(name)] = true
	return name + ".md"
}
