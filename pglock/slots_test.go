package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// modes are the ways to lock a key. No two of them go together.
var modes = map[string]locker.CallOption{
	"alone": locker.Slots(1), "to read": locker.Shared(), "a slot": locker.Slots(3),
}

// isRefused checks that a key cannot be had now.
func isRefused(t *testing.T, l locker.Locker, key, why string, opts ...locker.CallOption) {
	t.Helper()
	if lease, err := l.TryLock(t.Context(), key, opts...); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("%s: %v, %v; want ErrLocked", why, lease, err)
	}
}

// TestModesExclude has each mode keep out the others, from one Locker and from two, on the session that has the lock
// and on others, as well as those who know nothing of Lockers.
func TestModesExclude(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := open(t, url), open(t, url)
	tx, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for has, held := range modes {
		lease := mustTry(t, l, key, held)
		for wants, mode := range modes {
			if wants == has && has != "alone" {
				mustUnlock(t, mustTry(t, other, key, mode))
				mustUnlock(t, mustTry(t, l, key, mode, locker.TTL(time.Minute))) // on another session
				continue
			}
			isRefused(t, other, key, wants+", of what another Locker has "+has, mode)
			isRefused(t, l, key, wants+", of what the Locker has "+has, mode)
			isRefused(t, l, key, wants+", of what another session has "+has, mode, locker.TTL(time.Minute))
		}
		if admin.isFree(key) {
			t.Errorf("a Locker has it %s, and pg_try_advisory_lock gets it", has)
		}
		if _, err := pglock.TryLockTx(t.Context(), tx, key); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLockTx of what a Locker has %s: %v; want ErrLocked", has, err)
		}
		mustUnlock(t, lease)
		if n := admin.locksOf(key); n != 0 {
			t.Errorf("it was had %s, and %d locks are left", has, n)
		}
	}
	mustLockTx(t, tx, key)
	for wants, mode := range modes {
		isRefused(t, l, key, wants+", of what a transaction has", mode)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNobodyIsRefusedByAnAttempt has many try the same key at the same time, who go together. None of them is taken for
// somebody who does not.
func TestNobodyIsRefusedByAnAttempt(t *testing.T) {
	t.Parallel()
	const lockers, times = 4, 100
	url := pgtest.URL(t)
	for name, mode := range map[string]locker.CallOption{
		"readers": locker.Shared(), "slots": locker.Slots(2 * lockers),
	} {
		key := unique("key")
		var wg sync.WaitGroup
		for range lockers {
			l := open(t, url)
			wg.Go(func() {
				for range times {
					first, err := l.TryLock(t.Context(), key, mode)
					second, err2 := l.TryLock(t.Context(), key, mode) // beside it
					if err := errors.Join(err, err2); err != nil {
						t.Errorf("%s: %v; want a lease", name, err)
						return
					}
					mustUnlock(t, first)
					mustUnlock(t, second)
				}
			})
		}
		wg.Wait()
	}
}

// TestGate: who tries passes a gate, and waits while somebody else is in it; who comes to others on a session does so
// when he asks whether anybody waits, and for a slot once more.
func TestGate(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin, look := connect(t, url), connect(t, url)
	for name, tc := range map[string]struct {
		mode  locker.CallOption
		again int // how often he who comes to others waits, if not just once
	}{"readers": {locker.Shared(), 0}, "slots": {locker.Slots(2), 1}} {
		key := unique("key")
		l := open(t, url, locker.TTL(time.Minute))
		gate := pglock.Key(key)
		scan(admin, &gate, ofName+"SELECT key FROM word WHERE what = 2", gate)
		isWaitedFor := func() bool {
			return look.is(ofName+"SELECT count(*) = 1 FROM ours WHERE what = 2 AND NOT granted", pglock.Key(key))
		}
		var leases []*locker.Lease
		for i := range 2 {
			admin.do("SELECT pg_advisory_lock($1)", gate)
			lease := locktest.Started(func() *locker.Lease { return mustTry(t, l, key, tc.mode) })
			eventually(t, name+" wait for the gate", isWaitedFor)
			for range i * tc.again {
				admin.do("SELECT pg_advisory_unlock($1), pg_advisory_lock($1)", gate) // behind who waits for it
				eventually(t, name+" wait for it again", isWaitedFor)
			}
			admin.do("SELECT pg_advisory_unlock($1)", gate)
			leases = append(leases, lease.Get(t))
		}
		for _, lease := range leases {
			mustUnlock(t, lease)
		}
	}
}

// TestManyAtOnce has several Lockers ask for the same keys at the same time, each for many in one message, in any
// order. They do not wait for each other in a circle.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	const lockers, keys, rounds = 3, 40, 15
	url, name := pgtest.URL(t), unique("key")
	var wg sync.WaitGroup
	for range lockers {
		l := open(t, url, locker.TTL(time.Minute))
		mustUnlock(t, mustTry(t, l, unique("key"))) // its session is there
		wg.Go(func() {
			for range rounds {
				var burst sync.WaitGroup
				for _, i := range rand.Perm(keys) {
					burst.Go(func() {
						mode := [...]locker.CallOption{locker.Shared(), locker.Slots(lockers)}[i%2]
						mustUnlock(t, mustTry(t, l, fmt.Sprint(name, i), mode))
					})
				}
				burst.Wait()
			}
		})
	}
	wg.Wait()
}

// TestManySlots has one Locker hold all slots of a key, on one session. Each number is given once, also when some are
// given back.
func TestManySlots(t *testing.T) {
	t.Parallel()
	const n = 200
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := open(t, url), open(t, url)
	const elsewhere = 50
	held := make(map[int]*locker.Lease)
	take := func(l locker.Locker) {
		t.Helper()
		lease := mustTry(t, l, key, locker.Slots(n))
		if held[lease.Slot()] != nil || lease.Slot() >= n {
			t.Fatalf("slot %d is given twice, or is none", lease.Slot())
		}
		held[lease.Slot()] = lease
	}
	for i := range n {
		if i == elsewhere {
			take(other)
		} else {
			take(l)
		}
	}
	isRefused(t, l, key, "all are held", locker.Slots(n))
	isRefused(t, other, key, "all are held", locker.Slots(n))
	for _, i := range []int{0, 1, 77, elsewhere, 78, 199} {
		mustUnlock(t, held[i])
		delete(held, i)
	}
	for range 5 {
		take(l)
	}
	take(other)
	if held := admin.holders(key); held != 2 {
		t.Errorf("%d sessions have the key; want 2", held)
	}
	for _, lease := range held {
		if admin.isFree(key) {
			t.Fatal("there are holders, and the key is free")
		}
		mustUnlock(t, lease)
	}
	if n := admin.locksOf(key); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestFewerSlots: who asks for fewer slots than others gets one of the first, or waits for it.
func TestFewerSlots(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := open(t, url), open(t, url)
	var leases []*locker.Lease
	for range 3 {
		leases = append(leases, mustTry(t, l, key, locker.Slots(3)))
	}
	isRefused(t, l, key, "the first two are held", locker.Slots(2))
	next := waits(t, other, key, locker.Slots(2))
	eventually(t, "one waits", func() bool { return admin.waitingFor(key) == 1 })
	mustUnlock(t, leases[2])
	isRefused(t, l, key, "somebody waits", locker.Slots(3))
	mustUnlock(t, leases[1])
	lease := next.Get(t)
	if lease.Slot() != 1 {
		t.Errorf("slot %d; want 1, which is free", lease.Slot())
	}
	mustUnlock(t, leases[0])
	isRefused(t, l, key, "somebody has it", locker.Slots(1))
	mustUnlock(t, lease)
}

// TestFewerSlotsNext: who waits for one of three slots leaves. The next of the Locker does not get the third, which
// gets free, as he has asked for one of two.
func TestFewerSlotsNext(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), open(t, url)
	var leases []*locker.Lease
	for range 3 {
		leases = append(leases, mustTry(t, other, key, locker.Slots(3)))
	}
	leave := cancelled(t, l, key, locker.Slots(3))
	eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
	next := inLineOf(t, l, 1, key, locker.Slots(2))[0]
	leave()
	mustUnlock(t, leases[2])
	time.Sleep(100 * time.Millisecond) // in which he would get it
	mustUnlock(t, leases[1])
	if lease := next.Get(t); lease.Slot() != 1 {
		t.Errorf("slot %d; want 1", lease.Slot())
	} else {
		mustUnlock(t, lease)
	}
	mustUnlock(t, leases[0])
}

// TestLineOfAllModes has those who want a key in different modes wait for it, over several Lockers. They get it in
// order of arrival, whoever holds it at first, and nobody gets past them.
func TestLineOfAllModes(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	first := open(t, url)
	slot := locker.Slots(2)
	line := []locker.CallOption{
		slot, locker.Shared(), slot, slot, slot, locker.Slots(1), locker.Shared(), locker.Shared(),
	}
	groups := []int{1, 1, 2, 1, 1, 2} // who get in together
	lockers := make([]locker.Locker, len(line))
	for i := range lockers {
		lockers[i] = open(t, url)
	}
	for has, held := range map[string]locker.CallOption{"to read": locker.Shared(), "all slots": slot} {
		key := unique("key")
		leases := []*locker.Lease{mustTry(t, first, key, held)}
		if has == "all slots" {
			leases = append(leases, mustTry(t, first, key, held))
		}
		var waiting []locktest.Pending[*locker.Lease]
		for i, mode := range line {
			waiting = append(waiting, waits(t, lockers[i], key, mode))
			eventually(t, "one more waits", func() bool { return admin.waitingFor(key) == i+1 })
		}
		for _, n := range groups {
			for name, mode := range modes {
				isRefused(t, first, key, name+", while others wait, and one has it "+has, mode)
			}
			for _, lease := range leases {
				mustUnlock(t, lease)
			}
			leases = nil
			for range n {
				leases = append(leases, waiting[0].Get(t))
				waiting = waiting[1:]
			}
			for i, w := range waiting {
				select {
				case <-w.Done:
					t.Errorf("number %d of those who still wait has it", i)
				default:
				}
			}
		}
		for _, lease := range leases {
			mustUnlock(t, lease)
		}
		if n := admin.locksOf(key); n != 0 {
			t.Errorf("%d locks are left", n)
		}
	}
}

// TestSlotsTakeTurns: those of a Locker that has slots wait behind others who wait, though some are free, and those who
// wait here get in together when nobody else does.
func TestSlotsTakeTurns(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	for name, mode := range modes {
		slot := locker.Slots(4)
		if name == "a slot" {
			mode = locker.Slots(2) // they wait for one of those that are held
		}
		held := []*locker.Lease{mustTry(t, l, key, slot), mustTry(t, l, key, slot)}
		next := waits(t, other, key, mode)
		eventually(t, "another waits", func() bool { return admin.waitingFor(key) == 1 })
		isRefused(t, l, key, "by who has a slot while another waits "+name, slot)
		late := inLineOf(t, l, 3, key, slot)
		eventually(t, "they wait", func() bool { return admin.waitingFor(key) == 2 })
		for _, lease := range held {
			mustUnlock(t, lease)
		}
		mustUnlock(t, next.Get(t))
		var leases []*locker.Lease
		for _, w := range late {
			leases = append(leases, w.Get(t))
		}
		for _, lease := range leases {
			mustUnlock(t, lease)
		}
	}
	if n := pglock.WaitSessions(l.backend); n > 2 {
		t.Errorf("%d sessions to wait on; want 2 at most", n)
	}
}

// TestSlotsWithoutSessions: a Locker that has no session to wait on polls, for slots, too.
func TestSlotsWithoutSessions(t *testing.T) {
	t.Parallel()
	url, key, busy := pgtest.URL(t), unique("key"), unique("busy")
	l, other := openWatched(t, pglock.Config{WaitSessions: 1}, url), openWatched(t, pglock.Config{}, url)
	kept := mustTry(t, other, busy)
	occupied := inLineOf(t, l, 1, busy)[0] // the one session
	held := []*locker.Lease{mustTry(t, other, key, locker.Slots(2)), mustTry(t, other, key, locker.Slots(2))}
	line := inLineOf(t, l, 3, key, locker.Slots(2))
	eventually(t, "it polls", func() bool { return pglock.Marked(l.backend) == 1 })
	for i, w := range line {
		mustUnlock(t, held[i]) // those of the same Locker, too
		lease := w.Get(t)
		if lease.Slot() != held[i].Slot() {
			t.Errorf("slot %d; want %d, which is free", lease.Slot(), held[i].Slot())
		}
		held = append(held, lease)
	}
	mustUnlock(t, held[len(held)-1])
	mustUnlock(t, held[len(held)-2])
	mustUnlock(t, kept)
	mustUnlock(t, occupied.Get(t))
}

// TestLeavesNoLock has waits cancelled that have come to each of the things that one waits for.
func TestLeavesNoLock(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	for has, held := range map[string][]locker.CallOption{
		"alone": {locker.Slots(1)}, "to read": {locker.Shared()}, "slots": {locker.Slots(2), locker.Slots(2)},
	} {
		var leases []*locker.Lease
		for _, mode := range held {
			leases = append(leases, mustTry(t, other, key, mode))
		}
		before := admin.locksOf(key)
		for wants, mode := range map[string]locker.CallOption{
			"alone": locker.Slots(1), "to read": locker.Shared(), "slots": locker.Slots(2),
		} {
			if has == wants && has == "to read" {
				continue
			}
			leave := cancelled(t, l, key, mode)
			eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
			leave()
			eventually(t, fmt.Sprintf("what waited for %s while it was had %s has gone", wants, has),
				func() bool { return admin.locksOf(key) == before })
			mustUnlock(t, mustTry(t, other, key+"/"+has+wants, mode))
		}
		for _, lease := range leases {
			mustUnlock(t, lease)
		}
	}
	eventually(t, "nothing is under way", func() bool { return pglock.Left(l.backend) == "" })
}

// TestNoWarnings: those who wait for slots and for readers take their places anew, are cancelled, and are granted
// them, with PL/pgSQL and without. Nobody gives back what he does not have, which the server would warn of.
func TestNoWarnings(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]string{"as it is": "SELECT 1", "no PL/pgSQL": "DROP EXTENSION plpgsql"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.New(t, pgtest.Options{})
			admin := connect(t, server.URL())
			admin.do(pglock.SchemaSQL(pglock.DefaultNamespace)) // that it is missing would be an error
			admin.do(prepare)
			l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
			other := open(t, server.URL())
			for _, pair := range [][2]locker.CallOption{
				{locker.Slots(2), locker.Slots(2)}, {locker.Slots(2), locker.Shared()}, {locker.Shared(),
					locker.Slots(2)},
			} {
				key := unique("key")
				held := []*locker.Lease{mustTry(t, other, key, pair[0]), mustTry(t, other, key, pair[0])}
				pglock.SetLifetimes(l.backend, time.Minute, 300*time.Millisecond)
				leave := cancelled(t, l, key, pair[1])
				next := inLineOf(t, l, 1, key, pair[1])[0]
				eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
				before := pglock.Messages(l.backend)
				eventually(t, "it has taken its place anew",
					func() bool { return pglock.Messages(l.backend) > before+3 })
				pglock.SetLifetimes(l.backend, time.Minute, time.Minute)
				leave()
				for _, lease := range held {
					mustUnlock(t, lease)
				}
				lease := next.Get(t)
				mustUnlock(t, mustTry(t, l, key, pair[1])) // beside it
				mustUnlock(t, lease)
			}
			if strings.Contains(server.LogTail(), "WARNING") {
				t.Errorf("a warning in the log:\n%s", server.LogTail())
			}
		})
	}
}

// TestTurnsOfSlots has more contenders than slots, over Lockers with places in the server's line and without. There are
// never more holders than slots, and nobody waits for ever.
func TestTurnsOfSlots(t *testing.T) {
	t.Parallel()
	const n, goroutines, rounds = 3, 8, 10
	url, key := pgtest.URL(t), unique("key")
	var mu sync.Mutex
	held := make([]*locker.Lease, n)
	var wg sync.WaitGroup
	for sessions := 1; sessions <= 3; sessions++ {
		l := openConfig(t, pglock.Config{WaitSessions: sessions}, url)
		for range goroutines {
			wg.Go(func() {
				for range rounds {
					lease := mustLock(t, l, key, locker.Slots(n))
					mu.Lock()
					if other := held[lease.Slot()]; other != nil && other.Err() == nil && lease.Err() == nil {
						t.Errorf("slot %d has two holders", lease.Slot())
					}
					held[lease.Slot()] = lease
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					held[lease.Slot()] = nil
					mu.Unlock()
					mustUnlock(t, lease)
				}
			})
		}
	}
	wg.Wait()
}

// TestWhoIsFirstInLineChanges: who was the first to wait for a slot leaves, and the next wants another lock.
func TestWhoIsFirstInLineChanges(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	kinds := []locker.CallOption{locker.Slots(1), locker.Slots(2), locker.Slots(3), locker.Shared()}
	for i, first := range kinds {
		for j, second := range kinds {
			if i == j {
				continue
			}
			key := unique("key")
			held := mustTry(t, other, key)
			leave := cancelled(t, l, key, first)
			eventually(t, "it waits", func() bool { return admin.waitingFor(key) == 1 })
			next := inLineOf(t, l, 1, key, second)[0]
			leave()
			mustUnlock(t, held)
			lease := next.Get(t)
			if alone := j == 0; admin.is(`SELECT pg_try_advisory_lock_shared($1) AND pg_advisory_unlock_shared($1)`,
				pglock.Key(key)) == alone {
				t.Errorf("the lock is shared: %v; want %v", alone, !alone)
			}
			if mode := lease.Mode(); mode == locker.ModeSlots && lease.Slot() != 0 {
				t.Errorf("slot %d; want 0", lease.Slot())
			}
			mustUnlock(t, lease)
			if n := admin.locksOf(key); n != 0 {
				t.Errorf("%d locks are left", n)
			}
		}
	}
}

// TestSameOwnerHasOneSlot: a request that is repeated for an owner is the same slot.
func TestSameOwnerHasOneSlot(t *testing.T) {
	t.Parallel()
	b := pglock.NewBackend(pool(t, pgtest.URL(t)))
	t.Cleanup(func() { _ = b.Close() })
	key := unique("key")
	var tokens []uint64
	var slots []int
	for _, owner := range []byte{1, 2, 2} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		g, err := b.Acquire(ctx, locker.Request{
			Key: key, Mode: locker.ModeSlots, Slots: 3, Owner: locker.Owner{owner}, TTL: time.Minute,
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		tokens, slots = append(tokens, g.Token), append(slots, g.Slot)
	}
	if !slices.Equal(slots, []int{0, 1, 1}) || tokens[1] != tokens[2] || tokens[0] >= tokens[1] {
		t.Errorf("slots %v with the tokens %v", slots, tokens)
	}
}
