package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

const (
	// usualDirs is where Debian puts the programs of each version. They are
	// never on the PATH.
	usualDirs = "/usr/lib/postgresql/*/bin"

	// minVersion is the first version that is good enough.
	minVersion = 14
)

// ErrNotFound is the error of Find, and of whatever uses it, when there are no
// server programs.
var ErrNotFound = errors.New("pgtest: no Postgres found")

// Find returns the directory with the Postgres server programs (postgres,
// initdb): $LOCKER_POSTGRES_BIN if that is set, or else the one in containers if
// there is $LOCKER_TEST_CONTAINERS (see package contained), or else the first one on the
// PATH that has both, or else the one with the newest version in Debian's
// usual place. Versions before 14 do not count. If there is none, the error is
// ErrNotFound. A directory named by the environment is not made up for by
// another one.
//
// Where the programs are links, it is the directory that they lead to, as that
// has also those to which there are no links.
func Find() (bindir string, err error) { return find(usualDirs) }

func find(usual string) (bindir string, err error) {
	if dir := os.Getenv(EnvBin); dir != "" {
		dir, err := filepath.Abs(dir)
		if err == nil {
			_, err = versionIn(dir)
		}
		if err != nil {
			return "", fmt.Errorf("%w: $%s: %w", ErrNotFound, EnvBin, err)
		}
		return behindLinks(dir), nil
	}
	if contained.Available() {
		return contained.Path("postgres"), nil
	}
	var why []error // not any of those seen
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := program(dir, "postgres"); err != nil || !filepath.IsAbs(dir) {
			continue
		}
		if _, err := versionIn(dir); err != nil {
			why = append(why, err)
			continue
		}
		return behindLinks(dir), nil
	}
	dirs, err := filepath.Glob(usual)
	if err != nil {
		return "", err
	}
	newest := 0
	for _, dir := range dirs {
		if version, err := versionIn(dir); err != nil {
			why = append(why, err)
		} else if version > newest {
			newest, bindir = version, dir
		}
	}
	if newest == 0 {
		return "", errors.Join(append([]error{
			fmt.Errorf("%w on the PATH or in %s; set $%s", ErrNotFound, usual, EnvBin)}, why...)...)
	}
	return bindir, nil
}

// program returns the path of a program in a directory.
func program(dir, name string) (path string, err error) {
	path = filepath.Join(dir, name)
	if contained.Is(path) {
		return path, nil
	}
	return exec.LookPath(path)
}

// behindLinks returns the directory where the programs in a directory are.
func behindLinks(dir string) string {
	path, err := program(dir, "postgres")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		_, err = program(filepath.Dir(path), "initdb")
	}
	if err != nil {
		return dir
	}
	return filepath.Dir(path)
}

// versionIn returns the major version of the server in a directory, and an
// error if anything is wrong with it.
func versionIn(dir string) (major int, err error) {
	path, err := program(dir, "postgres")
	if err != nil {
		return 0, err
	}
	if _, err := program(dir, "initdb"); err != nil {
		return 0, err
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --version: %w", path, err)
	}
	match := regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)`).FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("%s --version: %q", path, out)
	}
	if major, err = strconv.Atoi(string(match[1])); err != nil {
		return 0, err
	}
	if major < minVersion {
		return 0, fmt.Errorf("%s has version %d; want %d or later", path, major, minVersion)
	}
	return major, nil
}
