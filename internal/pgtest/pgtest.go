// Package pgtest provides real Postgres servers for tests: a shared one that is just there (URL), and servers of a
// test's own that it can stop, crash and restart (New, Start), that it can have copied by a standby and promote that
// (Server.Standby), and in front of which it can put a PgBouncer (NewBouncer).
//
// $LOCKER_TEST_POSTGRES names a running server to share, as a postgres:// URL, $LOCKER_POSTGRES_BIN the directory
// with the programs, $LOCKER_PGBOUNCER that of PgBouncer, and "postgres" and "pgbouncer" in $LOCKER_REQUIRE_SERVERS
// demand them; see package testserver. Versions before 14 are not good enough.
package pgtest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/internal/testserver"
)

// EnvURL names a running server to use, as a postgres:// URL; see URL.
const EnvURL = "LOCKER_TEST_POSTGRES"

var product = &testserver.Product{
	Name:       "Postgres",
	Package:    "pgtest",
	EnvProgram: "LOCKER_POSTGRES_BIN",
	Program:    "postgres",
	Usual:      "/usr/lib/postgresql/*/bin/postgres", // of each version, none of which is ever on the PATH
	Image:      "postgres",
	Beside:     "initdb",
	Banner:     "postgres (PostgreSQL) ",
	Oldest:     [2]int{14, 0},
	Unset:      []string{"PG", "LC_", "LANG"}, // what would change a server, or the language of its log
	Set:        []string{"LC_ALL=C", "TZ=UTC"},
}

// shared is the server of URL.
var shared = testserver.Lazy[*Server]{Start: func() (*Server, error) { return Start(Options{}) }}

// URL returns the URL of a Postgres server for tests which need just that: a server, with data of other tests in it,
// which they must not disturb. It is the one that the environment names, or else one that is started at the first
// call, shared by all tests of the process, and ended by Main. Without server programs, the test is skipped or fails.
func URL(tb testing.TB) string {
	tb.Helper()
	if value := os.Getenv(EnvURL); value != "" {
		if err := checkURL(value); err != nil {
			tb.Fatalf("pgtest: $%s: %v", EnvURL, err)
		}
		return value
	}
	return shared.For(tb, product).URL()
}

// checkURL checks a URL, the password of which is not to be in the error.
func checkURL(value string) error {
	if !strings.HasPrefix(value, "postgres://") && !strings.HasPrefix(value, "postgresql://") {
		return errors.New("want postgres://user@host:port/database")
	}
	_, err := pgconn.ParseConfig(value)
	return err
}

// New starts a server for one test (or benchmark), which the test may crash and restart as it likes, and closes it
// when the test is over. Without server programs, the test is skipped or fails.
func New(tb testing.TB, opts Options) *Server {
	tb.Helper()
	return testserver.New(tb, product, func() (*Server, error) { return Start(opts) })
}

// Main runs the tests and then closes the shared server, if there is one:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Tests that have several kinds of servers use testserver.Main.
func Main(m testserver.Tests) int { return product.Main(m, &shared) }
