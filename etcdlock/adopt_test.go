package etcdlock_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
)

func detach(t testing.TB, lease *locker.Lease) locker.Ticket {
	t.Helper()
	ticket, err := lease.Detach()
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func mustAdopt(t testing.TB, l locker.Locker, ticket locker.Ticket, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := locker.Adopt(t.Context(), l, ticket, opts...)
	if err != nil {
		t.Fatalf("Adopt: %v; want a lease", err)
	}
	return lease
}

// useless checks that tickets cannot be adopted any more.
func useless(t testing.TB, l locker.Locker, tickets ...locker.Ticket) {
	t.Helper()
	for i, ticket := range tickets {
		if _, err := locker.Adopt(t.Context(), l, ticket); !errors.Is(err, locker.ErrNotHeld) {
			t.Errorf("Adopt of ticket %d: %v; want ErrNotHeld", i, err)
		}
	}
}

// isUnder checks that the first key of a line is that of a lease, under the etcd lease of its Locker.
func isUnder(t testing.TB, root admin, lease *locker.Lease) {
	t.Helper()
	keys, leases := root.claims(lease.Key())
	if len(keys) == 0 || keys[0] != etcdlock.ClaimOf(lease) || leases[0] != etcdlock.LeaseOf(locker.GrantOf(lease)) {
		t.Errorf("there is %q under %x; want that of the lease, under that of its Locker", keys, leases)
	}
}

// TestAdoptedAgain has a lease be handed on from one to the next, all of whom have copies of all tickets; and others
// wait behind it all the time.
func TestAdoptedAgain(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root, key := administer(t, connect(t, addr)), unique("key")
			var ls []*locker.Client
			for _, name := range []string{"one", "two", "three"} {
				ls = append(ls, open(t, []string{addr}, locker.Holder(name)))
			}
			lease := mustLock(t, ls[0], key, opts...)
			token := lease.Token()
			var waiting []locktest.Pending[acquired]
			for i, l := range ls {
				waiting = append(waiting, waits(l, key, locker.Holder("waiter")))
				root.awaitLine(key, 2+i)
			}
			var tickets []locker.Ticket
			for i := range 7 { // also from one to the same
				ticket := detach(t, lease)
				l := ls[i/2%3]
				lease = mustAdopt(t, l, ticket)
				tickets = append(tickets, ticket)
				useless(t, ls[i%3], tickets...)
				isUnder(t, root, lease)
				info := inspect(t, l, key)
				if len(info.Holders) != 1 || info.Waiting != 3 {
					t.Fatalf("%+v; want one holder, and three who wait", info)
				}
				if h := info.Holders[0]; h.Name != []string{"one", "two", "three"}[i/2%3] || h.Token != token ||
					h.Slot != lease.Slot() || h.Mode != lease.Mode() {
					t.Errorf("%+v; want who has adopted it, with the token %d", h, token)
				}
				if r, err := root.Txn(t.Context()).If(etcdlock.Guard(lease)).Commit(); err != nil || !r.Succeeded {
					t.Errorf("the guard: %v, %v; want that it holds", r, err)
				}
			}
			mustUnlock(t, lease)
			for _, w := range waiting {
				next := granted(t, w, patience)
				if next.Token() <= token {
					t.Errorf("the token of the next is %d after %d", next.Token(), token)
				}
				token = next.Token()
				useless(t, ls[0], tickets...)
				mustUnlock(t, next)
			}
			root.awaitLine(key, 0)
		})
	}
}

// TestAdoptedStays has a lease be adopted from a Locker that lives on, and knows nothing of it: its own time for that
// lease is over, its keys are put under another etcd lease, it makes others in that line, and ends.
func TestAdoptedStays(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	for name, own := range map[string]bool{"by another Locker": false, "by the same Locker": true} {
		for mode, opts := range modes {
			for moves, moved := range map[string]bool{"": false, ", moved": true} {
				t.Run(name+", "+mode+moves, func(t *testing.T) {
					t.Parallel()
					testAdoptedStays(t, addr, own, moved, opts...)
				})
			}
		}
	}
}

func testAdoptedStays(t *testing.T, addr string, own, moved bool, opts ...locker.CallOption) {
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	root, key := administer(t, connect(t, addr)), unique("key")
	l, next := open(t, []string{addr}, locker.TTL(ttl)), open(t, []string{addr}, locker.TTL(ttl))
	if own {
		next = l
	}
	keeper := mustLock(t, l, unique("keeper"))
	lease := mustAdopt(t, next, detach(t, mustLock(t, l, key, opts...)))
	if moved {
		if err := etcdlock.Move(t.Context(), keeper); err != nil {
			t.Fatal(err)
		}
		isUnder(t, root, lease)
	}
	line := []locktest.Pending[acquired]{waits(l, key)} // which have other keys
	root.awaitLine(key, 2)
	outlives(t, lease, 2) // and so the time that the first Locker has for it
	isUnder(t, root, lease)
	line = append(line, waits(l, key))
	root.awaitLine(key, 3)
	isUnder(t, root, lease)
	if moved {
		if err := etcdlock.Move(t.Context(), keeper); err != nil {
			t.Fatal(err)
		}
		isUnder(t, root, lease)
	}
	mustUnlock(t, lease)
	for _, w := range line {
		mustUnlock(t, granted(t, w, patience))
	}
	mustUnlock(t, keeper)
	root.awaitLine(key, 0)
}

// TestAdoptedFromTheDead has leases be adopted whose Locker was closed meanwhile, by one with another prefix and
// another TTL. What it locks under its own prefix is no concern of theirs.
func TestAdoptedFromTheDead(t *testing.T) {
	t.Parallel()
	const n = 140 // is more than go into a transaction
	addr := etcdtest.Address(t)
	root, name := administer(t, connect(t, addr)), unique("key")
	l, next := open(t, []string{addr}, locker.TTL(time.Minute)),
		open(t, []string{addr}, locker.TTL(30*time.Second), locker.Prefix(unique("other")))
	own := mustLock(t, next, unique("own"))
	var tickets []locker.Ticket
	for range n {
		tickets = append(tickets, detach(t, mustLock(t, l, name+unique("/"))))
	}
	waiter := mustLock(t, l, unique("key"))
	released := mustLock(t, l, unique("key"))
	mustUnlock(t, released)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	root.awaitLine(waiter.Key(), 0) // what is not detached is free at once
	for _, ticket := range tickets {
		lease := mustAdopt(t, next, ticket)
		if left := time.Until(lease.Deadline()); left > 30*time.Second || !strings.HasPrefix(lease.Key(), name) {
			t.Errorf("%q for %v", lease.Key(), left)
		}
		isUnder(t, root, lease)
		if mine, theirs := etcdlock.FenceOf(own), etcdlock.FenceOf(lease); mine == theirs {
			t.Errorf("the fence is %q, and has the prefix of another Locker", mine)
		}
		mustUnlock(t, lease)
	}
	root.awaitLine(name, 0)
	mustUnlock(t, own)
}

// TestLateClaimOfAdopted has the first attempt to make a claim arrive when another Locker has adopted it.
func TestLateClaimOfAdopted(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	arrived := make(chan struct{})
	arrive := sync.OnceFunc(func() { close(arrived) })
	t.Cleanup(arrive) // or else Close waits for it
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		if slices.ContainsFunc(r.puts, isFence) { // its own, by which it would keep that out
			<-arrived
		}
		return d.hook(r)
	}, locker.TTL(ttl))
	mustUnlock(t, mustLock(t, l, unique("key")))
	lease := mustAdopt(t, open(t, []string{addr}, locker.TTL(ttl)), detach(t, mustLock(t, l, key)))
	d.arrive(t)
	isUnder(t, root, lease)
	if values := root.numbers(key); len(values) != 1 || !strings.HasPrefix(values[0], "\xff") {
		t.Errorf("the value is %q; want that of a claim that was adopted", values)
	}
	arrive()
	outlives(t, lease, 1)
	mustUnlock(t, lease)
	root.awaitLine(key, 0)
}

// TestAdoptRepeated has an answer to Adopt get lost, or all of them. Who has not got the lease leaves nothing behind.
func TestAdoptRepeated(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	for name, c := range map[string]struct {
		lost    int32
		adopted bool
	}{"one": {1, true}, "all": {1000, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, key := administer(t, connect(t, addr)), unique("key")
			var lose atomic.Int32
			lose.Store(c.lost)
			next := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				resp, err := pass(r)
				if r.claims(key) && lose.Add(-1) >= 0 {
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			}, locker.TTL(ttl))
			ticket := detach(t, mustLock(t, open(t, []string{addr}, locker.TTL(time.Minute)), key))
			lease, err := locker.Adopt(t.Context(), next, ticket)
			if c.adopted {
				if err != nil {
					t.Fatal(err)
				}
				isUnder(t, root, lease)
				mustUnlock(t, lease)
			} else if !errors.Is(err, locker.ErrUnavailable) {
				t.Errorf("Adopt without an answer: %v", err)
			}
			root.awaitLine(key, 0)
			useless(t, next, ticket)
		})
	}
}

// TestLateAdopt has the request of an Adopt that was given up arrive when another has adopted the lease, or locked the
// key again.
func TestLateAdopt(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	late := hooked(t, connect(t, addr), d.hook, locker.TTL(3*time.Second))
	l := open(t, []string{addr}, locker.TTL(time.Minute))
	ticket := detach(t, mustLock(t, l, key))
	if lease, err := locker.Adopt(t.Context(), late, ticket); err == nil {
		t.Errorf("Adopt without an answer: %v", lease)
	}
	lease := mustAdopt(t, l, ticket)
	isUnder(t, root, lease)
	d.arrive(t)
	isUnder(t, root, lease)
	mustUnlock(t, lease)
	root.awaitLine(key, 0)
}

// TestAdoptWhileMoving has the keys of a Locker be put under another etcd lease when somebody is about to adopt one.
func TestAdoptWhileMoving(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	l := open(t, []string{addr})
	keeper := mustLock(t, l, unique("keeper"))
	var moves atomic.Int32
	next := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		if r.claims(key) && moves.Add(1) == 1 {
			if err := etcdlock.Move(r.ctx, keeper); err != nil {
				t.Error(err)
			}
		}
		return pass(r)
	})
	lease := mustAdopt(t, next, detach(t, mustLock(t, l, key)))
	if moves.Load() != 2 {
		t.Errorf("it was adopted at attempt %d; want 2", moves.Load())
	}
	isUnder(t, root, lease)
	mustUnlock(t, lease)
	mustUnlock(t, keeper)
	root.awaitLine(key, 0)
}

// TestAdoptAndRevoke has a lease be revoked that is detached, and one that was adopted.
func TestAdoptAndRevoke(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	addr := etcdtest.Address(t)
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root, by, key := administer(t, connect(t, addr)), operator(t, addr), unique("key")
			l := open(t, []string{addr}, locker.TTL(ttl))
			next := open(t, []string{addr}, locker.TTL(ttl), locker.Holder("n"))
			ticket := detach(t, mustLock(t, l, key, opts...))
			mustRevoke(t, by, key)
			useless(t, next, ticket)
			if err := by.Break(t.Context(), key); err != nil {
				t.Error(err)
			}
			root.awaitLine(key, 0)

			lease := mustAdopt(t, next, detach(t, mustLock(t, l, key, opts...)))
			mustRevoke(t, by, key)
			revoked(t, lease, ttl, locker.ErrRevoked)
			refuses(t, by, key, "n")
			notHeld(t, by, key)
			isUnder(t, root, lease)
			unlockRevoked(t, lease)
			root.awaitLine(key, 0)
		})
	}
}

// TestKeepOfAdopted has a lease that was adopted be kept beyond its Unlock, and freed by who has adopted it.
func TestKeepOfAdopted(t *testing.T) {
	t.Parallel()
	const least = time.Second
	addr := etcdtest.Address(t)
	for mode, opts := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			root, key := administer(t, connect(t, addr)), unique("key")
			l, next := open(t, []string{addr}), open(t, []string{addr})
			lease := mustAdopt(t, next, detach(t, mustLock(t, l, key, opts...)), locker.MinHold(least))
			at := time.Now()
			under := root.leaseAt(key)
			mustUnlock(t, lease)
			if after := root.leaseAt(key); after == under && time.Since(at) < least {
				t.Error("the key is under the etcd lease of the Locker")
			}
			third := granted(t, waits(l, key), patience)
			if early := least - time.Since(at); early > 0 {
				t.Errorf("another has the lock %v before MinHold has passed", early)
			}
			mustUnlock(t, third)
			root.awaitLine(key, 0)
		})
	}
}

// TestAdoptAtExpiry has leases be adopted at the moment when their Locker takes them for ended, as nobody has. Who gets
// one has it alone.
func TestAdoptAtExpiry(t *testing.T) {
	t.Parallel()
	const ttl, rounds = 4 * time.Second, 24 // a busy machine may stand still while they are locked and renewed
	addr := etcdtest.Address(t)
	root, name := administer(t, connect(t, addr)), unique("key")
	l, next := open(t, []string{addr}, locker.TTL(ttl)), open(t, []string{addr}, locker.TTL(ttl))
	keeper := mustLock(t, l, unique("keeper"))
	var all sync.WaitGroup
	var adopted atomic.Int32
	for i := range rounds {
		all.Go(func() {
			key := name + unique("/")
			lease := mustLock(t, l, key)
			at := lease.Deadline().Add(ttl/100 + time.Duration(i-rounds/2)*time.Millisecond)
			ticket := detach(t, lease)
			time.Sleep(time.Until(at))
			lease, err := locker.Adopt(t.Context(), next, ticket)
			switch {
			case errors.Is(err, locker.ErrNotHeld):
			case err != nil:
				t.Error(err)
			default:
				adopted.Add(1)
				outlives(t, lease, 1)
				isUnder(t, root, lease)
				mustUnlock(t, lease)
			}
		})
	}
	all.Wait()
	t.Logf("%d of %d were adopted", adopted.Load(), rounds)
	root.awaitLine(name, 0)
	mustUnlock(t, keeper)
}

// TestHandedOnAtOnce has many Lockers lock one key, hand it on to two at the same time of whom one gets it, and keep it
// for a moment. Meanwhile keys are put under other etcd leases. There is one holder at a time, whose token is greater
// than that of who locked the key before.
func TestHandedOnAtOnce(t *testing.T) {
	t.Parallel()
	const lockers, each, least = 6, 12, 5 * time.Millisecond
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var ls []*locker.Client
	var keepers []*locker.Lease
	for range lockers {
		l := open(t, []string{addr}, locker.TTL(time.Minute)) // also on a busy machine, all are to be renewed
		ls, keepers = append(ls, l), append(keepers, mustLock(t, l, unique("keeper")))
	}
	var inside atomic.Int32
	var last atomic.Uint64
	work := func(lease *locker.Lease) {
		if inside.Add(1) != 1 {
			t.Error("there are two holders")
		}
		if before := last.Swap(lease.Token()); before > lease.Token() {
			t.Errorf("the token is %d after %d", lease.Token(), before)
		}
		inside.Add(-1)
	}
	var all sync.WaitGroup
	for i, l := range ls {
		all.Go(func() {
			for n := range each {
				lease := mustLock(t, l, key, locker.MinHold(least))
				work(lease)
				ticket := detach(t, lease)
				var adopted atomic.Int32
				var both sync.WaitGroup
				for _, next := range []*locker.Client{ls[(i+n)%lockers], ls[(i+2*n+1)%lockers]} {
					both.Go(func() {
						lease, err := locker.Adopt(t.Context(), next, ticket, locker.MinHold(least))
						if err != nil {
							if !errors.Is(err, locker.ErrNotHeld) {
								t.Error(err)
							}
							return
						}
						adopted.Add(1)
						work(lease)
						mustUnlock(t, lease)
					})
				}
				if n%4 == 0 {
					if err := etcdlock.Move(t.Context(), keepers[i]); err != nil {
						t.Error(err)
					}
				}
				both.Wait()
				if n := adopted.Load(); n != 1 {
					t.Errorf("%d have adopted the lease", n)
				}
			}
		})
	}
	all.Wait()
	root.awaitLine(key, 0)
	for _, keeper := range keepers {
		mustUnlock(t, keeper)
	}
}
