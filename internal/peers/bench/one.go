package main

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	bsm "github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// runOne measures on one server.
func runOne(rounds int, round time.Duration) error {
	fmt.Printf("%s, %s/%s, %d CPUs, the server on loopback\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	server, err := redistest.Start(redistest.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	addrs := []string{server.Addr()}
	fmt.Println("\nKeys that nobody else wants: pairs of lock and unlock per second, medians (p99 of a pair)")
	if err := uncontended(singles(), addrs, rounds, round); err != nil {
		return err
	}
	for _, contenders := range []int{2, 10, 100} {
		fmt.Printf("\n%d contenders for one key, by way of ten clients at most, who do nothing else:\n", contenders)
		if err := contend(singles(), addrs, contenders, min(contenders, 10), rounds, round, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// singles are those who can lock on one server: the peers, and then ours.
func singles() []side {
	o := redis.Options{PoolSize: 300}
	return []side{
		{"raw", raw(o)}, {"bsm", bsmSide(o)}, {"redsync", redsyncSide(o)}, {"rueidislock", rueidisSide},
		{"redislock.New", ours(o, newOne)},
	}
}

// newOne is redislock.New for the first of some clients.
func newOne(clients []redis.UniversalClient, opts ...locker.Option) *locker.Client {
	return redislock.New(clients[0], opts...)
}

// raw is what people write by hand. To wait, it tries again after a random time of ten milliseconds on the average.
func raw(o redis.Options) func(addrs []string) (lock, closer) {
	release := redis.NewScript(
		`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)
	return func(addrs []string) (lock, closer) {
		clients, closeAll := connect(addrs, o)
		rdb := clients[0]
		return func(ctx context.Context, key string) (func() error, error) {
			value := strconv.FormatUint(rand.Uint64(), 36)
			for {
				ok, err := rdb.SetNX(ctx, key, value, ttl).Result()
				switch {
				case err != nil:
					return nil, err
				case ok:
					return func() error { return release.Run(context.Background(), rdb, []string{key}, value).Err() }, nil
				}
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		}, closeAll
	}
}

// bsmSide waits as the documentation of bsm/redislock shows, but ten times as often.
func bsmSide(o redis.Options) func(addrs []string) (lock, closer) {
	return func(addrs []string) (lock, closer) {
		clients, closeAll := connect(addrs, o)
		client := bsm.New(clients[0])
		return func(ctx context.Context, key string) (func() error, error) {
			retry := &bsm.Options{RetryStrategy: bsm.LinearBackoff(10 * time.Millisecond)}
			l, err := client.Obtain(ctx, key, ttl, retry)
			if err != nil {
				return nil, err
			}
			return func() error { return l.Release(context.Background()) }, nil
		}, closeAll
	}
}

// rueidisSide has the fastest settings of rueidislock.
func rueidisSide(addrs []string) (lock, closer) {
	l, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption: rueidis.ClientOption{InitAddress: addrs}, KeyMajority: 1, NoLoopTracking: true, KeyValidity: ttl,
	})
	if err != nil {
		log.Fatal("rueidislock: ", err)
	}
	return func(ctx context.Context, key string) (func() error, error) {
		_, cancel, err := l.WithContext(ctx, key)
		return func() error { cancel(); return nil }, err
	}, l.Close
}

// uncontended measures each side with more and more goroutines, each with a key of its own.
func uncontended(sides []side, addrs []string, rounds int, round time.Duration) error {
	locks := make([]lock, len(sides))
	for i, s := range sides {
		lock, end := s.open(addrs)
		defer end()
		locks[i] = lock
	}
	w := table()
	defer func() { _ = w.Flush() }()
	for _, s := range sides {
		_, _ = fmt.Fprintf(w, "\t%s", s.name)
	}
	_, _ = fmt.Fprintln(w, "\tours : best peer\t")
	for _, n := range []int{1, 4, 16, 64, 256} {
		rates := make([][]float64, len(sides))
		slowest := make([][]time.Duration, len(sides))
		hung := make([]int, len(sides))
		var ratios []float64
		for r := range rounds + 1 {
			best := 0.0
			for i, s := range sides {
				rate, p99, stuck, err := pairs(locks[i], s.name+"/"+strconv.Itoa(r), n, round)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				hung[i] += stuck
				if r == 0 {
					continue // to warm up
				}
				rates[i], slowest[i] = append(rates[i], rate), append(slowest[i], p99)
				if i < len(sides)-1 {
					best = max(best, rate)
				} else {
					ratios = append(ratios, rate/best)
				}
			}
		}
		_, _ = fmt.Fprintf(w, "%d", n)
		for i := range sides {
			_, _ = fmt.Fprintf(w, "\t%.0f (%v)", median(rates[i]), median(slowest[i]).Round(10*time.Microsecond))
		}
		_, _ = fmt.Fprintf(w, "\t%.2f\t\n", median(ratios))
		for i, s := range sides {
			if hung[i] > 0 {
				log.Printf("%d goroutines: %d times, %s had not locked a free key a second after the end of a round",
					n, hung[i], s.name)
			}
		}
	}
	return nil
}

// pairs has n goroutines lock and unlock for so long. It returns the pairs per second, the 99th percentile of a pair,
// and how many goroutines had to be given up.
func pairs(lock lock, name string, n int, round time.Duration) (rate float64, p99 time.Duration, stuck int, err error) {
	var all sync.WaitGroup
	took, errs := make([][]time.Duration, n), make([]error, n)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), round+time.Second)
	defer cancel()
	for g := range n {
		all.Go(func() {
			key := "bench/" + name + "/" + strconv.Itoa(g)
			for begin := start; begin.Sub(start) < round; begin = time.Now() {
				unlock, err := lock(ctx, key)
				if err == nil {
					err = unlock()
				}
				if err != nil {
					errs[g] = err
					return
				}
				took[g] = append(took[g], time.Since(begin))
			}
		})
	}
	all.Wait()
	for _, e := range errs {
		switch {
		case e == nil:
		case ctx.Err() != nil:
			stuck++
		default:
			err = e
		}
	}
	every := slices.Sorted(slices.Values(slices.Concat(took...)))
	if err != nil || len(every) == 0 {
		return 0, 0, stuck, err
	}
	return float64(len(every)) / round.Seconds(), every[len(every)*99/100], stuck, nil
}

// median returns the median of values, of which there may be none.
func median[T float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
