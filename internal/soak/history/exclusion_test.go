package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// fourth is one of three slots that is granted to a fourth: those before were four.
const fourth = "lease 1.1/3of4 1 0 10 500; lease 2.1/0of4 2 200 210 500; lease 3.1/1of4 3 200 211 500;" +
	"lease 4.1/2of3 4 300 310 400"

func TestViolationsOfModesAreFound(t *testing.T) {
	for name, test := range map[string]struct{ want, history, events string }{
		"a writer beside a reader": {
			"a writer beside a reader", "lease 1.1/r 1 0 10 500; lease 2.1 2 0 400 600", ""},
		"a reader beside a writer": {
			"a reader beside a writer", "lease 1.1 1 0 10 500; lease 2.1/r 2 0 400 600", ""},
		"a writer beside a slot": {
			"a writer beside the holder of a slot", "lease 1.1/2of3 1 0 10 500; lease 2.1 2 0 400 600", ""},
		"a slot beside a writer": {
			"the holder of a slot beside a writer", "lease 1.1 1 0 10 500; lease 2.1/0of3 2 0 400 600", ""},
		"a reader beside a slot": {
			"a reader beside the holder of a slot", "lease 1.1/0of3 1 0 10 500; lease 2.1/r 2 0 400 600", ""},
		"a slot beside a reader": {
			"the holder of a slot beside a reader", "lease 1.1/r 1 0 10 500; lease 2.1/0of3 2 0 400 600", ""},
		"one slot twice": {
			"two holders of one slot", "lease 1.1/1of3 1 0 10 500; lease 2.1/1of3 2 0 400 600", ""},
		"a slot that there is not": {"that there is not", "lease 1.1/3of3 1 0 10 500", ""},
		"more than slots":          {"4, where there is room for 3", fourth, ""},
		"a writer beside two readers, the first of whom stays longer": {"for up to 100ms",
			"lease 1.1/r 1 0 10 500; lease 2.1/r 2 0 11 450; lease 3.1 3 0 400 600", ""},
		"at the same moment": {"for up to 0s", "lease 1.1/r 1 0 10 400; lease 2.1 2 0 400 600", ""},

		"tokens of readers":      {"a later grant has", "lease 1.1/r 2 0 10 500; lease 2.1/r 1 11 30 40", ""},
		"tokens of two slots":    {"a later grant has", "lease 1.1/0of3 2 0 10 500; lease 2.1/1of3 1 11 30 40", ""},
		"tokens over modes":      {"a later grant has", "lease 1.1/r 2 0 10 20; lease 2.1/0of3 1 21 30 40", ""},
		"a token of two readers": {"given twice", "lease 1.1/r 7 0 10 20; lease 2.1/r 7 0 30 40", ""},
		"tokens of a reader and a writer who waited": {
			"tokens are not in", "lease 1.1/r 2 0 10 20; lease 2.1 1 0 30 40", ""},
		"tokens of one slot, of two who waited": {
			"tokens are not in", "lease 1.1/2of3 2 0 10 20; lease 2.1/2of3 1 0 30 40", ""},
		"tokens of waiters, one of whom is a rival": {"tokens are not in",
			"lease 1.1/r 9 0 10 20; lease 2.1/r 7 0 11 20; lease 3.1 8 0 30 40; lease 4.1/r 10 0 50 60", ""},
		"tokens of one who asked at the moment of the answer": {
			"tokens are not in", "lease 1.1/r 2 0 10 20; lease 2.1 1 10 30 40", ""},
		"tokens of a late return, longer than the news": {
			"tokens are not in", "lease 1.1 2 0 400 404; lease 2.1/r 1 0 405 411", "SESSION 2.1 300 301"},

		"told late, and the next is no rival": {"after 25ms",
			"lost 1.1/r 1 0 10 900 985 1030 0; lease 2.1/r 2 0 920 950; lease 3.1 3 0 1005 1100", ""},
		"told late, when the slot has another holder": {"after 25ms",
			"lost 1.1/0of3 1 0 10 900 985 1030 0; lease 2.1/1of3 2 0 920 950; lease 3.1/0of3 3 0 1005 1100", ""},
		"in vain, after readers": {"stood idle",
			"lease 1.1/r 1 0 10 2000; lease 2.1/r 2 0 20 1500; fails lock ctx 99 6200 6201", "calm - 9 9"},

		"two since a loss, beside one before it": {"for up to 190ms",
			"lease 1.1 1 0 10 900; lease 2.1 2 200 210 500; lease 3.1 3 300 310 400", "FLUSH - 100 101"},
		"more than slots since a loss": {"4, where there is room for 3",
			"lease 9.1/4of5 1 0 5 450; lease 1.1/3of4 2 20 30 500; lease 2.1/0of4 3 200 210 500;" +
				"lease 3.1/1of4 4 200 211 500; lease 4.1/2of3 5 300 310 400", "FLUSH - 6 7"},
		"more than slots, and a loss after it": {"4, where there is room for 3", fourth, "FLUSH - 311 312"},
	} {
		t.Run(name, func(t *testing.T) { wantViolation(t, test.history, test.events, test.want) })
	}
}

func TestCorrectHistoriesOfModesAreAccepted(t *testing.T) {
	for name, test := range map[string]struct{ gap, history, events string }{
		"readers": {"", "lease 1.1/r 1 0 10 500; lease 2.1/r 2 0 20 400; lease 3.1/r 3 0 30 600;" +
			"lease 4.1 4 0 601 700; lease 1.2/r 5 0 701 800", ""},
		"slots": {"", "lease 1.1/0of3 1 0 10 500; lease 2.1/1of3 2 0 20 400; lease 3.1/2of3 3 0 30 600;" +
			"lease 4.1/1of3 4 0 401 600; lease 5.1/r 5 0 601 800; lease 6.1 6 0 801 900", ""},
		"readers, returned in another order": {"", "lease 1.1/r 2 0 10 500; lease 2.1/r 1 0 20 400", ""},
		"slots, returned in another order":   {"", "lease 1.1/0of3 2 0 10 500; lease 2.1/1of3 1 0 20 400", ""},
		"more than others have room for": {
			"", "lease 1.1/0of2 1 0 10 500; lease 2.1/1of2 2 0 20 400; lease 3.1/2of3 3 21 30 40", ""},
		"it is not known who came last": {"", "lease 1.1/3of4 1 0 10 500; lease 2.1/0of4 2 0 11 500;" +
			"lease 3.1/1of4 3 0 12 500; lease 4.1/2of3 4 12 20 400", ""},
		"told late, beside a reader": {"", "lost 1.1/r 1 0 10 900 985 1030 0; lease 2.1/r 2 0 1005 1100", ""},
		"told late, beside another slot": {
			"", "lost 1.1/0of3 1 0 10 900 985 1030 0; lease 2.1/1of3 2 0 1005 1100", ""},
		"a wait for readers": {
			"", "lease 1.1/r 1 0 10 3000; lease 2.1/r 2 0 2000 6000; fails lock ctx 100 9000 9001", "calm - 99 99"},
		"data lost, a reader beside a writer": {
			"lost data", "lease 1.1 1 0 10 500; lease 2.1/r 2 0 400 600", "FLUSH - 390 391"},
		"data lost, more than slots": {"lost data", fourth, "FLUSH - 100 101"},
		"data lost, one slot twice, and more than slots": {
			"lost data", "lease 1.1/0of1 1 0 10 500; lease 2.1/0of1 2 0 400 600", "FLUSH - 390 391"},
		"data lost, and tokens of readers and a writer": {
			"lost data", "lease 1.1/r 2 0 100 200; lease 2.1 1 0 300 301", "FLUSH - 50 51"},
		"a late return, faster than the news": {
			"faster than the news", "lease 1.1 2 0 400 404; lease 2.1/r 1 0 405 409", "SESSION 2.1 300 301"},
	} {
		t.Run(name, func(t *testing.T) { wantAccepted(t, test.history, test.events, test.gap) })
	}
}

// TestTheLongestCounts has a writer beside three readers who were forgotten.
func TestTheLongestCounts(t *testing.T) {
	got := Check(slices.Values(parse(t, "lease 1.1/r 1 0 10 450; lease 2.1/r 2 0 11 500; lease 3.1/r 3 0 12 470;"+
		"lease 4.1 4 0 400 600")), parseEvents(t, "FLUSH - 300 301"), rules)
	if want := []time.Duration{100 * time.Millisecond}; !slices.Equal(got.Gaps["lost data"], want) {
		t.Errorf("for %v; want %v", got.Gaps, want)
	}
	if got.Most[Exclusive] != 1 || got.Most[Shared] != 3 {
		t.Errorf("beside others of the mode: %v; want one writer and three readers", got.Most)
	}
}

// TestTwoRulesAreBroken has two holders at a time, of whom the one who came first has the greater token.
func TestTwoRulesAreBroken(t *testing.T) {
	records := parse(t, "lease 1.1 2 0 10 500; lease 2.1/r 1 0 400 600")
	got := Check(slices.Values(records), nil, rules).Violations
	if len(got) != 2 || got[0].Rule != "a reader beside a writer" ||
		!strings.Contains(got[1].Rule, "tokens are not in") {
		t.Errorf("found %+v; want both", got)
	}
}

func TestEvidenceNamesTheMode(t *testing.T) {
	got := fmt.Sprint(Check(slices.Values(parse(t, "lease 1.1/2of3 1 0 10 500; lease 2.1/r 2 0 400 600;"+
		"lease 3.1 3 0 700 800; asked 4.1/0of3 900")), nil, Rules{}).Violations)
	for _, want := range []string{"lock k (slot 2 of 3), TTL", "lock k (shared), TTL", "lock k (one of 3 slots), TTL"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	exclusive := &Call{Op: "lock", Key: "k"}
	if got, want := exclusive.String(), "lock k, TTL"; !strings.Contains(got, want) {
		t.Errorf("%q is not in %s", want, got)
	}
}

func TestNoMarginToOneWhoIsNoRival(t *testing.T) {
	got := Check(slices.Values(parse(t, "lost 1.1/r 1 0 10 900 985 1030 0; lease 2.1/r 2 0 1005 1100")), nil, Rules{})
	if len(got.Margins) != 0 || len(got.Told) != 1 {
		t.Errorf("margins %v, told %v; want none, and one", got.Margins, got.Told)
	}
}

func TestGrantsAreCountedByMode(t *testing.T) {
	got := Check(slices.Values(parse(t, "lease 1.1/r 1 0 10 500; lease 2.1/r 2 0 20 400; lease 3.1/r 3 0 450 600;"+
		"lease 4.1/0of3 4 0 601 700; lease 5.1/1of3 5 0 602 700; lease 6.1/2of3 6 0 603 700; lease 7.1 7 0 701 800")),
		nil, Rules{})
	if want := map[Mode]int{Exclusive: 1, Shared: 3, Slots: 3}; !maps.Equal(got.Grants, want) {
		t.Errorf("granted %v; want %v", got.Grants, want)
	}
	if want := map[Mode]int{Exclusive: 1, Shared: 2, Slots: 3}; !maps.Equal(got.Most, want) {
		t.Errorf("at the same time %v; want %v", got.Most, want)
	}
}
