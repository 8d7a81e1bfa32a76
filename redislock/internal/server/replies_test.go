package server

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// What scripts answer, and what may answer that is not the Redis that is expected: a proxy, a module, a later version.

// FuzzAcquireReply has answers of acquire.lua.
func FuzzAcquireReply(f *testing.F) {
	f.Add(uint64(1795897850234449), uint64(1795897850234448), "5 6 again", strings.Repeat("0f", 16)+":me", int64(9999),
		"17")
	f.Add(uint64(1)<<63, uint64(0), "7 ", "", int64(-1), "")
	f.Add(uint64(0), uint64(1), "x", "value", int64(1)<<62, "17")
	granted := regexp.MustCompile(`^\d+( (\d+( again)?)?)?$`)
	f.Fuzz(func(t *testing.T, token, clock uint64, text, value string, left int64, arrival string) {
		for reply, want := range map[string]Attempt{
			fmt.Sprintf("%d", token):                 {},
			fmt.Sprintf("%d %d", token, clock):       {Clock: clock},
			fmt.Sprintf("%d %d again", token, clock): {Clock: clock, Again: true},
		} {
			var a Attempt
			want.Token = token
			refused, err := a.answer(reply)
			if refused != nil || err != nil || !reflect.DeepEqual(a, want) {
				t.Errorf("%q: %+v, refusal %v, %v", reply, a, refused, err)
			}
		}
		var inSlot Attempt
		refused, err := inSlot.answer([]any{fmt.Sprint(token), left})
		want := Attempt{Token: token, Slot: int(left)}
		if refused != nil || err != nil || !reflect.DeepEqual(inSlot, want) {
			t.Errorf("a slot: %+v, refusal %v, %v; want %+v", inSlot, refused, err, want)
		}
		var a Attempt
		if refused, err := a.answer(text); refused != nil || err == nil && !granted.MatchString(text) {
			t.Errorf("%q: token %d, refusal %v, %v", text, a.Token, refused, err)
		}
		a = Attempt{}
		refused, err = a.answer([]any{value, left, arrival})
		if a.Token != 0 || err != nil || refused == nil || refused.Value != value || refused.Arrival != arrival {
			t.Fatalf("a refusal: token %d, %+v, %v", a.Token, refused, err)
		}
		remains := refused.Remaining
		if (remains > 0) != (left >= 0) || remains < 0 || remains.Milliseconds() < min(left, 1<<42) {
			t.Errorf("a PTTL of %d is taken for %v", left, remains)
		}
		for _, odd := range []any{
			nil, value == "", left, float64(left), []any{}, []any{value}, []any{left, value}, []any{nil, nil, nil},
			[]any{left, arrival, value}, []any{value, left, arrival, value}, []any{[]any{value}, text, left},
			map[any]any{value: left},
		} {
			if refused, err := a.answer(odd); a.Token != 0 || err == nil || refused != nil {
				t.Errorf("%v: token %d, refused %v, %v", odd, a.Token, refused, err)
			}
		}
	})
}

// oddReplies turns bytes into the elements of a list, of all kinds that there are.
func oddReplies(kinds []byte, text string, number int64) (list []any) {
	for _, k := range kinds {
		of := []any{
			int64(1), int64(0), number, text, "", nil, []any{text, number}, float64(number), number > 0, conn.ScriptError(text),
		}
		list = append(list, of[int(k)%len(of)])
	}
	return list
}

// FuzzRenewReply has answers of renew.lua. No lease goes on of which it does not say 1, and each is told once.
func FuzzRenewReply(f *testing.F) {
	f.Add([]byte{0, 1, 0}, "NOPERM no", int64(2), uint8(3))
	f.Add([]byte{2, 3, 4, 5, 6, 7, 8, 9}, "1", int64(1), uint8(10))
	f.Fuzz(func(t *testing.T, kinds []byte, text string, number int64, asked uint8) {
		list := oddReplies(kinds, text, number)
		b := &Server{Client: &conn.Client{Single: true}}
		for _, reply := range []any{list, text, number, nil} {
			cmd := redis.NewCmd(t.Context())
			cmd.SetVal(reply)
			told, of := make([]int, asked), make([]int, asked)
			for i := range of {
				of[i] = i
			}
			b.renewed(conn.Once{Cmd: cmd}, of, func(i int, err error) {
				told[i]++
				elements, _ := reply.([]any)
				var said any
				if i < len(elements) {
					said = elements[i]
				}
				n, isNumber := said.(int64)
				if (err == nil) != (isNumber && n == 1) || errors.Is(err, locker.ErrLost) != (isNumber && n != 1) {
					t.Errorf("%v: lease %d has %v", reply, i, err)
				}
			})
			for i, n := range told {
				if n != 1 {
					t.Errorf("%v: lease %d was told of %d times", reply, i, n)
				}
			}
		}
	})
}

// FuzzPollReply has answers of poll.lua, and messages that call. They wake whom they name, and nobody else.
func FuzzPollReply(f *testing.F) {
	process, owner := strings.Repeat("0f", 16), strings.Repeat("1e", 16)
	for _, member := range []string{
		process + ":" + owner, process + ":", process, "", owner, process + " " + owner + " x", process + ":" + owner + "x", process + owner,
	} {
		f.Add(member, int64(100), []byte{0, 2, 3})
		f.Add(member, int64(-1), []byte{3, 3, 5, 6})
	}
	f.Fuzz(func(t *testing.T, member string, number int64, kinds []byte) {
		newWaiter := func() (*Line, *waitEvents, question) {
			l := &Line{
				client: &conn.Client{Single: true}, Process: process,
				waiters: make(map[string]*Waiter), keys: make(map[string]*lineKey), kick: make(chan struct{}, 1),
			}
			events := &waitEvents{called: make(chan struct{}, 1), failed: make(chan error, 1)}
			w := l.Join(scripts.Names{Lock: "k", Member: process + ":" + owner}, events)
			key := &lineKey{waiters: map[*Waiter]struct{}{w: {}}, ask: time.Now().Add(time.Hour), asking: 1, place: -1}
			return l, events, question{key: key, members: []string{process + ":" + owner}}
		}
		check := func(what any, events *waitEvents, want bool) {
			if called := len(events.called) > 0; called != want || len(events.failed) > 0 {
				t.Errorf("%v: called %v, failed %v", what, called, len(events.failed) > 0)
			}
		}
		list := oddReplies(kinds, member, number)
		l, events, q := newWaiter()
		asked := time.Now()
		l.answer(q, list, nil)
		wanted := false
		for i, element := range list {
			text, _ := element.(string)
			wanted = wanted || i > 0 && len(text) == len(process)+1+len(owner) && text[len(process)+1:] == owner
		}
		check(list, events, wanted)
		if q.key.asking > 0 || q.key.failed > 0 || q.key.ask.Before(asked) {
			t.Errorf("%v: the key is to be asked about %v after the answer", list, q.key.ask.Sub(asked))
		}
		l, events, _ = newWaiter()
		l.heard(&redis.Message{Channel: "locker:" + process, Payload: member})
		check(member, events, slices.Contains(strings.Split(member, " "), owner))
	})
}
