// Package footprint checks what the module costs its users in dependencies.
package footprint

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGoSum makes programs that import one package of the module each, and counts what go mod tidy wants for them.
// It follows the tests of the packages that a program imports, so that a test that imports much shows here.
func TestGoSum(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for pkg, most := range map[string]int{
		"locker": 0, "locker/memlock": 0, "locker/conformance": 0, "locker/redislock": 25, "locker/pglock": 30,
		"locker/etcdlock": 110, "locker/otellocker": 40,
	} {
		t.Run(strings.ReplaceAll(pkg, "/", " "), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write := func(name, text string) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(
				"go.mod",
				"module consumer\n\ngo 1.26.0\n\nrequire github.com/lockerkit/locker v0.0.0\n\nreplace github.com/lockerkit/locker => "+root+"\n",
			)
			write("main.go", "package main\n\nimport _ \"github.com/lockerkit/"+pkg+"\"\n\nfunc main() {}\n")
			tidy := exec.CommandContext(t.Context(), "go", "mod", "tidy")
			tidy.Dir = dir
			tidy.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
			if out, err := tidy.CombinedOutput(); err != nil {
				if os.Getenv("LOCKER_REQUIRE_SERVERS") == "" && bytes.Contains(out, []byte("dial tcp")) {
					t.Skipf("NOT PROVEN: go mod tidy needs the Go module proxy, which cannot be reached:\n%s", out)
				}
				t.Fatalf("go mod tidy: %v\n%s", err, out)
			}
			sum, err := os.ReadFile(filepath.Join(dir, "go.sum"))
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			lines := bytes.Count(sum, []byte("\n"))
			if lines > most {
				t.Errorf("a program that imports only %s has %d lines in its go.sum; want at most %d:\n%s", pkg, lines,
					most, sum)
			}
			t.Logf("%d lines", lines)
		})
	}
}
