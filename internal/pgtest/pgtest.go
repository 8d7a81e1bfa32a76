// Package pgtest provides real Postgres servers for tests: a shared one that
// is just there (URL), and servers of a test's own that it can stop, crash and
// restart (New, Start), that it can have copied by a standby and promote that
// (Server.Standby), and in front of which it can put a PgBouncer (NewBouncer).
//
// Which server a test gets, and whether it is skipped or fails where there is
// none, is up to the environment; see URL, New and Find.
package pgtest

import "github.com/lockerkit/locker/internal/testserver"

// The environment variables that this package obeys.
const (
	// EnvBin names the directory with the server programs to use; see Find.
	EnvBin = "LOCKER_POSTGRES_BIN"

	// EnvURL names a running server to use, as a postgres:// URL; see URL.
	EnvURL = "LOCKER_TEST_POSTGRES"

	// EnvRequire lists the servers, separated by commas, without which tests
	// must fail instead of being skipped: "postgres" and "pgbouncer" are for
	// this package, and "all" and "1" are for every server.
	EnvRequire = testserver.EnvRequire
)

// The errors of a Server's methods when it is in the wrong state.
var (
	ErrNotRunning = testserver.ErrNotRunning
	ErrClosed     = testserver.ErrClosed
)
