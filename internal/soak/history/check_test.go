package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = int64(time.Millisecond)

// parse reads a history of the key "k". Times are milliseconds. Its parts, between semicolons, are
//
//	lease PROCESS TOKEN ASKED ANSWERED VALID                       last seen valid at VALID, then unlocked
//	cut PROCESS TOKEN ASKED ANSWERED VALID                         likewise, but its process has not ended in order
//	lost PROCESS TOKEN ASKED ANSWERED VALID DEADLINE DONE LATE     told of the loss at DONE
//	asked PROCESS ASKED                                            not answered
//	fails OP CLASS ASKED CTX ANSWERED                              an error, by process 9.1, with a ctx until CTX
//	end PROCESS                                                    in order
//
// They are exclusive; the PROCESS of a reader has "/r" behind it, that of the holder of slot 1 of 3 has "/1of3".
func parse(t *testing.T, text string) (records []Record) {
	for part := range strings.SplitSeq(text, ";") {
		kind, rest, _ := strings.Cut(strings.TrimSpace(part), " ")
		var process, op, class string
		var token uint64
		var asked, answered, valid, deadline, done, late int64
		scan := func(into ...any) {
			if n, err := fmt.Sscan(rest, into...); err != nil {
				t.Fatalf("%q, at %d: %v", part, n, err)
			}
		}
		r := func(kind Kind, at int64) Record {
			return Record{
				Kind: kind, Process: process, At: at * ms, Valid: valid * ms, Until: deadline * ms, Text: "text",
			}
		}
		switch kind {
		case "lost":
			scan(&process, &token, &asked, &answered, &valid, &deadline, &done, &late)
		case "lease", "cut":
			scan(&process, &token, &asked, &answered, &valid)
		case "asked":
			scan(&process, &asked)
		case "fails":
			process = "9.1"
			scan(&op, &class, &asked, &deadline, &answered)
		case "end":
			scan(&process)
			records = append(records, r(Finished, 0))
			continue
		default:
			t.Fatalf("what is %q?", part)
		}
		process, suffix, _ := strings.Cut(process, "/")
		begin, granted, end := r(Asked, asked), r(Granted, answered), r(Lost, done)
		begin.Key, begin.Op, granted.Token, end.Late = "k", "lock", token, time.Duration(late*ms)
		if suffix == "r" {
			begin.Mode = Shared
		} else if suffix != "" {
			begin.Mode = Slots
			if _, err := fmt.Sscanf(suffix, "%dof%d", &granted.Slot, &begin.Slots); err != nil {
				t.Fatalf("%q: %v", part, err)
			}
		}
		switch records = append(records, begin); kind {
		case "lost":
			records = append(records, granted, end, r(Finished, done))
		case "lease":
			records = append(records, granted, r(Released, valid), r(Unlocked, valid), r(Finished, valid))
		case "cut":
			records = append(records, granted, r(Valid, valid))
		case "fails":
			fails := r(Failed, answered)
			records[len(records)-1].Op, fails.Class = op, class
			records = append(records, fails, r(Finished, answered))
		}
	}
	return records
}

// parseEvents reads events: WHAT PROCESS FROM TO, with "-" for no process in particular.
func parseEvents(t *testing.T, text string) (events []Event) {
	for part := range strings.SplitSeq(text, ";") {
		var e Event
		if text == "" {
			break
		} else if _, err := fmt.Sscan(part, &e.What, &e.Process, &e.From, &e.To); err != nil {
			t.Fatalf("%q: %v", part, err)
		}
		if own := map[string]string{"kill": Killed, "freeze": Frozen, "calm": Calm}[e.What]; own != "" {
			e.What = own
		}
		e.Process = strings.TrimPrefix(e.Process, "-")
		e.From, e.To = e.From*ms, e.To*ms
		events = append(events, e)
	}
	return events
}

var rules = Rules{Gaps: []Gap{
	{Name: "lost data", Events: []string{"FLUSH"}},
	{Name: "out of reach", Events: []string{"SESSION"}, OfHolder: true, While: []string{"HOLE"}},
	{Name: "faster than the news", Events: []string{"SESSION"}, OfHolder: true, Longest: 10 * time.Millisecond},
}}

const two = "lease 1.1 1 0 10 500; lease 2.1 2 0 400 600" // holders, from 400 to 500

func TestViolationsAreFound(t *testing.T) {
	for name, test := range map[string]struct{ want, history, events string }{
		"two holders":              {"for up to 100ms", two, ""},
		"one within another":       {"for up to 400ms", "lease 1.1 1 0 10 500; lease 2.1 2 0 100 300", ""},
		"a holder that was killed": {"two holders", "cut 1.1 1 0 10 500; lease 2.1 2 0 400 600", "kill 1.1 501 502"},
		"loss before":              {"two holders", two, "FLUSH - -5 -1"},
		"loss after":               {"two holders", two, "FLUSH - 401 402"},
		"another's session":        {"two holders", two, "SESSION 2.1 300 301; HOLE 1 0 600"},
		"another's network":        {"two holders", two, "SESSION 1.1 300 301; HOLE 2 0 600"},
		"longer than the news":     {"two holders", two, "SESSION 1.1 300 301"},
		"a network that is well":   {"two holders", two, "SESSION - 300 301; HOLE 1 501 600"},
		"tokens":                   {"a later grant has", "lease 1.1 2 0 10 20; lease 2.1 1 11 30 40", ""},
		"tokens of one not valid":  {"a later grant has", "lease 1.1 2 0 10 0; lease 2.1 1 11 30 40", ""},
		"tokens in a gap":          {"a later grant has", "lease 1.1 2 0 10 20; lease 2.1 1 11 30 40", "FLUSH - 12 13"},
		"tokens of waiters":        {"tokens are not in", "lease 1.1 2 0 10 20; lease 2.1 1 0 30 40", ""},
		"tokens of a late return":  {"tokens are not in", "lease 1.1 2 0 100 200; lease 2.1 1 0 300 301", "HOLE 2 40 299"},
		"a token twice":            {"given twice", "lease 1.1 7 0 10 20; lease 2.1 7 0 30 40", ""},
		"no token":                 {"is 0", "lease 1.1 0 0 10 20", ""},
		"no answer":                {"never returned", "asked 1.1 0", ""},
		"no answer, then an end":   {"never returned", "asked 1.1 0; end 1.1", "kill 1.1 50 51"},
		"no answer, killed before": {"never returned", "asked 1.1 60", "kill 1.1 50 51"},
		"another life was killed":  {"never returned", "asked 1.1 0", "kill 1.2 50 51"},
		"no answer in the calm":    {"never returned", "asked 1.1 100", "calm - 9 9"},
		"a late return":            {"long after its ctx", "fails lock ctx 0 100 2101", ""},
		"late, but for the frost":  {"long after its ctx", "fails lock ctx 0 100 5101", "freeze 9.1 50 3000"},
		"an early return":          {"before it", "fails lock ctx 0 100 99", ""},
		"Lock says ErrLocked":      {"ErrLocked", "fails lock locked 0 100 50", ""},
		"what is that":             {"does not fit", "fails trylock lost 0 100 50", ""},
		"in vain":                  {"stood idle", "lease 1.1 1 0 10 20; fails lock ctx 100 4200 4201", "calm - 99 99"},
		"in vain, after a holder":  {"stood idle", "lease 1.1 1 0 10 2000; fails lock ctx 99 6200 6201", "calm - 9 9"},
		"in vain, before one":      {"for 4.1s", "lease 1.1 1 0 10 20; lease 2.1 2 100 4200 6200", "calm - 99 99"},
		"told late":                {"after 25ms", "lost 1.1 1 0 10 900 985 1030 0; lease 2.1 2 0 1005 1100", ""},
		"late, but not so late":    {"told of the loss", "lost 1.1 1 0 10 900 985 1030 5; lease 2.1 2 0 1005 1100", ""},
		"rival before deadline":    {"told of the", "lost 1.1 1 0 10 900 985 990 1000; lease 2.1 2 0 980 1100", ""},
		"taken away, told later":   {"told of the", "lost 1.1 1 0 10 300 985 400 1000; lease 2.1 2 0 350 1100", ""},
	} {
		t.Run(name, func(t *testing.T) { wantViolation(t, test.history, test.events, test.want) })
	}
}

func wantViolation(t *testing.T, history, events, want string) {
	t.Helper()
	got := Check(slices.Values(parse(t, history)), parseEvents(t, events), rules).Violations
	if len(got) != 1 || !strings.Contains(fmt.Sprint(got), want) || len(got[0].Evidence) == 0 {
		t.Errorf("found %+v; want %q", got, want)
	}
}

func TestEachHolderIsComparedWithTheLongestBefore(t *testing.T) {
	records := parse(t, "lease 1.1 1 0 10 900; lease 2.1 2 0 20 30; lease 3.1 3 0 40 50; lease 4.1 4 0 901 950")
	if got := Check(slices.Values(records), nil, rules).Violations; len(got) != 2 {
		t.Errorf("found %+v", got)
	}
}

func TestCorrectHistoriesAreAccepted(t *testing.T) {
	for name, test := range map[string]struct{ gap, history, events string }{
		"one after the other":       {"", "lease 1.1 1 0 10 20; lease 2.1 2 0 21 30; lease 1.2 3 5 31 40", ""},
		"returned in another order": {"", "lease 1.1 9 4 30 35; cut 2.1 8 5 40 0", "kill 2.1 50 51"},
		"idle since it was told": {"", "lost 1.1 1 0 10 100 985 3000 0;" +
			"fails lock ctx 101 6500 6501", "calm - 99 99"},
		"data lost before the answer": {"lost data", two, "FLUSH - 5 6"},
		"data lost, one told": {"lost data", "lost 1.1 1 0 10 500 985 510 0;" +
			"lease 2.1 2 0 400 600", "FLUSH - 390 391"},
		"another's lock in between": {"", "lease 1.1 1 0 10 20; fails trylock locked 0 100 30", ""},
		"returned when it was over": {"", "cut 1.1 1 0 450 0; lease 2.1 2 0 445 600", "kill 1.1 600 601"},
		"asked by a killed process": {"", "asked 1.1 0", "kill 1.1 5 6"},
		"killed before the rival":   {"", "cut 1.1 1 0 10 399; lease 2.1 2 0 400 600", "kill 1.1 401 402"},
		"returned in time":          {"", "fails lock ctx 0 100 2000", ""},
		"late as it was frozen":     {"", "fails lock ctx 0 100 5000", "freeze 9.1 50 3100"},
		"in vain before the calm":   {"", "fails lock ctx 100 15100 15101", "calm - 101 101"},
		"a wait behind others": {"", "lease 1.1 1 0 10 3000; lease 2.1 2 0 6000 9000; lease 3.1 3 0 9100 9200;" +
			"fails lock ctx 100 12100 12101", "calm - 99 99"},
		"told in time":              {"", "lost 1.1 1 0 10 900 985 986 0; lease 2.1 2 0 1005 1100", ""},
		"told late, as it ran late": {"", "lost 1.1 1 0 10 900 985 1030 40; lease 2.1 2 0 1005 1100", ""},
		"late, as it was frozen":    {"", "lost 1.1 1 0 10 900 985 3000 0; lease 2.1 2 0 1005 1100", "freeze 1 95 2999"},
		"data lost":                 {"lost data", two, "FLUSH - 390 391"},
		"data lost, no order":       {"lost data", "lease 1.1 2 0 10 500; lease 2.1 1 0 400 600", "FLUSH - 390 391"},
		"lost and told":             {"lost data", "lost 1.1 1 0 10 300 985 400 0; lease 2.1 2 0 350 999", "FLUSH - 20 21"},
		"out of reach":              {"out of reach", two, "SESSION 1.1 300 301; HOLE 1 399 600"},
		"granted first, returned late": {"out of reach", "lease 1.1 2 0 100 200; lease 2.1 1 0 300 301",
			"SESSION - 50 51; HOLE 2 40 299"},
		"ended for all": {"out of reach", two, "SESSION - 300 301; HOLE 1 399 600"},
		"faster than the news": {
			"faster than the news", "lease 1.1 1 0 10 409; lease 2.1 2 0 400 600", "SESSION 1.1 300 301"},
	} {
		t.Run(name, func(t *testing.T) { wantAccepted(t, test.history, test.events, test.gap) })
	}
}

func wantAccepted(t *testing.T, history, events, gap string) {
	t.Helper()
	got := Check(slices.Values(parse(t, history)), parseEvents(t, events), rules)
	for _, v := range got.Violations {
		t.Errorf("%s: %s", v.Rule, strings.Join(v.Evidence, "\n"))
	}
	if gap == "" && len(got.Gaps) > 0 || gap != "" && len(got.Gaps[gap]) != 1 {
		t.Errorf("explained by %v; want %q", got.Gaps, gap)
	}
}

func TestCounts(t *testing.T) {
	records := parse(t, "lease 1.1 1 0 10 20; lease 2.1 2 5 21 30; lost 3.1 3 25 31 40 985 990 0;"+
		"lease 4.1 4 0 1000 1001; fails trylock unavailable 50 100 60")
	for i, r := range records {
		records[i].Queued = r.Kind == Granted && r.Process == "2.1"
	}
	got := Check(slices.Values(records), parseEvents(t, "calm - 49 49"), Rules{})
	if len(got.Violations) > 0 {
		t.Fatal(got.Violations)
	}
	if got.Calls != 5 || got.Answers["lock granted"] != 3 || got.Answers["lock granted after a wait"] != 1 ||
		got.Answers["trylock unavailable"] != 1 {
		t.Error(got.Calls, got.Answers)
	}
	is := func(name string, got []time.Duration, want time.Duration) {
		if !slices.Equal(got, []time.Duration{want * time.Millisecond}) {
			t.Errorf("%s: %v; want %v ms", name, got, want)
		}
	}
	is("margins", got.Margins, 10)
	is("margins from the deadline", got.DeadlineMargins, 15)
	is("told", got.Told, 5)
	is("waits", got.Waits, 16)
	if got.Reasons["text"] != 1 || got.InCalm["text"] != 1 || got.Failures["text"] != 1 {
		t.Error(got.Reasons, got.InCalm, got.Failures)
	}
}
