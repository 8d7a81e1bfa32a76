package redistest

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

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
	server, err := shared.get()
	if err != nil {
		unavailable(tb, err)
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
		unavailable(tb, err)
	}
	tb.Cleanup(func() {
		if err := server.Close(); err != nil {
			tb.Error("redistest: close:", err)
		}
	})
	return server
}

// Main runs the tests and then closes the shared server, if there is one. It
// makes for a clean end where a server does not end with the process by
// itself, which it does on Linux, and removes the server's directory:
//
//	func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "redistest: close:", err)
	}
	return code
}

// unavailable ends a test for which no server could be had.
func unavailable(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case !errors.Is(err, ErrNotFound):
		tb.Fatalf("redistest: cannot start Redis: %v", err)
	case os.Getenv(EnvProgram) != "":
		tb.Fatal(err)
	case required(os.Getenv(EnvRequire)):
		tb.Fatalf("%v ($%s demands Redis)", err, EnvRequire)
	default:
		tb.Skipf("NOT TESTED, as there is no Redis: %v", err)
	}
}

// required reports whether the list of required servers has Redis in it.
func required(list string) bool {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		if slices.Contains([]string{"redis", "all", "1"}, name) {
			return true
		}
	}
	return false
}

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

// shared is the server of Address.
var shared lazyServer

// lazyServer is a server that starts when it is first needed.
type lazyServer struct {
	mu      sync.Mutex
	started bool
	server  *Server
	err     error
}

func (l *lazyServer) get() (*Server, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.started = true
		l.server, l.err = Start(Options{})
	}
	return l.server, l.err
}

// close closes the server, if it was ever needed.
func (l *lazyServer) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.server == nil {
		return nil
	}
	return l.server.Close()
}
