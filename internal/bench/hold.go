package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
)

// holdMany holds many leases with one Locker for a while, and reports what that costs.
// The Locker has a TTL of ten seconds. traffic returns how many of something the store has seen.
func holdMany(l locker.Locker, n int, holdFor time.Duration, what string, traffic func() (float64, error)) error {
	ctx := context.Background()
	if lease, err := l.TryLock(ctx, "first"); err != nil { // there are connections
		return err
	} else if err := lease.Unlock(); err != nil {
		return err
	}
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
	cpu, start := cpuTime(), time.Now()
	seen, err := traffic()
	if err != nil {
		return err
	}
	most := 0
	for time.Since(start) < holdFor {
		time.Sleep(time.Second)
		most = max(most, runtime.NumGoroutine())
	}
	held := time.Since(start)
	now, err := traffic()
	if err != nil {
		return err
	}
	lost := 0
	for _, lease := range leases {
		if lease.Err() != nil {
			lost++
		}
	}
	renewals := held.Seconds() / (10.0 / 3)
	fmt.Printf(
		"\n%d leases held by one Locker for %v at a TTL of 10s: %d lost; goroutines %d before, at most %d meanwhile;\n"+
			"%.0f bytes of heap per lease; %.2f %% of one CPU in all, %.1f µs per renewal of a lease; %.0f %s for %.0f renewals\n",
		n,
		held.Round(time.Second),
		lost,
		goroutines,
		most,
		perLease,
		100*(cpuTime()-cpu).Seconds()/held.Seconds(),
		float64((cpuTime()-cpu).Microseconds())/renewals/float64(n),
		now-seen,
		what,
		renewals*float64(n),
	)
	if lost > 0 {
		return fmt.Errorf("%d leases were lost", lost)
	}
	return nil
}
