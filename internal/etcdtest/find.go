package etcdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"

	"github.com/lockerkit/locker/internal/testserver"
	"github.com/lockerkit/locker/internal/testserver/contained"
)

// minMajor and minMinor are the first version that is good enough.
const minMajor, minMinor = 3, 6

// ErrNotFound is the error of Find, and of whatever uses it, when there is no
// server program.
var ErrNotFound = errors.New("etcdtest: no etcd found")

// product is how tests get on without etcd. Find has rules of its own.
var product = &testserver.Product{
	Name:       "etcd",
	Package:    "etcdtest",
	EnvProgram: EnvProgram,
	NotFound:   ErrNotFound,
}

// Find returns the path of the etcd server program: $LOCKER_ETCD if that is
// set, or else the one in a container if there is $LOCKER_TEST_CONTAINERS (see
// package contained), or else etcd on the PATH, or else one that is built from the module in
// the directory server, which takes a minute or two and is done once for each
// user and version. Versions before 3.6 do not count. If there is none, and
// none can be built, the error is ErrNotFound. A program named by the
// environment is not made up for by another one.
func Find() (path string, err error) { return find(buildOnce) }

// buildOnce has a process try but once: without a network that may take long,
// and each test would try again.
var buildOnce = sync.OnceValues(build)

func find(build func() (path string, err error)) (path string, err error) {
	if name := os.Getenv(EnvProgram); name != "" {
		path, err := exec.LookPath(name)
		if err == nil {
			err = checkVersion(path)
		}
		if err != nil {
			return "", fmt.Errorf("%w: $%s: %w", ErrNotFound, EnvProgram, err)
		}
		return path, nil
	}
	if contained.Available() {
		return contained.Path("etcd", "etcd"), nil
	}
	path, onPath := exec.LookPath("etcd")
	if onPath == nil {
		onPath = checkVersion(path)
	}
	if onPath == nil {
		return path, nil
	}
	path, err = build()
	if err != nil {
		return "", fmt.Errorf("%w: %w; it cannot be built either: %w; set $%s", ErrNotFound, onPath, err, EnvProgram)
	}
	return path, nil
}

// checkVersion returns an error if the program is not an etcd that is new
// enough.
func checkVersion(path string) error {
	cmd := exec.Command(path, "--version")
	cmd.Env = environment()
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", path, err)
	}
	match := regexp.MustCompile(`^etcd Version: ((\d+)\.(\d+)\S*)`).FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("%s --version: %q", path, out)
	}
	major, majorErr := strconv.Atoi(string(match[2]))
	minor, minorErr := strconv.Atoi(string(match[3]))
	if err := errors.Join(majorErr, minorErr); err != nil {
		return err
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return fmt.Errorf("%s has version %s; want %d.%d or later", path, match[1], minMajor, minMinor)
	}
	return nil
}
