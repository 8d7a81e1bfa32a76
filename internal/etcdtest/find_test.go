package etcdtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// TestProgram is what scripts/test runs before all others, so that the time
// that it takes to build the server is not in theirs.
func TestProgram(t *testing.T) {
	path, err := Find()
	if err != nil {
		product.Unavailable(t, err)
	}
	t.Log(path)
}

// version makes a program that says it is an etcd of a version.
func version(t *testing.T, name, version string) (path string) {
	t.Helper()
	return selftest.Program(t, t.TempDir(), name, "echo etcd Version: "+version+"; echo Git SHA: 0123456")
}

func TestFind(t *testing.T) {
	t.Setenv(contained.EnvSocket, "") // the programs of this machine
	good, old := version(t, "etcd", "3.6.0"), version(t, "etcd", "3.4.23")
	named, built := version(t, "my-etcd", "3.10.0-rc.1"), version(t, "built", "3.6.16")
	other := selftest.Program(t, t.TempDir(), "etcd", "echo hello")
	missing := filepath.Join(t.TempDir(), "missing")
	noBuild := errors.New("no way")
	for name, tc := range map[string]struct {
		env, onPath string
		built       string
		want        string
		wantErr     []string
	}{
		"named":                {env: named, onPath: good, built: built, want: named},
		"on the PATH":          {onPath: good, built: built, want: good},
		"built":                {built: built, want: built},
		"built as one is old":  {onPath: old, built: built, want: built},
		"built as one is none": {onPath: other, built: built, want: built},
		"none":                 {wantErr: []string{"not found", "no way", EnvProgram}},
		"old":                  {onPath: old, wantErr: []string{"has version 3.4.23; want 3.6 or later", "no way"}},
		// What the environment names is not replaced by something else.
		"named but missing": {env: missing, onPath: good, built: built, wantErr: []string{EnvProgram, "no such file"}},
		"named but old":     {env: old, onPath: good, built: built, wantErr: []string{EnvProgram, "3.4.23"}},
		"named but other":   {env: other, onPath: good, built: built, wantErr: []string{EnvProgram, "hello"}},
	} {
		t.Setenv(EnvProgram, tc.env)
		t.Setenv("PATH", filepath.Dir(tc.onPath))
		if tc.onPath == "" {
			t.Setenv("PATH", "")
		}
		got, err := find(func() (string, error) {
			if tc.built == "" {
				return "", noBuild
			}
			return tc.built, nil
		})
		if got != tc.want || errors.Is(err, ErrNotFound) != (tc.want == "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tc.want)
		}
		for _, want := range tc.wantErr {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
	t.Setenv(EnvProgram, missing)
	if _, err := Start(Options{}); !errors.Is(err, ErrNotFound) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start = %v", err)
	}
}

// source makes a module with a main.go.
func source(t *testing.T, main string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{"go.mod": "module server\n", "go.sum": "", "main.go": main} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBuild(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(t.TempDir(), "cache")
	dir := source(t, "package main\n\nfunc main() {}\n")
	var wg sync.WaitGroup
	paths := make([]string, 4)
	for i := range paths {
		wg.Go(func() {
			var err error
			if paths[i], err = buildIn(cache, dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	info, err := os.Stat(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if path != paths[0] {
			t.Errorf("built as %s and %s", paths[0], path)
		}
	}
	if _, err := buildIn(cache, dir); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(paths[0]); err != nil || !os.SameFile(info, again) {
		t.Errorf("it was built again, %v", err)
	}
	// Another source is another program.
	other, err := buildIn(cache, source(t, "package main\n\nfunc main() { println() }\n"))
	if err != nil || other == paths[0] {
		t.Errorf("the other one: %q, %v", other, err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "build-*")); len(left) > 0 {
		t.Error("left behind:", left)
	}
}

func TestBuildFailure(t *testing.T) {
	dir := source(t, "package main\n\nthis is not Go\n")
	cache := t.TempDir()
	for range 2 {
		if path, err := buildIn(cache, dir); err == nil || !strings.Contains(err.Error(), "main.go:3") {
			t.Errorf("built %q, %v", path, err)
		}
	}
	t.Setenv("PATH", "")
	if path, err := buildIn(cache, dir); err == nil || !strings.Contains(err.Error(), "executable file not found") {
		t.Errorf("without Go, built %q, %v", path, err)
	}
	if path, err := buildIn(cache, filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a source, built %q, %v", path, err)
	}
}
