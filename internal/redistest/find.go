package redistest

import (
	"errors"

	"github.com/lockerkit/locker/internal/testserver"
)

// usualPath is where Debian puts the server. Directories like this one may be
// missing from the PATH of a build job.
const usualPath = "/usr/bin/redis-server"

// ErrNotFound is the error of Find, and of whatever uses it, when there is no
// server program.
var ErrNotFound = errors.New("redistest: no redis-server found")

var product = &testserver.Product{
	Name:       "Redis",
	Package:    "redistest",
	EnvProgram: EnvProgram,
	Programs:   []string{"redis-server", usualPath},
	Image:      "redis",
	NotFound:   ErrNotFound,
}

// Find returns the path of the Redis server program: $LOCKER_REDIS_SERVER if
// that is set, or else the one in a container if there is $LOCKER_TEST_CONTAINERS
// (see package contained), or else redis-server on the PATH or in Debian's usual place. If
// there is none, the error is ErrNotFound. A program named by the environment
// but missing is not made up for by another one.
func Find() (path string, err error) { return product.Find() }
