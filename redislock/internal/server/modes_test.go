package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// inMode returns a request of an owner, for what several may have. How many slots there are counts in that mode alone.
func inMode(t *testing.T, owner int, mode locker.Mode, slots int) locker.Request {
	r := newRequest(t, byte(owner))
	r.Owner[2], r.Owner[3] = byte(owner>>8), byte(mode)
	if r.Mode = mode; mode == locker.ModeSlots {
		r.Slots = slots
	}
	return r
}

// mustJoin has an owner join the line of a key, and returns why it did not get the lock.
func mustJoin(t *testing.T, b *Server, r locker.Request) (*Attempt, *Refusal) {
	t.Helper()
	a := &Attempt{Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL, Join: true}
	refused, err := b.Try(t.Context(), a)
	if err != nil || refused == nil {
		t.Fatalf("a key that is held, in mode %d: %v, %v; want a refusal", r.Mode, refused, err)
	}
	return a, refused
}

// mustLeave has an owner leave the line.
func mustLeave(t *testing.T, b *Server, a *Attempt) {
	t.Helper()
	if err := b.leave(t.Context(), a.Names, false); !errors.Is(err, locker.ErrLost) {
		t.Errorf("who leaves the line: %v; want ErrLost", err)
	}
}

func mustAcquire(t *testing.T, b locker.Backend, r locker.Request) locker.Grant {
	t.Helper()
	g, err := b.Acquire(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// mustRelease releases grants. A server that is near is not waited for long: on a busy machine it is asked again.
func mustRelease(t *testing.T, b locker.Backend, gs ...locker.Grant) {
	t.Helper()
	for _, g := range gs {
		err := b.Release(t.Context(), g)
		for try := 0; try < 5 && conn.IsSilence(err); try++ {
			if err = b.Release(t.Context(), g); errors.Is(err, locker.ErrLost) {
				err = nil // it was released before
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// nothingIsLeft checks that nothing is kept of a key that is free but its token.
func nothingIsLeft(t *testing.T, b *Server, r locker.Request) {
	t.Helper()
	n := scripts.NamesOf(r, b.Line.Process)
	for _, name := range []string{n.Lock, n.Holders, n.Slots, n.Queue, n.Alive} {
		if b.Client.Exists(t.Context(), name).Val() != 0 {
			t.Errorf("%q is left", name)
		}
	}
}

// TestAsksAgainBesideOthers: an owner whose answer was lost counts once, also when others have come since.
func TestAsksAgainBesideOthers(t *testing.T) {
	b := testBackend(t)
	for _, mode := range []locker.Mode{locker.ModeShared, locker.ModeSlots} {
		r := inMode(t, 1, mode, 3)
		first := mustAcquire(t, b, r)
		other := mustAcquire(t, b, inMode(t, 2, mode, 3))
		again := mustAcquire(t, b, r)
		same := again.Slot == other.Slot && mode == locker.ModeSlots
		if again.Slot != first.Slot || same || again.Token <= other.Token {
			t.Errorf("slot %d, token %d; then slot %d, token %d, after token %d", first.Slot, first.Token, again.Slot,
				again.Token, other.Token)
		}
		if n := b.Client.ZCard(t.Context(), scripts.NamesOf(r, b.Line.Process).Holders).Val(); n != 2 {
			t.Errorf("%d holders; want 2", n)
		}
		mustRelease(t, b, again)
		if err := b.Release(t.Context(), first); !errors.Is(err, locker.ErrLost) {
			t.Errorf("released twice: %v; want ErrLost", err)
		}
		mustRelease(t, b, other)
		nothingIsLeft(t, b, r)
	}
}

// TestLateRequestBesideOthers has the clean-up of an acquire arrive before the acquire itself, which finds the key
// free, or room beside others.
func TestLateRequestBesideOthers(t *testing.T) {
	b := testBackend(t)
	for _, mode := range []locker.Mode{locker.ModeShared, locker.ModeSlots} {
		for i, test := range []struct{ held, join bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
			r, other := inMode(t, i, mode, 3), locker.Grant{}
			if test.held {
				other = mustAcquire(t, b, inMode(t, 9, mode, 3))
			}
			if err := b.Release(t.Context(), locker.Grant{Request: r}); !errors.Is(err, locker.ErrLost) {
				t.Errorf("clean-up of what is not there: %v; want ErrLost", err)
			}
			a := Attempt{Names: scripts.NamesOf(r, b.Line.Process), TTL: r.TTL, Join: test.join}
			if refused, err := b.Try(t.Context(), &a); !errors.Is(err, conn.ErrGivenUp) {
				t.Errorf("mode %d, %+v: a request that comes after its clean-up: %v, %v; want %v", mode, test, refused, err,
					conn.ErrGivenUp)
			}
			if test.held {
				mustRelease(t, b, other)
			}
			nothingIsLeft(t, b, r)
		}
	}
}

// TestEachHolderHasItsOwnExpiry: the lock ends with the last of them, and a lease that is over is lost, whoever else
// has the lock.
func TestEachHolderHasItsOwnExpiry(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	for _, mode := range []locker.Mode{locker.ModeShared, locker.ModeSlots} {
		long, short := inMode(t, 1, mode, 2), inMode(t, 2, mode, 2)
		long.TTL = time.Minute
		n := scripts.NamesOf(long, b.Line.Process)
		grants := []locker.Grant{mustAcquire(t, b, long), mustAcquire(t, b, short)}
		ends := func(what string, least, most time.Duration) {
			t.Helper()
			for _, name := range []string{n.Lock, n.Holders, n.Slots} {
				if name == n.Slots && mode == locker.ModeShared {
					continue
				}
				if left := b.Client.PTTL(ctx, name).Val(); left < least || left > most {
					t.Errorf("%s: %q expires in %v; want %v to %v", what, name, left, least, most)
				}
			}
		}
		ends("a long lease and a short one", 50*time.Second, time.Minute+time.Millisecond)
		for i, err := range renewAll(t, b, grants...) {
			if err != nil {
				t.Errorf("renewal of %d: %v", i, err)
			}
		}
		ends("after a renewal of both", 50*time.Second, time.Minute+time.Millisecond)
		mustRelease(t, b, grants[0])
		ends("without the long one", 1, short.TTL+time.Millisecond)

		third := inMode(t, 3, mode, 2)
		third.TTL = time.Minute
		grants[0] = mustAcquire(t, b, third)
		// The short one runs out: as in time, but at once.
		b.Client.ZAdd(ctx, n.Holders, redis.Z{Score: 1, Member: scripts.ValueOf(short.Owner.String(), "")})
		errs := renewAll(t, b, grants...)
		if errs[0] != nil || !errors.Is(errs[1], locker.ErrLost) {
			t.Errorf("renewals of one that has time left, and one that is over: %v; want nil and ErrLost", errs)
		}
		if err := b.Release(ctx, grants[1]); !errors.Is(err, locker.ErrLost) {
			t.Errorf("release of a lease that is over: %v; want ErrLost", err)
		}
		if err := renewAll(t, b, grants[0])[0]; err != nil {
			t.Errorf("the other one: %v", err)
		}
		mustRelease(t, b, grants[0])
		nothingIsLeft(t, b, long)
	}
}

// TestNotOurMarker: what has no holders is no lock that one can share, and what was overwritten is lost.
func TestNotOurMarker(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	r := inMode(t, 1, locker.ModeShared, 0)
	n := scripts.NamesOf(r, b.Line.Process)
	for marker, like := range map[string]locker.Request{
		"locker:shared": r, "locker:slots": inMode(t, 1, locker.ModeSlots, 2),
	} {
		b.Client.Set(ctx, n.Lock, marker, time.Minute)
		if _, err := b.Acquire(ctx, like); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("beside %q, without holders: %v; want ErrLocked", marker, err)
		}
		b.Client.Del(ctx, n.Lock)
	}

	for what, spoil := range map[string]func(){
		"deleted":                func() { b.Client.Del(ctx, n.Lock) },
		"set by somebody else":   func() { b.Client.Set(ctx, n.Lock, "somebody", time.Minute) },
		"of another type":        func() { b.Client.Del(ctx, n.Lock); b.Client.HSet(ctx, n.Lock, "a", "b") },
		"without its holders":    func() { b.Client.Del(ctx, n.Holders) },
		"with holders of a type": func() { b.Client.Set(ctx, n.Holders, "x", time.Minute) },
	} {
		alone, other := mustAcquire(t, b, r), newRequest(t, 9)
		other.Key += " other"
		kept := mustAcquire(t, b, other)
		spoil()
		if errs := renewAll(t, b, alone, kept); !errors.Is(errs[0], locker.ErrLost) || errs[1] != nil {
			t.Errorf("%s: renewals %v; want ErrLost, and of another lock nil", what, errs)
		}
		if err := b.Release(ctx, alone); err == nil {
			t.Errorf("%s: released; want an error", what)
		}
		mustRelease(t, b, kept)
		b.Client.Del(ctx, n.Lock, n.Holders)
	}

	// Who comes after a lock was deleted is not beside those who had it.
	before := mustAcquire(t, b, r)
	b.Client.Del(ctx, n.Lock)
	after := mustAcquire(t, b, inMode(t, 2, locker.ModeShared, 0))
	if err := renewAll(t, b, before)[0]; !errors.Is(err, locker.ErrLost) {
		t.Errorf("a reader from before a lock was deleted: %v; want ErrLost", err)
	}
	mustRelease(t, b, after)
	nothingIsLeft(t, b, r)
}

// TestNumbersAreGone: who has a slot whose number was forgotten, as a server does that evicts keys, is told so at the
// next renewal. Until then somebody else may have the same number, but not for longer.
func TestNumbersAreGone(t *testing.T) {
	b := testBackend(t)
	first, second := inMode(t, 1, locker.ModeSlots, 3), inMode(t, 2, locker.ModeSlots, 3)
	before := mustAcquire(t, b, first)
	b.Client.Del(t.Context(), scripts.NamesOf(first, b.Line.Process).Slots)
	after := mustAcquire(t, b, second)
	if errs := renewAll(t, b, before, after); !errors.Is(errs[0], locker.ErrLost) || errs[1] != nil {
		t.Errorf("renewals of a slot whose number is gone, and of one that was granted since: %v; want ErrLost and nil", errs)
	}
	mustRelease(t, b, before, after)
	nothingIsLeft(t, b, first)
}

// TestLowestSlot: whoever comes and goes, a slot has the lowest number that is free.
func TestLowestSlot(t *testing.T) {
	b := testBackend(t)
	const n = 60
	var free []int
	for i := range n {
		free = append(free, i)
	}
	var held []locker.Grant
	seed := time.Now().UnixNano()
	random := rand.New(rand.NewPCG(uint64(seed), 1)) //nolint:gosec // a test
	for i := range 1000 {
		if len(free) > 0 && (len(held) == 0 || random.IntN(100) < 55) {
			g := mustAcquire(t, b, inMode(t, i, locker.ModeSlots, n))
			if g.Slot != free[0] {
				t.Fatalf("seed %d, step %d: slot %d; want %d", seed, i, g.Slot, free[0])
			}
			free = free[1:]
			held = append(held, g)
			continue
		}
		if len(free) == 0 {
			if _, err := b.Acquire(t.Context(), inMode(t, i, locker.ModeSlots, n)); !errors.Is(err, locker.ErrLocked) {
				t.Fatalf("seed %d, step %d: all slots are held: %v; want ErrLocked", seed, i, err)
			}
		}
		j := random.IntN(len(held))
		mustRelease(t, b, held[j])
		at, _ := slices.BinarySearch(free, held[j].Slot)
		free = slices.Insert(free, at, held[j].Slot)
		held = slices.Delete(held, j, j+1)
	}
	mustRelease(t, b, held...)
	nothingIsLeft(t, b, inMode(t, 0, locker.ModeSlots, n))
}

// TestSlotsOfTheDead: more leases have run out than one script removes of what is not needed at once.
func TestSlotsOfTheDead(t *testing.T) {
	const dead = 1300
	b, ctx := testBackend(t), t.Context()
	r := inMode(t, 0, locker.ModeSlots, locker.MaxSlots)
	n := scripts.NamesOf(r, b.Line.Process)
	lives := mustAcquire(t, b, r)
	for from := 1; from < dead; from += 100 {
		var over, slots []redis.Z
		for i := from; i < from+100; i++ {
			over = append(over, redis.Z{Score: float64(i), Member: "dead" + strconv.Itoa(i)})
			slots = append(slots, redis.Z{Score: float64(i), Member: "dead" + strconv.Itoa(i)})
		}
		b.Client.ZAdd(ctx, n.Holders, over...)
		b.Client.ZAdd(ctx, n.Slots, slots...)
	}
	next := mustAcquire(t, b, inMode(t, 1, locker.ModeSlots, 2))
	if next.Slot != 1 {
		t.Errorf("slot %d; want 1", next.Slot)
	}
	if left := b.Client.ZCard(ctx, n.Slots).Val(); left != 2 {
		t.Errorf("%d slots are taken; want 2", left)
	}
	mustRelease(t, b, lives, next)
	nothingIsLeft(t, b, r)
}

// TestReadersOfTheDead: who gets in beside readers whose leases have run out removes some of them. More would keep the
// server from serving others.
func TestReadersOfTheDead(t *testing.T) {
	const dead = scripts.DropTogether + 200
	b, ctx := testBackend(t), t.Context()
	r := inMode(t, 0, locker.ModeShared, 0)
	n := scripts.NamesOf(r, b.Line.Process)
	lives := mustAcquire(t, b, r)
	over := make([]redis.Z, dead)
	for i := range over {
		over[i] = redis.Z{Score: float64(i + 1), Member: "dead" + strconv.Itoa(i)}
	}
	b.Client.ZAdd(ctx, n.Holders, over...)
	next := mustAcquire(t, b, inMode(t, 1, locker.ModeShared, 0))
	if left, want := b.Client.ZCard(ctx, n.Holders).Val(), int64(2+dead-scripts.DropTogether); left != want {
		t.Errorf("%d holders are left; want %d", left, want)
	}
	mustRelease(t, b, lives, next)
	b.Client.Del(ctx, n.Lock, n.Holders)
}

// TestHolderOfSeveral: who is refused is told the name of one of the holders, and when it is worth asking again.
func TestHolderOfSeveral(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	for mode, rivals := range map[locker.Mode][]locker.Mode{
		locker.ModeShared: {locker.ModeExclusive, locker.ModeSlots},
		locker.ModeSlots:  {locker.ModeExclusive, locker.ModeShared, locker.ModeSlots},
	} {
		var grants []locker.Grant
		for i := range 2 {
			r := inMode(t, i, mode, 2)
			r.Holder, r.TTL = fmt.Sprint("holder ", i), time.Duration(i+1)*20*time.Second
			grants = append(grants, mustAcquire(t, b, r))
		}
		for _, rival := range rivals {
			_, err := b.Acquire(ctx, inMode(t, 9, rival, 2))
			var held *locker.Held
			if !errors.As(err, &held) || held.Holder != "holder 0" {
				t.Errorf("mode %d is refused by mode %d: %v; want the name of the holder", rival, mode, err)
				continue
			}
			least, most := 35*time.Second, 41*time.Second // when the last has ended
			if rival == mode {
				least, most = 15*time.Second, 21*time.Second // when the first has
			}
			if held.Remaining < least || held.Remaining > most {
				t.Errorf("mode %d is refused by mode %d for %v; want %v to %v", rival, mode, held.Remaining, least, most)
			}
		}
		mustRelease(t, b, grants...)
	}
}

// TestWaitsForTheLiving: a lease that is over, of which there is still a record, is none that ends soon. Else those who
// wait for more than its slot would ask again all the time.
func TestWaitsForTheLiving(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	dead, lives := inMode(t, 1, locker.ModeSlots, 3), inMode(t, 2, locker.ModeSlots, 3)
	dead.Holder, lives.Holder = "dead", "lives"
	n := scripts.NamesOf(dead, b.Line.Process)
	mustAcquire(t, b, dead)
	grant := mustAcquire(t, b, lives)
	b.Client.ZAdd(ctx, n.Holders, redis.Z{Score: 1, Member: n.Value})
	for _, waits := range []locker.Request{
		inMode(t, 3, locker.ModeShared, 0), inMode(t, 4, locker.ModeSlots, 1), inMode(t, 5, locker.ModeExclusive, 0),
	} {
		a, refused := mustJoin(t, b, waits)
		if scripts.HolderIn(refused.Value) != "lives" || refused.Remaining < lives.TTL/2 {
			t.Errorf("mode %d is refused by %q for %v", waits.Mode, refused.Value, refused.Remaining)
		}
		reply, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Poll, a.Names.PollWords([]string{a.Names.Member}))
		if all, ok := reply.([]any); err != nil || !ok || len(all) != 1 || all[0].(int64) < lives.TTL.Milliseconds()/2 {
			t.Errorf("mode %d is to ask again: %v, %v; want it to be when the living holder's lease ends", waits.Mode,
				reply, err)
		}
		mustLeave(t, b, a)
	}
	mustRelease(t, b, grant)
	nothingIsLeft(t, b, lives)
}

// TestPollKeepsTheLine: as long as somebody asks whether it is the turn of who waits, the line is there.
func TestPollKeepsTheLine(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	g := mustAcquire(t, b, newRequest(t, 1))
	waits, _ := mustJoin(t, b, newRequest(t, 2))
	sets := []string{waits.Names.Queue, waits.Names.Alive}
	for _, set := range sets {
		b.Client.Persist(ctx, set)
	}
	words := waits.Names.PollWords([]string{waits.Names.Member})
	if _, err := b.Client.Run(ctx, time.Time{}, b.Scripts.Poll, words); err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		if left := b.Client.PTTL(ctx, set).Val(); left <= 0 || left > scripts.Liveness {
			t.Errorf("%s is kept for %v; want %v", set, left, scripts.Liveness)
		}
	}
	mustLeave(t, b, waits)
	mustRelease(t, b, g)
}

// TestListTellsOfSome: of a long line, List tells of the first ones, and how many there are.
func TestListTellsOfSome(t *testing.T) {
	b, ctx := testBackend(t), t.Context()
	r := newRequest(t, 1)
	n := scripts.NamesOf(r, b.Line.Process)
	g := mustAcquire(t, b, r)
	alive := time.Now().Add(time.Minute).UnixMilli()
	for i := range listedMost + 1 {
		owner := locker.Owner{1, byte(i)}
		member := b.Line.Process + ":" + owner.String()
		b.Client.ZAdd(ctx, n.Queue, redis.Z{Score: float64(i + 1), Member: member})
		b.Client.ZAdd(ctx, n.Alive, redis.Z{Score: float64(alive), Member: member})
	}
	found := 0
	for info, err := range b.List(ctx, r.Name()) {
		if err != nil {
			t.Fatal(err)
		}
		found++
		if info.Waiting != listedMost+1 || len(info.Waiters) != listedMost {
			t.Errorf("%d wait, and %d are told of; want %d and %d",
				info.Waiting, len(info.Waiters), listedMost+1, listedMost)
		}
	}
	if found != 1 {
		t.Errorf("%d locks; want 1", found)
	}
	b.Client.Del(ctx, n.Queue, n.Alive)
	mustRelease(t, b, g)
}
