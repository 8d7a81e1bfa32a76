package conformance

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestGuide does what docs/write-a-backend.md tells its readers to do, in a module outside of this one. The blocks of
// the page are, by the word after their fence:
//
//	go FILE   a new file, or declarations that replace those of the same name in it, or are added to it
//	sh        commands
//	text      a part of what the commands before have printed; "..." stands for what is left out
func TestGuide(t *testing.T) {
	withoutRaces(t)
	t.Parallel()
	for _, program := range []string{"go", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT PROVEN: the page is for people who have the program %s: %v", program, err)
		}
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "write-a-backend.md"))
	if err != nil {
		t.Fatal(err)
	}
	g := guide{t: t, root: root, dir: t.TempDir()}
	blocks := regexp.MustCompile("(?ms)^```([a-z]+) ?(\\S*)\n(.*?)^```$").FindAllStringSubmatch(string(page), -1)
	kinds := make(map[string]int)
	for _, b := range blocks {
		kinds[b[1]]++
		switch b[1] {
		case "go":
			g.write(b[2], b[3])
		case "sh":
			g.run(b[3])
		case "text":
			g.has(b[3])
		default:
			t.Errorf("a block of kind %q", b[1])
		}
	}
	if n := strings.Count(string(page), "\n```"); n != 2*len(blocks) || kinds["go"] == 0 || kinds["sh"] == 0 ||
		kinds["text"] == 0 {
		t.Errorf("%d fences, but %d blocks: %v", n, len(blocks), kinds)
	}
	g.run("go vet ./...") // and what was written last compiles, too
	if g.output != "" {
		t.Errorf("go vet ./...:\n%s", g.output)
	}
}

// guide is somebody who follows the page.
type guide struct {
	t         *testing.T
	root, dir string
	output    string // of the last commands
}

// write changes a file as a block says.
func (g *guide) write(name, block string) {
	path := filepath.Join(g.dir, name)
	if strings.HasPrefix(block, "package ") || strings.Contains(block, "\npackage ") {
		if err := os.WriteFile(path, []byte(block), 0o600); err != nil {
			g.t.Fatal(err)
		}
		return
	}
	file, err := os.ReadFile(path)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, d := range declarations(g.t, "package p\n\n"+block) {
		old := declarations(g.t, string(file))
		if i := slices.IndexFunc(old, func(o declaration) bool { return o.name == d.name }); i >= 0 {
			file = bytes.Replace(file, []byte(old[i].text), []byte(d.text), 1)
		} else {
			file = fmt.Appendf(file, "\n%s\n", d.text)
		}
	}
	if formatted, err := format.Source(file); err != nil || !slices.Equal(formatted, file) {
		g.t.Errorf("%s is not formatted with gofmt: %v", name, err)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// declaration is one of a file, with its comment.
type declaration struct{ name, text string }

func declarations(t *testing.T, text string) (all []declaration) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", text, parser.ParseComments)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	for _, decl := range file.Decls {
		var name string
		var doc *ast.CommentGroup
		switch d := decl.(type) {
		case *ast.FuncDecl:
			name, doc = d.Name.Name, d.Doc
		case *ast.GenDecl:
			doc = d.Doc
			switch spec := d.Specs[0].(type) {
			case *ast.ImportSpec:
				name = "import"
			case *ast.TypeSpec:
				name = spec.Name.Name
			}
		}
		if name == "" {
			t.Fatalf("the test does not know what to do with a %T", decl)
		}
		from := decl.Pos()
		if doc != nil {
			from = doc.Pos()
		}
		all = append(all, declaration{name, text[fset.Position(from).Offset:fset.Position(decl.End()).Offset]})
	}
	return all
}

// run runs commands.
func (g *guide) run(commands string) {
	g.output = ""
	for command := range strings.Lines(commands) {
		command = strings.TrimSpace(command)
		switch {
		case strings.HasPrefix(command, "mkdir "): // there is one
			continue
		case strings.HasPrefix(command, "go get "): // this version of it, and without a network
			command = "go mod edit -require=github.com/lockerkit/locker@v0.0.0 -replace=github.com/lockerkit/locker='" + g.root + "'"
		case strings.Contains(command, " -bench "): // to see that they run, not how fast
			command += " -benchtime 2x"
		}
		cmd := exec.CommandContext(g.t.Context(), "sh", "-c", command)
		cmd.Dir = g.dir
		cmd.Env = append(os.Environ(), "PWD="+g.dir, "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off",
			"LOCKER_CONFORMANCE_REPORT=")
		out, err := cmd.CombinedOutput()
		g.output += string(out)
		if wantFailure := bytes.Contains(out, []byte("--- FAIL")); (err != nil) != wantFailure {
			g.t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}

// What differs from run to run, or with any change of the suite, and in the lines of benchmarks.
var (
	benchmark       = regexp.MustCompile(`(?m)^Benchmark\S+ .*`)
	processorCounts = regexp.MustCompile(`-\d+$`)
	number          = regexp.MustCompile(`\b\d+(\.\d+)?\b`)
	varyingOutput   = regexp.MustCompile(
		`"conformance/[0-9a-f]{16}"|\b[a-z]+\.go:\d+\b|\b\d+(\.\d+)?(s|ms|µs|ns)\b|\[\d( \d)+\]|\b\d+ more like it|\b\d of 9 waiters`,
	)
)

// has checks that the commands have printed a block, as far as it can be the same. Where lines break does not matter.
func (g *guide) has(block string) {
	same := func(s string) string {
		s = benchmark.ReplaceAllStringFunc(s, func(line string) string {
			name, figures, _ := strings.Cut(line, " ")
			return processorCounts.ReplaceAllString(name, "") + number.ReplaceAllString(figures, "~")
		})
		return strings.Join(strings.Fields(varyingOutput.ReplaceAllString(s, "~")), " ")
	}
	rest := same(g.output)
	for _, part := range strings.Split("\n"+block, "\n...\n") {
		_, after, found := strings.Cut(rest, same(part))
		if !found {
			g.t.Errorf("the page says:\n%s\nbut this is what was printed:\n%s", part, g.output)
			return
		}
		rest = after
	}
}
