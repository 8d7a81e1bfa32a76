// Command containers runs a command, such as go test, with servers in containers, so that Go and Docker are all that a
// machine needs for the tests:
//
//	scripts/containers go test ./...
//
// It starts a Redis, a Redis master with two replicas and three sentinels, a Postgres and an etcd of three members, and
// tells the command where they are: in LOCKER_TEST_REDIS (host:port), LOCKER_TEST_SENTINEL (a redis+sentinel:// URL),
// LOCKER_TEST_POSTGRES and LOCKER_TEST_ETCD (URLs). Tests that pause, kill and restart servers have their own started,
// and treated like that, through LOCKER_TEST_CONTAINERS: see package contained. The servers use the network of the
// host, on loopback, and its temporary files, so that Docker has to run on the same machine, which has been tried on
// Linux only.
//
// The images are redis, postgres, pgbouncer and etcd as given below, or those that LOCKER_IMAGE_REDIS,
// LOCKER_IMAGE_POSTGRES, LOCKER_IMAGE_PGBOUNCER and LOCKER_IMAGE_ETCD name. scripts/images makes some without pulling
// any.
//
// The containers are gone when the command has ended, however that comes: this process is two, each of which removes
// them when the other one dies, and a container whose test has ended is removed at once. What two SIGKILLs leave
// behind, the next run removes. The exit code is the command's.
//
// It is a module of its own: what testcontainers-go needs is no business of who uses this library.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: containers [--] command [argument ...]")
		os.Exit(2)
	}
	command := os.Args[1:]
	if command[0] == "--" {
		command = command[1:]
	}
	run := supervise
	if os.Getenv(envWorker) != "" {
		run = work
	}
	code, err := run(command)
	if err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}
