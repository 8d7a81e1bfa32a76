// Command workers is a fleet of workers that elects one leader to process one serial queue: the use that package locker
// is made for.
//
//	go run ./examples/workers
//
// needs no server. It starts several workers in one process and tells a story: who leads, the jobs that are processed
// one after the other, what happens when the leader vanishes without unlocking, what becomes of the result that it
// hands in when it comes back, and how a leader leaves politely. It prints how long each handover took, and fails if a
// job was lost or done twice.
//
//	go run ./examples/workers -timeline handover.svg
//
// draws the story as a picture, also with -backend redis://localhost:6379/0: then each worker has a connection of its
// own to that server, which the crash cuts.
//
//	go run ./examples/workers -backend redis://localhost:6379/0
//	go run ./examples/workers -backend redis+cluster://localhost:7000,localhost:7001
//	go run ./examples/workers -backend redis+sentinel://localhost:26379/mymaster/0
//	go run ./examples/workers -backend redlock://one,two,three
//	go run ./examples/workers -backend postgres://postgres@localhost:5432/postgres
//	go run ./examples/workers -backend etcd://localhost:2379
//
// is one worker of a fleet that is spread over terminals and machines: start as many as you like. SIGINT or SIGTERM
// stops it: it takes no new job, finishes the one in hand or cancels it after -grace, unlocks, and exits with status 0,
// whereupon the next worker leads at once. A second signal makes it exit immediately, as kill -9 does: then the next
// one leads when the TTL has run out, or at once with Postgres, where locks end with the connection. A stop takes
// -stop-within at the most, also when the server hangs. A server that fails is waited for. With -http, the worker also
// answers with its state as JSON. In Postgres, it creates the tables of the queue in a schema called workers. With
// etcd, the URL may name all members of a cluster, as package etcdlock says; if there is a user in it, the worker logs
// in when it starts, and fails if it cannot.
//
// To see a deposed leader being refused, start one with -ttl 2s -job 1s -insist and a second one without -insist; stop
// the first with kill -STOP in the middle of a job, wait until the second leads, and let it go on with kill -CONT.
//
// Lines with the word logs are what locker.Log writes: a lost lease, and the first failure of those that are ridden
// out. A program of your own passes its logger.
//
// # Where to look
//
// What a program of your own needs is in worker.go: locker.Lead, and the three rules for the work that it calls. A job
// runs under a context that ends with the lease. Lease.Err is asked right before a result is handed in, as the process
// may have been stopped for a while. And the fencing token goes along with each result, because the process may just
// as well be stopped right after it asked: then only the queue can tell. queue.go shows how little that takes,
// queuepg.go how it is done in SQL, and queueetcd.go how with a store that only compares.
//
// Exit status: 0 if all went well, 1 if not, 2 for a mistake in the command line, 128 and the signal's number when
// a second signal forced the exit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lockerkit/locker"
)

const (
	exitFailure = 1
	exitUsage   = 2
	exitSignal  = 128 // and the number of the signal
)

func main() {
	signals := make(chan os.Signal, 2) // has room for the two that mean something
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	// Whatever is still running when run returns ends with the process: a forced exit waits for nobody.
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, signals))
}

// run is the program, and returns its exit status.
func run(args []string, stdout, stderr io.Writer, signals <-chan os.Signal) int {
	cfg, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout)
		return 0
	}
	var program program
	if err == nil {
		program, err = open(cfg, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "workers: %v\n", err)
		if errors.Is(err, errLogin) {
			return exitFailure
		}
		fmt.Fprint(stderr, "Run workers -h for the flags.\n")
		return exitUsage
	}

	code, err := supervise(program, signals, cfg.stopWithin)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "workers: %v\n", err)
	if errors.Is(err, locker.ErrInvalidOption) || errors.Is(err, locker.ErrInvalidKey) {
		return exitUsage // it is the library that knows which TTLs, names and keys are valid
	}
	return code
}

// program is what supervise runs.
type program interface {
	// run runs until it is done, or until ctx ends and it has stopped in an orderly way, which is no error.
	run(ctx context.Context) error
	// say tells the user what is going on.
	say(format string, args ...any)
}

// errStop is the cause with which a signal ends the context of a program.
var errStop = errors.New("told to stop")

// supervise runs p, stops it in an orderly way at the first signal, and gives up on it at the second, or when the stop
// takes longer than within.
func supervise(p program, signals <-chan os.Signal, within time.Duration) (code int, err error) {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()

	select {
	case err := <-ended:
		return exitFailure, err
	case sig := <-signals:
		p.say("told to stop (%v): takes no new job, unlocks and exits within %v; once more to exit at once", sig, within)
		stop(errStop)
	}
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case err := <-ended:
		if err == nil {
			p.say("has stopped")
		}
		return exitFailure, err
	case sig := <-signals:
		number, _ := sig.(syscall.Signal)
		return exitSignal + int(number), fmt.Errorf("told to stop again (%v): exit at once", sig)
	case <-timeout.C:
		return exitFailure, fmt.Errorf("still not stopped after %v: exit at once", within)
	}
}
