// Command soak has several processes use locks while servers, processes and the network fail at random, and checks
// afterwards what they have recorded. See scripts/soak. It needs Linux: for what it does to processes, and for the one
// clock that all of them record by.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/soak/history"
)

// config is what the command line says.
type config struct {
	store      string
	lasts      time.Duration
	calm       time.Duration
	processes  int
	goroutines int
	keys       int
	seed       uint64
	keep       bool
}

func main() {
	switch {
	case filepath.Base(os.Args[0]) == serverProgram:
		fail(runServer(os.Args[1:]))
	case os.Getenv(envWorker) != "":
		fail(runWorker(os.Getenv(envWorker)))
	default:
		var c config
		flag.StringVar(&c.store, "store", "", "redis, redlock, sentinel, cluster, postgres or etcd")
		flag.DurationVar(&c.lasts, "for", time.Minute, "how long things go wrong")
		flag.DurationVar(&c.calm, "calm", 15*time.Second, "how long all is well after that")
		flag.IntVar(&c.processes, "processes", 5, "processes that lock")
		flag.IntVar(&c.goroutines, "goroutines", 6, "of each process")
		flag.IntVar(&c.keys, "keys", 10, "keys; two of them are in demand, and every second is locked in all modes")
		flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of all that is random")
		flag.BoolVar(&c.keep, "keep", false, "keep the records, also if there is no violation")
		flag.Parse()
		ok, err := run(c)
		fail(err)
		if !ok {
			os.Exit(1)
		}
	}
}

// fail ends the process if something has failed that is not the library's fault.
func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
}

// run is one run, from the start of the servers to the report. ok is false if there was a violation.
func run(c config) (ok bool, err error) {
	if err := findProgram(c.store); err != nil {
		return false, err
	}
	network, err := enterNetwork()
	if err != nil {
		return false, err
	}
	dir, err := runDir()
	if err != nil {
		return false, err
	}
	defer func() {
		if ok && !c.keep {
			_ = os.RemoveAll(dir)
		} else {
			fmt.Println("records and logs are in", dir)
		}
	}()
	fmt.Printf("%s: %d processes of %d goroutines, %d keys, for %v and %v without faults; seed %d\n",
		c.store, c.processes, c.goroutines, c.keys, c.lasts, c.calm, c.seed)
	if network != "" {
		fmt.Println("SKIPPED: partitions between servers:", network)
	}
	if skipped := compileClock(dir, c.store); skipped != "" {
		fmt.Println("SKIPPED: a server's clock set back:", skipped)
	}
	if c.store == storeEtcd && !etcdtest.CanSlowDisks() {
		fmt.Println("SKIPPED: slow disks: there is no strace")
	}
	s := &soak{config: c, dir: dir}
	if s.store, err = openStore(s); err != nil {
		return false, err
	}
	defer func() { _ = s.store.close() }()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.run(ctx); err != nil {
		return false, err
	}
	result := history.Check(s.records(), s.events, s.store.rules())
	result.Violations = append(result.Violations, s.broken...)
	report(os.Stdout, result, s.events)
	fmt.Printf("%d violations; seed %d\n", len(result.Violations), c.seed)
	return len(result.Violations) == 0, nil
}

// runDir makes the directory for the records, the logs and what the servers keep: in memory, if there is room.
func runDir() (string, error) {
	base := os.Getenv("TMPDIR")
	if info, err := os.Stat("/dev/shm"); base == "" && err == nil && info.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "locker-soak-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // servers run as other users
		return "", err
	}
	return dir, os.Setenv("TMPDIR", dir)
}
