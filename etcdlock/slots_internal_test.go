package etcdlock

import (
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/lockerkit/locker"
)

// claimsTo returns claims to slots, in order. Each says the number that it has taken, or nothing, and of how many.
func claimsTo(all ...string) (kvs []*mvccpb.KeyValue) {
	for i, says := range all {
		number, of, _ := strings.Cut(says, "/")
		n, _ := strconv.Atoi(of)
		key := claimKey(placeOf(Key("k"), locker.ModeSlots), 7, 0, uint64(i)) + slotSuffix(locker.Request{Slots: n})
		kvs = append(kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(number), CreateRevision: int64(10 + i)})
	}
	return kvs
}

// TestSlotOfLine has lines of claims to slots, and says what another gets behind them.
func TestSlotOfLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n      int
		older  []string
		admit  bool
		number int
	}{
		{n: 1, admit: true, number: 0},
		{n: 1, older: []string{"0/1"}},
		{n: 2, older: []string{"0/2"}, admit: true, number: 1},
		{n: 2, older: []string{"1/2"}, admit: true, number: 0},
		{n: 2, older: []string{"5/9"}, admit: true, number: 0},
		{n: 3, older: []string{"/3"}, admit: true, number: 1},               // that one is going to take 0
		{n: 3, older: []string{"0/3", "/3"}, admit: true, number: 2},        // 1
		{n: 4, older: []string{"/4", "0/4", "/4"}, admit: true, number: 3},  // 1 and 2
		{n: 4, older: []string{"/4", "2/4", "/4"}, admit: true, number: 3},  // 0 and 1
		{n: 9, older: []string{"0/2", "1/2"}, admit: true, number: 2},       // fewer slots are no matter of others
		{n: 9, older: []string{"0/2", "1/2", "/2"}},                         // who waits is not overtaken
		{n: 9, older: []string{"0/2", "1/2", "/2", "/9"}},                   // nor by those behind
		{n: 9, older: []string{"0/2", "/2", "/3"}, admit: true, number: 3},  // nobody waits
		{n: 3, older: []string{"0/9", "1/9", "2/9"}},                        // but as many as there are
		{n: 9, older: []string{"x/3", "-1/3"}, admit: true, number: 2},      // what somebody else has written
		{n: 9, older: []string{"0/9", "what is no claim"}, admit: false},    // likewise
		{n: 3, older: []string{"10000/9999"}, admit: true, number: 0},       // there were many
		{n: 3, older: []string{"1/3", "1/3"}, admit: true, number: 0},       // which never happens
		{n: 5, older: []string{"3/5", "/5", "1/5"}, admit: true, number: 2}, // 0
	} {
		kvs := claimsTo(c.older...)
		if got := admit(kvs, c.n); got != c.admit {
			t.Errorf("one of %d behind %q: admitted is %v; want %v", c.n, c.older, got, c.admit)
		}
		if got := nextNumber(kvs); c.admit && got != c.number {
			t.Errorf("one of %d behind %q: it takes %d; want %d", c.n, c.older, got, c.number)
		}
	}
	foreign := []*mvccpb.KeyValue{{Key: []byte(placeOf(Key("k"), locker.ModeSlots) + "made by hand")}}
	if admit(foreign, 9) {
		t.Error("a key that somebody else has put into the line is overtaken")
	}
}
