// Package redistest provides real Redis servers for tests: a shared one that
// is just there (Address), and servers of a test's own that it can stop, kill
// and restart (New, Start).
//
// Which server a test gets, and whether it is skipped or fails where there is
// none, is up to the environment; see Address, New and Find.
package redistest

import "github.com/lockerkit/locker/internal/testserver"

// The environment variables that this package obeys.
const (
	// EnvProgram names the server program to use; see Find.
	EnvProgram = "LOCKER_REDIS_SERVER"

	// EnvAddress names a running server to use, as host:port or as a
	// redis:// URL; see Address.
	EnvAddress = "LOCKER_TEST_REDIS"

	// EnvRequire lists the servers, separated by commas, without which tests
	// must fail instead of being skipped: "redis" is for this package, and
	// "all" and "1" are for every server.
	EnvRequire = testserver.EnvRequire
)
