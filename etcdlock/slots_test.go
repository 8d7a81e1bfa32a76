package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// numbers returns what etcd says of the slots of a lock: the values of its keys, in order.
func (a admin) numbers(key string) (all []string) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Get(ctx, etcdlock.Key(etcdlock.DefaultPrefix+key), clientv3.WithPrefix(),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			all = append(all, string(kv.Value))
		}
		return nil
	})
	return all
}

// hasSlot checks which slot a lease has, also by what etcd says, and that its guard holds.
func hasSlot(t *testing.T, root admin, lease *locker.Lease, want int) {
	t.Helper()
	says := clientv3.Compare(clientv3.Value(etcdlock.ClaimOf(lease)), "=", strconv.Itoa(want))
	root.do(func(ctx context.Context) error {
		resp, err := root.Txn(ctx).If(etcdlock.Guard(lease), says).Commit()
		if err == nil && (!resp.Succeeded || lease.Slot() != want) {
			t.Errorf("the lease has slot %d; want %d, in etcd, too: %q", lease.Slot(), want, root.numbers(lease.Key()))
		}
		return err
	})
}

// refuses checks that TryLock is refused, on account of a holder.
func refuses(t *testing.T, l locker.Locker, key, holder string, opts ...locker.CallOption) {
	t.Helper()
	lease, err := l.TryLock(t.Context(), key, opts...)
	if err == nil {
		_ = lease.Unlock()
	}
	var e *locker.Error
	if !errors.Is(err, locker.ErrLocked) || !errors.As(err, &e) || e.Holder != holder {
		t.Errorf("TryLock: %v; want ErrLocked, held by %q", err, holder)
	}
}

// TestSlotAsksAgain has one answer get lost to who gets a slot: to the request that makes the claim, or to the one that
// takes the number. What is asked again changes neither the number nor the token.
func TestSlotAsksAgain(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	for name, c := range map[string]struct {
		waits bool  // or else there is a slot free
		lost  int32 // which of the requests gets no answer
		try   bool
	}{
		"TryLock": {lost: 1, try: true}, "Lock": {lost: 1},
		"wait": {waits: true, lost: 1}, "number": {waits: true, lost: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, requests := unique("key"), atomic.Int32{}
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				resp, err := pass(r)
				if r.claims(key) && requests.Add(1) == c.lost {
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			})
			other := open(t, []string{addr})
			first := mustLock(t, other, key, locker.Slots(2))
			var lease *locker.Lease
			switch {
			case c.try:
				lease = mustTry(t, l, key, locker.Slots(2))
			case !c.waits:
				lease = mustLock(t, l, key, locker.Slots(2))
			default:
				second := mustLock(t, other, key, locker.Slots(2))
				waiter := waits(l, key, locker.Slots(2))
				root.awaitLine(key, 3)
				mustUnlock(t, second)
				lease = granted(t, waiter, patience)
			}
			if requests.Load() <= c.lost {
				t.Errorf("%d requests; want one after number %d, whose answer was lost", requests.Load(), c.lost)
			}
			hasSlot(t, root, first, 0)
			hasSlot(t, root, lease, 1)
			refuses(t, other, key, "", locker.Slots(2))
			mustUnlock(t, first)
			mustUnlock(t, lease)
			root.awaitLine(key, 0)
		})
	}
}

// TestSlotOfSameOwner asks a backend twice for the same owner.
func TestSlotOfSameOwner(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	b := etcdlock.NewBackend(connect(t, addr))
	t.Cleanup(func() { _ = b.Close() })
	key := unique("key")
	other := mustLock(t, open(t, []string{addr}), key, locker.Slots(3))
	r := locker.Request{
		Prefix: etcdlock.DefaultPrefix, Key: key, Mode: locker.ModeSlots, Slots: 3, Owner: locker.Owner{1},
		TTL: 9 * time.Second,
	}
	g, err := b.Acquire(t.Context(), r)
	if err != nil || g.Slot != 1 || g.Token <= other.Token() {
		t.Fatalf("slot %d, token %d after %d: %v", g.Slot, g.Token, other.Token(), err)
	}
	mustUnlock(t, other)
	again, err := b.Acquire(t.Context(), r)
	if err != nil || again.Slot != g.Slot || again.Token != g.Token {
		t.Errorf("slot %d and token %d, and then %d and %d: %v", g.Slot, g.Token, again.Slot, again.Token, err)
	}
	if err := b.Release(t.Context(), again); err != nil {
		t.Error(err)
	}
}

// TestLateNumber has the request that takes a number fail, and arrive when the claim has another, or is another one by
// the same key.
func TestLateNumber(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	var requests atomic.Int32
	late, unlocked := make(chan request, 1), make(chan struct{})
	l := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		if r.claims(key) && requests.Add(1) == 2 {
			late <- r
			<-unlocked
			return nil, status.Error(codes.Internal, "out of order")
		}
		return pass(r)
	})
	other := open(t, []string{addr})
	zero, one := mustLock(t, other, key, locker.Slots(2)), mustLock(t, other, key, locker.Slots(2))
	waiter := waits(l, key, locker.Slots(2))
	root.awaitLine(key, 3)
	mustUnlock(t, one)
	number := locktest.Receive(t, late)
	mustUnlock(t, zero)
	close(unlocked)
	lease := granted(t, waiter, patience)
	hasSlot(t, root, lease, 0)
	arrive := func() {
		t.Helper()
		root.do(func(ctx context.Context) error { _, err := number.sendLate(ctx); return err })
	}
	arrive()
	hasSlot(t, root, lease, 0)
	mustUnlock(t, lease)
	arrive()
	root.awaitLine(key, 0)
	again := mustLock(t, l, key, locker.Slots(2))
	arrive()
	hasSlot(t, root, again, 0)
	mustUnlock(t, again)
}

// TestSlotsInOrder has many wait for few slots, in turn on two Lockers. Each that is unlocked goes to the next one.
func TestSlotsInOrder(t *testing.T) {
	t.Parallel()
	const n, waiters = 3, 40
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var ls []locker.Locker
	for range 2 {
		ls = append(ls, open(t, []string{addr}, locker.TTL(time.Minute)))
	}
	var held []*locker.Lease
	for i := range n {
		held = append(held, mustLock(t, ls[i%2], key, locker.Slots(n)))
		hasSlot(t, root, held[i], i)
	}
	var waiting []locktest.Pending[acquired]
	for i := range waiters {
		waiting = append(waiting, waits(ls[i/3%2], key, locker.Slots(n)))
		root.awaitLine(key, n+i+1)
	}
	for i, w := range waiting {
		leaves := held[i%n]
		mustUnlock(t, leaves)
		held[i%n] = granted(t, w, patience)
		hasSlot(t, root, held[i%n], leaves.Slot())
		refuses(t, ls[0], key, "", locker.Slots(n))
	}
	for _, lease := range held {
		mustUnlock(t, lease)
	}
	root.awaitLine(key, 0)
}

// TestSlotsEnterTogether has a writer leave for whom many wait for slots on several Lockers: as many as there are get
// in, and each of the others when one is given back.
func TestSlotsEnterTogether(t *testing.T) {
	t.Parallel()
	const n, lockers, waiters = 8, 3, 60
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	writer := mustLock(t, open(t, []string{addr}, locker.TTL(time.Minute)), key)
	in, done := make(chan *locker.Lease, waiters), make(chan error, waiters)
	for range lockers {
		l := open(t, []string{addr}, locker.TTL(time.Minute))
		for range waiters / lockers {
			go func() {
				lease, err := lock(l, key, locker.Slots(n))
				if err == nil {
					in <- lease
				}
				done <- err
			}()
		}
	}
	root.awaitLine(key, 1+waiters)
	mustUnlock(t, writer)
	var held []*locker.Lease
	for i := range waiters {
		if i >= n {
			mustUnlock(t, held[0])
			held = held[1:]
		}
		held = append(held, locktest.Receive(t, in))
		distinct(t, held, n)
	}
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, lease := range held {
		mustUnlock(t, lease)
	}
	root.awaitLine(key, 0)
}

// distinct checks that each of those who hold one of n slots has another number, of 0 to n-1.
func distinct(t testing.TB, held []*locker.Lease, n int) {
	t.Helper()
	seen := make(map[int]bool)
	for _, lease := range held {
		slot := lease.Slot()
		if slot < 0 || slot >= n || seen[slot] {
			t.Errorf("slot %d of %d was given, beside %v", slot, n, seen)
		}
		seen[slot] = true
	}
}

// TestSlotsAtOnce has many lock and unlock slots at the same time on several Lockers, by Lock and TryLock, some of them
// one of fewer slots than others.
func TestSlotsAtOnce(t *testing.T) {
	t.Parallel()
	const lockers, each, rounds, n = 3, 12, 8, 20
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var mu sync.Mutex
	var held []*locker.Lease
	var most, refused int
	use := func(lease *locker.Lease) error {
		mu.Lock()
		held = append(held, lease)
		most = max(most, len(held))
		distinct(t, held, n)
		mu.Unlock()
		hasSlot(t, root, lease, lease.Slot()) // which takes a moment
		mu.Lock()
		held = slices.DeleteFunc(held, func(l *locker.Lease) bool { return l == lease })
		mu.Unlock()
		return lease.Unlock()
	}
	var all sync.WaitGroup
	for range lockers {
		l := open(t, []string{addr}, locker.TTL(time.Minute))
		for i := range each {
			slots := locker.Slots(n - i%2*n/2)
			all.Go(func() {
				for range rounds {
					acquire := lock
					if i%3 == 0 {
						acquire = func(l locker.Locker, key string, opts ...locker.CallOption) (*locker.Lease, error) {
							return l.TryLock(t.Context(), key, opts...)
						}
					}
					lease, err := acquire(l, key, slots)
					switch {
					case err == nil:
						err = use(lease)
					case i%3 == 0 && errors.Is(err, locker.ErrLocked):
						mu.Lock()
						refused++
						mu.Unlock()
						err = nil
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	all.Wait()
	t.Logf("%d had slots at most, and %d were refused", most, refused)
	root.awaitLine(key, 0)
}

// TestTrySlotsAtOnce has as many try to lock slots as there are, at the same time. None is refused.
func TestTrySlotsAtOnce(t *testing.T) {
	t.Parallel()
	const lockers, n = 3, 45
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	leases := make([]*locker.Lease, n)
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = open(t, []string{addr}, locker.TTL(time.Minute))
	}
	start := time.Now()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { leases[i] = mustTry(t, ls[i%lockers], key, locker.Slots(n)) })
	}
	all.Wait()
	t.Logf("%d slots were locked in %v", n, time.Since(start))
	distinct(t, leases, n)
	refuses(t, ls[0], key, "", locker.Slots(n))
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	root.awaitLine(key, 0)
}

// TestSlotsOfOthers has some ask for one of more slots than others do. The line is in order all the same: who waits for
// one of few is not overtaken, and gets one of them.
func TestSlotsOfOthers(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	holding := open(t, []string{addr})
	zero, one := mustLock(t, holding, key, locker.Slots(2)), mustLock(t, holding, key, locker.Slots(2))
	few := waits(open(t, []string{addr}), key, locker.Slots(2))
	root.awaitLine(key, 3)
	many := waits(open(t, []string{addr}), key, locker.Slots(9))
	root.awaitLine(key, 4)
	refuses(t, holding, key, "", locker.Slots(9))
	if got, want := root.numbers(key), []string{"0", "1", "", ""}; !slices.Equal(got, want) {
		t.Errorf("the slots are %q; want %q", got, want)
	}
	mustUnlock(t, zero)
	first, second := granted(t, few, patience), granted(t, many, patience)
	hasSlot(t, root, first, 0)
	hasSlot(t, root, second, 2)
	for _, lease := range []*locker.Lease{one, first, second} {
		mustUnlock(t, lease)
	}
	root.awaitLine(key, 0)
}

// TestSlotsAndOthers has locks of all modes in one line, and a name for people for each, with all that a key must not
// have in it.
func TestSlotsAndOthers(t *testing.T) {
	t.Parallel()
	const odd = "worker 7@host.example/é%!#"
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	l, other := open(t, []string{addr}), open(t, []string{addr})
	slot := mustLock(t, l, key, locker.Slots(2), locker.Holder(odd))
	refuses(t, other, key, odd)
	refuses(t, other, key, odd, locker.Shared())
	refuses(t, other, key, odd, locker.Slots(1))
	reader := waits(other, key, locker.Shared(), locker.Holder("a reader"))
	root.awaitLine(key, 2)
	next := waits(other, key, locker.Slots(2), locker.Holder("another"))
	root.awaitLine(key, 3)
	writer := waits(l, key, locker.Holder("a writer"))
	root.awaitLine(key, 4)
	refuses(t, l, key, odd, locker.Slots(2)) // though one is free: others wait
	mustUnlock(t, slot)
	reads := granted(t, reader, patience)
	refuses(t, l, key, "a reader", locker.Slots(2))
	mustUnlock(t, reads)
	second := granted(t, next, patience)
	hasSlot(t, root, second, 0)
	refuses(t, l, key, "another", locker.Shared())
	mustUnlock(t, second)
	writes := granted(t, writer, patience)
	refuses(t, other, key, "a writer", locker.Slots(2))
	mustUnlock(t, writes)
	root.awaitLine(key, 0)
}

// TestSlotOfTheDead has the process die of who has a slot: its number is given to the next one.
func TestSlotOfTheDead(t *testing.T) {
	t.Parallel()
	const n = 3
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	lives := open(t, []string{addr})
	proxy := faultproxy.New(t, addr)
	held := []*locker.Lease{
		mustLock(t, lives, key, locker.Slots(n)),
		mustLock(t, open(t, []string{proxy.Addr()}, locker.TTL(3*time.Second)), key, locker.Slots(n)),
		mustLock(t, lives, key, locker.Slots(n)),
	}
	waiter := waits(lives, key, locker.Slots(n))
	root.awaitLine(key, n+1)
	proxy.Set(faultproxy.BlackHole())
	next := granted(t, waiter, patience)
	if held[1].Err() == nil {
		t.Error("the former holder does not know of its loss")
	}
	hasSlot(t, root, next, 1)
	for _, lease := range []*locker.Lease{held[0], held[2], next} {
		mustUnlock(t, lease)
	}
	proxy.Heal()
}

// TestSlotsMove has the keys of those who hold slots and wait for one put under another etcd lease, as when there is a
// new leader. Numbers and places stay, and guards hold.
func TestSlotsMove(t *testing.T) {
	t.Parallel()
	const n = 3
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var elect atomic.Bool
	l := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if err == nil && elect.CompareAndSwap(true, false) {
			resp.Header.RaftTerm++
		}
		return resp, err
	})
	held := []*locker.Lease{
		mustLock(t, l, key, locker.Slots(n)), mustLock(t, open(t, []string{addr}), key, locker.Slots(n)),
		mustLock(t, l, key, locker.Slots(n)),
	}
	waiter := waits(l, key, locker.Slots(n))
	_, before := root.awaitLine(key, n+1)
	elect.Store(true)
	mustUnlock(t, mustLock(t, l, unique("key")))
	eventually(t, "the keys are under another lease", func() bool {
		_, after := root.claims(key)
		return len(after) == n+1 && after[0] != before[0] && after[2] == after[0] && after[3] == after[0]
	})
	if got, want := root.numbers(key), []string{"0", "1", "2", ""}; !slices.Equal(got, want) {
		t.Errorf("the slots are %q; want %q", got, want)
	}
	for i, lease := range held {
		hasSlot(t, root, lease, i)
	}
	mustUnlock(t, held[2])
	next := granted(t, waiter, patience)
	hasSlot(t, root, next, 2)
	for _, lease := range append(held[:2], next) {
		mustUnlock(t, lease)
	}
	root.awaitLine(key, 0)
}

// TestSlotLooks has many Lockers wait for slots, and counts how often they look when one is given back after the other:
// not all of them each time.
func TestSlotLooks(t *testing.T) {
	t.Parallel()
	const lockers = 40
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var looks atomic.Int32
	counting := func(kv pb.KVClient) pb.KVClient { return countsLooks{kv, &looks} }
	holder := mustLock(t, open(t, []string{addr}, locker.TTL(time.Minute)), key, locker.Slots(1))
	var waiting []locktest.Pending[acquired]
	for i := range lockers {
		l := etcdlock.NewByKV(connect(t, addr), counting, locker.TTL(time.Minute))
		t.Cleanup(func() { _ = l.Close() })
		waiting = append(waiting, waits(l, key, locker.Slots(1)))
		root.awaitLine(key, 2+i)
	}
	for _, w := range waiting {
		mustUnlock(t, holder)
		holder = granted(t, w, patience)
	}
	mustUnlock(t, holder)
	n := looks.Load() / 2 // each reads two spans
	t.Logf("%d looks for %d waiters", n, lockers)
	if most := int32(lockers * 10); n > most {
		t.Errorf("%d looks for %d waiters, one after the other; want %d at most", n, lockers, most)
	}
}

// TestSlotKeys has names for people and numbers of slots change from one lock to the next. The keys are as many as
// those, and not one for each lock.
func TestSlotKeys(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	l, key := open(t, []string{addr}), unique("key")
	keys := make(map[string]bool)
	for i := range 40 {
		lease := mustLock(t, l, key, locker.Slots(2+i%2), locker.Holder(fmt.Sprint("worker-", i%3)))
		keys[etcdlock.ClaimOf(lease)] = true
		if !strings.HasSuffix(etcdlock.ClaimOf(lease), fmt.Sprintf(".%d.worker-%d", 2+i%2, i%3)) {
			t.Errorf("the key is %q", etcdlock.ClaimOf(lease))
		}
		mustUnlock(t, lease)
	}
	if len(keys) > 12 { // a request may have to be repeated
		t.Errorf("40 locks of two numbers and three names have used %d keys", len(keys))
	}
}
