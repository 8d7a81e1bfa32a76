package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// held is for how long the key is held in share, and rested for how long it is left to the others, at most.
const (
	held   = 5 * time.Millisecond
	rested = 100 * time.Millisecond
)

// delay returns a random time between two numbers of milliseconds.
func delay(from, to int) time.Duration {
	return time.Duration(from)*time.Millisecond + rand.N(time.Duration(to-from)*time.Millisecond)
}

// outcome is what became of one contender.
type outcome struct {
	got, failed int
	longest     time.Duration   // of its waits
	gaps        []time.Duration // from the Unlock of somebody until it had the key
	err         error           // the first
}

func (o *outcome) fail(err error) {
	o.failed++
	if o.err == nil {
		o.err = err
	}
}

// and returns both outcomes as one.
func (o outcome) and(p outcome) outcome {
	gaps := slices.Concat(o.gaps, p.gaps)
	return outcome{o.got + p.got, o.failed + p.failed, max(o.longest, p.longest), gaps, cmp.Or(o.err, p.err)}
}

// contend prints how often contenders of each side, by way of so many clients, get a key which they hold for a while,
// and leave to the others for at most rest.
func contend(
	sides []side, addrs []string, contenders, clients, rounds int, round, hold, rest time.Duration,
) error {
	outcomes := make([][]outcome, len(sides))
	for range rounds {
		for i, s := range sides {
			o, err := race(slices.Repeat([]side{s}, clients), addrs, contenders, round, hold, rest)
			if err != nil {
				return err
			}
			outcomes[i] = merge(outcomes[i], o)
		}
	}
	w := table()
	fmt.Fprint(w, headings)
	for i, s := range sides {
		printOutcome(w, s.name, outcomes[i], time.Duration(rounds)*round)
	}
	return w.Flush()
}

// herd prints how fast contenders of each side who arrive together get a key once each.
func herd(sides []side, addrs []string, contenders, rounds int) error {
	w := table()
	fmt.Fprintf(w, "\tacquisitions/s\tall have had it after\t\n")
	for _, s := range sides {
		var total time.Duration
		for range rounds {
			took, err := stampede(slices.Repeat([]side{s}, contenders), addrs)
			if err != nil {
				return err
			}
			total += took
		}
		fmt.Fprintf(w, "%s\t%.0f\t%v\t\n", s.name, float64(rounds*contenders)/total.Seconds(),
			(total / time.Duration(rounds)).Round(time.Millisecond))
	}
	return w.Flush()
}

// stampede has contenders lock and unlock the same key once each, and returns how long that takes.
func stampede(contenders []side, addrs []string) (time.Duration, error) {
	locks, end, err := openAll(contenders, addrs)
	defer end()
	if err != nil {
		return 0, err
	}
	key := fmt.Sprint("stampede-", time.Now().UnixNano())
	errs := make([]error, len(locks))
	begin := time.Now()
	var wg sync.WaitGroup
	for i, lock := range locks {
		wg.Go(func() {
			unlock, err := lock(context.Background(), key)
			if err == nil {
				err = unlock()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return time.Since(begin), errors.Join(errs...)
}

// openAll opens locks and their connections.
func openAll(contenders []side, addrs []string) (locks []lock, end func(), err error) {
	var ends []closer
	end = func() {
		for _, end := range ends {
			end()
		}
	}
	for i, c := range contenders {
		lock, end := c.open(addrs)
		ends = append(ends, end)
		locks = append(locks, lock)
		unlock, err := lock(context.Background(), fmt.Sprint("warm-up-", i))
		if err == nil {
			err = unlock()
		}
		if err != nil {
			return nil, end, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return locks, end, nil
}

// share prints how two kinds share a key during a migration.
func share(addrs []string, half, rounds int, round time.Duration) error {
	us := side{"redislock.New", ours(redis.Options{}, newOne)}
	them := redlocks()[0]
	fleet := append(slices.Repeat([]side{us}, half), slices.Repeat([]side{them}, half)...)
	w := table()
	fmt.Fprint(w, headings)
	for _, rest := range []time.Duration{0, rested} {
		var outcomes []outcome
		for range rounds {
			o, err := race(fleet, addrs, len(fleet), round, held, rest)
			if err != nil {
				return err
			}
			outcomes = merge(outcomes, o)
		}
		printOutcome(w, fmt.Sprintf("%s, rest of 0-%v", us.name, rest), outcomes[:half], time.Duration(rounds)*round)
		printOutcome(w, fmt.Sprintf("%s, rest of 0-%v", them.name, rest), outcomes[half:], time.Duration(rounds)*round)
	}
	return w.Flush()
}

// race has contenders, by way of clients of these sides, lock and unlock the same key until the time is over.
func race(clients []side, addrs []string, contenders int, round, hold, rest time.Duration) ([]outcome, error) {
	locks, end, err := openAll(clients, addrs)
	defer end()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), round)
	defer cancel()
	key := fmt.Sprint("contended-", time.Now().UnixNano()) // who is interrupted may leave something behind: redsync does
	outcomes := make([]outcome, contenders)
	start := time.Now()
	var released atomic.Int64 // since then, the last time; 0 before
	var wg sync.WaitGroup
	for i := range contenders {
		wg.Go(func() {
			o, lock := &outcomes[i], locks[i%len(locks)]
			for ctx.Err() == nil {
				begin := time.Now()
				unlock, err := lock(ctx, key)
				o.longest = max(o.longest, time.Since(begin))
				if err != nil {
					if ctx.Err() == nil {
						o.fail(err)
					}
					continue
				}
				if ctx.Err() == nil {
					o.got++
					if at := time.Duration(released.Load()); at > 0 {
						o.gaps = append(o.gaps, time.Since(start)-at)
					}
				}
				time.Sleep(hold)
				released.Store(int64(time.Since(start)))
				if err := unlock(); err != nil {
					o.fail(err)
				}
				if rest > 0 {
					time.Sleep(rand.N(rest))
				}
			}
		})
	}
	wg.Wait()
	return outcomes, nil
}

func merge(all, more []outcome) []outcome {
	if all == nil {
		return more
	}
	for i, o := range more {
		all[i] = all[i].and(o)
	}
	return all
}

// headings are those of printOutcome.
const headings = "\tacquisitions/s\tof the luckiest\tof the unluckiest\tlongest wait" +
	"\tfrom unlock to the next, p50\tfailed\t\n"

func printOutcome(w interface{ Write([]byte) (int, error) }, name string, outcomes []outcome, d time.Duration) {
	var sum outcome
	least, most := outcomes[0].got, 0
	for _, o := range outcomes {
		sum = sum.and(o)
		least, most = min(least, o.got), max(most, o.got)
	}
	fmt.Fprintf(w, "%s\t%.0f\t%d\t%d\t%v\t%v\t%d\t\n", name, float64(sum.got)/d.Seconds(), most, least,
		sum.longest.Round(time.Millisecond), median(sum.gaps).Round(10*time.Microsecond), sum.failed)
	if sum.err != nil {
		log.Printf("%s: %v", name, sum.err)
	}
}
