package pglock_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// TestSlotsWithoutRoom: the lock table is full. Who asks for a slot is told, and nothing of it is left; who gives one
// back does so, though the look whether somebody wants it fails. The others on the session keep theirs.
func TestSlotsWithoutRoom(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{Settings: map[string]string{
		"max_connections": "10", "max_locks_per_transaction": "10", "max_wal_senders": "0", "max_worker_processes": "0",
		"autovacuum": "off",
	}})
	admin := connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
	other := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(time.Minute))
	const n = 5
	var leases []*locker.Lease
	for range 3 {
		leases = append(leases, mustTry(t, l, "key", locker.Slots(n)))
	}
	mustUnlock(t, mustTry(t, other, "key", locker.Slots(n))) // it has a session
	_, err := admin.Exec(t.Context(), "SELECT count(pg_advisory_lock(i, 0)) FROM generate_series(1, 1000000) AS i")
	if err == nil {
		t.Fatal("there is room for a million locks")
	}
	have := func() int { // without a look at tables, for the locks of which there is no room
		return admin.count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1`)
	}
	const beside = 2 // the key and the mark
	for _, mode := range []locker.CallOption{locker.Slots(n), locker.Shared()} {
		for _, l := range []watched{l, other} {
			lease, err := l.TryLock(t.Context(), "key", mode)
			if !errors.Is(err, pglock.ErrLockTableFull) && !errors.Is(err, locker.ErrLocked) {
				t.Errorf("%v, %v; want ErrLockTableFull, or ErrLocked", lease, err)
			}
			if got := have(); got != beside+len(leases) {
				t.Errorf("%d locks; want %d, those of who had them before", got, beside+len(leases))
			}
		}
	}
	for i, lease := range leases {
		if err := lease.Err(); err != nil {
			t.Error(err)
		}
		mustUnlock(t, lease)
		want := beside + len(leases) - i - 1
		if want == beside {
			want = 0
		}
		if got := have(); got != want {
			t.Errorf("%d locks when %d of %d holders have left; want %d", got, i+1, len(leases), want)
		}
	}
}

// TestSessionOfSlotsEnds: the server ends one of the sessions that slots are on. Those who have them are told, and
// nobody else; who waits gets one of theirs.
func TestSessionOfSlotsEnds(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	l, other := openWatched(t, pglock.Config{}, url), openWatched(t, pglock.Config{}, url)
	slot := locker.Slots(3)
	gone := []*locker.Lease{mustTry(t, l, key, slot), mustTry(t, l, key, slot)}
	pid := admin.count(`SELECT pid FROM pg_locks WHERE granted AND `+oneKey, pglock.Key(key))
	stays := mustTry(t, l, key, slot, locker.TTL(20*time.Second))
	next := []locktest.Pending[*locker.Lease]{waits(t, other, key, slot), waits(t, l, key, slot)}
	eventually(t, "others wait", func() bool { return admin.waitingFor(key) == 2 })
	admin.do(`SELECT pg_terminate_backend($1)`, pid)
	for _, lease := range gone {
		locktest.Receive(t, lease.Done())
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v; want ErrLost", err)
		}
	}
	slots := map[int]bool{stays.Slot(): true}
	for _, w := range next {
		lease := w.Get(t)
		if slots[lease.Slot()] {
			t.Errorf("slot %d has two holders", lease.Slot())
		}
		slots[lease.Slot()] = true
		defer mustUnlock(t, lease)
	}
	if err := stays.Err(); err != nil {
		t.Error(err)
	}
	mustUnlock(t, stays)
}

// TestSlotExpires: a slot is not renewed. When its TTL has passed, it is free, though others on the same session keep
// theirs.
func TestSlotExpires(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // the renewals of who stays are in time also when the machine is busy
	url, key := pgtest.URL(t), unique("key")
	l, other := openWatched(t, pglock.Config{}, url, locker.TTL(ttl)), open(t, url)
	stays := mustTry(t, l, key, locker.Slots(2))
	start := time.Now()
	ends := mustTry(t, l, key, locker.Slots(2), locker.NoRenew())
	lease := mustLock(t, other, key, locker.Slots(2))
	if waited := time.Since(start); waited < ttl*9/10 || ends.Err() == nil {
		t.Errorf("it is granted after %v, when the holder has been told %v", waited, ends.Err())
	}
	if lease.Slot() != ends.Slot() {
		t.Errorf("slot %d; want %d", lease.Slot(), ends.Slot())
	}
	mustUnlock(t, lease)
	mustUnlock(t, stays)
}

// TestHoldersLeaveWhileOneJoins: the last holder of a slot leaves while another of the Locker is asked about, and while
// it is about to get in beside him. What is given back is his, and the other gets in.
func TestHoldersLeaveWhileOneJoins(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]locker.CallOption{"readers": locker.Shared(), "slots": locker.Slots(2)} {
		for step, slow := range map[string]string{"asks": "hints", "joins": "leases"} {
			t.Run(name+", "+step, func(t *testing.T) {
				t.Parallel()
				url, key := pgtest.URL(t), unique("key")
				admin := connect(t, url)
				proxy, dsn := behind(t, url)
				l := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Minute))
				first := mustTry(t, l, key, mode)
				leases := proxy.Conns()
				mustUnlock(t, mustTry(t, l, key, mode)) // it has the connection for hints
				asked := slices.DeleteFunc(proxy.Conns(), func(c *faultproxy.Conn) bool {
					return slices.Contains(leases, c) != (slow == "leases")
				})
				before := sentOn(asked)
				for _, c := range asked {
					c.Set(faultproxy.Delay(100 * time.Millisecond))
				}
				next := locktest.Started(func() *locker.Lease { return mustTry(t, l, key, mode) })
				eventually(t, "it is asked for", func() bool { return sentOn(asked) > before })
				mustUnlock(t, first)
				lease := next.Get(t)
				if admin.isFree(key) {
					t.Error("there is a holder, and the key is free")
				}
				isRefused(t, open(t, url), key, "there is a holder", locker.Slots(1))
				proxy.Heal()
				mustUnlock(t, lease)
				if n := admin.locksOf(key); n != 0 {
					t.Errorf("%d locks are left", n)
				}
			})
		}
	}
}

// sentOn returns how much has been sent on connections.
func sentOn(conns []*faultproxy.Conn) (n int) {
	for _, c := range conns {
		n += len(c.Sent())
	}
	return n
}

// TestNobodyIsLeftWhenOneCannotJoin: the last holder leaves while another is about to get in beside him, who is then
// refused. The key is free.
func TestNobodyIsLeftWhenOneCannotJoin(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l, other := openWatched(t, pglock.Config{}, dsn, locker.TTL(time.Minute)), open(t, url)
	first := mustTry(t, l, key, locker.Slots(2))
	leases := proxy.Conns()
	mustUnlock(t, mustTry(t, l, key, locker.Slots(2)))
	taken := mustTry(t, other, key, locker.Slots(2)) // so that there is none left
	before := sentOn(leases)
	for _, c := range leases {
		c.Set(faultproxy.Delay(300 * time.Millisecond))
	}
	refused := locktest.Started(func() error { _, err := l.TryLock(t.Context(), key, locker.Slots(2)); return err })
	eventually(t, "it is about to get in, as nobody waits", func() bool { return sentOn(leases) > before })
	left := locktest.Started(first.Unlock)
	if err := refused.Get(t); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock: %v; want ErrLocked", err)
	}
	if err := left.Get(t); err != nil {
		t.Error(err)
	}
	proxy.Heal()
	mustUnlock(t, taken)
	eventually(t, "no lock is left", func() bool { return admin.locksOf(key) == 0 })
	eventually(t, "nothing is under way", func() bool { return pglock.Left(l.backend) == "" })
}

// TestSlotIsGrantedAgain: the server has ended a session, which its Locker has yet to hear, and grants the slot to
// another session of the same Locker. The first holder is told before the second one has it.
func TestSlotIsGrantedAgain(t *testing.T) {
	t.Parallel()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	proxy, dsn := behind(t, url)
	l := openWatched(t, pglock.Config{}, dsn)
	first := mustTry(t, l, key, locker.Slots(2), locker.TTL(time.Minute))
	for _, c := range proxy.Conns() {
		c.Set(faultproxy.Hang())
	}
	admin.do(`SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE granted AND `+oneKey, pglock.Key(key))
	second := mustTry(t, l, key, locker.Slots(2), locker.TTL(2*time.Minute))
	if second.Slot() != first.Slot() || !errors.Is(first.Err(), locker.ErrLost) {
		t.Errorf("slot %d is granted, and the holder of slot %d is told: %v", second.Slot(), first.Slot(), first.Err())
	}
	mustUnlock(t, second)
	proxy.Heal()
}
