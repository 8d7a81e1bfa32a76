// Package etcdtest provides real etcd servers for tests: a shared one that is
// just there (Address), and clusters of a test's own of which it can pause,
// kill and restart the members (New, Start).
//
// Which server a test gets, and whether it is skipped or fails where there is
// none, is up to the environment; see Address, New and Find.
package etcdtest

import "github.com/lockerkit/locker/internal/testserver"

// The environment variables that this package obeys.
const (
	// EnvProgram names the server program to use; see Find.
	EnvProgram = "LOCKER_ETCD"

	// EnvAddress names a running server to use, as http://host:port or as
	// host:port; see Address.
	EnvAddress = "LOCKER_TEST_ETCD"

	// EnvRequire lists the servers, separated by commas, without which tests
	// must fail instead of being skipped: "etcd" is for this package, and
	// "all" and "1" are for every server.
	EnvRequire = testserver.EnvRequire
)

// The errors of a Member's methods when it is in the wrong state.
var (
	ErrNotRunning = testserver.ErrNotRunning
	ErrClosed     = testserver.ErrClosed
)
