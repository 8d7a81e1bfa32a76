// Package testserver is what the packages have in common that provide real servers for tests (redistest, pgtest,
// etcdtest): to find the program, to skip or fail without it, to start it on a port of its own, to wait until it is
// up, to signal, kill and restart it, and to share one among the tests of a process.
//
// The environment decides, by variables that the packages name:
//
//   - A running server that it names is the one that tests share. Those that pause, kill and restart servers have
//     their own.
//   - A program that it names is used. Else it is the one in a container if there is $LOCKER_TEST_CONTAINERS (see
//     package contained), or, with LOCKER_TEST_SERVERS=programs or if it is demanded, the first one that is good
//     enough on the PATH or where Debian has it. What the environment names is not made up for by something else.
//   - Without a program a test is skipped, and says so, or fails if $LOCKER_REQUIRE_SERVERS demands the server, or if
//     it was named. A server that is there but does not start is always a failure.
package testserver
