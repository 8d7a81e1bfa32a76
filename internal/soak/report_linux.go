package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/lockerkit/locker/internal/soak/history"
)

// mostOfOneRule is how many violations of one rule are shown.
const mostOfOneRule = 5

// report prints what a run has shown.
func report(w io.Writer, r *history.Result, events []history.Event) {
	counts, lasted := make(map[string]int), make(map[string]time.Duration)
	for _, e := range events {
		counts[e.What]++
		lasted[e.What] += time.Duration(e.To - e.From)
	}
	print := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	print("\n%d events, and how long they lasted in all:", len(events))
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		print("%8d  %s (%v)", counts[what], what, lasted[what].Round(10*time.Millisecond))
	}
	print("%d calls (%d of processes that were killed meanwhile):", r.Calls, r.Unanswered)
	printCounts(w, r.Answers)
	print("grants in each mode, and how many believed in one key at a time:")
	for _, mode := range slices.Sorted(maps.Keys(r.Grants)) {
		print("%8d  %s (up to %d)", r.Grants[mode], cmp.Or(mode, "exclusive"), r.Most[mode])
	}
	print("answers of Unlock, \"\" for none but nil and those of processes that were killed:")
	printCounts(w, r.Unlocks)
	print("%d leases lost:", sum(r.Reasons))
	printCounts(w, r.Reasons)
	print("failures:")
	printCounts(w, r.Failures)
	print("failures while there were no faults:")
	printCounts(w, r.InCalm)
	print("from a loser's Done to its rival's grant:     %s", spread(r.Margins))
	print("from a loser's deadline to its rival's grant: %s", spread(r.DeadlineMargins))
	print("from the deadline to Done:                    %s", spread(r.Told))
	print("from the end of a ctx to the return:          %s", spread(r.Cancels))
	print("waits of those who were served:               %s", spread(r.Waits))
	if r.Excused > 0 {
		print("told after the rival's grant, by a process whose timers were late at the time: %d", r.Excused)
	}
	print("what the store does not promise:")
	for _, name := range slices.Sorted(maps.Keys(r.Gaps)) {
		print("%8d  %s", len(r.Gaps[name]), name)
		print("          a holder believed in its lock after the rival's grant for %s", spread(r.Gaps[name]))
	}
	broken := make(map[string]int)
	for _, v := range r.Violations {
		if broken[v.Rule]++; broken[v.Rule] > mostOfOneRule {
			continue
		}
		print("\nVIOLATION: %s", v.Rule)
		for _, e := range v.Evidence {
			print("    %s", e)
		}
	}
	if len(broken) > 0 {
		print("\nviolations:")
		printCounts(w, broken)
	}
	print("")
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// printCounts prints the most frequent ones first.
func printCounts(w io.Writer, counts map[string]int) {
	const most = 30
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, name := range names {
		if i == most {
			fmt.Fprintf(w, "          and %d others\n", len(names)-most)
			break
		}
		fmt.Fprintf(w, "%8d  %s\n", counts[name], name)
	}
}

// spread describes durations.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	d = slices.Sorted(slices.Values(d))
	at := func(share float64) time.Duration { return d[int(share*float64(len(d)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("min %v, p1 %v, median %v, p99 %v, max %v (%d)",
		at(0), at(0.01), at(0.5), at(0.99), at(1), len(d))
}
