// Command bench measures the library against the plainest thing that could be called a lock on each store, with the
// same client and the same server in the same run. Machines are noisy and differ; the ratios are what counts. Rounds of
// both sides alternate, and the median of the rounds' ratios is shown.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 7, "rounds of each side")
	round := flag.Duration("round", 500*time.Millisecond, "the time of a round")
	hold := flag.Int("hold", 10000, "leases to hold at once, a tenth of it on Postgres; 0 for none")
	holdFor := flag.Duration("for", time.Minute, "how long to hold them, at a TTL of 10s")
	stores := flag.String("stores", "memory,redis,postgres,etcd",
		"which stores to measure; with -capacity, there is redlock too")
	capacity := flag.Bool("capacity", false, "measure what locks and waiters cost instead")
	modes := flag.Bool("modes", false, "measure readers and writers, and slots, instead, for -for each")
	turns := flag.Bool("turns", false, "measure how one key of Postgres changes hands instead")
	lead := flag.Bool("lead", false, "measure what leading on the same keys costs Postgres instead, for -for")
	l := load{}
	flag.IntVar(&l.held, "held", 10000, "with -capacity: locks to hold at once")
	flag.IntVar(&l.waiters, "waiters", 1000, "with -capacity: waiters")
	flag.IntVar(&l.handoffs, "handoffs", 1000, "with -capacity: handoffs")
	flag.DurationVar(&l.watch, "watch", 20*time.Second,
		"with -capacity: how long to count requests, each time; TTLs are 10s")
	flag.Parse()
	if *capacity {
		if err := printCapacity(*stores, l); err != nil {
			log.Fatal("capacity: ", err)
		}
		return
	}
	if *modes {
		if err := printModes(*stores, *holdFor); err != nil {
			log.Fatal("modes: ", err)
		}
		return
	}
	if *turns {
		if err := printTurns(*rounds, *round); err != nil {
			log.Fatal("turns: ", err)
		}
		return
	}
	if *lead {
		if err := printLeaders(*holdFor); err != nil {
			log.Fatal("lead: ", err)
		}
		return
	}
	if err := run(*stores, *rounds, *round, *hold, *holdFor); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(stores string, rounds int, round time.Duration, hold int, holdFor time.Duration) error {
	fmt.Printf("%s, %s/%s, %d CPUs, servers on loopback\n", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU())
	for store := range strings.SplitSeq(stores, ",") {
		var err error
		switch store {
		case "memory":
			benchMemory()
		case "redis":
			err = benchRedis(rounds, round, hold, holdFor)
		case "postgres":
			err = benchPostgres(rounds, round, hold/10, holdFor)
		case "etcd":
			err = benchEtcd(rounds, round, hold, holdFor)
		default:
			err = fmt.Errorf("unknown store %q", store)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func benchMemory() {
	m := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		l := memlock.New()
		defer func() { _ = l.Close() }()
		lock := lockerLock(l)
		for b.Loop() {
			if err := lock(context.Background(), "k"); err != nil {
				b.Fatal(err)
			}
		}
	})
	fmt.Printf("\nmemlock: lock + unlock in %d ns, %d allocations, %d bytes\n", m.NsPerOp(), m.AllocsPerOp(),
		m.AllocedBytesPerOp())
}

// row is a comparison with another kind of lock.
type row struct {
	goroutines int
	plain      pair
	note       string // about plain
}

// printTable compares a Locker with other kinds of lock, with keys of their own for each goroutine.
func printTable(plain, name string, l locker.Locker, rounds int, round time.Duration, rows []row) error {
	fmt.Printf("\nlock + unlock, keys of their own for each goroutine:\n\n")
	fmt.Printf("| goroutines | %s | %s | %[2]s's time is | its throughput is |\n|---:|---:|---:|---:|---:|\n", plain, name)
	for _, r := range rows {
		raw, ours, ratio, err := compare(r.goroutines, rounds, round, r.plain, lockerLock(l))
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %.0f/s%s | %.0f/s | %.2f × | %.2f × |\n", r.goroutines, raw, r.note, ours, 1/ratio, ratio)
	}
	return nil
}

// pair locks and unlocks a key.
type pair func(ctx context.Context, key string) error

func lockerLock(l locker.Locker) pair {
	return func(ctx context.Context, key string) error {
		lease, err := l.Lock(ctx, key)
		if err != nil {
			return err
		}
		return lease.Unlock()
	}
}

// compare lets a and b run in turns and returns the median of their pairs per second, and of the ratios of b to a.
func compare(
	goroutines, rounds int, round time.Duration, a, b pair,
) (perSecondA, perSecondB, ratio float64, err error) {
	var as, bs, ratios []float64
	for i := range rounds + 1 {
		x, errA := throughput(goroutines, round, a)
		y, errB := throughput(goroutines, round, b)
		if errA != nil || errB != nil {
			return 0, 0, 0, fmt.Errorf("%w %w", errA, errB)
		}
		if i > 0 { // the first round warms up
			as, bs, ratios = append(as, x), append(bs, y), append(ratios, y/x)
		}
	}
	return median(as), median(bs), median(ratios), nil
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// throughput returns how many pairs a number of goroutines do per second.
func throughput(goroutines int, round time.Duration, p pair) (float64, error) {
	// Cancellable, as the contexts of real programs are.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done atomic.Int64
	errs := make(chan error, goroutines)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range goroutines {
		wg.Go(func() {
			key := "bench/" + strconv.Itoa(i)
			for time.Since(start) < round {
				if err := p(ctx, key); err != nil {
					errs <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(done.Load()) / time.Since(start).Seconds(), nil
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
