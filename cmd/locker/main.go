// Command locker runs other commands under a distributed lock, keeps one of several daemons running, and shows, revokes
// and diagnoses locks. Its locks are those of the library: a program that uses it and a command that is run by it
// exclude each other.
//
//	LOCKER_STORE=redis://localhost:6379 locker run nightly -- ./report --all
//
// docs/command.md is its manual; "locker help" says the most important things.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/lockerkit/locker/cmd/locker/internal/child"
)

func main() {
	// The program lives as long as its command, with next to nothing in memory: a garbage collection while it starts
	// would take longer than the rest.
	debug.SetGCPercent(400)
	runtime.GOMAXPROCS(1) // and so would handing work from one thread to another
	child.Main(func() { os.Exit(run(os.Args[1:])) })
}

// run runs the command with some arguments, and returns its exit code.
func run(args []string) int {
	stderr := newMessages(os.Stderr)
	defer stderr.end()
	a := &app{stdout: os.Stdout, stderr: stderr}
	root := a.command()
	root.SetArgs(twoDashes(root, args))
	return a.exitCode(root.Execute())
}
