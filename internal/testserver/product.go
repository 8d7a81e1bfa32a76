package testserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

// EnvRequire names the environment variable that lists the servers, separated by commas, without which tests must
// fail instead of being skipped. "all" and "1" are for every server.
const EnvRequire = "LOCKER_REQUIRE_SERVERS"

// EnvServers names the environment variable that says where tests look for programs: "programs" is on this machine.
// Without it they use what else the environment names, so that go test ./... starts nothing and takes no minutes.
const EnvServers = "LOCKER_TEST_SERVERS"

// Product is a kind of server: what it is called, where it may be, and which is good enough.
type Product struct {
	Name    string // as people call it; in lower case for EnvRequire
	Package string // which provides it, for errors and the names of directories

	EnvProgram string // the environment variable that names the program, or the directory that has it
	Program    string // its name
	Usual      string // where it is if not on the PATH: a path, or a pattern of paths, the last of which is the best
	Image      string // which has it, where programs are in containers
	Beside     string // another program that has to be in its directory; links to it are followed, then

	Banner string // what it prints before its version; empty: any version is good enough
	Oldest [2]int // the first version that is good enough

	Unset []string // prefixes of variables that are not to be in its environment
	Set   []string // variables that are

	Build func() (path string, err error) // makes the program if there is none; nil: nobody can

	EnvAddress string // the environment variable that names a running server; see Address
	URL        string // that of a server on the usual port, for Address

	memory  memory // see TempDir
	skipped atomic.Int64
}

// errNotFound is the error of Find when there is no program.
var errNotFound = errors.New("no program found")

// Find returns the path of the program; see the documentation of the package for where it looks.
func (p *Product) Find() (path string, err error) {
	if named := os.Getenv(p.EnvProgram); named != "" {
		if info, err := os.Stat(named); err == nil && info.IsDir() {
			named = filepath.Join(named, p.Program)
		}
		if path, err = p.check(named); err != nil {
			return "", fmt.Errorf("%s: %w: $%s: %w", p.Package, errNotFound, p.EnvProgram, err)
		}
		return path, nil
	}
	if contained.Available() {
		return contained.Path(p.Image, p.Program), nil
	}
	if testing.Testing() && os.Getenv(EnvServers) != "programs" && !p.required(os.Getenv(EnvRequire)) {
		return "", fmt.Errorf("%s: %w, as none was looked for: run scripts/test, or set %s=programs",
			p.Package, errNotFound, EnvServers)
	}
	var why []error // not any of those seen
	for _, candidate := range p.candidates() {
		path, err := p.check(candidate)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			why = append(why, err)
		}
	}
	if p.Build != nil {
		if path, err = p.Build(); err == nil {
			return path, nil
		}
		why = append(why, fmt.Errorf("it cannot be built either: %w", err))
	}
	missing := fmt.Errorf("%s: %w: %s is not on the PATH; set $%s", p.Package, errNotFound, p.Program, p.EnvProgram)
	return "", errors.Join(append([]error{missing}, why...)...)
}

// candidates are where the program may be, the best first.
func (p *Product) candidates() (paths []string) {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			paths = append(paths, filepath.Join(dir, p.Program))
		}
	}
	usual, _ := filepath.Glob(p.Usual) // in order; the patterns are ours
	slices.Reverse(usual)
	return append(paths, usual...)
}

// check returns the absolute path of a program, and an error if anything is wrong with it.
func (p *Product) check(path string) (string, error) {
	path, err := exec.LookPath(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", err
	}
	if p.Beside != "" {
		if real, err := filepath.EvalSymlinks(path); err == nil && p.complete(real) == nil {
			path = real
		}
		if err := p.complete(path); err != nil {
			return "", err
		}
	}
	if p.Banner == "" {
		return path, nil
	}
	cmd := exec.Command(path, "--version")
	cmd.Env = p.Environment()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	version, ok := strings.CutPrefix(string(out), p.Banner)
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n == 0 || !ok {
		return "", fmt.Errorf("%s --version: %q", path, out)
	}
	if slices.Compare([]int{major, minor}, p.Oldest[:]) < 0 {
		return "", fmt.Errorf("%s has version %d.%d; want %d.%d or later", path, major, minor, p.Oldest[0], p.Oldest[1])
	}
	return path, nil
}

// complete returns an error if the other program is not beside the one at the path.
func (p *Product) complete(path string) error {
	_, err := exec.LookPath(filepath.Join(filepath.Dir(path), p.Beside))
	return err
}

// Environment is that of this process, without what begins with one of Unset, and with Set: nothing that is meant for
// another server of the kind changes this one.
func (p *Product) Environment() (env []string) {
	for _, variable := range os.Environ() {
		if !slices.ContainsFunc(p.Unset, func(prefix string) bool { return strings.HasPrefix(variable, prefix) }) {
			env = append(env, variable)
		}
	}
	return append(env, p.Set...)
}

// Unavailable ends a test for which no server could be had. Without a program the test is skipped, unless the
// environment names or demands one.
func (p *Product) Unavailable(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case !errors.Is(err, errNotFound):
		tb.Fatalf("%s: cannot start %s: %v", p.Package, p.Name, err)
	case os.Getenv(p.EnvProgram) != "":
		tb.Fatal(err)
	case p.required(os.Getenv(EnvRequire)):
		tb.Fatalf("%v ($%s demands %s)", err, EnvRequire, p.Name)
	default:
		p.skipped.Add(1)
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

// Need ends a test if there is no program, as Unavailable does.
func (p *Product) Need(tb testing.TB) {
	tb.Helper()
	if _, err := p.Find(); err != nil {
		p.Unavailable(tb, err)
	}
}
