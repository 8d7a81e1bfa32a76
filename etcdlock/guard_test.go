package etcdlock_test

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/memlock"
)

// guardTTL is that of the leases here: one test waits for the end of one, others need renewals in time, also when the
// machine is busy.
const guardTTL = 3 * time.Second

// guarded is a value that is written by the holder of a lock.
type guarded struct {
	t       *testing.T
	client  *clientv3.Client
	addr    string
	lock    string
	key     string
	written string // what was written last
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{t: t, addr: etcdtest.Address(t), lock: "guard/" + rand.Text(), key: "guarded/" + rand.Text()}
	g.client = connect(t, g.addr)
	t.Cleanup(func() {
		if _, err := g.client.Delete(context.Background(), g.key); err != nil {
			t.Error(err)
		}
	})
	return g
}

// open returns a Locker of its own.
func (g *guarded) open(client *clientv3.Client) locker.Locker {
	return with(g.t, client, locker.TTL(guardTTL))
}

func (g *guarded) mustLock(l locker.Locker) *locker.Lease {
	g.t.Helper()
	return mustLock(g.t, l, g.lock)
}

// expect has the lease write, and expects that it can, or that it cannot and nothing is changed.
func (g *guarded) expect(lease *locker.Lease, want bool) {
	g.t.Helper()
	value := rand.Text()
	resp, err := g.client.Txn(g.t.Context()).
		If(etcdlock.Guard(lease)).
		Then(clientv3.OpPut(g.key, value)).
		Commit()
	if err != nil {
		g.t.Fatal(err)
	}
	if resp.Succeeded != want {
		g.t.Errorf("the transaction with token %d: succeeded is %v, want %v", lease.Token(), resp.Succeeded, want)
	}
	if want {
		g.written = value
	}
	found, err := g.client.Get(g.t.Context(), g.key)
	if err != nil {
		g.t.Fatal(err)
	}
	is := ""
	for _, kv := range found.Kvs {
		is = string(kv.Value)
	}
	if is != g.written {
		g.t.Errorf("the value is %q, want %q", is, g.written)
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	l := g.open(g.client)
	lease := g.mustLock(l)
	g.expect(lease, true)
	g.expect(lease, true)                                     // as often as it likes
	time.Sleep(time.Until(lease.Deadline()) + time.Second/10) // and for as long as it is renewed
	g.expect(lease, true)
	if err := lease.Unlock(); err != nil {
		t.Fatal(err)
	}
	g.expect(lease, false)
	again := g.mustLock(l)
	g.expect(lease, false) // that the same Locker holds the lock again is not the same lease
	g.expect(again, true)
}

// The lock may have been waited for.
func TestGuardAfterWaiting(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	first := g.mustLock(g.open(g.client))
	next := g.open(g.client)
	waiter := locktest.Started(func() *locker.Lease { return g.mustLock(next) })
	administer(t, g.client).awaitLine(g.lock, 2)
	g.expect(first, true)
	mustUnlock(t, first)
	lease := waiter.Get(t)
	g.expect(first, false)
	g.expect(lease, true)
}

// A lock that somebody has deleted guards nothing from then on, whether or not its holder has been told.
func TestGuardAfterLoss(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	lease := g.mustLock(g.open(g.client))
	g.expect(lease, true)
	if _, err := g.client.Delete(t.Context(), etcdlock.Key(etcdlock.DefaultPrefix+g.lock), clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	g.expect(lease, false)
	next := g.mustLock(g.open(g.client))
	g.expect(lease, false)
	g.expect(next, true)
	select {
	case <-lease.Done():
	case <-time.After(10 * time.Second):
		t.Error("the holder was not told")
	}
	g.expect(lease, false)
}

func TestGuardOfAnotherStore(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	mine := g.mustLock(g.open(g.client))
	m := memlock.New()
	defer m.Close()
	for range 3 {
		other := g.mustLock(m)
		g.expect(other, false) // though it is held, and there is a lock of that key
		if err := other.Unlock(); err != nil {
			t.Error(err)
		}
	}
	prefixed := etcdlock.New(g.client, locker.TTL(guardTTL), locker.Prefix("others/"))
	defer prefixed.Close()
	other := g.mustLock(prefixed)
	g.expect(other, true) // its own lock is what guards
	g.expect(mine, true)
}

// A holder that is cut off writes nothing more once there is another one, if what it has sent arrives late.
func TestGuardOfStaleHolder(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	proxy := faultproxy.New(t, g.addr)
	cutOff := connect(t, proxy.Addr())
	stale := g.mustLock(g.open(cutOff))
	g.expect(stale, true)
	proxy.Set(faultproxy.Hang())
	late := make(chan bool, 1)
	go func() {
		resp, err := cutOff.Txn(t.Context()).If(etcdlock.Guard(stale)).Then(clientv3.OpPut(g.key, "late")).Commit()
		late <- err == nil && resp.Succeeded
	}()
	next := g.mustLock(g.open(g.client)) // when the lease of the other has run out
	if stale.Err() == nil {
		t.Error("the former holder does not know of its loss")
	}
	g.expect(stale, false)
	g.expect(next, true)
	proxy.Heal()
	if <-late {
		t.Error("what a former holder had sent was carried out")
	}
	g.expect(stale, false)
	g.expect(next, true)
}
