package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// memory is the backend without a server.
const memory = "memory"

// config is the command line, and where to log to.
type config struct {
	backend string
	key     string
	ttl     time.Duration
	job     time.Duration
	grace   time.Duration

	stopWithin time.Duration

	// For a fleet in this process only:
	workers  int
	timeline string

	// For one worker of a fleet only:
	name   string
	jobs   int64
	insist bool
	http   string

	log *slog.Logger // where package locker logs to; nil for the usual one
}

// The flags that make sense in one of the two modes only.
var (
	fleetFlags  = []string{"workers", "timeline"}
	serverFlags = []string{"name", "jobs", "insist", "http"}
)

func flags(cfg *config) *flag.FlagSet {
	fs := flag.NewFlagSet("workers", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints the error, without burying it under all flags
	fs.StringVar(
		&cfg.backend,
		"backend",
		memory,
		"where locks and queue are: `URL` of redis://, rediss://, unix://, redis+cluster://, redis+sentinel://, redlock://, postgres://, postgresql://, etcd:// or etcds://, or memory",
	)
	fs.StringVar(&cfg.key, "key", "jobs", "the `key` to be locked, and the name of the queue")
	fs.DurationVar(
		&cfg.ttl,
		"ttl",
		0,
		"after how long a leader that is dead or cut off is replaced; with Postgres, a dead one is at once; with etcd, in whole seconds (default 1s for a whole fleet, else 10s)",
	)
	fs.DurationVar(&cfg.job, "job", 150*time.Millisecond, "how long a job takes")
	fs.DurationVar(&cfg.grace, "grace", 5*time.Second, "how long the job in hand may still take when told to stop")
	fs.DurationVar(&cfg.stopWithin, "stop-within", 15*time.Second,
		"the longest that a stop may take; then exit without unlocking")
	fs.IntVar(&cfg.workers, "workers", 3, "how many workers to start, in memory or for a -timeline")
	fs.StringVar(
		&cfg.timeline,
		"timeline",
		"",
		"draw what happens to a whole fleet in this SVG `file`; it plays in memory, or on a redis:// server",
	)
	fs.StringVar(&cfg.name, "name", "", "the `name` of this worker (default host and pid)")
	fs.Int64Var(&cfg.jobs, "jobs", 0, "exit when the fleet has done so many jobs in all (0: never)")
	fs.BoolVar(&cfg.insist, "insist", false,
		"be careless: finish jobs and hand in results though the lease is lost, to see them refused")
	fs.StringVar(
		&cfg.http,
		"http",
		"",
		"serve the state of this worker as JSON at this `address`, such as localhost:8080",
	)
	return fs
}

func usage(w io.Writer) {
	fs := flags(new(config))
	fs.SetOutput(w)
	fmt.Fprint(w,
		"usage: workers [flags]\n\nA fleet of workers that elects one leader to process one serial queue.\n\n")
	fs.PrintDefaults()
}

// parse reads and checks the command line. TTL, key and name are checked by the library.
func parse(args []string) (config, error) {
	var cfg config
	fs := flags(&cfg)
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var errs []error
	reject := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	reject(cfg.job <= 0, "-job %v: must be longer than 0", cfg.job)
	reject(cfg.grace < 0, "-grace %v: must not be negative", cfg.grace)
	reject(cfg.stopWithin <= 0, "-stop-within %v: must be longer than 0", cfg.stopWithin)
	reject(cfg.workers < 2, "-workers %d: it takes two to hand over", cfg.workers)
	reject(cfg.jobs < 0, "-jobs %d: must not be negative", cfg.jobs)
	foreign, mode := serverFlags, "is for a worker with a server: see -backend"
	if !cfg.fleet() {
		foreign, mode = fleetFlags, "is for the fleet in memory; with a server, each process is one worker, unless there is a -timeline"
	}
	fs.Visit(func(f *flag.Flag) {
		reject(slices.Contains(foreign, f.Name), "-%s %s", f.Name, mode)
		reject(f.Name == "ttl" && cfg.ttl == 0, "-ttl 0s: must be longer than 0")
	})

	if cfg.ttl == 0 && cfg.fleet() {
		cfg.ttl = time.Second // nobody wants to wait for the end of the story
	} else if cfg.ttl == 0 {
		cfg.ttl = locker.DefaultTTL
	}
	if cfg.name == "" {
		cfg.name = hostAndPid()
	}
	return cfg, errors.Join(errs...)
}

// fleet reports whether a whole fleet is to play in this process.
func (c config) fleet() bool { return c.backend == memory || c.timeline != "" }

// hostAndPid is a name that tells people where to look.
func hostAndPid() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	const most = 64 // characters of a host's name that fit in a Holder with room to spare
	return fmt.Sprintf("%.*s-%d", most, strings.ToValidUTF8(host, "?"), os.Getpid())
}
