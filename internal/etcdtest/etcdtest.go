// Package etcdtest provides real etcd servers for tests: a shared one that is just there (Address), and clusters of a
// test's own of which it can pause, kill and restart the members (New, Start).
//
// $LOCKER_TEST_ETCD names a running server to share, as host:port or as http://host:port, $LOCKER_ETCD the program,
// and "etcd" in $LOCKER_REQUIRE_SERVERS demands one; see package testserver. Versions before 3.6 are not good enough.
// If there is no program, one is built from the module in the directory server, which takes a minute or two and is
// done once for each user and version.
package etcdtest

import (
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/testserver"
)

// The environment variables that this package obeys.
const (
	EnvAddress = "LOCKER_TEST_ETCD" // a running server, as http://host:port or as host:port; see Address
	EnvProgram = "LOCKER_ETCD"      // the server program; see Find
)

var product = &testserver.Product{
	Name:       "etcd",
	Package:    "etcdtest",
	EnvProgram: EnvProgram,
	Program:    "etcd",
	Image:      "etcd",
	Banner:     "etcd Version: ",
	Oldest:     [2]int{3, 6},
	Unset:      []string{"ETCD_"},
	// Once: without a network a try may take long, and each test would try again.
	Build:      sync.OnceValues(build),
	EnvAddress: EnvAddress,
	URL:        "http://localhost:2379/",
}

// Find returns the path of the server program; see package testserver for where it looks.
func Find() (path string, err error) { return product.Find() }

// shared is the server of Address.
var shared = testserver.Lazy[*Cluster]{Start: func() (*Cluster, error) { return Start(Options{}) }}

// Address returns the address (host:port) of an etcd server for tests which need just that: a server, with data of
// other tests in it, which they must not disturb. It is the one that the environment names, or else one that is
// started at the first call, shared by all tests of the process, and ended by Main. Without a server program, the
// test is skipped or fails.
func Address(tb testing.TB) string {
	tb.Helper()
	if addr := product.Address(tb); addr != "" {
		return addr
	}
	return shared.For(tb, product).Member(0).Addr()
}

// New starts a cluster for one test (or benchmark), which the test may pause, kill and restart as it likes, and
// closes it when the test is over. Without a server program, the test is skipped or fails.
func New(tb testing.TB, opts Options) *Cluster {
	tb.Helper()
	return testserver.New(tb, product, func() (*Cluster, error) { return Start(opts) })
}

// Main runs the tests and then closes the shared server, if there is one:
//
//	func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }
//
// Tests that have several kinds of servers use testserver.Main.
func Main(m testserver.Tests) int { return product.Main(m, &shared) }
