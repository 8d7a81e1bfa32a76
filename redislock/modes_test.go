package redislock_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// inLineAs has so many wait for a key on each of some Lockers, and returns them when all stand in line.
func inLineAs(
	t *testing.T, rdb *redis.Client, ls []locker.Locker, each int, key string, opts ...locker.CallOption,
) (waiting []locktest.Pending[*locker.Lease]) {
	t.Helper()
	before := inLine(t, rdb, key)
	for range each {
		for _, l := range ls {
			waiting = append(waiting, locktest.Started(func() *locker.Lease { return mustLock(t, l, key, opts...) }))
		}
	}
	eventually(t, "they stand in line", func() bool {
		return inLine(t, rdb, key) == before+len(waiting)
	})
	return waiting
}

// TestReadersExcludeForeignClients: what other libraries do with a key that readers have, or slots, is refused.
func TestReadersExcludeForeignClients(t *testing.T) {
	rdb, key, ctx := dial(t, redistest.Address(t)), t.Name(), t.Context()
	l, other := open(t, rdb, locker.Prefix("")), open(t, rdb, locker.Prefix(""))
	for name, mode := range map[string]locker.CallOption{"shared": locker.Shared(), "slots": locker.Slots(3)} {
		first, second := mustLock(t, l, key, mode), mustLock(t, other, key, mode)
		for _, lease := range []*locker.Lease{first, second} {
			if ok, err := rdb.SetNX(ctx, key, "foreign", time.Second).Result(); ok || err != nil {
				t.Errorf("%s: SET NX of a key that is locked: %v, %v", name, ok, err)
			}
			// A script of theirs to unlock compares the value with their own. To extend, too.
			if value := rdb.Get(ctx, key).Val(); value != "locker:"+name {
				t.Errorf("%s: the lock is %q", name, value)
			}
			mustUnlock(t, lease)
		}
		if ok, err := rdb.SetNX(ctx, key, "foreign", time.Minute).Result(); !ok || err != nil {
			t.Fatalf("%s: SET NX of a key that is free: %v, %v", name, ok, err)
		}
		if _, err := l.TryLock(ctx, key, mode); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("%s: TryLock of a key that a foreign client holds: %v; want ErrLocked", name, err)
		}
		rdb.Del(ctx, key)
	}
}

// TestManyReadersEnterTogether: readers of several processes that wait for one writer are all in before one of them
// has left, and it takes few messages to call them: one for each process and some of them.
func TestManyReadersEnterTogether(t *testing.T) {
	const lockers, each = 3, 120 // more than are called at a time
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = open(t, dial(t, server.Addr()), locker.TTL(30*time.Second))
	}
	writer := mustLock(t, ls[0], "k")
	readers := inLineAs(t, rdb, ls, each, "k", locker.Shared())
	next := inLineAs(t, rdb, ls[1:2], 1, "k")[0]
	behind := inLineAs(t, rdb, ls[2:], 1, "k", locker.Shared())[0]

	rdb.ConfigResetStat(t.Context())
	start := time.Now()
	mustUnlock(t, writer)
	leases := make([]*locker.Lease, len(readers))
	for i, r := range readers {
		leases[i] = r.Within(t, 10*time.Second, "a reader gets in")
	}
	t.Logf("%d readers are in after %v", len(leases), time.Since(start))
	if called, most := callsOf(t, rdb, "publish"), len(readers)/10; called == 0 || called > most {
		t.Errorf("%d messages for %d readers of %d processes; want at most %d", called, len(readers), lockers, most)
	}
	if n := inLine(t, rdb, "k"); n != 2 {
		t.Errorf("%d are in line; want the writer, and the reader behind it", n)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	last := next.Within(t, 10*time.Second, "the writer gets in")
	if n := inLine(t, rdb, "k"); n != 1 {
		t.Errorf("%d are in line; want the reader", n)
	}
	mustUnlock(t, last)
	mustUnlock(t, behind.Within(t, 10*time.Second, "the reader gets in"))
}

// TestSlotsAreFilledAtOnce: when a holder of all leaves, as many of the line as there are slots get in.
func TestSlotsAreFilledAtOnce(t *testing.T) {
	const slots = 20
	rdb, key := dial(t, redistest.Address(t)), t.Name()
	ls := []locker.Locker{open(t, dial(t, redistest.Address(t))), open(t, dial(t, redistest.Address(t)))}
	alone := mustLock(t, ls[0], key, locker.TTL(30*time.Second))
	first := inLineAs(t, rdb, ls, slots/2, key, locker.Slots(slots), locker.TTL(30*time.Second))
	rest := inLineAs(t, rdb, ls, 2, key, locker.Slots(slots), locker.TTL(30*time.Second))
	mustUnlock(t, alone)
	var leases []*locker.Lease
	taken := make(map[int]bool)
	for _, w := range first {
		lease := w.Within(t, 10*time.Second, "a slot is granted")
		if taken[lease.Slot()] || lease.Slot() >= slots {
			t.Errorf("slot %d of %d is granted twice, or is none", lease.Slot(), slots)
		}
		taken[lease.Slot()] = true
		leases = append(leases, lease)
	}
	if n := inLine(t, rdb, key); n != len(rest) {
		t.Errorf("%d are in line; want %d", n, len(rest))
	}
	for _, lease := range leases[:len(rest)] {
		taken[lease.Slot()] = false
		mustUnlock(t, lease)
	}
	for _, w := range rest { // in whatever order they came
		lease := w.Within(t, 10*time.Second, "the next slot is granted")
		if taken[lease.Slot()] || lease.Slot() >= slots {
			t.Errorf("slot %d of %d is granted twice, or is none", lease.Slot(), slots)
		}
		taken[lease.Slot()] = true
		leases = append(leases, lease)
	}
	for _, lease := range leases[len(rest):] {
		mustUnlock(t, lease)
	}
}

// TestDeadReaderHoldsUpNobody: a reader that was called and does not come does not keep the others out, nor the writer
// behind them for longer than it is taken to be alive.
func TestDeadReaderHoldsUpNobody(t *testing.T) {
	rdb, key := dial(t, redistest.Address(t)), t.Name()
	l := open(t, dial(t, redistest.Address(t)))
	alone := mustLock(t, l, key)
	companion := "{" + redislock.DefaultPrefix + key + "}:locker:"
	dead := strings.Repeat("d", 32) + ":" + strings.Repeat("0", 32) + ":s"
	in := float64(time.Now().Add(time.Minute).UnixMilli()) // far too long
	rdb.ZAdd(t.Context(), companion+"queue:", redis.Z{Score: 1, Member: dead})
	rdb.ZAdd(t.Context(), companion+"alive:", redis.Z{Score: in, Member: dead})
	readers := inLineAs(t, rdb, []locker.Locker{l}, 3, key, locker.Shared())
	writer := inLineAs(t, rdb, []locker.Locker{l}, 1, key)[0]
	mustUnlock(t, alone)
	for _, r := range readers {
		mustUnlock(t, r.Within(t, 10*time.Second, "a reader gets in"))
	}
	mustUnlock(t, writer.Within(t, 20*time.Second, "the writer gets in"))
	if n := inLine(t, rdb, key); n != 0 {
		t.Errorf("%d are in line; want nobody", n)
	}
}

// TestModesOnRedlock: it has no such locks, and says so before it asks a server.
func TestModesOnRedlock(t *testing.T) {
	l := openRedlock(t, []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"})
	for _, mode := range []locker.CallOption{locker.Shared(), locker.Slots(2)} {
		if _, err := l.TryLock(t.Context(), "k", mode); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("TryLock: %v; want ErrUnsupported", err)
		}
	}
}
