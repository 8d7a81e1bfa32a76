package history

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"
)

// Rules are what a store promises less than others.
type Rules struct{ Gaps []Gap }

// Gap is a case that the documentation of a store admits, in which there may be two holders.
type Gap struct {
	Name string

	// Events are those that open it: one of them between the first holder's request and the second one's grant.
	Events   []string
	OfHolder bool // only if the event concerns the process of the holder that came first, or all

	// While are events of the first holder's process, one of which there must be at the time: it cannot be told.
	// Longest is for how long it may believe in its lock after the second one's grant, if that is not 0.
	While   []string
	Longest time.Duration
}

// Violation is a broken promise.
type Violation struct {
	Rule     string
	Evidence []string
}

// Result is what Check has found.
type Result struct {
	Violations []Violation
	Gaps       map[string][]time.Duration // how long a holder believed in its lock after a rival's grant, by Gap.Name

	Calls, Unanswered int            // Unanswered: their processes were killed
	Answers           map[string]int // by operation and class; a grant is "granted", or "granted after a wait"
	Grants, Most      map[Mode]int   // by mode; Most: how many of them believed in a lock of one key at the same time
	Reasons           map[string]int // of losses, by their texts
	Unlocks           map[string]int // by class
	Failures          map[string]int // texts of failures, of those that the store caused
	InCalm            map[string]int // likewise, while there were no faults

	// Margins is from a loser's Done to its rival's grant, DeadlineMargins from the deadline. Losers that were frozen
	// are left out.
	Margins, DeadlineMargins []time.Duration
	Told                     []time.Duration // from the deadline to Done
	Cancels                  []time.Duration // from the end of a ctx to the return
	Waits                    []time.Duration // of those who were served
	Excused                  int             // holders who were told late, by a process whose timers were late
}

// lateReturn is how long after the end of its ctx a call may return: its last attempt has a second more.
const lateReturn = 2 * time.Second

// longestIdle is how long a key may stand idle while somebody waits for it, when there are no faults: a message may
// still get lost on the way to a waiter.
const longestIdle = 4 * time.Second

// mostEvidence is how many lines a violation has at most.
const mostEvidence = 25

// hops is how many times the news of a loss has to wait for the scheduler: a timer, the one who sees that the lease is
// over, and the holder.
const hops = 3

// Check checks a history. The records of each process have to be in their order.
func Check(records iter.Seq[Record], events []Event, rules Rules) *Result {
	all, finished := calls(records)
	c := &checker{
		Result: &Result{
			Calls: len(all), Gaps: map[string][]time.Duration{}, Answers: map[string]int{}, Reasons: map[string]int{},
			Unlocks: map[string]int{}, Failures: map[string]int{}, InCalm: map[string]int{},
			Grants: map[Mode]int{}, Most: map[Mode]int{},
		},
		events: events, byWhat: map[string][]Event{}, rules: rules, calm: math.MaxInt64,
	}
	for _, e := range events {
		c.byWhat[e.What] = append(c.byWhat[e.What], e)
		if e.What == Calm {
			c.calm = e.From
		}
	}
	byKey, waited := make(map[string][]*Call), make(map[string][]*Call)
	for _, call := range all {
		c.answer(call, finished[call.Process])
		if call.Granted {
			byKey[call.Key] = append(byKey[call.Key], call)
		}
		if call.Op == "lock" && call.Asked > c.calm {
			waited[call.Key] = append(waited[call.Key], call)
		}
	}
	for key, granted := range byKey {
		c.order(granted)
		valid := slices.DeleteFunc(byAnswer(granted), func(call *Call) bool { return call.Valid == 0 })
		c.exclusion(valid)
		c.margins(valid)
		c.idle(waited[key], granted)
	}
	return c.Result
}

type checker struct {
	*Result
	events []Event
	byWhat map[string][]Event
	rules  Rules
	calm   int64
}

// violation notes a broken promise, with what happened in a span of time.
func (c *checker) violation(rule string, from, to int64, evidence ...any) {
	v := Violation{Rule: rule}
	for _, e := range evidence {
		v.Evidence = append(v.Evidence, fmt.Sprint(e))
	}
	for _, e := range c.events {
		if e.during(from, to) && len(v.Evidence) < mostEvidence {
			v.Evidence = append(v.Evidence, fmt.Sprintf("meanwhile: %+v", e))
		}
	}
	c.Violations = append(c.Violations, v)
}

// happened returns how long events of a kind, that concern a process, lasted within a span, and whether there were any.
func (c *checker) happened(what, process string, from, to int64) (lasted time.Duration, ever bool) {
	for _, e := range c.byWhat[what] {
		if e.during(from, to) && e.concerns(process) {
			lasted, ever = lasted+time.Duration(min(e.To, to)-max(e.From, from)), true
		}
	}
	return lasted, ever
}

// answer checks that a call was answered, and how.
func (c *checker) answer(call *Call, finished bool) {
	if call.Answered == 0 {
		if _, killed := c.happened(Killed, call.Process, call.Asked, math.MaxInt64); finished || !killed {
			c.violation("a call never returned", call.Asked, call.Asked, call)
		}
		c.Unanswered++
		return
	}
	if call.Granted {
		c.granted(call)
		return
	}
	c.Answers[call.Op+" "+call.Class]++
	switch call.Class {
	case "ctx":
		c.cancelled(call)
	case "locked":
		if call.Op == "lock" {
			c.violation("Lock does not return ErrLocked", call.Asked, call.Answered, call)
		}
	case "unavailable":
		c.Failures[call.Text]++
		if call.Asked > c.calm {
			c.InCalm[call.Text]++
		}
	default:
		c.violation("an answer that does not fit", call.Asked, call.Answered, call)
	}
}

func (c *checker) granted(call *Call) {
	how := " granted"
	if call.Queued {
		how += " after a wait"
		c.Waits = append(c.Waits, time.Duration(call.Answered-call.Asked))
	}
	c.Answers[call.Op+how]++
	c.Grants[call.Mode]++
	if call.Mode == Slots && (call.Slot < 0 || call.Slot >= call.Slots) {
		c.violation("a slot that there is not", call.Asked, call.Answered, call)
	}
	switch call.End {
	case Released:
		c.Unlocks[call.Unlock]++
	case Lost:
		c.Reasons[call.Reason]++
	}
}

// cancelled checks a call whose ctx had ended.
func (c *checker) cancelled(call *Call) {
	late := time.Duration(call.Answered - call.CtxEnd)
	frozen, ever := c.happened(Frozen, call.Process, call.CtxEnd, call.Answered)
	switch {
	case late < 0:
		c.violation("the end of a ctx is reported before it", call.Asked, call.Answered, call)
	case late > lateReturn+frozen+hops*call.Late:
		c.violation("a call returned long after its ctx had ended", call.Asked, call.Answered, call)
	case !ever:
		c.Cancels = append(c.Cancels, late)
	}
}

// order checks the tokens of one key.
func (c *checker) order(granted []*Call) {
	tokens := make(map[uint64]*Call)
	for _, call := range granted {
		if before := tokens[call.Token]; before != nil || call.Token == 0 {
			c.violation("a token was given twice, or is 0", call.Asked, call.Answered, before, call)
		}
		tokens[call.Token] = call
	}
	asked := slices.SortedFunc(slices.Values(granted), func(a, b *Call) int { return cmp.Compare(a.Asked, b.Asked) })
	answered := byAnswer(granted)
	var greatest *Call // of those that were answered before the present one was asked
	for _, call := range asked {
		for len(answered) > 0 && answered[0].Answered < call.Asked {
			if greatest == nil || answered[0].Token > greatest.Token {
				greatest = answered[0]
			}
			answered = answered[1:]
		}
		if greatest != nil && call.Token < greatest.Token {
			c.violation("a later grant has a smaller token", greatest.Asked, call.Answered, greatest, call)
		}
	}
}

// byAnswer returns calls in the order in which they were answered.
func byAnswer(calls []*Call) []*Call {
	return slices.SortedFunc(slices.Values(calls), func(a, b *Call) int { return cmp.Compare(a.Answered, b.Answered) })
}

// admit returns the name of the gap that explains why the first holder believed in its lock for so long after the
// second one's grant.
func (c *checker) admit(first, second *Call, over time.Duration) (name string, ok bool) {
	for _, gap := range c.rules.Gaps {
		opened := slices.ContainsFunc(c.events, func(e Event) bool {
			return slices.Contains(gap.Events, e.What) && e.during(first.Asked, second.Answered) &&
				(!gap.OfHolder || e.Process == "" || e.concerns(first.Process))
		})
		if !opened || gap.Longest > 0 && over > gap.Longest+hops*first.Late {
			continue
		}
		untold := len(gap.While) == 0
		for _, what := range gap.While {
			_, ever := c.happened(what, first.Process, second.Answered-int64(time.Second), second.Answered+int64(over))
			untold = untold || ever
		}
		if untold {
			return gap.Name, true
		}
	}
	return "", false
}

// idle checks that nobody has waited for a key that stood idle, when there were no faults.
func (c *checker) idle(waited, granted []*Call) {
	granted = byAnswer(granted)
	for _, call := range waited {
		free, longest := call.Asked, int64(0)
		for _, other := range granted {
			if other.Answered >= call.Answered {
				break
			}
			longest, free = max(longest, other.Answered-free), max(free, other.EndAt, other.Valid)
		}
		if longest = max(longest, call.Answered-free); time.Duration(longest) > longestIdle+hops*call.Late {
			c.violation("waited for a key that stood idle, without any faults", call.Asked, call.Answered,
				fmt.Sprintf("for %v:", time.Duration(longest)), call)
		}
	}
}

// margins compares when a holder was told of a loss with when its rival was granted the lock.
func (c *checker) margins(valid []*Call) {
	for i, call := range valid {
		if call.End != Lost {
			continue
		}
		if _, frozen := c.happened(Frozen, call.Process, call.Valid, call.EndAt); frozen {
			continue
		}
		told := time.Duration(call.EndAt - call.Deadline)
		expired := told >= 0 // by itself; else the store has taken the lock away
		if expired {
			c.Told = append(c.Told, told)
		}
		next := slices.IndexFunc(valid[i+1:], call.excludes)
		if next < 0 {
			continue
		}
		rival := valid[i+1+next]
		margin := time.Duration(rival.Answered - call.EndAt)
		c.Margins = append(c.Margins, margin)
		if expired {
			c.DeadlineMargins = append(c.DeadlineMargins, time.Duration(rival.Answered-call.Deadline))
		}
		if margin >= 0 || rival.Answered <= call.Valid { // two holders are a matter of exclusion
			continue
		}
		if expired && rival.Answered > call.Deadline && hops*call.Late >= told {
			c.Excused++
		} else if gap, ok := c.admit(call, rival, -margin); ok {
			c.Gaps[gap] = append(c.Gaps[gap], -margin)
		} else {
			c.violation("told of the loss after the rival's grant", call.Answered, call.EndAt,
				fmt.Sprintf("after %v:", -margin), call, rival)
		}
	}
}
