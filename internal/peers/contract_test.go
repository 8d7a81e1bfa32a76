package peers

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/conformance"
)

var update = flag.Bool("update", false, "judge all libraries and write the tables of docs/comparison.md anew")

// updateCommand writes the tables anew, in this directory.
const updateCommand = "LOCKER_TEST_SERVERS=programs go test -timeout 40m -run TestContract -update ."

// attempts is how many times in a row a library has to differ from the page. What a suite finds by chance, or does
// not find on a busy machine, is no reason to fail.
const attempts = 3

// TestContract: what docs/comparison.md says about each rule of the contract and each library is so. That takes twenty
// minutes (give it -timeout 40m), and LOCKER_TRIALS, or -update; without, it judges by the rules that take a moment.
// For one library only: -run TestContract/judge/Redis/redsync.
func TestContract(t *testing.T) {
	page := readPage(t)
	judged := make(map[string]verdicts)
	t.Run("judge", func(t *testing.T) { // two at a time: the suite tries again what it sees on a busy machine
		var mu sync.Mutex
		turns := make(chan struct{}, 2)
		for _, s := range stores {
			t.Run(s.name, func(t *testing.T) {
				s.need(t)
				t.Parallel()
				for _, c := range of(s.name) {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						turns <- struct{}{}
						defer func() { <-turns }()
						var v verdicts
						switch {
						case *update:
							v = c.establish(t, page[c.name])
						case thorough():
							v = c.compare(t, page[c.name], nil)
						default:
							v = c.compare(t, page[c.name], quick(c.name))
						}
						mu.Lock()
						defer mu.Unlock()
						judged[c.name] = v
					})
				}
			})
		}
	})
	if *update && !t.Failed() {
		writePage(t, suite(t), page, judged)
	}
}

func thorough() bool { return os.Getenv("LOCKER_TRIALS") != "" }

// of returns the contenders on a store.
func of(store string) (all []contender) {
	for _, c := range contenders {
		if c.store == store {
			all = append(all, c)
		}
	}
	return all
}

// establish finds out what to say about a contender. What is not known to fail has to fail each time, as chance and a
// busy machine have to do with much; what the machine was too busy for stays as it is on the page.
func (c contender) establish(t *testing.T, page verdicts) verdicts {
	v := c.judge(t, nil)
	for range attempts - 1 {
		var doubtful []string
		for rule, seen := range v {
			if seen.outcome == tooBusy || seen.outcome == fails && findingOf(c.name, rule) == nil {
				doubtful = append(doubtful, rule)
			}
		}
		if len(doubtful) == 0 {
			break
		}
		for rule, again := range c.judge(t, doubtful) {
			if again.outcome != tooBusy && slices.Contains(doubtful, rule) {
				t.Logf("%s: %s; then %s", rule, v[rule], again)
				v[rule] = again
			}
		}
	}
	for rule, seen := range v {
		f := findingOf(c.name, rule)
		switch {
		case f != nil && (f.atTimes || seen.outcome.fails()):
			v[rule] = f.verdict()
		case seen.outcome != tooBusy:
		case page[rule].outcome == "" || page[rule].outcome == tooBusy:
			t.Errorf("%s: %s, and the page does not know it either", rule, seen)
		default:
			v[rule] = page[rule]
		}
	}
	return v
}

// compare compares what is on the page with what the suite says, of all rules or of some.
func (c contender) compare(t *testing.T, page verdicts, rules []string) verdicts {
	differing := rules
	var last verdicts
	for n := range attempts {
		if last = c.judge(t, differing); len(last) == 0 {
			t.Fatalf("no rule is like %q", differing)
		}
		differing = nil
		for _, rule := range slices.Sorted(maps.Keys(last)) {
			if !last[rule].agrees(page[rule]) {
				t.Logf("attempt %d: %s: %s; the page says: %s", n+1, rule, last[rule], page[rule])
				differing = append(differing, rule)
			}
		}
		if len(differing) == 0 {
			return last
		}
	}
	for _, rule := range differing {
		t.Errorf("%s: %s, %d times; docs/comparison.md says: %s (%s)",
			rule, last[rule], attempts, page[rule], updateCommand)
	}
	return last
}

// childOf is set for a process whose tests may fail, as another one looks at what they report.
const childOf = "LOCKER_PEERS_CHILD"

// TestJudge is what TestContract runs in processes of their own.
func TestJudge(t *testing.T) {
	if os.Getenv(childOf) == "" {
		t.Skip("TestContract runs it")
	}
	for i, c := range contenders {
		if c.harness != nil {
			t.Run(fmt.Sprint(i), func(t *testing.T) { conformance.Run(t, c.harness(t)) })
		}
	}
	t.Run("none", func(t *testing.T) {
		conformance.Run(t, conformance.Harness{Open: func(*testing.T, ...locker.Option) locker.Locker { return nil }})
	})
}

// judge has the suite judge a contender by all rules, or by some, in another process, and returns what it says.
func (c contender) judge(t *testing.T, rules []string) verdicts {
	t.Helper()
	if c.harness == nil {
		// Its own test has the harness.
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=20m",
			"-run=^TestConformance$"+pattern(rules), "./"+c.name)
		cmd.Dir = filepath.Join("..", "..")
		return report(t, cmd)
	}
	i := slices.IndexFunc(contenders, func(other contender) bool { return other.name == c.name })
	return report(t, self(t, fmt.Sprintf("^TestJudge$/^%d$%s", i, pattern(rules))))
}

// suite returns all rules that there are.
func suite(t *testing.T) (rules []string) {
	t.Helper()
	for _, row := range table(t, self(t, "^TestJudge$/^none$/^no group$")) {
		rules = append(rules, row.rule)
	}
	return rules
}

// self is this program, to run some of its tests.
func self(t *testing.T, run string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.timeout=20m", "-test.run="+run)
	cmd.Env = append(os.Environ(), childOf+"=1")
	return cmd
}

// pattern chooses rules of a Run, which are named group/Rule, or all.
func pattern(rules []string) string {
	if len(rules) == 0 {
		return ""
	}
	var groups, names []string
	for _, rule := range rules {
		group, name, _ := strings.Cut(rule, "/")
		groups, names = append(groups, group), append(names, regexp.QuoteMeta(name))
	}
	return fmt.Sprintf("/^(%s)$/^(%s)$", strings.Join(groups, "|"), strings.Join(names, "|"))
}

// report runs a command in which the suite writes one report, and returns what that says of those rules that were
// judged.
func report(t *testing.T, cmd *exec.Cmd) verdicts {
	t.Helper()
	v := make(verdicts)
	for _, row := range table(t, cmd) {
		if row.outcome != "not run" {
			v[row.rule] = row.verdict()
		}
	}
	return v
}

// table runs a command in which the suite writes one report, and returns that.
func table(t *testing.T, cmd *exec.Cmd) []row {
	t.Helper()
	dir := t.TempDir()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "LOCKER_CONFORMANCE_REPORT="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	files := must(filepath.Glob(filepath.Join(dir, "*.md")))(t)
	if len(files) != 1 {
		t.Fatalf("%s: %d reports (%v):\n%s", cmd, len(files), err, out.Bytes())
	}
	rows, err := parseReport(string(must(os.ReadFile(files[0]))(t)))
	if err != nil || len(rows) == 0 {
		t.Fatalf("%s: %d rules (%v):\n%s", files[0], len(rows), err, out.Bytes())
	}
	return slices.DeleteFunc(rows, func(r row) bool {
		group, _, _ := strings.Cut(r.rule, "/")
		return slices.Contains(ofOurOwn, group)
	})
}

// ofOurOwn are the groups of rules that the page leaves out: the harnesses of the others have one kind of lock, for one
// key at a time, and nothing to see or take it away by.
var ofOurOwn = []string{"shared", "slots", "all", "inspect", "revoke", "break", "minhold", "detach"}
