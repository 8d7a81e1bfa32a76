package redistest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lockerkit/locker/internal/testserver"
)

// shared is the server of Address.
var shared = testserver.Lazy[*Server]{Start: func() (*Server, error) { return Start(Options{}) }}

// Address returns the address (host:port) of a Redis server for tests which
// need just that: a server, with data of other tests in it, which they must
// not disturb. It is
//
//   - the one that $LOCKER_TEST_REDIS names, if set;
//   - or else one that is started at the first call and shared by all tests of
//     the process. It ends with the process; see also Main.
//
// If there is no server program (see Find), the test is skipped, or fails if
// $LOCKER_REQUIRE_SERVERS demands Redis or $LOCKER_REDIS_SERVER names a
// program that is missing. A server that is there but does not start is always
// a failure.
func Address(tb testing.TB) string {
	tb.Helper()
	if value := os.Getenv(EnvAddress); value != "" {
		addr, err := parseAddress(value)
		if err != nil {
			tb.Fatalf("redistest: $%s: %v", EnvAddress, err)
		}
		return addr
	}
	server, err := shared.Get()
	if err != nil {
		product.Unavailable(tb, err)
	}
	return server.Addr()
}

// New starts a server for one test (or benchmark), which the test may pause,
// kill and restart as it likes, and closes it when the test is over. Where
// there is no server program, it does as Address does. $LOCKER_TEST_REDIS does
// not help here, as the test has no power over that server.
func New(tb testing.TB, opts Options) *Server {
	tb.Helper()
	server, err := Start(opts)
	if err != nil {
		product.Unavailable(tb, err)
	}
	product.CloseAfter(tb, server)
	return server
}

// Main runs the tests and then closes the shared server, if there is one. It
// makes for a clean end where a server does not end with the process by
// itself, which it does on Linux, and removes the server's directory:
//
//	func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }
//
// Where tests have several kinds of servers, m may be what calls the Main of
// another one.
func Main(m interface{ Run() int }) int { return product.Main(m, &shared) }

// parseAddress takes a host:port, or a redis:// URL that says no more than
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
	plain := u.User == nil && u.RawQuery == "" && slices.Contains([]string{"", "/", "/0"}, u.Path)
	if u.Scheme != "redis" || u.Hostname() == "" || !plain {
		return "", fmt.Errorf("%s: want redis://host:port, without password, options or a database but 0",
			u.Redacted())
	}
	port := u.Port()
	if port == "" {
		port = "6379"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
