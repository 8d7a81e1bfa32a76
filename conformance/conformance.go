// Package conformance defines what a lock is: a suite of named tests, one for each rule of the contract of package
// locker, that runs against any backend. All backends of this module pass it, and so can yours:
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, conformance.Harness{
//			Open: func(t *testing.T, opts ...locker.Option) locker.Locker {
//				return mybackend.New(connect(t), opts...)
//			},
//		})
//	}
//
// A failure says what the test did, what it saw and where, the rule that this breaks, and where to look for the mend.
// docs/write-a-backend.md of the repository goes with a backend from nothing to a green run. Run the suite with -race, and
// many times: to pass is evidence, not proof, because most of what goes wrong with locks goes wrong seldom.
//
// # The report
//
// At its end, Run logs which rules were proven, which were relaxed and for what reason, which could not be proven for
// lack of a hook, and which are newer than Harness.Since. go test shows that with -v, or when a rule has failed. With
// the environment variable LOCKER_CONFORMANCE_REPORT, each Run also writes it as a Markdown table, to a file of its own
// in that directory:
//
//	LOCKER_CONFORMANCE_REPORT=$PWD/reports go test -count=1 ./...
//
// Bench measures what passes.
package conformance

import (
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// Harness tells the suite how to reach a backend. Only Open is required; for each other hook that is nil, the tests
// that need it are skipped with a message that says what was not proven. Bench uses OpenB and TTL alone.
type Harness struct {
	// Open returns a Locker over the store under test that shares nothing with those it returned before but the
	// store: a client and connections of its own, as another process would have. opts must reach locker.New after any
	// of the harness's own. The suite closes what Open returns; that should also free what else Open has made,
	// as close/LeaksNothing counts goroutines.
	Open func(t *testing.T, opts ...locker.Option) locker.Locker

	// OpenB is Open for Bench, which has a testing.B to give. The benchmarks close what it returns.
	OpenB func(b *testing.B, opts ...locker.Option) locker.Locker

	// TTL is that of the leases in the tests, and what all of their waits derive from. Zero means one second. A
	// store with coarse time needs a longer one; a shorter one makes the suite faster, and more sensitive to a
	// machine that is busy with something else.
	TTL time.Duration

	// Since is the version of this module whose rules the harness was written for, such as "v0.1". Rules that came with
	// a later version are skipped, and the report lists them: a new rule in a minor version breaks nobody's CI. Raise
	// Since when you have seen what the new rules say. "" means all rules.
	Since string

	// Features relaxes rules that the store cannot keep. The zero value is the strictest.
	Features Features

	// Cut severs the Locker that Open returned last in this same test from its store, at once and in the way
	// that f names, until heal is called; requests that were lost stay lost. It comes after Open, not before, because
	// what has to be shown is what a Locker does that already holds something. Other Lockers go on undisturbed. A
	// second Cut before heal replaces the fault by another.
	Cut func(t *testing.T, f Fault) (heal func())

	// Restart restarts the store, with the loss of data that the deployment under test has to expect. It returns
	// when the store answers again. It is called while no other test runs.
	Restart func(t *testing.T)

	// Break takes the lock of key away behind its holder's back, as an operator would who deletes the record. The tests
	// that call it open their Lockers without the option Prefix: add a prefix of your own, if you have one.
	Break func(t *testing.T, key string)

	// Backend returns the locker.Backend of the store, to be closed by t.Cleanup. A Locker hides some of its defects from
	// the other tests, as it seldom asks what should be refused: that Release ignores its owner shows only when an
	// answer gets lost. Without this hook and Cut, that is not proven.
	Backend func(t *testing.T) locker.Backend

	// Wrap, if set, runs the body of each test; for backends in memory it is synctest.Test, which makes the suite
	// run in fake time.
	Wrap func(t *testing.T, body func(t *testing.T))

	// Trials is how many times lease/DoneBeforeRival tries each fault. Zero means 3.
	Trials int
}

// Features says which rules a store cannot keep. A text that is not empty gives the reason, which the suite
// prints where it relaxes the rule.
type Features struct {
	// Unordered: waiters are not served in order of arrival, and TryLock may overtake them (waiting/FIFO).
	Unordered string

	// ForgetsTokens: tokens may start again when the store restarts (fencing/SurvivesRestart).
	ForgetsTokens string

	// GreaterTokenAgain: an owner who asks for a lock that it holds may be told a greater token than the first time, never a
	// smaller one (backend/AcquireAgain).
	GreaterTokenAgain string

	// SharesKeys: some keys that differ exclude one another, or cannot be locked at all (exclusion/KeyAlphabet).
	SharesKeys string

	// ConnectionBound: a lock ends with the connection that it was taken on, so that a lease does not survive a fault by
	// which connections break, however short (lease/RidesOutOneFailedRenewal; it still has to survive Hang, and with the
	// others to report the loss in time).
	ConnectionBound string

	// WakeWithin replaces the 50 ms within which waiting/WakesOnRelease wants the next holder. Zero means 50 ms. Without
	// a Queue, the pauses between two polls of a Lock are of at most 40 ms: short enough if the store answers in a few.
	WakeWithin time.Duration
}

// Run runs the suite. Sub-tests are named group/Rule, as in exclusion/OneHolder, and can be chosen with -run and -skip.
// Those of a group run in parallel, except for the few that disturb the whole store or watch the whole process. In the
// end it reports what was proven: see the documentation of the package.
func Run(t *testing.T, h Harness) {
	if h.Open == nil {
		t.Fatal("conformance: Harness.Open is nil")
	}
	if _, ok := parseVersion(h.Since); h.Since != "" && !ok {
		t.Fatalf("conformance: Harness.Since is %q; want the version of a release, such as v0.1 or v0.1.2", h.Since)
	}
	h = h.withDefaults()
	rep := newReport(t.Name())
	for _, group := range groups() {
		t.Run(group.name, func(t *testing.T) {
			for _, r := range group.rules {
				t.Run(r.name, func(t *testing.T) { r.test(t, h, rep.of(group, r)) })
			}
		})
	}
	rep.publish(t)
}

func (h Harness) withDefaults() Harness {
	if h.TTL == 0 {
		h.TTL = time.Second
	}
	if h.Wrap == nil {
		h.Wrap = func(t *testing.T, body func(*testing.T)) { body(t) }
	}
	if h.Trials == 0 {
		h.Trials = 3
	}
	if h.Features.WakeWithin == 0 {
		h.Features.WakeWithin = wakeWithin
	}
	return h
}
