package server

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// TestSimulation has owners of two processes ask for one key in all modes, in random order, one request after the
// other. A model says after each of them who has to be granted the lock, who is refused, who has lost it, and who has
// to be called. The clock of the scripts stands still unless the simulation sets it, so that nothing depends on the
// machine.
func TestSimulation(t *testing.T) {
	const runs, steps = 30, 250
	s := newSimulation(t)
	for range runs {
		s.begin(rand.Uint64())
		for range steps {
			s.step()
		}
		s.finish()
	}
}

// simulation is what is known of one key after another.
type simulation struct {
	*testing.T
	client    *redis.Client
	scripts   *scripts.Set
	processes []string
	calls     []*redis.PubSub // of the processes
	taken     *redis.PubSub   // of locks that are taken away
	clock     string          // the name of a key that says what time it is
	now       int64           // in us
	key
}

// key is what is known of a key.
type key struct {
	seed   uint64
	random *rand.Rand
	names  scripts.Names
	said   []string // what has happened
	born   int      // so many owners
	most   int      // so many wait, unless they have to

	holders []*party // who has the lock
	line    []*party // who waits for it, in order of arrival: also who is dead, and who has to join again
	gone    []*party // who has no part in it any more
	blocked bool     // it is locked, and not by one of them
	token   uint64   // the last one

	takes  scripts.Words // the last request to take the lock away
	answer any           // what it has returned
}

// party is an owner, and what it knows.
type party struct {
	Attempt
	request locker.Request
	process string
	ends    int64 // when its lease ends
	refuses int   // so many of its requests are refused
	called  bool  // since it asked
	revoked bool  // it has the lock, until it gives it back or its lease ends
}

// mostSlots is how many holders of slots there are at most. Some ask for fewer.
const mostSlots = 3

// perMS is how many us a ms has.
const perMS = 1000

func newSimulation(t *testing.T) *simulation {
	patient := &redis.Options{Addr: redistest.Address(t), DisableIdentity: true, ReadTimeout: -1}
	s := &simulation{T: t, client: redis.NewClient(patient)}
	t.Cleanup(func() { _ = s.client.Close() })
	for range 2 {
		process := NewProcess()
		sub := s.client.Subscribe(t.Context(), scripts.DefaultChannelPrefix+process)
		t.Cleanup(func() { _ = sub.Close() })
		s.processes, s.calls = append(s.processes, process), append(s.calls, sub)
	}
	s.taken = s.client.Subscribe(t.Context(), scripts.DefaultChannelPrefix+revokedChannel)
	t.Cleanup(func() { _ = s.taken.Close() })
	s.clock = "test:clock:" + s.processes[0]
	s.scripts = slowed(scripts.Default(), s.clock)
	return s
}

// begin begins with another key.
func (s *simulation) begin(seed uint64) {
	s.key = key{seed: seed, random: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // a test
	s.most = s.random.IntN(12)
	s.names = scripts.NamesOf(s.requestIn(locker.ModeExclusive, 0), "")
	// Expiries are set to what these clocks say. Nothing must end by itself.
	s.set(time.Now().Add(time.Hour).UnixMicro())
}

// slowed returns the scripts with a clock that says what is in a key, in us, which the expiry of locks follows, too,
// when it is set, and with a line that does not expire.
func slowed(set *scripts.Set, clock string) *scripts.Set {
	now := "redis.call('GET', " + scripts.QuoteLua(clock) + ")"
	expires, ends := scripts.Milliseconds(scripts.Liveness)+")", "redis.call('PEXPIREAT', lock, last)"
	changes := []string{
		"redis.call('TIME')", "(function(us) return {string.sub(us, 1, -7), string.sub(us, -6)} end)(" + now + ")",
		"'PEXPIRE', queue, " + expires, "'PEXPIRE', queue, 3600000)",
		"'PEXPIRE', alive, " + expires, "'PEXPIRE', alive, 3600000)",
		ends, ends + " if last * 1000 <= tonumber(" + now + ") then redis.call('DEL', lock, holders, slots) end",
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(set.Acquire.Source, changes[i]) {
			panic("the scripts have no " + changes[i])
		}
	}
	replace := strings.NewReplacer(changes...)
	slow := func(s *scripts.Script) *scripts.Script { return s.Changed(replace) }
	all := *set
	all.Acquire, all.Release = slow(all.Acquire), slow(all.Release)
	all.Take, all.Give = slow(all.Take), slow(all.Give)
	all.Extend, all.Poll = slow(all.Extend), slow(all.Poll)
	all.Inspect, all.Revoke = slow(all.Inspect), slow(all.Revoke)
	return &all
}

func (s *simulation) requestIn(mode locker.Mode, slots int) locker.Request {
	s.born++
	r := inMode(s.T, s.born, mode, slots)
	r.Key = fmt.Sprint(s.Name(), s.seed)
	r.Holder = fmt.Sprint("owner ", s.born)
	r.TTL = time.Duration(10+s.random.IntN(20)) * time.Minute
	return r
}

// set sets the clock.
func (s *simulation) set(now int64) {
	s.now = now
	s.must(s.client.Set(s.Context(), s.clock, now, time.Hour).Err())
}

func (s *simulation) must(err error) {
	if err != nil {
		s.Helper()
		s.wrong("%v", err)
	}
}

func (s *simulation) wrong(format string, args ...any) {
	s.Helper()
	last := s.said[max(0, len(s.said)-40):]
	s.Fatalf("seed %d:\n%s\n%s", s.seed, strings.Join(last, "\n"), fmt.Sprintf(format, args...))
}

func (s *simulation) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (p *party) String() string {
	mode := p.Names.Mode
	if mode == "" {
		mode = "x"
	}
	return strings.Replace(p.request.Holder, "owner ", mode+"#", 1)
}

// chance reports true in so many of a hundred cases.
func (s *simulation) chance(percent int) bool { return s.random.IntN(100) < percent }

// oneOf returns any of them, or nil.
func (s *simulation) oneOf(all ...*party) *party {
	if len(all) == 0 {
		return nil
	}
	return all[s.random.IntN(len(all))]
}

// step has something happen.
func (s *simulation) step() {
	next := s.newcomer()
	switch n := s.random.IntN(110); {
	case n < 15:
		s.ask(next, false)
	case n < 37:
		if len(s.line) < s.most {
			s.ask(next, true)
		}
	case n < 51:
		first := min(len(s.line), 1+s.random.IntN(12))
		if p := s.oneOf(s.line[:first]...); p != nil {
			s.ask(p, true)
		}
	case n < 56: // the answer was lost, or a request comes twice
		if p := s.oneOf(s.holders...); p != nil {
			s.ask(p, s.chance(50))
		}
	case n < 62:
		if p := s.oneOf(s.gone...); p != nil && p.refuses > 0 {
			s.late(p)
		}
	case n < 74:
		if p := s.oneOf(s.holders...); p != nil {
			s.release(p)
		}
	case n < 76:
		if p := s.oneOf(s.gone...); p != nil {
			s.release(p)
		}
	case n < 82:
		if p := s.oneOf(slices.Concat(s.holders, s.line, s.line)...); p != nil {
			s.giveUp(p)
		}
	case n < 85:
		s.renew()
	case n < 89:
		s.poll(s.processes[s.random.IntN(len(s.processes))])
	case n < 92:
		for _, p := range s.line {
			if s.chance(50) {
				s.say("%v has not been heard of", p)
				s.heard(p, -time.Millisecond)
			}
		}
	case n < 99:
		s.timePasses()
	case n < 100:
		s.disturb()
	case n < 104:
		s.revoke()
	case n < 106:
		s.breaks()
	case n < 108:
		s.takeLate()
	default:
		s.inspect()
	}
	s.compare()
}

func (s *simulation) newcomer() *party {
	mode, slots := locker.ModeSlots, 1+s.random.IntN(mostSlots)
	if other := s.random.IntN(10); other < 5 {
		mode, slots = locker.ModeShared, 0
		if other == 0 {
			mode = locker.ModeExclusive
		}
	}
	p := &party{request: s.requestIn(mode, slots), process: s.processes[s.random.IntN(len(s.processes))]}
	p.Attempt = Attempt{Names: scripts.NamesOf(p.request, p.process), TTL: p.request.TTL}
	return p
}

// run executes a script.
func (s *simulation) run(script *scripts.Script, w scripts.Words) any {
	s.Helper()
	args := make([]any, 0, len(w.All)+1)
	switch script.Part {
	case scripts.Takes:
		args = append(args, 0)
	case scripts.Gives:
		args = append(args, 1)
	}
	for _, word := range w.All[w.Keys:] {
		args = append(args, word)
	}
	reply, err := redis.NewScript(script.Source).Run(s.Context(), s.client, w.All[:w.Keys], args...).Result()
	s.must(err)
	if script.Part == scripts.None {
		return reply
	}
	replies, _ := reply.([]any)
	if len(replies) != 1 {
		s.wrong("a call for one has the replies %v", replies)
	}
	return replies[0]
}

// acquire runs the script for an attempt: most times the quick one, if it will do.
func (s *simulation) acquire(a *Attempt) any {
	s.Helper()
	if a.simple() && s.chance(80) {
		if reply := s.run(s.scripts.Take, a.Names.TakeWords(a.TTL, a.Least)); a.suffices(reply) {
			return reply
		}
	}
	return s.run(s.scripts.Acquire, a.words())
}

// ask makes a request of p, who may have the lock already, or be in line.
func (s *simulation) ask(p *party, join bool) {
	s.Helper()
	if s.chance(20) {
		p.Unanswered++
	}
	has := slices.Contains(s.holders, p)
	granted := has || s.admits(p)
	s.say("%v asks, join %v: %v", p, join, granted)
	before, taken, in := p.Attempt, s.slotsTaken(p), s.places()
	p.Join = join
	refused, err := p.answer(s.acquire(&p.Attempt))
	if has && p.revoked {
		if !errors.Is(err, locker.ErrRevoked) {
			s.wrong("%v is revoked, and has %+v, %v", p, refused, err)
		}
		return
	}
	s.must(err)
	if (refused == nil) != granted {
		s.wrong("%v is refused: %v; granted by the model: %v; the holders are %v, the line is %v", p, refused, granted,
			s.holders, s.line)
	}
	p.called = false
	if !granted {
		s.refused(p, refused)
		s.unheard(in, p)
		return
	}
	p.refuses = max(p.refuses, p.Unanswered)
	same := has && p.request.Mode == locker.ModeExclusive
	if same && p.Token != before.Token || !same && p.Token <= s.token {
		s.wrong("%v has token %d after %d, asked again: %v", p, p.Token, s.token, has)
	}
	s.token = max(s.token, p.Token)
	if slot := slices.Index(taken, false); p.request.Mode == locker.ModeSlots && !has && p.Slot != slot ||
		has && p.Slot != before.Slot {
		s.wrong("%v has slot %d; want %d; asked again: %v", p, p.Slot, slot, has)
	}
	p.ends = s.endOf(p)
	if !has {
		s.line = without(s.line, p)
		s.holders = append(s.holders, p)
	}
	s.unheard(in)
	s.receive()
	s.woken(1)
}

func (s *simulation) refused(p *party, refused *Refusal) {
	s.Helper()
	if p.Join {
		joins := p.Arrival == ""
		p.Arrival = refused.Arrival
		s.line = append(without(s.line, p), p)
		slices.SortFunc(s.line, func(p, q *party) int {
			return cmp.Or(cmp.Compare(arrivalOf(p), arrivalOf(q)), cmp.Compare(p.Names.Member, q.Names.Member))
		})
		for q := range s.places() {
			if joins && q != p && arrivalOf(q) >= arrivalOf(p) {
				s.wrong("%v joins the line before %v", p, q)
			}
		}
	} else {
		p.refuses = p.Unanswered
		s.leaves(p)
	}
	if s.blocked {
		return
	}
	named := slices.ContainsFunc(s.holders, func(h *party) bool { return h.value() == refused.Value })
	if !named && (len(s.holders) > 0 || refused.Value != "") {
		s.wrong("%v is refused by %q", p, refused.Value)
	}
	if p.request.Mode != locker.ModeExclusive && len(s.holders) > 0 && s.holders[0].request.Mode == p.request.Mode {
		if want := remainingOf(s.nextEnd()); refused.Remaining != want {
			s.wrong("%v is refused for %v; want %v", p, refused.Remaining, want)
		}
	}
}

// late has a request come of an owner who has given up, or has asked again since. It must have no effect.
func (s *simulation) late(p *party) {
	a := p.Attempt
	a.Join, a.Unanswered = s.chance(50), s.random.IntN(min(p.refuses, 3))
	s.say("a late request of %v, join %v", p, a.Join)
	refused, err := a.answer(s.acquire(&a))
	if err == nil && (refused == nil || a.Join) || err != nil && !errors.Is(err, conn.ErrGivenUp) {
		s.wrong("it is refused: %v, %v", refused, err)
	}
}

// release has an owner give back what it has, if it has the lock.
func (s *simulation) release(p *party) {
	has := slices.Contains(s.holders, p)
	s.say("%v releases, has it: %v", p, has)
	var reply any
	in := s.places()
	if p.Names.Mode == "" && s.chance(80) {
		reply = s.run(s.scripts.Give, p.Names.GiveWords())
	}
	if reply == nil {
		reply = s.run(s.scripts.Release, p.Names.FreeWords())
	}
	s.released(p, reply, has, in)
	s.receive()
	if has {
		s.woken(math.MaxInt)
	}
}

// giveUp has an owner leave, who may be in line, with requests of it that may be on their way, or not.
func (s *simulation) giveUp(p *party) {
	doubt := s.chance(50)
	s.say("%v gives up, in doubt: %v", p, doubt)
	in := s.places()
	s.released(p, s.run(s.scripts.Release, p.Names.ReleaseWords(doubt)), slices.Contains(s.holders, p), in)
	if doubt {
		p.refuses = math.MaxInt
	}
	s.receive()
	s.woken(math.MaxInt)
}

// released has an owner gone, who was in one of these places, and was told so.
func (s *simulation) released(p *party, reply any, has bool, in places) {
	s.Helper()
	if reply != int64(1) && has || reply != int64(0) && !has {
		s.wrong("release of %v: %v", p, reply)
	}
	s.holders, s.line = without(s.holders, p), without(s.line, p)
	s.leaves(p)
	s.unheard(in)
}

func (s *simulation) leaves(ps ...*party) {
	for _, p := range ps {
		p.revoked = false
		s.gone = append(without(s.gone, p), p)
	}
	s.gone = s.gone[max(0, len(s.gone)-10):]
}

func without(all []*party, p *party) []*party {
	return slices.DeleteFunc(all, func(q *party) bool { return p == q })
}

// renew renews what some have, and some have not.
func (s *simulation) renew() {
	var parties []*party
	var words []scripts.Words
	for _, p := range slices.Concat(s.holders, s.gone) {
		if s.chance(50) {
			continue
		}
		if p.request.Mode == locker.ModeExclusive {
			s.renewed(p, s.run(s.scripts.Renew, scripts.RenewWords(p.Names.Lock, p.Names.Value, p.TTL)).([]any)[0])
			continue
		}
		parties = append(parties, p)
		words = append(words, p.Names.ExtendWords(p.TTL))
	}
	if len(parties) == 0 {
		return
	}
	s.say("renewal of %v", parties)
	results, _ := s.run(s.scripts.Extend, scripts.Join(words)).([]any)
	for i, p := range parties {
		s.renewed(p, results[i])
	}
}

func (s *simulation) renewed(p *party, result any) {
	s.Helper()
	has, want := slices.Contains(s.holders, p), int64(0)
	switch {
	case has && p.revoked:
		want = -1
	case has:
		want = 1
		p.ends = s.endOf(p)
	}
	if result != want {
		s.wrong("renewal of %v, who has the lock: %v, and is revoked: %v: %v", p, has, p.revoked, result)
	}
}

// revoke takes the lock away from who has it, and is to give it back.
func (s *simulation) revoke() {
	var owners []string
	for _, p := range s.holders {
		if !p.revoked {
			owners = append(owners, p.request.Owner.String())
		}
	}
	s.say("a revocation of %d of %v", len(owners), s.holders)
	want := len(owners)
	if s.blocked && s.client.Get(s.Context(), s.names.Lock).Val() == "somebody" {
		want = -1
	}
	in := s.places()
	s.take(false, want, owners)
	for _, p := range s.holders {
		p.revoked = true
	}
	s.unheard(in)
	if s.receive() > 0 {
		s.wrong("a revocation calls somebody")
	}
}

// breaks frees the lock.
func (s *simulation) breaks() {
	var owners []string
	for _, p := range s.holders {
		owners = append(owners, p.request.Owner.String())
	}
	s.say("%v are broken", s.holders)
	want := len(owners)
	if s.blocked {
		want = 1
	}
	in := s.places()
	s.take(true, want, owners)
	s.unheard(in)
	if want > 0 {
		fence, err := s.client.Get(s.Context(), s.names.Fence).Uint64()
		if s.must(err); fence <= s.token {
			s.wrong("the last token is %d, after %d", fence, s.token)
		}
		s.token = fence
		s.blocked = false
		s.leaves(s.holders...)
		s.holders = nil
	}
	s.receive()
	if want > 0 {
		s.woken(math.MaxInt)
	}
}

// take takes the lock away: from so many, and with a message to these owners.
func (s *simulation) take(breaks bool, from int, owners []string) {
	s.Helper()
	s.born++
	r := inMode(s.T, s.born, locker.ModeExclusive, 0)
	r.Key = s.names.Lock[len(r.Prefix):]
	kind, why := "r", encodeWhy(&locker.Revocation{By: "by", Reason: fmt.Sprint(s.born)})
	if breaks {
		kind = "b"
	}
	s.takes = scripts.NamesOf(r, s.processes[0]).RevokeWords(why, breaks, "")
	s.answer = s.run(s.scripts.Revoke, s.takes)
	if want := fmt.Sprint(from, " "); s.answer != want {
		s.wrong("it was taken away: %q; want %q", s.answer, want)
	}
	messages := s.told()
	if len(owners) == 0 && len(messages) == 0 {
		return
	}
	if len(messages) != 1 {
		s.wrong("those who are told: %q; want %q", messages, owners)
	}
	rest, ok := strings.CutPrefix(messages[0], kind+" "+why+" ")
	told := strings.Split(rest, ",")
	slices.Sort(told)
	slices.Sort(owners)
	if !ok || !slices.Equal(told, owners) {
		s.wrong("those who are told: %q; want %q", messages, owners)
	}
}

// takeLate has a request to take the lock away come again. It must have no effect.
func (s *simulation) takeLate() {
	if s.takes.Keys == 0 {
		return
	}
	s.say("a late request to take it away")
	in := s.places()
	if answer := s.run(s.scripts.Revoke, s.takes); answer != s.answer {
		s.wrong("it returns %q; want %q", answer, s.answer)
	}
	s.unheard(in)
	if told, called := s.told(), s.receive(); len(told) > 0 || called > 0 {
		s.wrong("it tells %q, and calls %d", told, called)
	}
}

// told returns the messages about locks that were taken away.
func (s *simulation) told() (messages []string) {
	s.Helper()
	s.must(s.taken.Ping(s.Context()))
	for {
		message, err := s.taken.Receive(s.Context())
		s.must(err)
		switch message := message.(type) {
		case *redis.Pong:
			return messages
		case *redis.Message:
			if strings.Contains(message.Payload, "by ") { // else that of another test
				messages = append(messages, message.Payload)
			}
		}
	}
}

// inspect compares what is said of the lock with what is known.
func (s *simulation) inspect() {
	info, err := parseInfo(s.names.Lock, s.run(s.scripts.Inspect, s.names.InspectWords(100)))
	if s.must(err); s.blocked {
		return
	}
	want := make(map[string]int) // slots
	for _, p := range s.holders {
		want[p.request.Holder] = p.Slot
	}
	has := make(map[string]int)
	for _, h := range info.Holders {
		has[h.Name] = h.Slot
	}
	if !maps.Equal(has, want) {
		s.wrong("the holders are said to be %v; want %v", info.Holders, want)
	}
	living := 0
	for p := range s.places() {
		if s.living(s.places(), p) {
			living++
		}
	}
	if info.Waiting != living || len(info.Waiters) != living {
		s.wrong("%d wait, and %v do; want %d", info.Waiting, info.Waiters, living)
	}
}

// poll has a process ask for its waiters.
func (s *simulation) poll(process string) {
	before := s.places()
	var members []string
	var line []*party // those who live now
	want := make(map[string]bool)
	for _, p := range s.line {
		_, waits := before[p]
		if p.process == process {
			members = append(members, p.Names.Member)
			want[p.Names.Member] = !waits // has to join again
		}
		if waits && (p.process == process || s.living(before, p)) {
			line = append(line, p)
		}
	}
	if len(members) == 0 {
		return
	}
	for _, p := range s.leading(line) {
		if p.process == process {
			want[p.Names.Member] = true
		}
	}
	maps.DeleteFunc(want, func(_ string, told bool) bool { return !told })
	s.say("a poll for %v", s.named(members))
	reply, _ := s.run(s.scripts.Poll, s.names.PollWords(members)).([]any)
	told := make(map[string]bool)
	for _, member := range reply[1:] {
		told[member.(string)] = true
	}
	if !maps.Equal(told, want) {
		s.wrong("told to ask: %v; want %v", s.named(slices.Collect(maps.Keys(told))),
			s.named(slices.Collect(maps.Keys(want))))
	}
	for _, p := range s.line {
		p.called = p.called || told[p.Names.Member]
	}
	if len(line) > 0 && s.room(line[0]) == 0 {
		left := reply[0].(int64)
		if slots := locker.ModeSlots; !s.blocked && line[0].request.Mode == slots &&
			s.holders[0].request.Mode == slots {
			if left != s.nextEnd() {
				s.wrong("to ask again in %d ms; want %d", left, s.nextEnd())
			}
		} else if left >= 0 && left < time.Minute.Milliseconds() {
			s.wrong("to ask again in %d ms", left)
		}
	}
	s.unheard(before, s.named(members)...)
	if called := s.receive(); called > 0 && (want[line[0].Names.Member] || s.looksCalled(before, line[0])) {
		s.wrong("%d are called, and %v knows already", called, line[0])
	}
	s.woken(1)
}

func (s *simulation) named(members []string) (ps []*party) {
	for _, p := range s.line {
		if slices.Contains(members, p.Names.Member) {
			ps = append(ps, p)
		}
	}
	return ps
}

// timePasses sets the clock, ahead mostly. Most of the waiters live on. Leases end.
func (s *simulation) timePasses() {
	by := []time.Duration{
		time.Microsecond, 900 * time.Millisecond, 2500 * time.Millisecond, time.Minute, 9 * time.Minute, -time.Minute,
	}[s.random.IntN(6)]
	if len(s.holders) > 0 && s.chance(50) {
		by = time.Duration(s.firstEnd()-s.now) * time.Microsecond
	}
	if by < 0 && s.client.ZCount(s.Context(), s.names.Holders, "-inf", fmt.Sprint(s.now/perMS)).Val() > 0 {
		return // a lease that is over would not be
	}
	s.say("%v pass", by)
	s.set(s.now + by.Microseconds())
	for _, p := range s.line {
		if s.chance(75) {
			s.heard(p, scripts.Liveness)
		}
	}
	var over []*party
	for _, p := range s.holders {
		if p.ends <= s.now {
			over = append(over, p)
		}
	}
	for _, p := range over {
		s.holders = without(s.holders, p)
		s.leaves(p)
	}
	if len(over) > 0 && len(s.holders) == 0 { // its key has expired
		s.must(s.client.Del(s.Context(), s.names.Lock, s.names.Holders, s.names.Slots).Err())
	}
	if p := s.oneOf(over...); p != nil && s.chance(50) { // its answer was lost, and it knows nothing of its lease
		s.gone = without(s.gone, p)
		s.ask(p, true)
	}
}

// heard has a waiter be alive for so long from now, if it is in line.
func (s *simulation) heard(p *party, till time.Duration) {
	alive := redis.Z{Score: float64((s.now + till.Microseconds()) / perMS), Member: p.Names.Member}
	s.must(s.client.ZAddXX(s.Context(), s.names.Alive, alive).Err())
}

// disturb has somebody else, or the server, interfere.
func (s *simulation) disturb() {
	ctx := s.Context()
	n := s.random.IntN(4)
	switch {
	case n == 0:
		s.say("the line is deleted")
		s.must(s.client.Del(ctx, s.names.Queue, s.names.Alive).Err())
		return
	case s.blocked || n == 1:
		s.say("the lock is deleted")
		s.must(s.client.Del(ctx, s.names.Lock).Err())
		s.blocked = false
	case n == 2 && len(s.holders) > 0 && s.holders[0].request.Mode != locker.ModeExclusive:
		s.say("the holders are deleted")
		s.must(s.client.Del(ctx, s.names.Holders).Err())
		s.blocked = true
	default:
		s.say("the lock is overwritten")
		s.must(s.client.Set(ctx, s.names.Lock, "somebody", time.Hour).Err())
		s.blocked = true
	}
	s.leaves(s.holders...)
	s.holders = nil
}

// finish has all who wait get the lock, by being called alone, and checks that nothing is left.
func (s *simulation) finish() {
	s.Helper()
	s.say("the end")
	if s.blocked {
		s.blocked = false
		s.must(s.client.Del(s.Context(), s.names.Lock).Err())
	}
	for range 2 { // who has lost its place joins the line again
		for _, process := range s.processes {
			s.poll(process)
		}
		for in := s.places(); ; in = s.places() {
			i := slices.IndexFunc(s.line, func(p *party) bool { _, ok := in[p]; return !ok })
			if i < 0 {
				break
			}
			s.ask(s.line[i], true)
		}
	}
	for len(s.line)+len(s.holders) > 0 {
		called := slices.DeleteFunc(slices.Clone(s.line), func(p *party) bool { return !p.called })
		switch {
		case len(called) > 0:
			s.ask(s.oneOf(called...), true)
		case len(s.holders) > 0:
			s.release(s.oneOf(s.holders...))
		default:
			s.wrong("nobody has the lock, and nobody is called; the line is %v", s.line)
		}
	}
	last := s.newcomer() // drops those whose lock was deleted
	last.request.Mode, last.request.Slots = locker.ModeShared, 0
	last.Names = scripts.NamesOf(last.request, last.process)
	s.ask(last, false)
	s.release(last)
	nothingIsLeft(s.T, testBackend(s.T), last.request)
}
