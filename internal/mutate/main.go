//go:build unix

// Command mutate asks how much the tests notice: it makes one small change to the source at a time, runs the
// conformance suite, and lists the changes that no test has noticed. Each of them is either equivalent (it makes no
// difference that anybody could see), for which survivors.txt gives the reason, or a rule that is missing in the suite.
//
//	go run ./internal/mutate memlock                   # all mutants of memlock, judged by the suite in fake time
//	go run ./internal/mutate -sample 100 core          # a random hundred of package locker
//	go run ./internal/mutate -files '*.lua' redislock  # the scripts, judged by the suite in fake time, too
//	go run ./internal/mutate -tests own core           # judged by the package's own tests
//
// The files of the checkout stay as they are: a mutant is compiled by way of go test -overlay. It runs by hand; a full
// run of a target takes from minutes to hours.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// target is what can be mutated.
type target struct {
	globs []string // of its source files
	suite tests    // the conformance suite on it
	own   tests    // its own
}

// tests are a run of go test.
type tests struct {
	dir  string // where; "" is the root of the checkout
	args []string
}

var targets = map[string]target{
	"memlock": {
		globs: []string{"memlock/*.go"},
		suite: tests{args: []string{"-run=^TestConformance$", "./memlock"}},
		own:   tests{args: []string{"-skip=^TestConformance$", "./memlock"}},
	},
	"core": {
		globs: []string{"*.go"},
		suite: tests{args: []string{"-run=^(TestConformance|TestReference)$", "./memlock", "./conformance"}},
		own:   tests{args: []string{"."}},
	},
	"redislock": {
		globs: []string{"redislock/*.go", "redislock/internal/*/*.go", "redislock/internal/scripts/lua/*.lua"},
		suite: tests{"redislock/internal/faketime", []string{"."}},
		own: tests{args: []string{
			"-skip=^TestConformance", "./redislock", "./redislock/internal/...", "./redislock/redlock",
		}},
	},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// options is the command line.
type options struct {
	target  target
	tests   []tests
	files   string
	match   string
	sample  int
	seed    uint64
	workers int
	timeout time.Duration
	list    bool
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("mutate", flag.ContinueOnError)
	judges := fs.String("tests", "suite", "who judges: suite, own, or both")
	fs.StringVar(&o.files, "files", "*", "only files whose base name matches this `pattern`")
	fs.StringVar(&o.match, "match", "", "only mutants whose description contains this `text`")
	fs.IntVar(&o.sample, "sample", 0, "a random `number` of mutants; 0 for all")
	fs.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the sample")
	fs.IntVar(&o.workers, "workers", 2, "how many mutants are tested at the same time")
	fs.DurationVar(&o.timeout, "timeout", 2*time.Minute, "a mutant whose tests take longer is caught")
	fs.BoolVar(&o.list, "list", false, "list the mutants, and test none")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	t, known := targets[fs.Arg(0)]
	if fs.NArg() != 1 || !known {
		return o, fmt.Errorf("one target is wanted: memlock, core or redislock")
	}
	o.target = t
	switch *judges {
	case "suite":
		o.tests = []tests{t.suite}
	case "own":
		o.tests = []tests{t.own}
	case "both":
		o.tests = []tests{t.own, t.suite}
	default:
		return o, fmt.Errorf("-tests %q: want suite, own or both", *judges)
	}
	return o, nil
}

// run tests mutants and reports.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	mutants, err := o.mutants()
	if err != nil {
		return err
	}
	known, err := readSurvivors("internal/mutate/survivors.txt")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d mutants, seed %d\n", len(mutants), o.seed)
	if o.list {
		for _, m := range mutants {
			fmt.Fprintf(out, "%s\n", m)
		}
		return nil
	}
	// The tests have to pass without any mutation, or everything would be caught.
	if verdict, output := judge(ctx, o, nil); verdict != survived {
		return fmt.Errorf("the tests fail without any mutation:\n%s", output)
	}
	results := o.judgeAll(ctx, mutants, func(i int, m *mutant, v verdict) {
		if v == survived && known[m.String()] == "" {
			fmt.Fprintf(out, "%d/%d survived: %s\n", i, len(mutants), m)
		}
	})
	return report(out, results, known)
}

// mutants returns those that the options choose.
func (o options) mutants() ([]*mutant, error) {
	var all []*mutant
	for _, glob := range o.target.globs {
		names, err := filepath.Glob(glob)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			matched, err := filepath.Match(o.files, filepath.Base(name))
			if err != nil {
				return nil, err
			}
			if strings.HasSuffix(name, "_test.go") || !matched {
				continue
			}
			source, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			found, err := mutate(name, source)
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no source files: run it in the root of the repository")
	}
	all = slices.DeleteFunc(all, func(m *mutant) bool { return !strings.Contains(m.String(), o.match) })
	if o.sample > 0 && o.sample < len(all) {
		rng := rand.New(rand.NewPCG(o.seed, 0)) //nolint:gosec // to be repeatable is the point
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:o.sample]
		slices.SortFunc(all, func(a, b *mutant) int { return cmp.Or(cmp.Compare(a.file, b.file), a.start-b.start) })
	}
	return all, nil
}

// result is what became of a mutant.
type result struct {
	*mutant
	verdict verdict
}

// judgeAll tests mutants, several at a time.
func (o options) judgeAll(ctx context.Context, mutants []*mutant, done func(int, *mutant, verdict)) []result {
	results := make([]result, len(mutants))
	next := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range o.workers {
		wg.Go(func() {
			for i := range next {
				v, _ := judge(ctx, o, mutants[i])
				results[i] = result{mutants[i], v}
				mu.Lock()
				done(i+1, mutants[i], v)
				mu.Unlock()
			}
		})
	}
	for i := range mutants {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return slices.DeleteFunc(results, func(r result) bool { return r.mutant == nil || r.verdict == interrupted })
}

// report prints how many mutants were caught, and those that were not.
func report(out io.Writer, results []result, known map[string]string) error {
	counts := make(map[verdict]int)
	var unexplained, explained []*mutant
	for _, r := range results {
		counts[r.verdict]++
		switch {
		case r.verdict != survived:
		case known[r.String()] != "":
			explained = append(explained, r.mutant)
		default:
			unexplained = append(unexplained, r.mutant)
		}
	}
	fmt.Fprintf(out, "\n%d mutants: %d caught, %d survived (%d of them are known to be equivalent), %d did not compile\n",
		len(results), counts[caught], counts[survived], len(explained), counts[invalid])
	for _, m := range explained {
		fmt.Fprintf(out, "equivalent: %s\n            %s\n", m, known[m.String()])
	}
	for _, m := range unexplained {
		fmt.Fprintf(out, "SURVIVED    %s\n", m)
	}
	if len(unexplained) > 0 {
		return fmt.Errorf("%d mutants have survived without a reason in survivors.txt", len(unexplained))
	}
	return nil
}
