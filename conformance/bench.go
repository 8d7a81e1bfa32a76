package conformance

import (
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// Bench measures a backend, of which it needs Harness.OpenB:
//
//	LockUnlock/goroutines=N   one Locker, N goroutines that lock and unlock keys of their own
//	Contended/lockers=4       four Lockers, each with one goroutine, that lock and unlock the same key
//	Handoff                   from the call of Unlock to the return of a Lock that waits in another Locker
//	Held/leases=1000          one Locker that holds and renews a thousand leases
//
// The first two report ns/op over all goroutines, the same as ops/s, and how long a Lock with its Unlock took for the
// one who called them, as p50-ns and p99-ns. What counts on a contended key is p99-ns: without a waiting line, the same
// Locker may have it again and again while others wait, with much to show in ops/s. Handoff reports p50-ns and p99-ns.
// Held reports memory per lease (B/lease), goroutines that exist because of all of them, and the time of processors
// that this process spends on one renewal of one lease (cpu-ns/renewal; not on all systems). It fails if a lease is
// lost: a store that cannot renew a thousand in the second that is their TTL needs a longer Harness.TTL.
//
// Machines differ, and so does one from minute to minute: compare figures of the same run. Compare runs with benchstat.
func Bench(b *testing.B, h Harness) {
	if h.OpenB == nil {
		b.Fatal("conformance: Harness.OpenB is nil")
	}
	h = h.withDefaults()
	b.Run("LockUnlock", func(b *testing.B) {
		l := h.benched(b)
		for _, n := range []int{1, 4, 16, 64, 256} {
			b.Run(fmt.Sprintf("goroutines=%d", n), func(b *testing.B) {
				benchPairs(b, n, func(i int) (locker.Locker, string) { return l, fmt.Sprintf("bench/%d", i) })
			})
		}
	})
	b.Run("Contended", func(b *testing.B) {
		ls := []locker.Locker{h.benched(b), h.benched(b), h.benched(b), h.benched(b)}
		b.Run(fmt.Sprintf("lockers=%d", len(ls)), func(b *testing.B) {
			benchPairs(b, len(ls), func(i int) (locker.Locker, string) { return ls[i], "bench/contended" })
		})
	})
	b.Run("Handoff", func(b *testing.B) { benchHandoff(b, h.benched(b), h.benched(b)) })
	b.Run("Held", func(b *testing.B) {
		l := h.benched(b, locker.TTL(h.TTL))
		const leases = 1000
		b.Run(fmt.Sprintf("leases=%d", leases), func(b *testing.B) { benchHeld(b, l, leases) })
	})
}

// benched returns a Locker, to be closed when b ends.
func (h Harness) benched(b *testing.B, opts ...locker.Option) locker.Locker {
	l := h.OpenB(b, opts...)
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Errorf("Close: %v", err)
		}
	})
	return l
}

// benchPairs has goroutines lock and unlock, each the key of the Locker that of returns for it.
func benchPairs(b *testing.B, goroutines int, of func(i int) (locker.Locker, string)) {
	// Cancellable, as the contexts of real programs are.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	took := make([]latencies, goroutines)
	run := func(pairs int) {
		var left atomic.Int64
		left.Store(int64(pairs))
		var wg sync.WaitGroup
		for i := range goroutines {
			l, key := of(i)
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					start := time.Now()
					lease, err := l.Lock(ctx, key)
					if err == nil {
						err = lease.Unlock()
					}
					if err != nil {
						b.Error(err)
						return
					}
					took[i].add(time.Since(start))
				}
			})
		}
		wg.Wait()
	}
	run(2 * goroutines) // makes connections
	clear(took)
	b.ReportAllocs()
	b.ResetTimer()
	run(b.N)
	b.StopTimer()
	for i := range took[1:] {
		took[0].merge(&took[1+i])
	}
	took[0].report(b)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// benchHandoff hands a lock from one Locker to the other, and back.
func benchHandoff(b *testing.B, holder, waiter locker.Locker) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const key = "bench/handoff"
	lock := func(l locker.Locker) *locker.Lease {
		lease, err := l.Lock(ctx, key)
		if err != nil {
			b.Fatal(err)
		}
		return lease
	}
	unlock := func(lease *locker.Lease) {
		if err := lease.Unlock(); err != nil {
			b.Fatal(err)
		}
	}
	var pair time.Duration
	for _, l := range []locker.Locker{waiter, holder, waiter} { // makes connections
		start := time.Now()
		unlock(lock(l))
		pair = time.Since(start)
	}
	type arrival struct {
		lease *locker.Lease
		err   error
		at    time.Time
	}
	lease := lock(holder)
	var took latencies
	for b.Loop() {
		got := make(chan arrival, 1)
		go func() {
			lease, err := waiter.Lock(ctx, key)
			got <- arrival{lease, err, time.Now()}
		}()
		time.Sleep(5*time.Millisecond + 4*pair) // until it waits: a Locker does not tell
		start := time.Now()
		unlock(lease)
		a := <-got
		if a.err != nil {
			b.Fatal(a.err)
		}
		took.add(a.at.Sub(start))
		lease, holder, waiter = a.lease, waiter, holder
	}
	unlock(lease)
	took.report(b)
	b.ReportMetric(0, "ns/op") // most of it was sleep
}

// benchHeld holds leases; an iteration is a renewal of them.
func benchHeld(b *testing.B, l locker.Locker, n int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if lease, err := l.Lock(ctx, "bench/first"); err != nil { // makes connections
		b.Fatal(err)
	} else if err := lease.Unlock(); err != nil {
		b.Fatal(err)
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	leases := make([]*locker.Lease, n)
	const atATime = 16
	each := func(f func(i int)) {
		var wg sync.WaitGroup
		for first := range atATime {
			wg.Go(func() {
				for i := first; i < n; i += atATime {
					f(i)
				}
			})
		}
		wg.Wait()
	}
	each(func(i int) {
		lease, err := l.Lock(ctx, fmt.Sprintf("bench/held/%d", i))
		if err != nil {
			b.Error(err)
		}
		leases[i] = lease
	})
	defer each(func(i int) {
		if leases[i] != nil {
			_ = leases[i].Unlock()
		}
	})
	if b.Failed() {
		return
	}
	perLease := float64(heap()-before) / float64(n)
	check := func(lease *locker.Lease) {
		if err := lease.Err(); err != nil {
			b.Fatalf("%d leases cannot be held with this TTL (Harness.TTL): %v", n, err)
		}
	}
	deadline := leases[0].Deadline()
	pause := time.Until(deadline) / 30 // ten in the time between two renewals
	most := 0
	cpu, measured := cpuTime()
	for b.Loop() {
		for moved := false; !moved; {
			time.Sleep(pause)
			most = max(most, runtime.NumGoroutine())
			d := leases[0].Deadline()
			moved, deadline = d.After(deadline), d
			check(leases[0])
		}
	}
	spent, _ := cpuTime()
	for _, lease := range leases {
		check(lease)
	}
	b.ReportMetric(perLease, "B/lease")
	b.ReportMetric(float64(max(0, most-goroutines)), "goroutines")
	if measured {
		b.ReportMetric(float64((spent-cpu).Nanoseconds())/float64(b.N)/float64(n), "cpu-ns/renewal")
	}
	b.ReportMetric(0, "ns/op") // that is how often leases are renewed
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// latencies counts durations in buckets whose width is a thirty-second of what is in them, or less. It allocates
// nothing, so as not to be measured itself.
type latencies struct {
	count   int
	buckets [64 * perDoubling]int
}

const perDoubling = 32

func (l *latencies) add(d time.Duration) {
	l.count++
	l.buckets[bucket(d)]++
}

// bucket is that of d: the place of its first bit that is set, and the five that follow it.
func bucket(d time.Duration) int {
	n := uint64(max(0, d))
	if n < perDoubling {
		return int(n)
	}
	shift := bits.Len64(n) - bits.Len64(perDoubling)
	return shift*perDoubling + int(n>>shift)
}

// shortest is the shortest duration in a bucket.
func shortest(bucket int) time.Duration {
	if bucket < perDoubling {
		return time.Duration(bucket)
	}
	shift := bucket/perDoubling - 1
	return time.Duration(bucket-shift*perDoubling) << shift
}

func (l *latencies) merge(other *latencies) {
	l.count += other.count
	for i, n := range other.buckets {
		l.buckets[i] += n
	}
}

// percentile returns what so many of a hundred did not exceed, or hardly.
func (l *latencies) percentile(p int) time.Duration {
	rank := (l.count*p + 99) / 100
	for i, n := range l.buckets {
		if rank -= n; rank <= 0 {
			return shortest(i)
		}
	}
	return 0
}

func (l *latencies) report(b *testing.B) {
	b.ReportMetric(float64(l.percentile(50)), "p50-ns")
	b.ReportMetric(float64(l.percentile(99)), "p99-ns")
}
