package peers

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// outcome is what became of a rule, in the words of the page.
type outcome string

// Those of which something depends. Others are as the suite calls them.
const (
	holds        outcome = "holds"
	inPart       outcome = "holds in part"
	notClaimed   outcome = "not claimed"
	fails        outcome = "fails"
	failsAtTimes outcome = "fails at times"
	tooBusy      outcome = "machine too busy"
	notJudged    outcome = "not judged"
)

// words are those of the suite for which the page has others.
var words = map[string]outcome{"proven": holds, "proven in part": inPart, "relaxed": notClaimed, "failed": fails}

func (o outcome) fails() bool { return o == fails || o == failsAtTimes }

// verdict is an outcome, and why, in a few words.
type verdict struct {
	outcome outcome
	why     string
}

// verdicts are those on a contender, by rule.
type verdicts map[string]verdict

func (v verdict) String() string {
	if v.why == "" {
		return string(v.outcome)
	}
	return fmt.Sprintf("%s: %s", v.outcome, v.why)
}

// agrees reports whether the page may say so of what was seen.
func (v verdict) agrees(page verdict) bool {
	switch {
	case v.outcome == tooBusy: // nothing was seen
		return true
	case page.outcome == notJudged && v.outcome == fails: // when it is judged without what it takes for granted
		return true
	case page.outcome == failsAtTimes:
		return v.outcome == fails || v.outcome == holds || v.outcome == inPart
	}
	return v.outcome == page.outcome
}

// row is one of a report of the suite.
type row struct {
	rule          string // group/Rule
	outcome, note string
}

func (r row) verdict() verdict {
	o, ok := words[r.outcome]
	if !ok {
		o = outcome(r.outcome)
	}
	v := verdict{outcome: o}
	if o != holds {
		v.why = shortened(r.note)
	}
	return v
}

var (
	where  = regexp.MustCompile(` \((?:[a-z]+\.go:\d+[^)]*|Features\.\w+)\)`)
	random = regexp.MustCompile(`[0-9a-f]{16}`)
	digits = regexp.MustCompile(`(\d)\.(\d)\d+(µs|ms|s)`)
)

// shortened is the first thing that a note says, as far as it fits into a cell.
func shortened(note string) string {
	const most = 80
	note, _, _ = strings.Cut(where.ReplaceAllString(note, ""), "; ")
	note = random.ReplaceAllString(note, "…")
	note = digits.ReplaceAllString(note, "$1.$2$3")
	note = strings.ReplaceAll(note, "|", "/")
	if len(note) <= most {
		return note
	}
	cut := strings.LastIndex(note[:most], " ")
	return strings.TrimRight(note[:max(cut, 0)], " ,:") + " …"
}

// parseReport returns the rows of a report. Columns are found by their names; that of the notes has none.
func parseReport(text string) (rows []row, _ error) {
	var head []string
	for line := range strings.Lines(text) {
		cells := cellsOf(line)
		switch {
		case cells == nil, strings.Trim(strings.Join(cells, ""), "-: ") == "":
			continue
		case head == nil:
			head = cells
			continue
		case len(cells) != len(head):
			return nil, fmt.Errorf("%d cells below a head of %d: %s", len(cells), len(head), line)
		}
		cell := func(name string) string {
			if i := slices.Index(head, name); i >= 0 {
				return cells[i]
			}
			return ""
		}
		r := row{rule: cell("rule"), outcome: cell("outcome"), note: cell("")}
		if group, name, ok := strings.Cut(r.rule, "/"); !ok || group == "" || name == "" || r.outcome == "" {
			return nil, fmt.Errorf("no rule and outcome: %s", line)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// cellsOf returns the cells of a line of a table, nil if it is none.
func cellsOf(line string) (cells []string) {
	line = strings.TrimSpace(line)
	if len(line) < 2 || line[0] != '|' || line[len(line)-1] != '|' {
		return nil
	}
	line = strings.ReplaceAll(line[1:len(line)-1], `\|`, "\x00")
	for cell := range strings.SplitSeq(line, "|") {
		cells = append(cells, strings.TrimSpace(strings.ReplaceAll(cell, "\x00", "|")))
	}
	return cells
}

func TestParseReport(t *testing.T) {
	t.Parallel()
	rows, err := parseReport(`# TestX of y

2 rules: 1 proven, 1 failed.

| says | rule | outcome | more | |
|---|---|---|---|---|
| It \| this holds. | a/B | proven | x | |
| That holds. | a/C | failed | x | saw 1 \| 2 (a.go:12; and 2 more like it); saw 3 |
`)
	want := []row{{"a/B", "proven", ""}, {"a/C", "failed", "saw 1 | 2 (a.go:12; and 2 more like it); saw 3"}}
	if err != nil || !slices.Equal(rows, want) {
		t.Errorf("%+v, %v; want %+v", rows, err, want)
	}
	if got := (verdicts{"a/B": rows[0].verdict(), "a/C": rows[1].verdict()}); got["a/B"] != (verdict{holds, ""}) ||
		got["a/C"] != (verdict{fails, "saw 1 / 2"}) {
		t.Errorf("%+v", got)
	}
	for _, text := range []string{
		"| rule | outcome |\n| B | proven |\n", "| rule | outcome |\n| a/B |\n", "| rule |\n| a/B |\n",
	} {
		if rows, err := parseReport(text); err == nil {
			t.Errorf("%q: %v", text, rows)
		}
	}
}
