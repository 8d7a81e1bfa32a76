package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
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
	tooNew                     // it came with a later version than Harness.Since
	notProvable                // a hook is missing
	skipped                    // a hook has skipped it
	failed
)

var outcomes = []outcome{proven, inPart, relaxed, tooNew, notProvable, skipped, failed, notRun} // as they are shown

func (o outcome) String() string {
	return [...]string{
		"not run", "proven", "proven in part", "relaxed", "newer than the harness", "not provable",
		"skipped by the harness", "failed",
	}[o]
}

// result is what is reported of a rule. One test at a time writes to it.
type result struct {
	name, text string // group/Rule, and what it says
	outcome    outcome
	notes      []string
}

func (r *result) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// conclude is called when the test of the rule has ended, with what it knows then.
func (r *result) conclude(hasFailed, wasSkipped bool) {
	switch {
	case hasFailed:
		r.outcome = failed
		if len(r.notes) == 0 {
			r.note("a hook of the harness has failed the test")
		}
	case wasSkipped && r.outcome < relaxed:
		r.outcome = skipped
	case r.outcome == notRun:
		r.outcome = proven
	}
}

// report is what one Run has found.
type report struct {
	test    string
	results []*result
	rule    map[string]*result
}

func newReport(test string) *report {
	rep := &report{test: test, rule: make(map[string]*result)}
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
	b.WriteString(rep.summary())
	for _, o := range outcomes {
		var reasons []string
		names := make(map[string][]string) // of the rules, by reason
		for _, r := range rep.results {
			if r.outcome != o {
				continue
			}
			reason := strings.Join(r.notes, "; ")
			if names[reason] == nil {
				reasons = append(reasons, reason)
			}
			names[reason] = append(names[reason], r.name)
		}
		if len(reasons) > 0 {
			fmt.Fprintf(&b, "\n%s:", o)
			if o == failed && rep.rule["exclusion/TryLockHeld"].outcome == failed {
				b.WriteString(" (mend exclusion/TryLockHeld first: the others take it for granted)")
			}
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
	fmt.Fprintf(&b, "# %s of %s\n\n%s.\n\n| rule | says | outcome | |\n|---|---|---|---|\n", rep.test, pkg, rep.summary())
	for _, r := range rep.results {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.name, cell(r.text), r.outcome, cell(strings.Join(r.notes, "; ")))
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
	return os.WriteFile(filepath.Join(dir, fileName(pkg, rep.test)), []byte(rep.markdown(pkg)), 0o666)
}

// testedPackage returns the import path of the package under test.
func testedPackage() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Path != "" {
		return strings.TrimSuffix(info.Path, ".test")
	}
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
}

var (
	reportsMu sync.Mutex
	reports   = make(map[string]int) // how many this process has written under a name

	notInFileName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// fileName is another one for each Run: for those of one test, which go test -count has too, by a number.
func fileName(pkg, test string) string {
	name := notInFileName.ReplaceAllString(pkg+"."+test, ".")
	reportsMu.Lock()
	defer reportsMu.Unlock()
	reports[name]++
	if n := reports[name]; n > 1 {
		name = fmt.Sprintf("%s-%d", name, n)
	}
	return name + ".md"
}
