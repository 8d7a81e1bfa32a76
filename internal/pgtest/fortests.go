package pgtest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/internal/testserver"
)

// product is how tests get on without Postgres. Find has rules of its own.
var product = &testserver.Product{
	Name:       "Postgres",
	Package:    "pgtest",
	EnvProgram: EnvBin,
	NotFound:   ErrNotFound,
}

// shared is the server of URL.
var shared = testserver.Lazy[*Server]{Start: func() (*Server, error) { return Start(Options{}) }}

// URL returns the URL of a Postgres server for tests which need just that: a
// server, with data of other tests in it, which they must not disturb. It is
//
//   - the one that $LOCKER_TEST_POSTGRES names, if set;
//   - or else one that is started at the first call and shared by all tests of
//     the process. It ends with the process; see also Main.
//
// If there are no server programs (see Find), the test is skipped, or fails if
// $LOCKER_REQUIRE_SERVERS demands Postgres or $LOCKER_POSTGRES_BIN names a
// directory without them. A server that is there but does not start is always
// a failure.
func URL(tb testing.TB) string {
	tb.Helper()
	if value := os.Getenv(EnvURL); value != "" {
		if err := checkURL(value); err != nil {
			tb.Fatalf("pgtest: $%s: %v", EnvURL, err)
		}
		return value
	}
	server, err := shared.Get()
	if err != nil {
		product.Unavailable(tb, err)
	}
	return server.URL()
}

// New starts a server for one test (or benchmark), which the test may crash
// and restart as it likes, and closes it when the test is over. Where there
// are no server programs, it does as URL does. $LOCKER_TEST_POSTGRES does not
// help here, as the test has no power over that server.
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
// itself, which it does on Linux, and removes the servers' directories:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Where tests have several kinds of servers, m may be what calls the Main of
// another one.
func Main(m interface{ Run() int }) int { return product.Main(m, &shared) }

// checkURL checks a URL, the password of which is not to be in the error.
func checkURL(value string) error {
	if !strings.HasPrefix(value, "postgres://") && !strings.HasPrefix(value, "postgresql://") {
		return errors.New("want postgres://user@host:port/database")
	}
	_, err := pgconn.ParseConfig(value)
	return err
}
