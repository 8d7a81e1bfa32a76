package peers

import "slices"

// finding is a defect that is known of a library, from its source, from measurements or from its users, before this
// suite judged it. The suite has to find it.
type finding struct {
	contender string
	rules     []string
	why       string // in the words of the page
	evidence  string
	atTimes   bool // it shows by chance
	quick     bool // it shows within seconds
}

func (f *finding) verdict() verdict {
	if f.atTimes {
		return verdict{failsAtTimes, f.why}
	}
	return verdict{fails, f.why}
}

// findingOf returns what is known of a contender and a rule, or nil.
func findingOf(contender, rule string) *finding {
	for i, f := range findings {
		if f.contender == contender && slices.Contains(f.rules, rule) {
			return &findings[i]
		}
	}
	return nil
}

// quick returns the rules that a contender is judged by each time.
func quick(contender string) []string {
	rules := []string{"exclusion/TryLockHeld"}
	for _, f := range findings {
		if f.contender == contender && f.quick {
			rules = append(rules, f.rules...)
		}
	}
	return rules
}

var fencing = []string{
	"fencing/StrictlyIncreasing", "fencing/StableDuringHold", "fencing/SurvivesRestart", "fencing/StaleWriterIsRefused",
	"fencing/Remembered", "fencing/FollowsName", "exclusion/PrefixAndKeyAreJoined", "exclusion/Delayed",
}

func withoutToken(contender, evidence string) finding {
	return finding{contender: contender, rules: fencing, why: "no token", evidence: evidence, quick: true}
}

var findings = []finding{
	withoutToken("redsync", "its value is random, and names the owner"),
	withoutToken("bsm/redislock", "its Token names the owner; a FenceKey was added after 0.10 (its #94)"),
	withoutToken("rueidislock", "a lock is a context, and has no number"),
	withoutToken("SET NX PX, scripts", "the value is random, and names the owner"),
	withoutToken("SET NX PX, DEL", "the value says nothing"),
	withoutToken("go-pglock", "an advisory lock has a key, and nothing else"),

	{
		contender: "rueidislock", rules: []string{"lease/DoneBeforeRival", "lease/ExpiresWhenAbandoned"},
		why: "told half a TTL too late",
		evidence: "an extension is given up when what it asks for would end, and the local timer was stopped at the grant. " +
			"Measured with a validity of 5 s, black-holed at 2.3 s: another had the lock at 5.0 s, the context ended at 7.5 s",
	},
	{
		contender: "rueidislock", rules: []string{"waiting/RidesOut"}, why: "no poll behind the server's messages",
		evidence: "WithContext asks again when it is told of a change, and with client tracking only then",
	},

	{
		contender: "SET NX PX, DEL", rules: []string{"unlock/StaleCannotFreeSuccessor", "backend/ExpiredIsGone"},
		why:      "deletes what another has",
		evidence: "DEL does not look at the owner, and after a GET, as in node-distributed-lock, it may be another by then",
	},
	{
		contender: "SET NX PX, DEL", rules: []string{"lease/NeverResurrects"}, why: "extends what another has", quick: true,
		evidence: "PEXPIRE does not look at the owner",
	},
	{
		contender: "SET NX PX, DEL", rules: []string{"waiting/LostReply"}, why: "takes its own lock for another's",
		evidence: "go-redis repeats a request whose answer got lost, and SET NX then refuses its own caller, for the TTL",
	},

	{
		contender: "go-pglock", rules: []string{"lease/ExpiresWhenAbandoned", "unlock/StaleCannotFreeSuccessor"},
		why: "a lock does not expire",
		evidence: "a session lasts until the kernel of the server gives up its connection, after two hours if nobody has " +
			"configured keepalives (liquibase #872, DistributedLock #230)",
	},
	{
		contender: "go-pglock", rules: []string{"lease/DoneBeforeRival", "lease/RidesOutOneFailedRenewal"},
		why:      "the holder is not told",
		evidence: "there is no signal of a loss: the next statement fails",
	},
	{
		contender: "go-pglock", rules: []string{"waiting/CancelStorm"}, why: "a connection for each waiter", atTimes: true,
		evidence: "a wait is a statement on a connection of its own, which ends with a wait that is cancelled: with a thousand " +
			"of them, on a machine that has other work, making connections is what Postgres does",
	},

	{
		contender: mutexPerProcess, quick: true,
		rules: []string{"exclusion/OneHolder", "exclusion/Counter", "exclusion/NotReentrant", "backend/OwnerDecides"},
		why:   sameSession, evidence: sameSessionMeasured,
	},
	{
		contender: mutexPerProcess,
		rules: []string{
			"waiting/FIFO", "waiting/LostReply", "fencing/StrictlyIncreasing", "close/FailsWaiters",
			"backend/AcquireAgain", "backend/ExpiredIsGone", "backend/UnknownOutcome",
		},
		why: sameSession, evidence: sameSessionMeasured,
	},
	keysBelow(mutexPerProcess),
	keysBelow(mutexPerLock),
	keysBelowByChance(mutexPerProcess),
	keysBelowByChance(mutexPerLock),
	sessionToldLate(mutexPerProcess),
	sessionToldLate(mutexPerLock),
	sessionKnowsNoKeys(mutexPerProcess),
	sessionKnowsNoKeys(mutexPerLock),
}

const (
	mutexPerProcess = "Mutex, a session per process"
	mutexPerLock    = "Mutex, a session per lock"

	sameSession         = "two of a session both have it"
	sameSessionMeasured = "the key of a Mutex is its name and its session. Measured: a second Mutex of the session locks, " +
		"and its Unlock frees the lock of the first"
)

func keysBelow(contender string) finding {
	return finding{
		contender: contender, rules: []string{"exclusion/KeysAreIndependent"}, why: "a key waits for those below it",
		evidence: "a Mutex has all keys that begin with its name and a slash. Measured: who holds orders/42 blocks orders",
	}
}

// keysBelowByChance: where many keys are locked at once, one below another has to come first.
func keysBelowByChance(contender string) finding {
	f := keysBelow(contender)
	f.rules, f.atTimes = []string{"exclusion/KeyAlphabet"}, true
	return f
}

func sessionToldLate(contender string) finding {
	return finding{
		contender: contender, rules: []string{"lease/DoneBeforeRival"}, why: "told too late",
		evidence: "the deadline of a session counts from when an answer was received, and is looked at from time to time. " +
			"Measured with a TTL of 2 s, black-holed, five times: a rival had the lock 0.9, 0.9 and 0.5 s before Done, and " +
			"twice after it",
	}
}

func sessionKnowsNoKeys(contender string) finding {
	return finding{
		contender: contender, rules: []string{"lease/NeverResurrects"}, why: "not told of a deleted key", quick: true,
		evidence: "Session.Done tells of the lease, and nothing watches the key",
	}
}
