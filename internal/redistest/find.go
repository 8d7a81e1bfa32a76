package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// usualPath is where Debian puts the server. Directories like this one may be
// missing from the PATH of a build job.
const usualPath = "/usr/bin/redis-server"

// ErrNotFound is the error of Find, and of whatever uses it, when there is no
// server program.
var ErrNotFound = errors.New("redistest: no redis-server found")

// Find returns the path of the Redis server program: $LOCKER_REDIS_SERVER if
// that is set, or else redis-server on the PATH or in Debian's usual place. If
// there is none, the error is ErrNotFound. A program named by the environment
// but missing is not made up for by another one.
func Find() (path string, err error) {
	if name := os.Getenv(EnvProgram); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%w: $%s: %w", ErrNotFound, EnvProgram, err)
		}
		return path, nil
	}
	for _, name := range []string{"redis-server", usualPath} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w on the PATH or at %s; set $%s", ErrNotFound, usualPath, EnvProgram)
}
