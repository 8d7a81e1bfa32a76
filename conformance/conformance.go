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
// If a basic rule fails, those that take it for granted are not judged. docs/write-a-backend.md of the repository
// goes with a backend from nothing to a green run. Run the suite with -race, and many times: to pass is evidence, not
// proof, because most of what goes wrong with locks goes wrong seldom.
//
// # The report
//
// At its end, Run logs which rules were proven, and which were relaxed and for what reason. It also logs which are
// about what the backend does not offer (locker.Features), which could not be proven for lack of a hook, and which are
// newer than Harness.Since. go test shows that with -v, or when a rule has failed. With the environment variable
// LOCKER_CONFORMANCE_REPORT, each Run also writes it as a Markdown table, to a file of its own in that directory:
//
//	LOCKER_CONFORMANCE_REPORT=$PWD/reports go test -count=1 ./...
//
// # Busy machines
//
// Some rules have bounds in time, and a machine that is busy with something else can break each of them. So the suite
// measures by how much its own goroutines wake up late, and on Linux what other programs use of the processors. A rule
// that has seen nothing but what came too late, or got lost because time ran out, is tried again, alone, when the
// machine is quiet: it fails if it then fails twice. If the machine stays busy, the rule is skipped after five
// attempts, and the report says so, unless the same check has failed each time. What no delay can excuse, such as two
// holders, fails at once. In fake time (see Harness.Wrap) nothing is late; under the race detector its rules run on one
// processor, as several make that crash (https://go.dev/issue/78156).
//
// What rules draw at random is drawn from a seed, which their failure says, and LOCKER_CONFORMANCE_SEED sets.
//
// Bench measures what passes.
package conformance

import (
	"context"
	"os"
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
	// as close/LeaksNothing counts goroutines and, where the system tells, open files and connections.
	Open func(t *testing.T, opts ...locker.Option) locker.Locker

	// OpenB is Open for Bench, which has a testing.B to give. The benchmarks close what it returns.
	OpenB func(b *testing.B, opts ...locker.Option) locker.Locker

	// TTL is the one of the leases in the tests, and what all of their waits derive from. Zero means one second. A
	// store with coarse time needs a longer one; a shorter one makes the suite faster, and more sensitive to a machine
	// that is busy with something else.
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
	// second Cut before heal replaces the fault by another; then the heal of either heals the Locker, and the other may
	// still be called.
	Cut func(t *testing.T, f Fault) (heal func())

	// Restart restarts the store, with the loss of data that the deployment under test has to expect. It returns
	// when the store answers again. It is called while no other test runs.
	Restart func(t *testing.T)

	// Break takes the lock of key away behind its holder's back, as an operator would who deletes the record. The tests
	// that call it open their Lockers without the option Prefix: add a prefix of your own, if you have one.
	Break func(t *testing.T, key string)

	// Backend returns the locker.Backend of the store, to be closed by t.Cleanup. A Locker hides some of its defects
	// from the other tests, as it seldom asks what should be refused: that Release ignores its owner shows only when
	// an answer gets lost. Without this hook and Cut, that is not proven. No test calls Cut after it, and it need not
	// have a prefix that Lockers of Open have.
	Backend func(t *testing.T) locker.Backend

	// Skew sets the wall clock wrong by d for the Locker that Open returned last in this same test, as far as it
	// looks at one, until undo is called. Leave it nil if your client never asks the wall clock, because all moments
	// that matter are the store's: then there is nothing to prove.
	Skew func(t *testing.T, d time.Duration) (undo func())

	// Wrap, if set, runs the body of each test; for backends in memory it is synctest.Test, which makes the suite run
	// in fake time. The tests then run one after the other: a memory that they share knows one clock only, and each
	// of them has its own.
	Wrap    func(t *testing.T, body func(t *testing.T))
	wrapped bool // it was set

	// lockAll replaces locker.LockAll in tests of the suite.
	lockAll func(ctx context.Context, l locker.Locker, keys []string) (locker.Leases, error)

	// Trials is how many times lease/DoneBeforeRival tries each fault, with four leases each time. Zero means 3.
	Trials int
}

// Features says which rules a store cannot keep. A text that is not empty gives the reason, which the suite
// prints where it relaxes the rule.
type Features struct {
	// Unordered: waiters are not served in order of arrival, and TryLock and Lock may overtake them (waiting/FIFO,
	// NoOvertaking, NoOvertakingOnExpiry, KeepsItsPlace and CancelKeepsOrder).
	Unordered string

	// OrderedPerLocker: a Locker has one place in line for all its waiters on a key. They are served in their order of
	// arrival, and Lockers take turns: when one of them has been served, or has given up, the Locker gets into line
	// again for the next, behind all who have come meanwhile. Until it has done so, others may come before it, by
	// TryLock too. Those for whom their Locker did not have to get into line again are served in order of arrival, and
	// nobody overtakes them: where each Locker has one waiter, that is all of them (waiting/FIFO, KeepsItsPlace and
	// CancelKeepsOrder).
	OrderedPerLocker string

	// RenewsItself: the backend, or its client, renews leases by itself and cannot be told not to, so that it does not
	// heed Request.NoRenew. Rules in which a holder dies cut it off with Harness.Cut instead.
	RenewsItself string

	// ForgetsTokens: tokens may start again when the store restarts (fencing/SurvivesRestart).
	ForgetsTokens string

	// GreaterTokenAgain: an owner who asks for a lock that it holds may be told a greater token than the first time,
	// never a smaller one (backend/AcquireAgain).
	GreaterTokenAgain string

	// SharesKeys: some keys that differ exclude one another, or cannot be locked at all (exclusion/KeyAlphabet,
	// exclusion/EveryByteCounts, waiting/EachNameWakes; in part exclusion/PrefixAndKeyAreJoined, exclusion/ManyKeys).
	SharesKeys string

	// ConnectionBound: a lock ends with the connection that it was taken on, so that a lease does not survive a fault
	// by which connections break, however short (lease/RidesOutOneFailedRenewal). It still has to survive Hang, and
	// with the others to report the loss in time.
	ConnectionBound string

	// ListsInPart: List may leave out keys that are held (inspect/ListsUnderPrefix).
	ListsInPart string

	// WakeWithin replaces the 50 ms within which waiting/WakesOnRelease wants the next holder. Zero means 50 ms.
	// Without a Queue, the pauses between two polls of a Lock are of at most 40 ms: short enough if the store answers
	// in a few.
	WakeWithin time.Duration
}

// Run runs the suite. Sub-tests are named group/Rule, as in exclusion/OneHolder, and can be chosen with -run and -skip.
// Rules run beside each other, four for each processor, except in Harness.Wrap and where a rule disturbs the whole
// store or process: those come first. A test that calls Run should not be parallel itself: what leaks is counted for
// the process. In the end Run reports what was proven: see the documentation of the package.
func Run(t *testing.T, h Harness) {
	if h.Open == nil {
		t.Fatal("conformance: Harness.Open is nil")
	}
	if _, ok := parseVersion(h.Since); h.Since != "" && !ok {
		t.Fatalf("conformance: Harness.Since is %q; want the version of a release, such as v0.1 or v0.1.2", h.Since)
	}
	if _, err := parseSeed(os.Getenv(seedVariable)); err != nil {
		t.Fatalf("conformance: %v", err)
	}
	labelTracebacks()
	h = h.withDefaults()
	rep := newReport(t.Name(), h)
	defer rep.publish(t)
	judge(t, groups(), h.wrapped, func(t *testing.T, g group, r rule) { r.test(t, h, rep, rep.of(g, r)) })
}

func (h Harness) withDefaults() Harness {
	if h.TTL == 0 {
		h.TTL = time.Second
	}
	if h.Wrap != nil {
		h.wrapped = true
	} else {
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
