package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// longestSentence is how many words a sentence may have. People who are in a hurry, and whose language is another one,
// read it.
const longestSentence = 35

// banned are turns of phrase that have to be read twice.
var banned = regexp.MustCompile(`\b([Tt]hat of|[Tt]hose of|but for|but that|for want of|as one likes|and that is)\b`)

var (
	fences   = regexp.MustCompile("(?s)```.*?```|<details>.*?</details>|<!--.*?-->")
	code     = regexp.MustCompile("`[^`]*`")
	linked   = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
	list     = regexp.MustCompile(`^\s*([-*]|\d+\.)\s`)
	ends     = regexp.MustCompile(`[.!?:]['")*]*\s+`)
	packages = []string{
		".", "memlock", "redislock", "redislock/redlock", "pglock", "etcdlock", "otellocker", "conformance",
	}
)

// sentences returns those of a text in Markdown. Each cell of a table is at least one.
func sentences(text string) (found []string) {
	var paragraph []string
	end := func() {
		joined := strings.Join(paragraph, " ")
		paragraph = nil
		last := 0
		for _, at := range ends.FindAllStringIndex(joined, -1) {
			found = append(found, joined[last:at[1]])
			last = at[1]
		}
		found = append(found, joined[last:])
	}
	text = linked.ReplaceAllString(code.ReplaceAllString(fences.ReplaceAllString(text, "\n"), "X"), "$1")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "|"):
			end()
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				paragraph = append(paragraph, strings.TrimSpace(cell))
				end()
			}
			continue
		case line == "" || strings.HasPrefix(line, "#") || list.MatchString(line):
			end()
		}
		paragraph = append(paragraph, line)
	}
	end()
	return found
}

// checkProse checks a text.
func checkProse(t *testing.T, where, text string) {
	t.Helper()
	for _, s := range sentences(text) {
		if n := len(strings.Fields(s)); n > longestSentence {
			t.Errorf("%s: a sentence of %d words; at most %d are read:\n\t%s", where, n, longestSentence, s)
		}
		if bad := banned.FindString(s); bad != "" {
			t.Errorf("%s: %q has to be read twice:\n\t%s", where, bad, s)
		}
		if s == "–" || s == "-" {
			t.Errorf("%s: a dash in a table: say what it means", where)
		}
	}
}

// TestProse: pages, and the documentation of what is exported, are easy to read.
func TestProse(t *testing.T) {
	for _, page := range pages(t) {
		checkProse(t, page, read(t, page))
	}
	for _, dir := range packages {
		names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(names) == 0 {
			t.Fatalf("package %s: %v", dir, err)
		}
		for _, name := range names {
			if !strings.HasSuffix(name, "_test.go") {
				checkComments(t, name)
			}
		}
	}
}

// checkComments checks the documentation of what a file exports.
func checkComments(t *testing.T, name string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	check := func(at token.Pos, doc *ast.CommentGroup) {
		if doc != nil {
			checkProse(t, set.Position(at).String(), withoutCode(doc.Text()))
		}
	}
	check(file.Package, file.Doc)
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() {
				check(d.Pos(), d.Doc)
			}
		case *ast.GenDecl:
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.TypeSpec:
					if !n.Name.IsExported() {
						return false
					}
					check(n.Pos(), n.Doc)
				case *ast.ValueSpec:
					if !n.Names[0].IsExported() {
						return false
					}
					check(n.Pos(), n.Doc)
				case *ast.Field:
					check(n.Pos(), n.Doc)
					check(n.Pos(), n.Comment)
				}
				return true
			})
			if len(d.Specs) > 0 && isExported(d.Specs[0]) {
				check(d.Pos(), d.Doc)
			}
		}
	}
}

func isExported(s ast.Spec) bool {
	switch s := s.(type) {
	case *ast.TypeSpec:
		return s.Name.IsExported()
	case *ast.ValueSpec:
		return s.Names[0].IsExported()
	}
	return false
}

// withoutCode leaves out the indented lines of a comment.
func withoutCode(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "    ") {
			line = "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}
