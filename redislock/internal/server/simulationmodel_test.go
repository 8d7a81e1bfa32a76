package server

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// What the simulation knows of a key, and what it holds against that.

// places is what the server knows of the line: until when each waiter is taken to be alive.
type places map[*party]float64

// living reports whether a waiter is in line, and not dead.
func (s *simulation) living(in places, p *party) bool {
	till, ok := in[p]
	return ok && till*perMS >= float64(s.now)
}

func (s *simulation) places() places {
	alive := make(map[any]float64)
	for _, z := range s.client.ZRangeWithScores(s.Context(), s.names.Alive, 0, -1).Val() {
		alive[z.Member] = z.Score
	}
	in := make(places)
	queue := s.client.ZRange(s.Context(), s.names.Queue, 0, -1).Val()
	for _, p := range s.line {
		if len(queue) > 0 && queue[0] == p.Names.Member {
			in[p] = alive[queue[0]]
			queue = queue[1:]
		}
	}
	if len(queue) > 0 {
		s.wrong("%q is in line; of this order: %v", queue, s.line)
	}
	return in
}

// room is how many can have the lock in the mode of p beside those who have it.
func (s *simulation) room(p *party) int {
	switch {
	case s.blocked:
		return 0
	case len(s.holders) > 0 && (p.request.Mode == locker.ModeExclusive || p.request.Mode != s.holders[0].request.Mode):
		return 0
	case p.request.Mode == locker.ModeShared:
		return math.MaxInt
	}
	return max(1, p.request.Slots) - len(s.holders)
}

// leading returns those of a line, the first of whom p is, who can get in now.
func (s *simulation) leading(line []*party) (run []*party) {
	for _, p := range line {
		if p.Names.Mode != line[0].Names.Mode || len(run) >= s.room(p) {
			break
		}
		run = append(run, p)
	}
	return run
}

// admits reports whether p gets the lock if it asks: nobody is ahead, or all get in together.
func (s *simulation) admits(p *party) bool {
	in := s.places()
	_, waits := in[p]
	var line []*party
	for _, other := range s.line {
		if other == p {
			if waits {
				break
			}
			continue // it has lost its place, and is behind all who are there when it asks
		}
		if s.living(in, other) {
			line = append(line, other)
		}
	}
	return slices.Contains(s.leading(append(line, p)), p)
}

func arrivalOf(p *party) uint64 {
	arrival, _ := strconv.ParseUint(p.Arrival, 10, 64)
	return arrival
}

// firstEnd returns when the first of the leases ends.
func (s *simulation) firstEnd() int64 {
	return slices.MinFunc(s.holders, func(p, q *party) int { return cmp.Compare(p.ends, q.ends) }).ends
}

// nextEnd returns in how many ms that is.
func (s *simulation) nextEnd() int64 { return (s.firstEnd() - s.now + perMS - 1) / perMS }

// endOf returns when a lease ends that is granted or renewed now.
func (s *simulation) endOf(p *party) int64 { return (s.now+perMS-1)/perMS*perMS + p.TTL.Microseconds() }

// value returns what the server has of p while it has the lock.
func (p *party) value() string {
	if p.revoked {
		return "locker:revoked:" + p.Names.Value
	}
	return p.Names.Value
}

// slotsTaken returns which slots others than p have.
func (s *simulation) slotsTaken(p *party) []bool {
	taken := make([]bool, mostSlots+1)
	for _, h := range s.holders {
		if h != p {
			taken[h.Slot] = true
		}
	}
	return taken
}

// unheard checks that nobody is taken to be alive for longer than before who has not been heard of.
func (s *simulation) unheard(before places, heard ...*party) {
	s.Helper()
	for p, till := range s.places() {
		if till > before[p] && !slices.Contains(heard, p) {
			s.wrong("%v is taken to be alive for %v ms longer", p, till-before[p])
		}
	}
}

// receive takes the calls that have been sent, and returns how many have been called. They lead the line, and can get
// in.
func (s *simulation) receive() (called int) {
	s.Helper()
	leading := s.leading(s.inLine(s.places()))
	for i, sub := range s.calls {
		s.must(sub.Ping(s.Context()))
		for pong := false; !pong; {
			message, err := sub.Receive(s.Context())
			s.must(err)
			switch message := message.(type) {
			case *redis.Pong:
				pong = true
			case *redis.Message:
				for name := range strings.SplitSeq(message.Payload, " ") {
					called++
					at := slices.IndexFunc(leading, func(p *party) bool { return p.Names.Member == s.processes[i]+":"+name })
					if at < 0 {
						s.wrong("%q is called; those who can get in are %v", name, leading)
					}
					leading[at].called = true
				}
			}
		}
	}
	return called
}

// inLine returns those who have a place, in order.
func (s *simulation) inLine(in places) []*party {
	return slices.DeleteFunc(slices.Clone(s.line), func(p *party) bool { _, ok := in[p]; return !ok })
}

// looksCalled reports whether a waiter has been called, or has been silent for as long: it will ask by itself.
func (s *simulation) looksCalled(in places, p *party) bool {
	return s.living(in, p) && in[p]*perMS <= float64(s.now+time.Second.Microseconds())
}

// woken checks that those who can get in have been called, at most so many of them.
func (s *simulation) woken(most int) {
	s.Helper()
	in := s.places()
	line := s.inLine(in)
	if len(line) == 0 {
		return
	}
	if !s.living(in, line[0]) {
		if s.room(line[0]) > 0 {
			s.wrong("%v is dead, and leads the line", line[0])
		}
		return
	}
	for i, p := range s.leading(line) {
		if i < most && s.living(in, p) && !p.called && !s.looksCalled(in, p) {
			s.wrong("%v can get in, and has not been called; the holders are %v, the line is %v", p, s.holders, line)
		}
	}
}

// compare checks that the server has the holders that the model has.
func (s *simulation) compare() {
	s.Helper()
	if s.blocked || len(s.holders) == 0 {
		return
	}
	ctx := s.Context()
	value := s.client.Get(ctx, s.names.Lock).Val()
	if s.holders[0].request.Mode == locker.ModeExclusive {
		if len(s.holders) > 1 || value != s.holders[0].value() {
			s.wrong("the lock is %q; want that of one of %v", value, s.holders)
		}
		return
	}
	want := make(map[string]int64)
	for _, p := range s.holders {
		want[p.value()] = p.ends / perMS
	}
	has := make(map[string]int64)
	for _, z := range s.client.ZRangeByScoreWithScores(ctx, s.names.Holders,
		&redis.ZRangeBy{Min: fmt.Sprintf("(%.3f", float64(s.now)/perMS), Max: "+inf"}).Val() {
		has[z.Member.(string)] = int64(z.Score)
	}
	if !maps.Equal(has, want) || !strings.HasPrefix(value, "locker:s") {
		s.wrong("the lock is %q, with the holders %v; want %v", value, has, want)
	}
	// With the last of them ends the lock, and all that is kept of it.
	last := slices.Max(slices.Collect(maps.Values(want)))
	for _, name := range []string{s.names.Lock, s.names.Holders, s.names.Slots} {
		if name == s.names.Slots && s.holders[0].request.Mode == locker.ModeShared {
			continue
		}
		expiry := `return redis.call('TIME')[1] + redis.call('PTTL', KEYS[1]) / 1000`
		if at, _ := s.client.Eval(ctx, expiry, []string{name}).Val().(int64); at < last/1000-2 || at > last/1000+2 {
			s.wrong("%q expires at %d; want %d", name, at, last/1000)
		}
	}
}
