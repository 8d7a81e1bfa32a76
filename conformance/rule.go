package conformance

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
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

	mode locker.CallOption // that the rule is about; nil if it is none, or the backend need not have it

	since   string   // the version that it came with; "" for those that were there from the beginning
	relaxes *feature // the feature that does without the rule, if there is one
	needs   *hook    // the hook without which the rule cannot be proven, if there is one
	expires bool     // it lets leases end with their TTL, and says nothing new if they do not: see firstOfExpiry
	serial  bool     // run it while nothing else runs: it restarts the store, or is load enough for a machine

	lasts time.Duration // how long it may take in fake time, beyond what others may
}

func groups() []group {
	return []group{
		{"exclusion", slices.Concat(exclusionRules, nameRules, manyKeysRules, delayRules)},
		{"waiting", slices.Concat(waitingRules, nameWaitRules, cancelRules, lineRules, deathRules)},
		{"unlock", unlockRules},
		{"lease", slices.Concat(leaseRules, clockRules)},
		{"fencing", fencingRules},
		{"close", closeRules},
		{"errors", slices.Concat(errorRules, holderRules)},
		{"backend", backendRules},
		{"shared", sharedRules},
		{"slots", slotRules},
		{"all", allRules},
		{"inspect", inspectRules},
		{"revoke", revokeRules},
		{"break", breakRules},
		{"minhold", minHoldRules},
	}
}

// The basic rules. If one of them fails, those that take it for granted are not judged: they would all say the same.
const (
	firstOfAll    = "exclusion/TryLockHeld" // a key that is held is refused, and free when it was unlocked
	firstOfExpiry = "waiting/WakesOnExpiry" // leases end with their TTL
	firstOfOrder  = "waiting/FIFO"          // there is a line
)

// takesForGranted returns the basic rules of a rule.
func (r rule) takesForGranted(name string) (basic []string) {
	if name != firstOfAll {
		basic = append(basic, firstOfAll)
	}
	if r.expires && name != firstOfExpiry {
		basic = append(basic, firstOfExpiry)
	}
	if r.relaxes == unordered && name != firstOfOrder {
		basic = append(basic, firstOfOrder)
	}
	return basic
}

// Hints that several rules share.
const (
	hintNew    = "locker.New sees to this for every backend. Does Harness.Open return its Locker as it is?"
	hintAtomic = "Acquire finds the key free and takes it in one atomic step: one transaction, one script, one mutex. " +
		"(If nothing excludes anything: do the Lockers of Harness.Open reach the same store?)"
	hintExpiry = "Acquire stores when the lease ends, Request.TTL from the grant by the store's own clock, and takes a key whose " +
		"lease has ended for free. A *locker.Held with Remaining tells New when to ask again; a Wait has to notice the end by itself. " +
		"A backend that renews by itself leaves that where Request.NoRenew is set; if it cannot: " +
		"Features{RenewsItself: \"the reason\"}."
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
	orderedPerLocker  = &feature{"OrderedPerLocker", func(f Features) string { return f.OrderedPerLocker }}
	forgetsTokens     = &feature{"ForgetsTokens", func(f Features) string { return f.ForgetsTokens }}
	greaterTokenAgain = &feature{"GreaterTokenAgain", func(f Features) string { return f.GreaterTokenAgain }}
	sharesKeys        = &feature{"SharesKeys", func(f Features) string { return f.SharesKeys }}
	connectionBound   = &feature{"ConnectionBound", func(f Features) string { return f.ConnectionBound }}
	listsInPart       = &feature{"ListsInPart", func(f Features) string { return f.ListsInPart }}
	renewsItself      = &feature{"RenewsItself", func(f Features) string { return f.RenewsItself }}
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
	needsSkew    = &hook{"Skew", "sets the clock of a client wrong", func(h Harness) bool { return h.Skew != nil }}

	hooks = []*hook{needsCut, needsRestart, needsBreak, needsBackend, needsSkew}
)

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
