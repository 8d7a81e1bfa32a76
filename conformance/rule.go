package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// group is the rules of one part of the contract.
type group struct {
	name  string
	rules []rule
}

// rule is one rule of the contract and its test.
type rule struct {
	name string
	body func(*check)

	// What a failure says, to somebody who does not read this source.
	did  string // what the test does
	text string // the rule in one sentence
	hint string // where the author of a backend looks first

	since   string   // the version that it came with; "" for those that were there from the beginning
	relaxes *feature // the feature that does without the rule, if there is one
	needs   *hook    // the hook without which the rule cannot be proven, if there is one
	serial  bool     // run it while nothing else runs: it restarts the store, or is load enough for a machine
}

func groups() []group {
	return []group{
		{"exclusion", exclusionRules},
		{"waiting", waitingRules},
		{"unlock", unlockRules},
		{"lease", leaseRules},
		{"fencing", fencingRules},
		{"close", closeRules},
		{"errors", errorRules},
		{"backend", backendRules},
	}
}

// firstOfExpiry is the rule to look at if leases do not end with their TTL, which others then notice, too.
const firstOfExpiry = "waiting/WakesOnExpiry"

// Hints that several rules share.
const (
	hintNew    = "locker.New sees to this for every backend. Does Harness.Open return its Locker as it is?"
	hintAtomic = "Acquire finds the key free and takes it in one atomic step: one transaction, one script, one mutex. " +
		"(If nothing excludes anything: do the Lockers of Harness.Open reach the same store?)"
	hintExpiry = "Acquire stores when the lease ends, Request.TTL from the grant by the store's own clock, and takes a key whose " +
		"lease has ended for free. A *locker.Held with Remaining tells New when to ask again; a Wait has to notice the end by itself."
	hintCtx = "locker.New enforces ctx, unless the backend states Features.HeedsContext: leave that out, or return " +
		"from every call as soon as its ctx ends, with context.Cause(ctx)."
	hintOrphan = "After an error of Acquire or Wait, New calls Release with Token 0: free what Grant.Owner has, take it out of the " +
		"line, also if it was granted at the last moment, and let the next one have its turn. NotAcquired is for errors after " +
		"which nothing can be left."
	hintOwner = "Acquire stores Request.Owner. Release and Renew compare all of Grant.Owner with it, in the same atomic step as the " +
		"change; if it is another, they change nothing and return locker.ErrLost."
	hintToken = "Acquire mints the token in the step that grants the key, greater than all before and never 0: from a counter in the " +
		"store that outlives the lock (one for all keys will do). Renew leaves it alone."
)

// feature is a field of Features that gives a reason.
type feature struct {
	name   string
	reason func(Features) string
}

var (
	unordered         = &feature{"Unordered", func(f Features) string { return f.Unordered }}
	forgetsTokens     = &feature{"ForgetsTokens", func(f Features) string { return f.ForgetsTokens }}
	greaterTokenAgain = &feature{"GreaterTokenAgain", func(f Features) string { return f.GreaterTokenAgain }}
	sharesKeys        = &feature{"SharesKeys", func(f Features) string { return f.SharesKeys }}
	connectionBound   = &feature{"ConnectionBound", func(f Features) string { return f.ConnectionBound }}
)

// hook is a field of Harness that may be nil.
type hook struct {
	name     string
	does     string
	provided func(Harness) bool
}

var (
	needsCut     = &hook{"Cut", "cuts a Locker off from its store", func(h Harness) bool { return h.Cut != nil }}
	needsRestart = &hook{"Restart", "restarts the store", func(h Harness) bool { return h.Restart != nil }}
	needsBreak   = &hook{"Break", "takes a lock away in the store", func(h Harness) bool { return h.Break != nil }}
	needsBackend = &hook{"Backend", "returns the bare locker.Backend", func(h Harness) bool { return h.Backend != nil }}
)

// test runs the rule as t, and says in res what became of it.
func (r rule) test(t *testing.T, h Harness, res *result) {
	// The first to be registered runs last: also what fails when a hook cleans up counts.
	t.Cleanup(func() { res.conclude(t.Failed(), t.Skipped()) })
	if newer(r.since, h.Since) {
		res.outcome = tooNew
		res.note("came with %s, after %s (Harness.Since)", r.since, h.Since)
		t.Skipf("newer than the harness: this rule came with %s, and Harness.Since is %s\nrule: %s", r.since, h.Since, r.text)
	}
	if r.relaxes != nil {
		if reason := r.relaxes.reason(h.Features); reason != "" {
			res.outcome = relaxed
			res.note("%s (Features.%s)", reason, r.relaxes.name)
			t.Skipf("relaxed by Features.%s: %s\nrule: %s", r.relaxes.name, reason, r.text)
		}
	}
	if r.needs != nil && !r.needs.provided(h) {
		res.outcome = notProvable
		res.note("needs Harness.%s, which %s", r.needs.name, r.needs.does)
		t.Skipf("not provable: this needs Harness.%s, which %s\nrule: %s", r.needs.name, r.needs.does, r.text)
	}
	if !r.serial { // the parallel tests of a group begin when its serial ones have ended
		t.Parallel()
	}
	h.Wrap(t, func(t *testing.T) {
		problems, gaps := r.run(t, h)
		if t.Skipped() { // which synctest.Test does not tell the test around it
			res.outcome = skipped
		}
		if len(problems) > 0 {
			res.note("%s", firstLine(problems[0].saw))
			t.Error(r.failure(problems))
		}
		for _, g := range gaps {
			t.Log(g.what)
			res.note("%s", g.what)
			res.outcome = max(res.outcome, g.leaves)
		}
	})
}

// newer reports whether a rule came with a later version than that which a harness was written for.
func newer(rule, harness string) bool {
	if rule == "" || harness == "" {
		return false
	}
	r, _ := parseVersion(rule)
	h, _ := parseVersion(harness)
	return slices.Compare(r[:], h[:]) > 0
}

// parseVersion returns the numbers of a release: v1, v1.2 and v1.2.0 alike are versions, v1.2.0-rc.1 is not.
func parseVersion(version string) (v [3]int, ok bool) {
	numbers, ok := strings.CutPrefix(version, "v")
	parts := strings.Split(numbers, ".")
	if !ok || len(parts) > len(v) {
		return v, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return v, false
		}
		v[i] = int(n)
	}
	return v, true
}

// gap is what has not been proven although the rule's test has run.
type gap struct {
	what   string
	leaves outcome // inPart, or notProvable if it is all of the rule
}

// problem is a failed check.
type problem struct {
	saw string
	at  string // file:line of the check
}

func (p problem) String() string { return fmt.Sprintf("%s (%s)", p.saw, p.at) }

// failure says what the author of a backend has to know. What the same check saw again and again is shown once.
func (r rule) failure(problems []problem) string {
	var b strings.Builder
	line := func(label, text string) { fmt.Fprintf(&b, "\n%-5s %s", label, wrap(text)) }
	line("did:", r.did)
	times := make(map[string]int)
	for _, p := range problems {
		times[p.at]++
	}
	for _, p := range problems {
		n := times[p.at]
		delete(times, p.at)
		switch n {
		case 0: // shown
		case 1:
			line("saw:", p.String())
		default:
			line("saw:", fmt.Sprintf("%s (%s; and %d more like it)", p.saw, p.at, n-1))
		}
	}
	line("rule:", r.text)
	line("hint:", r.hint)
	return b.String()
}

// wrap breaks text into lines for a terminal, unless it has lines already.
func wrap(text string) string {
	const width = 100
	if strings.Contains(text, "\n") {
		return text
	}
	var b strings.Builder
	column := 0
	for i, word := range strings.Split(text, " ") { // spaces in a quoted key stay as they are
		switch n := utf8.RuneCountInString(word); {
		case i == 0:
			column = n
		case column+1+n > width:
			b.WriteString("\n      ")
			column = n
		default:
			b.WriteByte(' ')
			column += 1 + n
		}
		b.WriteString(word)
	}
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
