package main

import (
	"context"
	"fmt"
	"log"
	"slices"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
)

// mostSamples are enough.
const mostSamples = 1000

// measure prints how long a lock and unlock take while all servers answer, and after some of them have ceased to.
func measure(sides []side, proxies []*faultproxy.Proxy, holed int, budget time.Duration) error {
	var addrs []string
	for _, proxy := range proxies {
		addrs = append(addrs, proxy.Addr())
	}
	w := table()
	fmt.Fprintf(w, "\tall answer: p50\tp90\tmost\t%d are black holes: p50\tp90\tmost\ttimes\tfailed\t\n", holed)
	for _, s := range sides {
		lock, end := s.open(addrs)
		fine, failed := samples(lock, budget)
		if failed > 0 {
			end()
			return fmt.Errorf("%s: %d failures while all servers answer", s.name, failed)
		}
		for _, proxy := range proxies[:holed] {
			proxy.Set(faultproxy.BlackHole())
		}
		holes, failed := samples(lock, budget)
		for _, proxy := range proxies {
			proxy.Heal()
			proxy.ResetAll() // what has been swallowed does not come any more
		}
		end()
		fmt.Fprintf(w, "%s\t%v\t%v\t%v\t%v\t%v\t%v\t%d\t%d\t\n", s.name,
			quantile(fine, .5), quantile(fine, .9), quantile(fine, 1),
			quantile(holes, .5), quantile(holes, .9), quantile(holes, 1), len(holes), failed)
	}
	return w.Flush()
}

// samples locks and unlocks keys that nobody else wants, as often as the budget allows, and at least once.
func samples(lock lock, budget time.Duration) (took []time.Duration, failed int) {
	for begin := time.Now(); len(took) < mostSamples && (time.Since(begin) < budget || len(took) == 0); {
		start := time.Now()
		unlock, err := lock(context.Background(), fmt.Sprint("free-", start.UnixNano()))
		if err == nil {
			err = unlock()
		}
		if err != nil {
			log.Print(err)
			failed++
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took, failed
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	d := sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond)
	default:
		return d.Round(time.Millisecond)
	}
}
