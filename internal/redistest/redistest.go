// Package redistest provides real Redis servers for tests: a shared one that is just there (Address), servers of a
// test's own that it can stop, kill and restart (New, Start), and clusters and groups with Sentinel of such servers
// (NewCluster, NewSentinels).
//
// $LOCKER_TEST_REDIS names a running server to share, as host:port or as a redis:// URL, $LOCKER_REDIS_SERVER the
// program, and "redis" in $LOCKER_REQUIRE_SERVERS demands one; see package testserver.
package redistest

import (
	"testing"

	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker/internal/testserver"
)

// The environment variables that this package obeys.
const (
	EnvAddress = "LOCKER_TEST_REDIS"   // a running server, as host:port or as a redis:// URL; see Address
	EnvProgram = "LOCKER_REDIS_SERVER" // the server program; see Find
)

var product = &testserver.Product{
	Name:       "Redis",
	Package:    "redistest",
	EnvProgram: EnvProgram,
	Program:    "redis-server",
	Usual:      "/usr/bin/redis-server", // may be missing from the PATH of a build job
	Image:      "redis",
	EnvAddress: EnvAddress,
	URL:        "redis://localhost:6379/0",
}

// Find returns the path of the server program; see package testserver for where it looks.
func Find() (path string, err error) { return product.Find() }

// shared is the server of Address.
var shared = testserver.Lazy[*Server]{Start: func() (*Server, error) { return Start(Options{}) }}

// Address returns the address (host:port) of a Redis server for tests which need just that: a server, with data of
// other tests in it, which they must not disturb. It is the one that the environment names, or else one that is
// started at the first call, shared by all tests of the process, and ended by Main. Without a server program, the
// test is skipped or fails.
func Address(tb testing.TB) string {
	tb.Helper()
	if addr := product.Address(tb); addr != "" {
		return addr
	}
	return shared.For(tb, product).Addr()
}

// New starts a server for one test (or benchmark), which the test may pause, kill and restart as it likes, and closes
// it when the test is over. Without a server program, the test is skipped or fails.
func New(tb testing.TB, opts Options) *Server {
	tb.Helper()
	return testserver.New(tb, product, func() (*Server, error) { return Start(opts) })
}

// Main runs the tests and then closes the shared server, if there is one:
//
//	func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }
//
// Tests that have several kinds of servers use testserver.Main.
//
// go-redis tells nobody of connections that fail: tests make thousands of them, among which a failure is not found.
func Main(m testserver.Tests) int {
	logging.Disable()
	return product.Main(m, &shared)
}
