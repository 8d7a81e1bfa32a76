// Command bench measures the library against the plainest thing that could be called a lock on Redis: SET NX PX and a
// script that compares and deletes, sent by the same client to the same server in the same run. Machines are noisy and
// differ; the ratios are what counts. Rounds of both sides alternate, and the median of the rounds' ratios is shown.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/memlock"
	"github.com/lockerkit/locker/redislock"
)

func main() {
	log.SetFlags(0)
	rounds := flag.Int("rounds", 7, "rounds of each side")
	round := flag.Duration("round", 500*time.Millisecond, "the time of a round")
	hold := flag.Int("hold", 10000, "leases to hold at once; 0 for none")
	holdFor := flag.Duration("for", time.Minute, "how long to hold them, at a TTL of 10s")
	flag.Parse()
	if err := run(*rounds, *round, *hold, *holdFor); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(rounds int, round time.Duration, hold int, holdFor time.Duration) error {
	server, err := redistest.Start(redistest.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	fmt.Printf("%s, %s/%s, %d CPUs, one Redis on loopback\n\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())

	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 64})
	defer func() { _ = rdb.Close() }()
	l := redislock.New(rdb)
	defer func() { _ = l.Close() }()
	fmt.Println("lock + unlock, keys of their own for each goroutine:")
	fmt.Println()
	fmt.Println("| goroutines | SET NX + compare-and-delete | redislock | redislock's time is | its throughput is |")
	fmt.Println("|---:|---:|---:|---:|---:|")
	for _, goroutines := range []int{1, 4, 16, 64, 256} {
		raw, ours, ratio, err := compare(goroutines, rounds, round, plainLock(rdb), lockerLock(l))
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %.0f/s | %.0f/s | %.2f × | %.2f × |\n", goroutines, raw, ours, 1/ratio, ratio)
	}

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
	fmt.Printf("\nmemlock: lock + unlock in %d ns, %d allocations, %d bytes\n", m.NsPerOp(), m.AllocsPerOp(), m.AllocedBytesPerOp())
	if hold > 0 {
		return holdMany(server.Addr(), hold, holdFor)
	}
	return nil
}

// pair locks and unlocks a key.
type pair func(ctx context.Context, key string) error

// plainLock is what people write by hand.
func plainLock(rdb *redis.Client) pair {
	unlock := redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)
	return func(ctx context.Context, key string) error {
		if ok, err := rdb.SetNX(ctx, key, "token", 10*time.Second).Result(); err != nil || !ok {
			return fmt.Errorf("SET NX: %v, %w", ok, err)
		}
		return unlock.Run(ctx, rdb, []string{key}, "token").Err()
	}
}

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
func compare(goroutines, rounds int, round time.Duration, a, b pair) (perSecondA, perSecondB, ratio float64, err error) {
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

// holdMany holds many leases with one Locker for a while, and reports what that costs.
func holdMany(addr string, n int, holdFor time.Duration) error {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { _ = rdb.Close() }()
	l := redislock.New(rdb, locker.TTL(10*time.Second))
	defer func() { _ = l.Close() }()
	ctx := context.Background()
	rdb.Ping(ctx)
	before, goroutines := heap(), runtime.NumGoroutine()
	leases := make([]*locker.Lease, n)
	for i := range leases {
		lease, err := l.TryLock(ctx, "held/"+strconv.Itoa(i))
		if err != nil {
			return err
		}
		leases[i] = lease
	}
	perLease := float64(heap()-before) / float64(n)
	scripts, cpu, start := evalshas(ctx, rdb), cpuTime(), time.Now()
	most := 0
	for time.Since(start) < holdFor {
		time.Sleep(time.Second)
		most = max(most, runtime.NumGoroutine())
	}
	held := time.Since(start)
	lost := 0
	for _, lease := range leases {
		if lease.Err() != nil {
			lost++
		}
	}
	renewals := held.Seconds() / (10.0 / 3)
	fmt.Printf("\n%d leases held by one Locker for %v at a TTL of 10s: %d lost; goroutines %d before, at most %d meanwhile;\n"+
		"%.0f bytes of heap per lease; %.2f %% of one CPU in all, %.1f µs per renewal of a lease; %.0f scripts for %.0f renewals\n",
		n, held.Round(time.Second), lost, goroutines, most, perLease,
		100*(cpuTime()-cpu).Seconds()/held.Seconds(), float64((cpuTime()-cpu).Microseconds())/renewals/float64(n),
		evalshas(ctx, rdb)-scripts, renewals*float64(n))
	if lost > 0 {
		return fmt.Errorf("%d leases were lost", lost)
	}
	return nil
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cpuTime returns what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		fmt.Fprintln(os.Stderr, "bench: getrusage:", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// evalshas returns how many scripts the server has run.
func evalshas(ctx context.Context, rdb *redis.Client) (n float64) {
	_, _ = fmt.Sscanf(rdb.InfoMap(ctx, "commandstats").Item("Commandstats", "cmdstat_evalsha"), "calls=%g,", &n)
	return n
}
