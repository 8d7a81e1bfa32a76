package etcdtest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestProgram is what scripts/test runs before all others, so that the time that it takes to build the server is not
// in theirs.
func TestProgram(t *testing.T) {
	path, err := product.Find()
	if err != nil {
		product.Unavailable(t, err)
	}
	t.Log(path)
}

// Of many who need the server at once, one builds it, once.
func TestBuild(t *testing.T) {
	t.Parallel()
	source, cache := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module server\n", "go.sum": "", "main.go": "package main\n\nfunc main() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			path, err := buildIn(cache, source)
			if err != nil || !built(path) {
				t.Errorf("%q, %v", path, err)
			}
		})
	}
	wg.Wait()
	programs, _ := filepath.Glob(filepath.Join(cache, "*"))
	if len(programs) != 2 { // the program, and its lock
		t.Errorf("there are %q", programs)
	}
}
