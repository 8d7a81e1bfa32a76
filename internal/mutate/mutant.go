//go:build unix

package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mutant is one small change to a source file.
type mutant struct {
	file       string
	where      string // the function that it is in
	source     []byte
	start, end int    // what is replaced
	text       string // by what
	nth        int    // of those that read alike, in the order of the source
}

// String describes the mutant in a way that survives changes elsewhere in the file: it has no line number.
func (m *mutant) String() string {
	text := fmt.Sprintf("%s %s: %s => %s", m.file, m.where, oneLine(m.source[m.start:m.end]), oneLine([]byte(m.text)))
	if m.nth > 1 {
		text += fmt.Sprintf(" (%d)", m.nth)
	}
	return text
}

func oneLine(text []byte) string {
	words := strings.Join(strings.Fields(string(text)), " ")
	if words == "" {
		return "nothing"
	}
	return "«" + words + "»"
}

// apply returns the changed source.
func (m *mutant) apply() []byte {
	return slices.Concat(m.source[:m.start], []byte(m.text), m.source[m.end:])
}

// mutate returns the mutants of a file.
func mutate(file string, source []byte) (found []*mutant, err error) {
	if filepath.Ext(file) == ".lua" {
		found = mutateLua(file, source)
	} else if found, err = mutateGo(file, source); err != nil {
		return nil, err
	}
	alike := make(map[string]int)
	for _, m := range found {
		text := m.String()
		alike[text]++
		m.nth = alike[text]
	}
	return found, nil
}

// operators are what each is exchanged for.
var operators = map[token.Token][]token.Token{
	token.EQL: {token.NEQ}, token.NEQ: {token.EQL},
	token.LSS: {token.LEQ, token.GEQ}, token.LEQ: {token.LSS, token.GTR},
	token.GTR: {token.GEQ, token.LEQ}, token.GEQ: {token.GTR, token.LSS},
	token.LAND: {token.LOR}, token.LOR: {token.LAND},
	token.ADD: {token.SUB}, token.SUB: {token.ADD}, token.MUL: {token.QUO}, token.QUO: {token.MUL},
}

// mutateGo returns the mutants of a Go file: other operators and numbers, conditions that are always true or never,
// statements left out, arguments exchanged. Some do not compile.
func mutateGo(file string, source []byte) ([]*mutant, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var found []*mutant
	where := ""
	offset := func(p token.Pos) int { return fset.Position(p).Offset }
	text := func(n ast.Node) string { return string(source[offset(n.Pos()):offset(n.End())]) }
	add := func(from, to token.Pos, by string) {
		found = append(found,
			&mutant{file: file, where: where, source: source, start: offset(from), end: offset(to), text: by})
	}
	drop := func(n ast.Node) { add(n.Pos(), n.End(), "") }
	visit := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GenDecl:
			return n.Tok == token.CONST || n.Tok == token.VAR
		case *ast.BinaryExpr:
			for _, op := range operators[n.Op] {
				add(n.OpPos, n.OpPos+token.Pos(len(n.Op.String())), op.String())
			}
		case *ast.UnaryExpr:
			if n.Op == token.NOT {
				add(n.Pos(), n.Pos()+1, "")
			}
		case *ast.BasicLit:
			if n.Kind == token.INT {
				if i, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
					add(n.Pos(), n.End(), strconv.FormatInt(i+1, 10))
					if i > 1 {
						add(n.Pos(), n.End(), strconv.FormatInt(i*10, 10))
					}
				}
			}
		case *ast.Ident:
			switch n.Name {
			case "true":
				add(n.Pos(), n.End(), "false")
			case "false":
				add(n.Pos(), n.End(), "true")
			}
		case *ast.IfStmt:
			add(n.Cond.Pos(), n.Cond.End(), "true || "+text(n.Cond))
			add(n.Cond.Pos(), n.Cond.End(), "false && ("+text(n.Cond)+")")
		case *ast.CaseClause:
			for _, stmt := range n.Body {
				drop(stmt)
			}
		case *ast.BlockStmt:
			for _, stmt := range n.List {
				switch stmt := stmt.(type) {
				case *ast.ExprStmt, *ast.IncDecStmt, *ast.DeferStmt, *ast.GoStmt, *ast.SendStmt, *ast.BranchStmt:
					drop(stmt)
				case *ast.AssignStmt:
					if stmt.Tok != token.DEFINE {
						drop(stmt)
					}
				}
			}
		case *ast.CallExpr:
			for i := 1; i < len(n.Args); i++ {
				a, b := n.Args[i-1], n.Args[i]
				add(a.Pos(), b.End(), text(b)+string(source[offset(a.End()):offset(b.Pos())])+text(a))
			}
		}
		return true
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			where = nameOf(fn)
			if fn.Body != nil {
				ast.Inspect(fn.Body, visit)
			}
			continue
		}
		where = "declarations"
		ast.Inspect(d, visit)
	}
	return found, nil
}

// nameOf returns the name of a function, with that of its receiver's type.
func nameOf(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	receiver := fn.Recv.List[0].Type
	for {
		switch t := receiver.(type) {
		case *ast.StarExpr:
			receiver = t.X
		case *ast.IndexExpr:
			receiver = t.X
		case *ast.Ident:
			return t.Name + "." + fn.Name.Name
		default:
			return fn.Name.Name
		}
	}
}

// luaRules are how a line of Lua is changed.
var luaRules = []struct {
	match *regexp.Regexp
	by    string
}{
	{regexp.MustCompile(` == `), " ~= "},
	{regexp.MustCompile(` ~= `), " == "},
	{regexp.MustCompile(` > `), " >= "},
	{regexp.MustCompile(` > `), " <= "},
	{regexp.MustCompile(` < `), " <= "},
	{regexp.MustCompile(` < `), " >= "},
	{regexp.MustCompile(` <= `), " < "},
	{regexp.MustCompile(` >= `), " > "},
	{regexp.MustCompile(` and `), " or "},
	{regexp.MustCompile(` or `), " and "},
	{regexp.MustCompile(`\bnot `), ""},
	{regexp.MustCompile(` \+ `), " - "},
	{regexp.MustCompile(` - `), " + "},
	{regexp.MustCompile(`'NX'`), "'XX'"},
	{regexp.MustCompile(`'XX'`), "'NX'"},
	{regexp.MustCompile(`\bmath\.max\b`), "math.min"},
	{regexp.MustCompile(`\b0\b`), "1"},
	{regexp.MustCompile(`\b1\b`), "2"},
	{regexp.MustCompile(`\$(refuse|fence|liveness|reservation)`), "1"},
	{regexp.MustCompile(`\bif (.+?) then`), "if true then"},
	{regexp.MustCompile(`\bif (.+?) then`), "if false then"},
	{regexp.MustCompile(`^\s*(redis\.p?call\(.*\)|leave_line\(.*\)|drop_dead\(.*\)|call_first\(.*\))$`), ""},
}

// luaFunction matches the beginning of a function.
var luaFunction = regexp.MustCompile(`^local function (\w+)`)

// mutateLua returns the mutants of a script, line by line.
func mutateLua(file string, source []byte) (found []*mutant) {
	where := "script"
	at := 0
	for line := range bytes.Lines(source) {
		code := line
		if i := bytes.Index(code, []byte("--")); i >= 0 {
			code = code[:i] // comments
		}
		code = bytes.TrimRight(code, "\n ")
		if name := luaFunction.FindSubmatch(code); name != nil {
			where = string(name[1])
		}
		for _, rule := range luaRules {
			for _, m := range rule.match.FindAllIndex(code, -1) {
				found = append(found,
					&mutant{file: file, where: where, source: source, start: at + m[0], end: at + m[1], text: rule.by})
			}
		}
		if bytes.HasPrefix(code, []byte("end")) {
			where = "script"
		}
		at += len(line)
	}
	return found
}
