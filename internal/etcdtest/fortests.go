package etcdtest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver"
)

// shared is the server of Address.
var shared = testserver.Lazy[*Cluster]{Start: func() (*Cluster, error) { return Start(Options{}) }}

// Address returns the address (host:port) of an etcd server for tests which
// need just that: a server, with data of other tests in it, which they must
// not disturb. It is
//
//   - the one that $LOCKER_TEST_ETCD names, if set;
//   - or else one that is started at the first call and shared by all tests of
//     the process. It ends with the process; see also Main.
//
// If there is no server program (see Find), the test is skipped, or fails if
// $LOCKER_REQUIRE_SERVERS demands etcd or $LOCKER_ETCD names a program that is
// missing. A server that is there but does not start is always a failure.
func Address(tb testing.TB) string {
	tb.Helper()
	if value := os.Getenv(EnvAddress); value != "" {
		addr, err := parseAddress(value)
		if err != nil {
			tb.Fatalf("etcdtest: $%s: %v", EnvAddress, err)
		}
		return addr
	}
	cluster, err := shared.Get()
	if err != nil {
		product.Unavailable(tb, err)
	}
	return cluster.Member(0).Addr()
}

// New starts a cluster for one test (or benchmark), which the test may pause,
// kill and restart as it likes, and closes it when the test is over. Where
// there is no server program, it does as Address does. $LOCKER_TEST_ETCD does
// not help here, as the test has no power over that server. What the members
// have logged is in the log of a test that fails.
func New(tb testing.TB, opts Options) *Cluster {
	tb.Helper()
	cluster, err := Start(opts)
	if err != nil {
		product.Unavailable(tb, err)
	}
	product.CloseAfter(tb, cluster)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("%s", cluster.LogTail())
		}
	})
	return cluster
}

// Main runs the tests and then closes the shared server, if there is one. It
// makes for a clean end where a server does not end with the process by
// itself, which it does on Linux, and removes the servers' directories:
//
//	func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m)) }
//
// Where tests have several kinds of servers, m may be what calls the Main of
// another one.
func Main(m interface{ Run() int }) int { return product.Main(m, &shared) }

// parseAddress takes a host:port, or an http:// URL that says no more than
// that. What Address could not convey, such as a password, is an error.
func parseAddress(value string) (hostPort string, err error) {
	if !strings.Contains(value, "://") {
		if _, _, err := net.SplitHostPort(value); err != nil {
			return "", err
		}
		return value, nil
	}
	u, err := url.Parse(value)
	if err != nil {
		return "", err
	}
	plain := u.User == nil && u.RawQuery == "" && (u.Path == "" || u.Path == "/")
	if u.Scheme != "http" || u.Hostname() == "" || !plain {
		return "", fmt.Errorf("%s: want http://host:port, without password or options", u.Redacted())
	}
	port := u.Port()
	if port == "" {
		port = "2379"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
