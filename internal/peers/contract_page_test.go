package peers

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var comparison = filepath.Join("..", "..", "docs", "comparison.md")

// The tables are between these lines of the page.
const (
	tablesBegin = "<!-- Written by a test: " + updateCommand + " (in internal/peers) -->\n"
	tablesEnd   = "<!-- End of what the test has written. -->\n"
)

// splitPage returns the tables of the page, and what is around them.
func splitPage(t *testing.T) (before, tables, after string) {
	t.Helper()
	text := string(must(os.ReadFile(comparison))(t))
	before, rest, ok := strings.Cut(text, tablesBegin)
	tables, after, ended := strings.Cut(rest, tablesEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the tables", comparison)
	}
	return before + tablesBegin, tables, tablesEnd + after
}

// readPage returns what the page says, by the name of the contender.
func readPage(t *testing.T) map[string]verdicts {
	t.Helper()
	_, tables, _ := splitPage(t)
	page, err := parseTables(tables)
	if err != nil && !*update {
		t.Fatalf("%s: %v", comparison, err)
	}
	return page
}

// parseTables is the inverse of writeTable, for several of them.
func parseTables(text string) (map[string]verdicts, error) {
	page := make(map[string]verdicts)
	var head []string
	for line := range strings.Lines(text) {
		cells := cellsOf(line)
		switch {
		case cells == nil:
			head = nil
			continue
		case strings.Trim(strings.Join(cells, ""), "-") == "":
			continue
		case head == nil:
			head = cells
			for _, name := range head[1:] {
				page[name] = make(verdicts)
			}
			continue
		case len(cells) != len(head):
			return page, fmt.Errorf("%d cells below a head of %d: %s", len(cells), len(head), line)
		}
		group, names, _ := strings.Cut(cells[0], "/")
		for _, name := range strings.Split(names, ", ") {
			rule := group + "/" + name
			for i, contender := range head[1:] {
				if _, again := page[contender][rule]; again {
					return page, fmt.Errorf("%s is there twice", rule)
				}
				word, why, _ := strings.Cut(cells[i+1], ": ")
				page[contender][rule] = verdict{outcome(strings.Trim(word, "*")), why}
			}
		}
	}
	return page, nil
}

// writeTable returns the table of some contenders, with those rules of a group in one row of which there is the same to
// say.
func writeTable(rules []string, all []contender, judged map[string]verdicts) string {
	type line struct{ group, cells string }
	var lines []line
	names := make(map[line][]string)
	for _, rule := range rules {
		group, name, _ := strings.Cut(rule, "/")
		var cells strings.Builder
		for _, c := range all {
			v := judged[c.name][rule]
			if v.outcome.fails() {
				v.outcome = "**" + v.outcome + "**"
			}
			fmt.Fprintf(&cells, " %s |", v)
		}
		l := line{group, cells.String()}
		if names[l] == nil {
			lines = append(lines, l)
		}
		names[l] = append(names[l], name)
	}
	var b strings.Builder
	b.WriteString("| rule |")
	for _, c := range all {
		fmt.Fprintf(&b, " %s |", c.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(all)) + "\n")
	for _, l := range lines {
		fmt.Fprintf(&b, "| %s/%s |%s\n", l.group, strings.Join(names[l], ", "), l.cells)
	}
	return b.String()
}

// writePage writes the tables. What was not judged now stays as it was.
func writePage(t *testing.T, rules []string, page, judged map[string]verdicts) {
	t.Helper()
	all := maps.Clone(page)
	maps.Copy(all, judged)
	var tables []string
	for _, s := range stores {
		tables = append(tables, writeTable(rules, of(s.name), all))
	}
	before, _, after := splitPage(t)
	text := before + "\n" + strings.Join(tables, "\n") + "\n" + after
	if err := os.WriteFile(comparison, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestContractPage: the page has each rule that there is, of each contender, and no other, and says of all findings
// what they are.
func TestContractPage(t *testing.T) {
	if *update {
		t.Skip("it is being written")
	}
	t.Parallel()
	page, rules := readPage(t), suite(t)
	for _, c := range contenders {
		for _, rule := range rules {
			if _, ok := page[c.name][rule]; !ok {
				t.Errorf("the page does not say whether %s keeps %s: judge it, with -update", c.name, rule)
			}
		}
		for rule, v := range page[c.name] {
			switch {
			case !slices.Contains(rules, rule):
				t.Errorf("the page has %s, which there is not: judge %s, with -update", rule, c.name)
			case v.outcome == tooBusy:
				t.Errorf("%s, %s: %s", c.name, rule, v)
			case c.harness == nil && v.outcome.fails():
				t.Errorf("ours, %s, %s", c.name, v)
			}
		}
	}
	for name := range page {
		if !slices.ContainsFunc(contenders, func(c contender) bool { return c.name == name }) {
			t.Errorf("the page has %s, which is not judged", name)
		}
	}
	for _, f := range findings {
		for _, rule := range f.rules {
			if v := page[f.contender][rule]; v != f.verdict() {
				t.Errorf("%s, %s: the page says %q. It has to be %q, as is known: %s",
					f.contender, rule, v, f.verdict(), f.evidence)
			}
		}
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	rules := []string{"a/B", "a/C", "a/D", "e/B"}
	all := []contender{{name: "one"}, {name: "two, too"}}
	judged := map[string]verdicts{
		"one":      {"a/B": {holds, ""}, "a/C": {inPart, "not: this"}, "a/D": {holds, ""}, "e/B": {holds, ""}},
		"two, too": {"a/B": {fails, "late"}, "a/C": {holds, ""}, "a/D": {fails, "late"}, "e/B": {fails, "late"}},
	}
	text := writeTable(rules, all, judged)
	if want := `| rule | one | two, too |
|---|---|---|
| a/B, D | holds | **fails**: late |
| a/C | holds in part: not: this | holds |
| e/B | holds | **fails**: late |
`; text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	page, err := parseTables("text\n\n" + text + "\n| rule | three |\n|---|---|\n| a/B | not provable |\n")
	judged["three"] = verdicts{"a/B": {"not provable", ""}}
	if err != nil || fmt.Sprint(page) != fmt.Sprint(judged) {
		t.Errorf("%v, %v; want %v", page, err, judged)
	}
	for _, bad := range []string{"| rule | x |\n| a/B |\n", "| rule | x |\n| a/B | holds |\n| a/B | holds |\n"} {
		if page, err := parseTables(bad); err == nil {
			t.Errorf("%q: %v", bad, page)
		}
	}
}
