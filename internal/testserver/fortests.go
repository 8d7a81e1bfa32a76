package testserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

// EnvRequire names the environment variable that lists the servers, separated
// by commas, without which tests must fail instead of being skipped. "all" and
// "1" are for every server.
const EnvRequire = "LOCKER_REQUIRE_SERVERS"

// Product is a kind of server, and how to find its program.
type Product struct {
	Name       string   // as people call it; in lower case for EnvRequire
	Package    string   // which provides it, for errors
	EnvProgram string   // the environment variable that names the program
	Programs   []string // where to look for it else: names on the PATH, or paths
	Image      string   // which has the program that is first of these, where programs are in containers
	NotFound   error    // what the error is if it is nowhere

	memory memory // see TempDir
}

// Find returns the path of the program, which is none of this machine where
// programs are in containers. One named by the environment but missing is not
// made up for by another one.
func (p *Product) Find() (path string, err error) {
	if name := os.Getenv(p.EnvProgram); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%w: $%s: %w", p.NotFound, p.EnvProgram, err)
		}
		return path, nil
	}
	if contained.Available() {
		return contained.Path(p.Image, p.Programs[0]), nil
	}
	for _, name := range p.Programs {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w as any of %q; set $%s", p.NotFound, p.Programs, p.EnvProgram)
}

// Unavailable ends a test for which no server could be had. Without a program
// the test is skipped, unless the environment names or demands one.
func (p *Product) Unavailable(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case !errors.Is(err, p.NotFound):
		tb.Fatalf("%s: cannot start %s: %v", p.Package, p.Name, err)
	case os.Getenv(p.EnvProgram) != "":
		tb.Fatal(err)
	case p.required(os.Getenv(EnvRequire)):
		tb.Fatalf("%v ($%s demands %s)", err, EnvRequire, p.Name)
	default:
		tb.Skipf("NOT TESTED, as there is no %s: %v", p.Name, err)
	}
}

// required reports whether the list of required servers has this one in it.
func (p *Product) required(list string) bool {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		if slices.Contains([]string{strings.ToLower(p.Name), "all", "1"}, name) {
			return true
		}
	}
	return false
}

// CloseAfter closes a server when a test is over.
func (p *Product) CloseAfter(tb testing.TB, server io.Closer) {
	tb.Helper()
	tb.Cleanup(func() {
		if err := server.Close(); err != nil {
			tb.Errorf("%s: close: %v", p.Package, err)
		}
	})
}

// Lazy is a server that starts when it is first needed.
type Lazy[S io.Closer] struct {
	Start func() (S, error)

	mu      sync.Mutex
	started bool
	server  S
	err     error
}

// Get returns the server, or why it did not start.
func (l *Lazy[S]) Get() (S, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.started = true
		l.server, l.err = l.Start()
	}
	return l.server, l.err
}

// Close closes the server, if it was ever needed.
func (l *Lazy[S]) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started || l.err != nil {
		return nil
	}
	return l.server.Close()
}

// Main runs the tests, then closes the shared server of a package, and removes
// the directory in memory.
func (p *Product) Main(m interface{ Run() int }, shared io.Closer) int {
	code := m.Run()
	if err := shared.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: close: %v\n", p.Package, err)
	}
	p.memory.remove()
	return code
}
