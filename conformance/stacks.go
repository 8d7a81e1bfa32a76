package conformance

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
)

// ruleLabel is the label that goroutines of a rule have, and those that they start: see package runtime/pprof.
const ruleLabel = "conformance"

// labelTracebacks has the runtime print all goroutines, and their labels (Go 1.26), when a goroutine of the backend
// panics, which nobody else can recover. The output then names the rule: where the panic is, or, if a timer has started
// that goroutine, at another one that belongs to the rule.
func labelTracebacks() {
	debug.SetTraceback("all")
	const setting = "tracebacklabels="
	if settings := os.Getenv("GODEBUG"); !strings.Contains(settings, setting) {
		_ = os.Setenv("GODEBUG", strings.TrimPrefix(settings+","+setting+"1", ","))
	}
}

// stacks returns the stack of each goroutine. Unlike those that runtime.NumGoroutine counts, none of them has just
// ended.
func stacks() []string {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Split(string(buf[:n]), "\n\n")
		}
	}
}

// goroutinesOf returns the stacks of the goroutines of a rule.
func goroutinesOf(rule string) string {
	label := fmt.Sprintf("%q: %q", ruleLabel, rule)
	return digest(func(stack string) bool { return strings.Contains(firstLine(stack), label) })
}

// goroutines returns the stacks of all goroutines but those of the test runner.
func goroutines() string {
	return digest(func(stack string) bool {
		return !strings.Contains(stack, "testing.(*T).Run") && !strings.Contains(stack, "conformance.goroutines")
	})
}

// What differs between goroutines that stand at the same place.
var varying = regexp.MustCompile(`^goroutine \d+ |, \d+ minutes|0x[0-9a-f]+|\{\S*\}|in goroutine \d+|\(\S*\)$`)

// digest returns the stacks that are wanted, each once, and only so much as somebody reads.
func digest(wanted func(stack string) bool) string {
	const most = 12
	times := make(map[string]int)
	var first []string // of each kind
	kind := func(stack string) string {
		var lines []string
		for line := range strings.Lines(stack) {
			lines = append(lines, varying.ReplaceAllString(strings.TrimSpace(line), ""))
		}
		return strings.Join(lines, "\n")
	}
	for _, stack := range stacks() {
		if !wanted(stack) {
			continue
		}
		k := kind(stack)
		if times[k]++; times[k] == 1 {
			first = append(first, stack)
		}
	}
	var b strings.Builder
	for i, stack := range first {
		if i == most {
			fmt.Fprintf(&b, "(and %d more)\n", len(first)-most)
			break
		}
		fmt.Fprintf(&b, "%s\n", abridged(stack))
		if n := times[kind(stack)]; n > 1 {
			fmt.Fprintf(&b, "(and %d more like it)\n", n-1)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// abridged returns the top of a stack.
func abridged(stack string) string {
	const most = 24
	lines := strings.SplitN(strings.TrimRight(stack, "\n"), "\n", most+1)
	if len(lines) > most {
		lines[most] = "\t..."
	}
	return strings.Join(lines, "\n")
}
