package pglock

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lockerkit/locker"
)

// FuzzParseBools has arrays of booleans as Postgres writes them, and whatever else.
func FuzzParseBools(f *testing.F) {
	f.Add([]byte{}, "{}")
	f.Add([]byte{1, 0, 1}, "{t,f,NULL}")
	f.Add([]byte{0}, "f")
	f.Fuzz(func(t *testing.T, bits []byte, text string) {
		var want []bool
		var words []string
		for _, b := range bits {
			want = append(want, b&1 == 1)
			words = append(words, string("ft"[b&1]))
		}
		if got := parseBools("{" + strings.Join(words, ",") + "}"); !slices.Equal(got, want) {
			t.Errorf("%v is parsed as %v", want, got)
		}
		got := parseBools(text)
		if len(got) > 1+strings.Count(text, ",") || slices.Contains(got, true) && !strings.Contains(text, "t") {
			t.Errorf("%q is parsed as %v", text, got)
		}
	})
}

// FuzzParseTry has the answers of locker_try and locker_try_one.
func FuzzParseTry(f *testing.F) {
	f.Add(uint64(7), "{t,f}", "x")
	f.Add(uint64(math.MaxInt64), "{}", "")
	f.Add(uint64(math.MaxInt64)+1, "t", "+7")
	f.Fuzz(func(t *testing.T, token uint64, array, text string) {
		minted, want := strconv.FormatUint(token, 10), token
		if token > math.MaxInt64 {
			want = 0
		}
		if got, taken := parseTry([]string{"1", minted}); got != want || !slices.Equal(taken, []bool{true}) {
			t.Errorf("token %d: %d, %v", token, got, taken)
		}
		got, taken := parseTry([]string{"1", minted, array})
		if got != want || !slices.Equal(taken, parseBools(array)) {
			t.Errorf("token %d, of %q: %d, %v", token, array, got, taken)
		}
		if done, wanted := parseUnlock([]string{"1", array, array}); !slices.Equal(done, taken) ||
			!slices.Equal(wanted, taken) {
			t.Errorf("%q: %v, %v", array, done, wanted)
		}
		if done, wanted := parseUnlock([]string{"1", array, array + ",t"}); done != nil || wanted != nil {
			t.Errorf("lists of different lengths: %v, %v", done, wanted)
		}
		if got, taken := parseTry([]string{"1", ""}); got != 0 || !slices.Equal(taken, []bool{false}) {
			t.Errorf("not taken: %d, %v", got, taken)
		}
		if got := parseToken(text); got > math.MaxInt64 {
			t.Errorf("token %q: %d", text, got)
		}
		for _, row := range [][]string{nil, {text}, {text, minted, array, text}} {
			if got, taken := parseTry(row); got != 0 || taken != nil {
				t.Errorf("%q: %d, %v", row, got, taken)
			}
		}
	})
}

// FuzzParseEnter has the answers of locker_enter, in which a byte is the number of a slot, or NULL if it is odd.
func FuzzParseEnter(f *testing.F) {
	f.Add([]byte{}, "{}")
	f.Add([]byte{0, 1, 4}, "{0,NULL,-1,2147483648}")
	f.Add([]byte{1}, "NULL")
	f.Fuzz(func(t *testing.T, slots []byte, text string) {
		var want []int
		var words []string
		for _, b := range slots {
			n, word := int(b), strconv.Itoa(int(b))
			if b&1 == 1 {
				n, word = none, "NULL"
			}
			want, words = append(want, n), append(words, word)
		}
		token, got := parseEnter([]string{"1", "7", "{" + strings.Join(words, ",") + "}"})
		if !slices.Equal(got, want) || token != 7 && len(want) > 0 {
			t.Errorf("%v is parsed as %v, with the token %d", want, got, token)
		}
		if _, got := parseEnter([]string{"1", "7", text}); len(got) > 1+strings.Count(text, ",") ||
			slices.ContainsFunc(got, func(n int) bool { return n < none || n > math.MaxInt32 }) {
			t.Errorf("%q is parsed as %v", text, got)
		}
		if got, numbers := parseEnter([]string{"1", ""}); got != 0 || !slices.Equal(numbers, []int{none}) {
			t.Errorf("a reader did not get in: %d, %v", got, numbers)
		}
		if got, numbers := parseEnter([]string{"1", "7"}); got != 7 || !slices.Equal(numbers, []int{0}) {
			t.Errorf("a reader got in: %d, %v", got, numbers)
		}
		for _, row := range [][]string{nil, {text}, {"1", "7", text, text}} {
			if token, got := parseEnter(row); token != 0 || got != nil {
				t.Errorf("%q: %d, %v", row, token, got)
			}
		}
	})
}

// FuzzGranted has the last column of a wait.
func FuzzGranted(f *testing.F) {
	f.Add("granted", 7)
	f.Add("", 0)
	f.Add("granted x", -1)
	f.Fuzz(func(t *testing.T, last string, slot int) {
		of := func(rows ...[]string) outcome { return (&answer{rows: rows}).granted() }
		first := []string{"1", "key"}
		if o := of(first, []string{"granted " + strconv.Itoa(slot), "7"}); o.number != slot || !o.done || o.token != 7 {
			t.Errorf("slot %d: %d, %v, token %d", slot, o.number, o.done, o.token)
		}
		if o := of(first, []string{last, ""}); o.done && !strings.HasPrefix(last, "granted") || o.token != 0 {
			t.Errorf("%q is granted, or has a token", last)
		}
		for _, rows := range [][][]string{nil, {{"granted"}}, {first}, {first, {}}, {first, {"granted"}}} {
			if of(rows...).done {
				t.Errorf("%q is granted", rows)
			}
		}
	})
}

// TestGatesAreInOrder: all who ask for several keys at once pass their gates in the same order, or they would wait for
// each other in a circle.
func TestGatesAreInOrder(t *testing.T) {
	var rs []*request
	for key := range int64(mostTogether) {
		rs = append(rs, &request{key: key, mode: locker.ModeShared + locker.Mode(key%2), marks: marksOf(key)})
	}
	free, gated := partsOf(rs)
	if len(free) != 0 || len(gated) != 1 || len(gated[0].requests) != len(rs) {
		t.Fatalf("%d parts without a gate, and %d with some", len(free), len(gated))
	}
	gates := make([]int64, len(rs))
	for i, r := range gated[0].requests {
		gates[i] = r.marks.gate
	}
	if !slices.IsSorted(gates) {
		t.Errorf("gates are passed in the order %d", gates)
	}
}

// FuzzAnswerFits has rows of answers. What does not begin with the number of the message is none; an error needs no
// row.
func FuzzAnswerFits(f *testing.F) {
	f.Add(int64(7), "7", "")
	f.Add(int64(-7), "", "-7")
	f.Fuzz(func(t *testing.T, seq int64, first, second string) {
		number := strconv.FormatInt(seq, 10)
		for _, tc := range []struct {
			a    answer
			want bool
		}{
			{answer{}, false},
			{answer{err: errMismatch}, true},
			{answer{rows: [][]string{{}}}, false},
			{answer{rows: [][]string{{}, {number}}}, false},
			{answer{rows: [][]string{{first, second}}}, first == number},
			{answer{rows: [][]string{{first}}, err: errMismatch}, first == number},
			{answer{rows: [][]string{{number, first}, {second}}}, true},
		} {
			if got := tc.a.fits(seq); got != tc.want {
				t.Errorf("message %d, rows %q, %v: %v", seq, tc.a.rows, tc.a.err, got)
			}
		}
	})
}

// FuzzKey holds the key of a name to what its documentation says, in SQL, that people may look for.
func FuzzKey(f *testing.F) {
	f.Add("orders/", "42")
	f.Add("", "\x00\xff")
	f.Fuzz(func(t *testing.T, prefix, key string) {
		r := locker.Request{Prefix: prefix, Key: key}
		sum := sha256.Sum256([]byte(prefix + key))
		bits, err := strconv.ParseUint(hex.EncodeToString(sum[:])[:16], 16, 64)
		if got := Key(r.Name()); err != nil || uint64(got) != bits { //nolint:gosec // the same bits
			t.Errorf("Key(%q) = %d; want the bits %x", r.Name(), got, bits)
		}
		if prefix+key != key && Key(r.Name()) == Key(key) {
			t.Errorf("%q and %q have one key", r.Name(), key)
		}
	})
}

// FuzzStatements has namespaces of all kinds. They are names in the statements, and nothing else.
func FuzzStatements(f *testing.F) {
	for _, namespace := range []string{
		"locker", "My Locks", `"`, "'", "$ns", "$token", "$limit", "%d", "; DROP TABLE x", `\`, "é", "--", "/*",
	} {
		f.Add(namespace)
	}
	f.Fuzz(func(t *testing.T, namespace string) {
		if namespace == "" || len(namespace) > 63 || strings.ContainsRune(namespace, 0) {
			t.Skip("refused as Config.Namespace")
		}
		const plain = "a_plain_name"
		// A name is between double quotes, and its own ones are doubled; within a string, so are the single ones.
		name := `"` + strings.ReplaceAll(namespace, `"`, `""`) + `"`
		inString := strings.ReplaceAll(name, "'", "''")
		rename := func(sql string) string {
			sql = strings.ReplaceAll(sql, `'"`+plain+`"."token"'`, `'`+inString+`."token"'`)
			return strings.ReplaceAll(sql, `"`+plain+`".`, name+`.`)
		}
		want, got := statementsFor(plain), statementsFor(namespace)
		for _, pair := range [][2]string{
			{got.tokens, rename(want.tokens)}, {got.prepare, rename(want.prepare)},
			{got.raise, rename(want.raise)}, {got.room, rename(want.room)},
			{got.namespace, strings.ReplaceAll(want.namespace, `"`+plain+`"`, name)},
			{SchemaSQL(namespace), got.namespace + got.tokens},
		} {
			if pair[0] != pair[1] {
				t.Errorf("namespace %q:\n%s\nwant:\n%s", namespace, pair[0], pair[1])
			}
		}
		if sanitized := (pgx.Identifier{namespace}).Sanitize(); sanitized != name {
			t.Errorf("%q is written as %s", namespace, sanitized)
		}
	})
}

// FuzzCheckVersion has what servers say: Postgres 14 or later is good, with whatever a distribution adds.
func FuzzCheckVersion(f *testing.F) {
	f.Add(uint16(14), ".9 (Debian 14.9-1.pgdg120+1)")
	f.Add(uint16(18), "beta1")
	f.Add(uint16(9), ".6.24")
	f.Fuzz(func(t *testing.T, major uint16, rest string) {
		if rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			t.Skip("the number goes on")
		}
		if err := checkVersion(strconv.Itoa(int(major)) + rest); (err == nil) != (major >= 14) {
			t.Errorf("version %d%s: %v", major, rest, err)
		}
		if err := checkVersion(rest); err == nil {
			t.Errorf("version %q is taken for one", rest)
		}
	})
}

// FuzzHinted has notifications on the channel of hints, to which anybody may send.
func FuzzHinted(f *testing.F) {
	f.Add("42", int64(42))
	f.Add("-42", int64(-42))
	f.Add("free 42", int64(42))
	f.Fuzz(func(t *testing.T, payload string, key int64) {
		held := &holding{}
		b := &backend{slots: map[int64]*slot{key: {key: key, held: []*holding{held}}}}
		(&session{b: b}).notified(channel, payload)
		if s := b.slots[key]; len(s.held) != 1 || s.held[0] != held || s.starved || len(b.slots) != 1 {
			t.Errorf("%q has changed a slot: %+v", payload, s)
		}
	})
}
