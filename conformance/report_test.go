package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// childOf is set for a process whose tests may fail, as another one looks at what they report.
const childOf = "LOCKER_CONFORMANCE_CHILD"

// TestReportedRuns is what TestReport runs in another process: three Runs, of which the first two are of the same test.
func TestReportedRuns(t *testing.T) {
	if os.Getenv(childOf) == "" {
		t.Skip("TestReport runs it in a process of its own")
	}
	broken := defect{backend: func(_ *testing.T, c *client) locker.Backend { return c }} // without a line
	Run(t, broken.harness())
	h := broken.harness()
	h.Features = Features{Unordered: "no | line", WakeWithin: 2 * wakeWithin}
	h.Restart, h.Break = nil, nil
	h.Since = "v0.0.9"
	Run(t, h)
	t.Run("hooks: fail", func(t *testing.T) {
		h := broken.harness()
		open := h.Open
		h.Open = func(t *testing.T, opts ...locker.Option) locker.Locker {
			switch {
			case strings.HasSuffix(t.Name(), "/OneHolder"):
				t.Fatal("a hook fails")
			case strings.HasSuffix(t.Name(), "/Counter"):
				t.Skip("a hook skips")
			case strings.HasSuffix(t.Name(), "/Relock"):
				t.Cleanup(func() { t.Error("a hook fails in the end") })
			}
			return open(t, opts...)
		}
		Run(t, h)
	})
}

// TestReport proves that the report counts right, also what fails, and that no Run overwrites what another one has
// written.
func TestReport(t *testing.T) {
	withoutRaces(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "when needed")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.timeout=5m",
		"-test.run=^TestReportedRuns$/^(hooks|exclusion|waiting|lease|fencing)", "-test.skip=//CancelStorm|///CancelStorm")
	cmd.Env = append(os.Environ(), childOf+"=1", reportDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("the tests have passed")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const prefix = "github.com.lockerkit.locker.conformance.TestReportedRuns"
	rules := 0
	for _, g := range groups() {
		rules += len(g.rules)
	}
	for _, want := range []struct {
		file string
		rows []string // their name, and what comes after what they say
	}{
		{prefix + ".md", []string{
			"exclusion/OneHolder proven",
			"waiting/FIFO failed | ",
			"lease/WallClockIndependent not provable | Harness.Wrap",
			"unlock/Twice not run",
		}},
		{prefix + "-2.md", []string{
			`waiting/FIFO relaxed | no \| line (Features.Unordered)`,
			"waiting/WakesOnRelease proven in part | relaxed: within 100ms, not 50ms (Features.WakeWithin)",
			"fencing/StrictlyIncreasing proven in part | not proven without Harness.Break: ",
			"fencing/SurvivesRestart not provable | needs Harness.Restart, which restarts the store",
			"lease/NeverResurrects not provable | needs Harness.Break",
			"waiting/RidesOut newer than the harness | came with v0.1.0, after v0.0.9 (Harness.Since)",
		}},
		{prefix + ".hooks._fail.md", []string{
			"exclusion/OneHolder failed | a hook of the harness has failed the test",
			"exclusion/Counter skipped by the harness",
			"exclusion/Relock failed | a hook of the harness has failed the test",
			"unlock/FreesAtOnce proven",
		}},
	} {
		table, err := os.ReadFile(filepath.Join(dir, want.file))
		if err != nil {
			t.Error(err)
			continue
		}
		rows := make(map[string]string) // outcome and reason, by rule
		count := make(map[string]int)   // rules, by outcome
		for _, line := range strings.Split(string(table), "\n") {
			cells := strings.SplitN(strings.TrimPrefix(line, "| "), " | ", 4)
			if len(cells) != 4 || cells[0] == "rule" {
				continue
			}
			rows[cells[0]] = cells[2] + " | " + cells[3]
			count[cells[2]]++
		}
		if len(rows) != rules {
			t.Errorf("%s has %d rows; want %d", want.file, len(rows), rules)
		}
		for _, text := range []string{string(table), string(out)} {
			if summary := fmt.Sprintf("%d rules: %s", rules, counted(count)); !strings.Contains(text, summary) {
				t.Errorf("%s: no %q in:\n%s", want.file, summary, text)
			}
		}
		for _, row := range want.rows {
			rule, rest, _ := strings.Cut(row, " ")
			if !strings.HasPrefix(rows[rule], rest) {
				t.Errorf("%s: %s is %q; want %q", want.file, rule, rows[rule], rest)
			}
		}
	}
	if len(files) != 3 {
		t.Errorf("%d files", len(files))
	}
}

// counted describes how many rules have which outcome.
func counted(count map[string]int) string {
	var parts []string
	for _, o := range outcomes {
		if n := count[o.String()]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
	}
	return strings.Join(parts, ", ")
}

// TestFailuresExplainThemselves: each rule has all that a failure says, which shows what was seen time and again once.
func TestFailuresExplainThemselves(t *testing.T) {
	for _, g := range groups() {
		for _, r := range g.rules {
			for _, text := range []string{r.did, r.text, r.hint} {
				if text == "" || !strings.ContainsAny(text[len(text)-1:], ".?)") {
					t.Errorf("%s/%s says %q", g.name, r.name, text)
				}
			}
		}
	}
	r := rule{did: "It was done.", text: "It has to be.", hint: strings.Repeat("Look there. ", 9) + "Look."}
	got := r.failure(verdict{
		attempt: attempt{
			problems: []problem{{saw: "this", at: "a.go:1"}, {saw: "that", at: "b.go:2"}, {saw: "this again", at: "a.go:1"}},
			drew:     true,
		},
		attempts: 3, worst: 12345 * time.Microsecond, seed: 42,
	})
	want := `
did:  It was done.
saw:  this (a.go:1; and 1 more like it)
saw:  that (b.go:2)
rule: It has to be.
hint: Look there. Look there. Look there. Look there. Look there. Look there. Look there. Look there. Look
      there. Look.
seed: 42 (LOCKER_CONFORMANCE_SEED=42 draws the same again)
note: it was tried 3 times, as the machine may have been busy: it was late by 12ms at most`
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// TestReportWantsAnAbsolutePath: go test runs the tests of each package in a directory of its own.
func TestReportWantsAnAbsolutePath(t *testing.T) {
	if err := newReport(t.Name(), Harness{}).write("reports"); err == nil {
		t.Error("a relative path is not refused")
	}
}

// TestSince: a rule is skipped if its version is later than that of the harness, by number and not by text.
func TestSince(t *testing.T) {
	for _, test := range []struct {
		rule, harness string
		newer         bool
	}{
		{"", "v0.1", false}, {"v0.1.0", "", false}, {"v0.1.0", "v0.1", false}, {"v0.1.0", "v0.1.3", false},
		{"v0.1.1", "v0.1", true}, {"v0.10", "v0.9", true}, {"v0.9.0", "v0.10.0", false}, {"v1", "v0.99.99", true}, {"v2.0.0", "v10", false},
	} {
		if got := newer(test.rule, test.harness); got != test.newer {
			t.Errorf("a rule of %q is newer than a harness of %q: %v", test.rule, test.harness, got)
		}
	}
	for _, v := range []string{"", "v", "0.1", "v0.1.", "v0.1.0.0", "v0.1-rc.1", "v-1", "v+1", "v0. 1", "v1e3", "latest"} {
		if _, ok := parseVersion(v); ok {
			t.Errorf("%q is taken for a version", v)
		}
	}
	for _, g := range groups() {
		for _, r := range g.rules {
			if _, ok := parseVersion(r.since); r.since != "" && !ok {
				t.Errorf("%s/%s came with %q, which is no version", g.name, r.name, r.since)
			}
		}
	}
}
