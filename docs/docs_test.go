// Package docs_test checks the pages in this directory, and the README, against the code.
package docs_test

import (
	"bufio"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

const root = ".."

// read returns the text of a file, whose name begins at the root of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// files returns the names of all files with one of the given endings, also in modules of their own.
func files(t *testing.T, endings ...string) (names []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() != "." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case !d.IsDir() && slices.Contains(endings, filepath.Ext(path)):
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// pages returns the names of what people read.
func pages(t *testing.T) []string {
	t.Helper()
	names := []string{"README.md", "examples/README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"}
	for _, name := range files(t, ".md") {
		if strings.HasPrefix(name, "docs/") {
			names = append(names, name)
		}
	}
	return names
}

// blocks returns the blocks of code of a page that are in the given language.
func blocks(page, language string) (found []string) {
	for _, part := range strings.Split("\n"+page, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		found = append(found, block)
	}
	return found
}

// plain makes texts comparable that differ in white space alone: no empty lines, nothing at the ends of lines, and one
// space elsewhere.
func plain(text string) string {
	var b strings.Builder
	b.WriteString("\n")
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 {
			b.WriteString(strings.Join(words, " ") + "\n")
		}
	}
	return b.String()
}

// TestCode: all Go code of the pages is in a Go file, which is compiled and tested. A block may leave out nothing in
// between. Programs, with their package clause, are compiled here.
func TestCode(t *testing.T) {
	var sources []string
	for _, name := range files(t, ".go") {
		sources = append(sources, plain(read(t, name)))
	}
	for _, page := range pages(t) {
		for _, block := range blocks(read(t, page), "go") {
			if strings.HasPrefix(block, "package main\n") {
				compile(t, page, block)
				continue
			}
			want := plain(block)
			if !slices.ContainsFunc(sources, func(source string) bool { return strings.Contains(source, want) }) {
				t.Errorf("%s: this is in no Go file:\n%s", page, block)
			}
		}
	}
}

// compile compiles a program as if it were a file of this module.
func compile(t *testing.T, page, program string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	at, err := filepath.Abs(filepath.Join("program", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {at: file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir,
		"./program")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%s: a program does not compile: %v\n%s", page, err, out)
	}
}

var (
	links = regexp.MustCompile(`\]\(([^)\s]+)\)`)

	// ownLinks are those to files of this repository from elsewhere, such as the documentation of packages.
	ownLinks = regexp.MustCompile(`https://github\.com/lockerkit/locker/(?:blob|tree)/main/([^\s)"'` + "`" + `>,;]+)`)

	scripts = regexp.MustCompile("`(scripts/[a-z-]+)")
)

// TestLinks: what a page links to, in this repository, is there.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		text := read(t, page)
		for _, link := range links.FindAllStringSubmatch(text, -1) {
			if target := link[1]; !strings.Contains(target, "://") {
				path, anchor, _ := strings.Cut(target, "#")
				if path == "" {
					path = filepath.Base(page)
				}
				checkLink(t, page, filepath.ToSlash(filepath.Join(filepath.Dir(page), path)), anchor)
			}
		}
		for _, script := range scripts.FindAllStringSubmatch(text, -1) {
			checkLink(t, page, script[1], "")
		}
	}
	for _, name := range files(t, ".go", ".md") {
		for _, link := range ownLinks.FindAllStringSubmatch(read(t, name), -1) {
			path, anchor, _ := strings.Cut(strings.TrimRight(link[1], "."), "#")
			if name != "docs/docs_test.go" {
				checkLink(t, name, path, anchor)
			}
		}
	}
}

func checkLink(t *testing.T, from, path, anchor string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(path))); err != nil {
		t.Errorf("%s links to %s: %v", from, path, err)
		return
	}
	if anchor != "" && !slices.Contains(anchors(read(t, path)), anchor) {
		t.Errorf("%s links to %s, which has no heading #%s", from, path, anchor)
	}
}

// anchors returns the names that GitHub gives to the headings of a page.
func anchors(page string) (names []string) {
	code := false
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		heading := strings.TrimLeft(line, "#")
		if code || heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		names = append(names, strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, strings.TrimSpace(heading)))
	}
	return names
}

// TestErrors: the page for operators says of each error what it means and what to do, and of no other.
func TestErrors(t *testing.T) {
	page := read(t, "docs/operating.md")
	var all []string
	for pkg, dir := range map[string]string{
		"locker": ".", "memlock": "memlock", "redislock": "redislock", "redlock": "redislock/redlock",
		"pglock": "pglock", "etcdlock": "etcdlock",
	} {
		names := exportedErrors(t, filepath.Join(root, dir))
		if len(names) == 0 {
			t.Errorf("%s has no errors", pkg)
		}
		for _, name := range names {
			all = append(all, pkg+"."+name)
		}
	}
	for _, name := range all {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/operating.md says nothing about %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`(([a-z]+)\\.Err[A-Z][A-Za-z]*)`").FindAllStringSubmatch(page, -1) {
		if m[2] != "errors" && !slices.Contains(all, m[1]) {
			t.Errorf("docs/operating.md has %s, which there is not", m[1])
		}
	}
}

// exportedErrors returns the names of the variables of a package that begin with Err.
func exportedErrors(t *testing.T, dir string) (names []string) {
	t.Helper()
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok || vars.Tok != token.VAR {
				continue
			}
			for _, spec := range vars.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, "Err") {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

// TestPermissions: the page has the permissions that the documentation of the packages has, which their tests check one by one.
func TestPermissions(t *testing.T) {
	page := plain(read(t, "docs/operating.md"))
	n := 0
	for _, c := range []struct{ file, beginsWith string }{
		{"pglock/schema.go", "GRANT "}, {"etcdlock/doc.go", "etcdctl role "},
	} {
		for line := range strings.Lines(read(t, c.file)) {
			if code, ok := strings.CutPrefix(line, "//\t"); ok && strings.HasPrefix(code, c.beginsWith) {
				n++
				if !strings.Contains(page, plain(code)) {
					t.Errorf("docs/operating.md lacks what %s has: %s", c.file, code)
				}
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d lines were found", n)
	}
}
