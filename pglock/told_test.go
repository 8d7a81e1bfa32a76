package pglock_test

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkToldBeforeARival has sessions terminated: the holder of their lock is told when the server says so, and a
// rival that waits for it has it a round trip later. On one machine, where all take turns on the same processors, that
// is so most of the time. It is no test, as it depends on who gets a processor first.
func BenchmarkToldBeforeARival(b *testing.B) {
	var margins []time.Duration
	both := 0
	for _, at := range terminate(b, b.N) {
		margins = append(margins, at.margin)
		if at.both {
			both++
		}
	}
	slices.Sort(margins)
	n := len(margins)
	b.ReportMetric(float64(margins[n/10].Microseconds()), "p10-margin-us")
	b.ReportMetric(float64(margins[n/2].Microseconds()), "p50-margin-us")
	b.ReportMetric(100*float64(both)/float64(n), "%-both")
}
