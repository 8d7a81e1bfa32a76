package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

const why = "its disk is full: 100 % \xff"

// mustRevoke is Client.Revoke for what has to work.
func mustRevoke(t testing.TB, l *locker.Client, key string) {
	t.Helper()
	if err := l.Revoke(t.Context(), key, why); err != nil {
		t.Errorf("Revoke: %v", err)
	}
}

// notHeld checks that a key is not revoked, as nobody holds it who is not revoked already.
func notHeld(t testing.TB, l *locker.Client, key string) {
	t.Helper()
	if err := l.Revoke(t.Context(), key, why); !errors.Is(err, locker.ErrNotHeld) {
		t.Errorf("Revoke: %v; want ErrNotHeld", err)
	}
}

// revoked waits until a holder is told that its lock was revoked, or broken, by an operator, and why.
func revoked(t testing.TB, lease *locker.Lease, within time.Duration, want error) {
	t.Helper()
	var r *locker.Revocation
	if err := told(t, lease, within); !errors.Is(err, want) || !errors.As(err, &r) || r.By != "operator" ||
		r.Reason != why {
		t.Errorf("the lease: %v; want %v, by the operator, with the reason", err, want)
	}
}

// unlockRevoked unlocks a lease that was revoked.
func unlockRevoked(t testing.TB, lease *locker.Lease) {
	t.Helper()
	if err := lease.Unlock(); !errors.Is(err, locker.ErrRevoked) {
		t.Errorf("Unlock of a lease that was revoked: %v", err)
	}
}

func operator(t testing.TB, endpoints ...string) *locker.Client {
	t.Helper()
	return open(t, endpoints, locker.Holder("operator"))
}

// TestRevokeTellsAtOnce has holders be told by their watches: they are long before they renew again.
func TestRevokeTellsAtOnce(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	addr := etcdtest.Address(t)
	root, by := administer(t, connect(t, addr)), operator(t, addr)
	for name, take := range map[string]struct {
		away func(key string) error
		is   error
	}{
		"revoke": {func(key string) error { return by.Revoke(t.Context(), key, why) }, locker.ErrRevoked},
		"break":  {func(key string) error { return by.Break(t.Context(), key, locker.Reason(why)) }, locker.ErrBroken},
	} {
		for mode, opts := range map[string][]locker.CallOption{
			"exclusive": nil, "shared": {locker.Shared()}, "slots": {locker.Slots(3)},
		} {
			t.Run(name+", "+mode, func(t *testing.T) {
				t.Parallel()
				key := unique("key")
				l := open(t, []string{addr}, locker.TTL(ttl), locker.Holder("worker"))
				lease, other := mustLock(t, l, key, opts...), mustLock(t, l, unique("key"))
				at := lease.Deadline()
				eventually(t, "it is renewed, and watched", func() bool { return lease.Deadline().After(at) })
				if err := take.away(key); err != nil {
					t.Fatal(err)
				}
				revoked(t, lease, ttl/4, take.is)
				if err := other.Err(); err != nil {
					t.Errorf("another lock of the same Locker: %v", err)
				}
				want := 0 // claims that are left
				if name == "revoke" {
					want = 1
				}
				if claims, _ := root.claims(key); len(claims) != want {
					t.Errorf("there is %q; want %d claims", claims, want)
				}
				_ = lease.Unlock()
				root.awaitLine(key, 0)
				outlives(t, other, 1)
				mustUnlock(t, other)
			})
		}
	}
}

// TestRevokedKeepsItsName has somebody be refused, and look, when the holder was revoked.
func TestRevokedKeepsItsName(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	l, by := open(t, []string{addr}, locker.Holder("worker 7 %20")), operator(t, addr)
	for _, opts := range [][]locker.CallOption{nil, {locker.Shared()}, {locker.Slots(1)}} {
		lease := mustLock(t, l, unique("key"), opts...)
		mustRevoke(t, by, lease.Key())
		refuses(t, by, lease.Key(), "worker 7 %20")
		info := inspect(t, by, lease.Key())
		if len(info.Holders) != 1 || info.Holders[0].Name != "worker 7 %20" || info.Holders[0].Token != lease.Token() {
			t.Errorf("%+v; want the holder as it was", info)
		}
		notHeld(t, by, lease.Key())
		_ = lease.Unlock()
	}
}

// TestRevokedEndsInTime has a holder that does not unlock, and is told by its watch, or when it renews. It has other
// locks on the same etcd lease, which are renewed all the time.
func TestRevokedEndsInTime(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	addr := etcdtest.Address(t)
	root, by := administer(t, connect(t, addr)), operator(t, addr)
	for name, renewed := range map[string]bool{"by its watch": true, "by its renewal": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, key := open(t, []string{addr}, locker.TTL(ttl)), unique("key")
			lease, other := mustLock(t, l, key), mustLock(t, l, unique("key"))
			if renewed {
				outlives(t, lease, 1)
			}
			waiter := waits(by, key)
			root.awaitLine(key, 2)
			mustRevoke(t, by, key)
			revoked(t, lease, ttl, locker.ErrRevoked)
			next := granted(t, waiter, patience)
			switch late := time.Since(lease.Deadline()); {
			case late < 0:
				t.Errorf("the next holder has the lock %v before the lease of who was revoked is over", -late)
			case late > ttl/4: // it was renewed once more
				t.Errorf("the next holder has the lock %v after the lease of who was revoked is over", late)
			}
			outlives(t, other, 1)
			mustUnlock(t, other)
			mustUnlock(t, next)
		})
	}
}

// TestRevokeManyReaders revokes more readers than a transaction has room for.
func TestRevokeManyReaders(t *testing.T) {
	t.Parallel()
	const n = 150
	addr := etcdtest.Address(t)
	key, by := unique("key"), operator(t, addr)
	var leases []*locker.Lease
	for range 3 {
		l := open(t, []string{addr}, locker.TTL(6*time.Second))
		for range n / 3 {
			leases = append(leases, mustLock(t, l, key, locker.Shared()))
		}
	}
	mustRevoke(t, by, key)
	notHeld(t, by, key)
	for _, lease := range leases {
		revoked(t, lease, patience, locker.ErrRevoked)
	}
	for _, lease := range leases {
		unlockRevoked(t, lease)
	}
	mustUnlock(t, mustTry(t, by, key))
}

// TestRevokedReader has a reader that was revoked, and does not unlock, and another that comes then. A writer has to
// wait for both.
func TestRevokedReader(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute
	addr := etcdtest.Address(t)
	root, key, by := administer(t, connect(t, addr)), unique("key"), operator(t, addr)
	l := open(t, []string{addr}, locker.TTL(ttl))
	first := mustLock(t, l, key, locker.Shared())
	mustRevoke(t, by, key)
	second := mustLock(t, l, key, locker.Shared())
	writer := waits(by, key)
	root.awaitLine(key, 3)
	values := root.numbers(key) // which are not numbers here
	mustRevoke(t, by, key)
	if now := root.numbers(key); now[0] != values[0] || now[1] == values[1] || now[2] != values[2] {
		t.Errorf("the values were %q, and are %q; want that of the second reader changed", values, now)
	}
	notHeld(t, by, key)
	_ = first.Unlock()
	root.awaitLine(key, 2)
	_ = second.Unlock()
	mustUnlock(t, granted(t, writer, patience))
}

// TestRevokedSlots has who holds the slots be revoked while others wait for them. Each gets the number of who has left,
// and none that somebody has who was revoked and stays.
func TestRevokedSlots(t *testing.T) {
	t.Parallel()
	const n = 3
	addr := etcdtest.Address(t)
	root, key, by := administer(t, connect(t, addr)), unique("key"), operator(t, addr)
	l := open(t, []string{addr}, locker.TTL(time.Minute))
	var held []*locker.Lease
	var waiting []locktest.Pending[acquired]
	for range n {
		held = append(held, mustLock(t, l, key, locker.Slots(n)))
	}
	for i := range n {
		waiting = append(waiting, waits(open(t, []string{addr}, locker.TTL(time.Minute)), key, locker.Slots(n)))
		root.awaitLine(key, n+i+1)
	}
	mustRevoke(t, by, key)
	for i, slot := range []int{1, 2, 0} {
		_ = held[slot].Unlock()
		next := granted(t, waiting[i], patience)
		hasSlot(t, root, next, slot)
		info := inspect(t, by, key)
		if len(info.Holders) != n || info.Waiting != n-1-i {
			t.Errorf("%+v; want %d holders and %d who wait", info, n, n-1-i)
		}
		defer mustUnlock(t, next)
	}
}

// TestRevokedBeforeItsNumberIsTaken has one of two who wait for slots be late: it is about to take a number that the
// other one, who is behind it, has got meanwhile, and been revoked with.
func TestRevokedBeforeItsNumberIsTaken(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key, by := administer(t, connect(t, addr)), unique("key"), operator(t, addr)
	two := locker.Slots(2)
	other := open(t, []string{addr}, locker.TTL(time.Minute))
	var requests atomic.Int32
	late, goOn := make(chan struct{}), make(chan struct{})
	slow := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		if r.claims(key) && requests.Add(1) == 2 {
			close(late)
			<-goOn
			r.ctx = context.Background() // it may have been slow for longer than it has time
			return pass(r)
		}
		return pass(r)
	}, locker.TTL(time.Minute))
	zero, one := mustLock(t, other, key, two), mustLock(t, other, key, two)
	first := waits(slow, key, two)
	root.awaitLine(key, 3)
	second := waits(open(t, []string{addr}, locker.TTL(time.Minute)), key, two)
	root.awaitLine(key, 4)
	mustUnlock(t, one)
	locktest.Receive(t, late) // which wants 1
	mustUnlock(t, zero)
	after := granted(t, second, patience) // which leaves 0 to the first
	mustRevoke(t, by, key)
	if info := inspect(t, by, key); len(info.Holders) != 1 || info.Holders[0].Token != after.Token() ||
		info.Waiting != 1 {
		t.Errorf("%+v; want the second, and the first waiting: it has no number yet", info)
	}
	close(goOn)
	before := granted(t, first, patience)
	if after.Slot() != 1 || before.Slot() != 0 {
		t.Errorf("the first in line has slot %d, and the second one, who was revoked, %d; want 0 and 1", before.Slot(),
			after.Slot())
	}
	mustUnlock(t, before)
	_ = after.Unlock()
}

// TestRevokeAgain has the request that makes a claim get no answer, and be made again when the lock has been revoked in
// between: that is not forgotten.
func TestRevokeAgain(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	for name, acquire := range map[string]func(*locker.Client, string) (*locker.Lease, error){
		"Lock":    func(l *locker.Client, key string) (*locker.Lease, error) { return lock(l, key) },
		"TryLock": func(l *locker.Client, key string) (*locker.Lease, error) { return l.TryLock(t.Context(), key) },
		"shared Lock": func(l *locker.Client, key string) (*locker.Lease, error) {
			return lock(l, key, locker.Shared())
		},
		"shared TryLock": func(l *locker.Client, key string) (*locker.Lease, error) {
			return l.TryLock(t.Context(), key, locker.Shared())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, by := unique("key"), operator(t, addr)
			var lost atomic.Bool
			l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
				resp, err := pass(r)
				if r.claims(key) && lost.CompareAndSwap(false, true) {
					mustRevoke(t, by, key)
					return nil, status.Error(codes.Unavailable, "the answer is lost")
				}
				return resp, err
			}, locker.TTL(ttl))
			lease, err := acquire(l, key)
			if err != nil {
				t.Fatal(err)
			}
			revoked(t, lease, ttl, locker.ErrRevoked)
			notHeld(t, by, key)
			unlockRevoked(t, lease)
			mustUnlock(t, mustTry(t, by, key))
		})
	}
}

// TestRevokeComesLate has the holder unlock when Revoke or Break has looked who it is. They are not about the next one.
func TestRevokeComesLate(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	for name, take := range map[string]func(l *locker.Client, key string) error{
		"revoke": func(l *locker.Client, key string) error { return l.Revoke(t.Context(), key, why) },
		"break":  func(l *locker.Client, key string) error { return l.Break(t.Context(), key) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := unique("key")
			// The next one is of the same Locker, and may have the same key in etcd.
			l := open(t, []string{addr}, locker.TTL(ttl))
			lease := mustLock(t, l, key)
			var next *locker.Lease
			by := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
				if next == nil {
					mustUnlock(t, lease)
					next = mustLock(t, l, key)
				}
				return pass(r)
			})
			if err := take(by, key); err != nil {
				t.Errorf("when the holder has just unlocked: %v", err)
			}
			if values := root.numbers(key); len(values) != 1 || values[0] != "" {
				t.Errorf("the values are %q; want none that was changed", values)
			}
			outlives(t, next, 1)
			mustUnlock(t, next)
		})
	}
}

// TestRevokeRepeats has the answer to a Revoke and a Break get lost. The requests are made again, and have an effect
// once.
func TestRevokeRepeats(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var lost atomic.Bool
	by := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		resp, err := pass(r)
		if lost.CompareAndSwap(false, true) {
			return nil, status.Error(codes.Unavailable, "the answer is lost")
		}
		return resp, err
	}, locker.Holder("operator"))
	l := open(t, []string{addr}, locker.TTL(time.Minute))
	lease, waiter := mustLock(t, l, key), waits(l, key)
	root.awaitLine(key, 2)
	mustRevoke(t, by, key)
	lost.Store(false)
	if err := by.Break(t.Context(), key); err != nil {
		t.Error(err)
	}
	next := granted(t, waiter, patience)
	if values := root.numbers(key); len(values) != 1 || values[0] != "" {
		t.Errorf("the values are %q; want that of the next holder", values)
	}
	_ = lease.Unlock()
	if !root.exists(etcdlock.ClaimOf(next)) {
		t.Error("the next holder has lost the lock to the one who was revoked")
	}
	mustUnlock(t, next)
}

// TestRevokeWhileRenewing has a lock be revoked between the look at its key with which it begins to be watched, and the
// keep-alive.
func TestRevokeWhileRenewing(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	addr := etcdtest.Address(t)
	by, key := operator(t, addr), unique("key")
	var held, renewing atomic.Bool
	l := etcdlock.NewWith(connect(t, addr), func(c pb.LeaseClient) pb.LeaseClient {
		return hookedLeases{c, func(ctx context.Context, c pb.LeaseClient) (pb.Lease_LeaseKeepAliveClient, error) {
			if held.Load() && renewing.CompareAndSwap(false, true) {
				mustRevoke(t, by, key)
			}
			return c.LeaseKeepAlive(ctx)
		}}
	}, locker.TTL(ttl))
	t.Cleanup(func() { _ = l.Close() })
	lease := mustLock(t, l, key)
	held.Store(true)
	eventually(t, "it is renewed", renewing.Load)
	revoked(t, lease, ttl/4, locker.ErrRevoked)
	unlockRevoked(t, lease)
}

// TestRevokedWhileCutOff has a holder whose connections break, and who is back before its lease is over. It has missed
// what its watch would have told.
func TestRevokedWhileCutOff(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	proxy, by := behind(t, cluster.Member(0)), operator(t, cluster.Endpoints()...)
	l, key := open(t, []string{proxy.Addr()}, locker.TTL(ttl)), unique("key")
	lease := mustLock(t, l, key)
	at := lease.Deadline()
	eventually(t, "it is renewed, and watched", func() bool { return lease.Deadline().After(at) })
	proxy.Set(faultproxy.Refuse())
	proxy.ResetAll()
	mustRevoke(t, by, key)
	proxy.Heal()
	revoked(t, lease, time.Until(lease.Deadline()), locker.ErrRevoked)
	unlockRevoked(t, lease)
	mustUnlock(t, mustTry(t, by, key))
}

// TestRevokeAndMove has the keys of the holder be put under another etcd lease, before, while and after it is revoked.
func TestRevokeAndMove(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	for name, opts := range map[string][]locker.CallOption{"exclusive": nil, "slot": {locker.Slots(2)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := unique("key")
			l := open(t, []string{addr}, locker.TTL(ttl), locker.Holder("worker"))
			lease := mustLock(t, l, key, opts...)
			var moves atomic.Int32
			move := func() {
				t.Helper()
				_, before := root.claims(key)
				if err := etcdlock.Move(t.Context(), lease); err != nil {
					t.Fatal(err)
				}
				if _, after := root.claims(key); len(after) != 1 || after[0] == before[0] {
					t.Fatalf("the key was moved from the lease %x to %x", before, after)
				}
			}
			by := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
				if moves.Add(1) == 1 {
					move()
				}
				return pass(r)
			}, locker.Holder("operator"))
			outlives(t, lease, 1)
			move()
			mustRevoke(t, by, key)
			if n := moves.Load(); n != 2 {
				t.Errorf("%d requests to revoke; want another, as the first came after the key was moved", n)
			}
			move()
			notHeld(t, by, key)
			revoked(t, lease, ttl, locker.ErrRevoked)
			waiter := waits(open(t, []string{addr}), key)
			root.awaitLine(key, 2)
			unlockRevoked(t, lease)
			mustUnlock(t, granted(t, waiter, patience))
		})
	}
}

// TestBreakWithoutSpace has the database be full: what takes space is refused, and so is a Revoke, but not a Break.
func TestBreakWithoutSpace(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	key := unique("key")
	by := hooked(t, connect(t, addr), func(r request) (*clientv3.TxnResponse, error) {
		if len(r.puts) > 0 {
			return nil, rpctypes.ErrNoSpace
		}
		return pass(r)
	})
	l := open(t, []string{addr})
	lease := mustLock(t, l, key)
	checkError(t, by.Revoke(t.Context(), key, why), "revoke", key, etcdlock.ErrNoSpace)
	if err := by.Break(t.Context(), key); err != nil {
		t.Errorf("Break: %v", err)
	}
	next := mustTry(t, l, key)
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) || next.Token() <= lease.Token() {
		t.Errorf("Unlock of what was broken: %v; token %d after %d", err, next.Token(), lease.Token())
	}
	mustUnlock(t, next)
}

// TestRevokeTimes measures how long it takes from Revoke to the next holder, of holders that let go at once, that do
// not unlock, and that are cut off.
func TestRevokeTimes(t *testing.T) {
	wires.Long(t)
	cluster := etcdtest.New(t, etcdtest.Options{})
	locktest.RevokeTimes(t, func(t *testing.T) (l *locker.Client, cut func() (heal func())) {
		proxy := behind(t, cluster.Member(0))
		return open(t, []string{proxy.Addr()}, locker.TTL(locktest.RevokedTTL)), func() (heal func()) {
			proxy.Set(faultproxy.BlackHole())
			return proxy.Heal
		}
	})
}

// TestMarkLike has holders with names like marks.
func TestMarkLike(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	by := operator(t, addr)
	for i, name := range []string{"revoked a b c", "broken a b c", "ÿrevoked a b c", "%FFrevoked a b c", "   "} {
		key := unique(fmt.Sprint("key", i))
		lease := mustLock(t, open(t, []string{addr}, locker.Holder(name)), key)
		if info := inspect(t, by, key); info.Holders[0].Name != name {
			t.Errorf("%q is called %q", name, info.Holders[0].Name)
		}
		mustRevoke(t, by, key)
		if info := inspect(t, by, key); info.Holders[0].Name != name {
			t.Errorf("%q, who was revoked, is called %q", name, info.Holders[0].Name)
		}
		if strings.Contains(name, why) {
			t.Error("the names of this test are no names")
		}
		_ = lease.Unlock()
	}
}
