package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
)

// client returns a Client, which can inspect and revoke.
func client(t testing.TB, rdb redis.UniversalClient, opts ...locker.Option) *locker.Client {
	t.Helper()
	return open(t, rdb, opts...).(*locker.Client)
}

// listed returns the keys that List yields, sorted.
func listed(t *testing.T, l *locker.Client, prefix string) (keys []string) {
	t.Helper()
	for info, err := range l.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	slices.Sort(keys)
	return keys
}

// TestInspectForeignClient: a lock that a client of another kind has set is told of, is not listed, cannot be revoked,
// and can be broken.
func TestInspectForeignClient(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := client(t, rdb)
	if err := rdb.SetNX(t.Context(), redislock.DefaultPrefix+"k", "theirs", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	info, err := l.Inspect(t.Context(), "k")
	if err != nil || len(info.Holders) != 1 {
		t.Fatalf("%+v, %v; want a holder", info, err)
	}
	if h := info.Holders[0]; h.Session != "theirs" || h.Token != 0 || !h.Since.IsZero() || h.Left < 50*time.Second {
		t.Errorf("%+v; want what the key is set to, and what is left", h)
	}
	if keys := listed(t, l, ""); len(keys) != 0 {
		t.Errorf("listed: %q", keys)
	}
	if err := l.Revoke(t.Context(), "k", "why"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Revoke: %v; want ErrUnsupported", err)
	}
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, "k") })
	eventually(t, "somebody waits", func() bool { return inLine(t, rdb, "k") == 1 })
	if err := l.Break(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	mustUnlock(t, next.Get(t))
}

// TestInspectWrongType: what is no lock at all is an error, and not touched.
func TestInspectWrongType(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := client(t, rdb)
	if err := rdb.LPush(t.Context(), redislock.DefaultPrefix+"k", "x").Err(); err != nil {
		t.Fatal(err)
	}
	_, err := l.Inspect(t.Context(), "k")
	for what, err := range map[string]error{
		"Inspect": err, "Revoke": l.Revoke(t.Context(), "k", "why"), "Break": l.Break(t.Context(), "k"),
	} {
		if !errors.Is(err, redislock.ErrWrongType) {
			t.Errorf("%s: %v; want ErrWrongType", what, err)
		}
	}
	if n := rdb.LLen(t.Context(), redislock.DefaultPrefix+"k").Val(); n != 1 {
		t.Errorf("the list has %d elements; want 1", n)
	}
	if keys := listed(t, l, ""); len(keys) != 0 {
		t.Errorf("listed: %q", keys)
	}
}

// TestRevokeMany revokes more holders than one script looks at, while all of them are renewed.
func TestRevokeMany(t *testing.T) {
	t.Parallel()
	const readers = 1300
	server := redistest.New(t, redistest.Options{})
	l, by := client(t, dial(t, server.Addr())), client(t, dial(t, server.Addr()))
	leases := make([]*locker.Lease, readers)
	var all sync.WaitGroup
	for i := range leases {
		all.Go(func() { leases[i] = mustLock(t, l, "k", locker.Shared(), locker.TTL(9*time.Second)) })
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if info, err := by.Inspect(t.Context(), "k"); err != nil || len(info.Holders) != readers {
		t.Errorf("%d holders, %v; want %d", len(info.Holders), err, readers)
	}
	if err := by.Revoke(t.Context(), "k", "why"); err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases {
		<-lease.Done()
		if err := lease.Err(); !errors.Is(err, locker.ErrRevoked) {
			t.Fatalf("a reader's lease ended with %v; want ErrRevoked", err)
		}
	}
	if err := by.Revoke(t.Context(), "k", "again"); !errors.Is(err, locker.ErrNotHeld) {
		t.Errorf("a second Revoke: %v; want ErrNotHeld", err)
	}
	for _, lease := range leases {
		all.Go(func() { _ = lease.Unlock() })
	}
	all.Wait()
	mustUnlock(t, mustLock(t, by, "k"))
}

// TestRevokedWithoutAMessage has a holder renew whom no message has reached: it is told by whom and why all the same.
func TestRevokedWithoutAMessage(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	by := client(t, dial(t, server.Addr()), locker.Holder("an operator, or two"))
	for name, mode := range map[string][]locker.CallOption{
		"exclusive": nil, "shared": {locker.Shared()}, "slots": {locker.Slots(2)},
	} {
		l := client(t, dial(t, server.Addr()), locker.TTL(9*time.Second), locker.Holder("x"))
		lease := mustLock(t, l, name, mode...) // too young to listen
		other := mustLock(t, l, name+"/other", mode...)
		if err := by.Revoke(t.Context(), name, "100 % \x00stuck, é"); err != nil {
			t.Fatal(err)
		}
		<-lease.Done()
		err := lease.Err()
		var r *locker.Revocation
		if !errors.As(err, &r) || *r != (locker.Revocation{By: "an operator, or two", Reason: "100 % \x00stuck, é"}) {
			t.Errorf("%s: %v; want by whom, and why", name, err)
		}
		_ = lease.Unlock()
		mustUnlock(t, other)
	}
}

// TestInspectModes tells of readers, of slots, and of those who wait in whatever mode, in order.
func TestInspectModes(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := client(t, rdb)
	before := time.Now()
	first := mustLock(t, l, "k", locker.Slots(3), locker.Holder("first"))
	second := mustLock(t, l, "k", locker.Slots(3), locker.Holder("second"))
	mustUnlock(t, first)
	var waiting []locktest.Pending[*locker.Lease]
	for i, mode := range [][]locker.CallOption{nil, {locker.Shared()}, {locker.Slots(3)}} {
		waiting = append(waiting, locktest.Started(func() *locker.Lease { return mustLock(t, l, "k", mode...) }))
		eventually(t, "they stand in line", func() bool { return inLine(t, rdb, "k") == i+1 })
	}
	info, err := l.Inspect(t.Context(), "k")
	if err != nil || len(info.Holders) != 1 || info.Waiting != 3 || len(info.Waiters) != 3 {
		t.Fatalf("%+v, %v; want a holder and three waiters", info, err)
	}
	if h := info.Holders[0]; h.Name != "second" || h.Slot != 1 || h.Mode != locker.ModeSlots {
		t.Errorf("%+v; want the second in slot 1", h)
	}
	for i, want := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		w := info.Waiters[i]
		if age := time.Since(w.Since); w.Mode != want || age < -time.Minute || age > time.Since(before)+time.Minute {
			t.Errorf("waiter %d: %+v; want %v, since just now", i, w, want)
		}
	}
	mustUnlock(t, second)
	for _, w := range waiting {
		mustUnlock(t, w.Get(t))
	}
}

// TestListOnCluster lists keys that are on different nodes.
func TestListOnCluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	l := client(t, c.Client(t))
	var want []string
	for i := range 120 {
		key := fmt.Sprintf("%03d", i)
		mustLock(t, l, "a/"+key)
		want = append(want, "a/"+key)
	}
	mustLock(t, l, "b")
	if keys := listed(t, l, "a/"); !slices.Equal(keys, want) {
		t.Errorf("listed: %q", keys)
	}
}

// TestListRefused has an error of the server be the last thing that List yields.
func TestListRefused(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	rdb, proxy := wired(t, server)
	l := client(t, rdb)
	for i := range 200 {
		mustLock(t, l, strconv.Itoa(i))
	}
	n := 0
	var failure error
	for _, err := range l.List(t.Context(), "") {
		if n++; err != nil {
			failure = err
		} else if n == 1 {
			proxy.Set(faultproxy.Refuse())
		}
	}
	if !errors.Is(failure, locker.ErrUnavailable) || n > 150 {
		t.Errorf("after %d keys: %v; want ErrUnavailable", n, failure)
	}
	proxy.Heal()
}

// TestMayInspectOnly has a user who may look, and not lock or revoke.
func TestMayInspectOnly(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	setUser(t, admin, documentedACL(t).inspecting)
	mustLock(t, open(t, admin), "k", locker.Holder("somebody"))
	mustLock(t, open(t, admin), "slots", locker.Slots(2))
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "app", Password: "pw"})
	t.Cleanup(func() { _ = rdb.Close() })
	l := client(t, rdb)
	info, err := l.Inspect(t.Context(), "k")
	if err != nil || len(info.Holders) != 1 || info.Holders[0].Name != "somebody" {
		t.Errorf("%+v, %v", info, err)
	}
	if keys := listed(t, l, ""); !slices.Equal(keys, []string{"k", "slots"}) {
		t.Errorf("listed: %q", keys)
	}
	_, err = l.TryLock(t.Context(), "free")
	for what, err := range map[string]error{
		"TryLock": err, "Revoke": l.Revoke(t.Context(), "k", "why"), "Break": l.Break(t.Context(), "k"),
		"Revoke of a slot": l.Revoke(t.Context(), "slots", "why"),
	} {
		if !errors.Is(err, locker.ErrDenied) {
			t.Errorf("%s: %v; want ErrDenied", what, err)
		}
	}
	if info, err := l.Inspect(t.Context(), "k"); err != nil || len(info.Holders) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	if err := open(t, admin).(*locker.Client).Revoke(t.Context(), "k", "why"); err != nil {
		t.Errorf("what was refused has left something behind: %v", err)
	}
}

// TestTakenAwayBeforeReplicasHaveIt takes a lock away that was granted, and that replicas have yet to confirm.
func TestTakenAwayBeforeReplicasHaveIt(t *testing.T) {
	t.Parallel()
	server, replica := redistest.New(t, redistest.Options{}), redistest.New(t, redistest.Options{})
	host, port, _ := net.SplitHostPort(server.Addr())
	if err := dial(t, replica.Addr()).ReplicaOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
	admin := dial(t, server.Addr())
	if n, err := waitFor(t, admin, 1); n != 1 {
		t.Fatalf("%d replicas, %v", n, err)
	}
	other := client(t, admin)
	for name, takeAway := range map[string]func(){
		"revoke": func() { _ = other.Revoke(context.Background(), "k", "why") },
		"break":  func() { _ = other.Break(context.Background(), "k") },
	} {
		var granted atomic.Bool
		rdb := dial(t, server.Addr())
		rdb.AddHook(redistest.Hook(func(cmds ...redis.Cmder) {
			if cmds[len(cmds)-1].Name() == "wait" && !granted.Swap(true) {
				takeAway()
			}
		}))
		l := redislock.Config{Replicas: 1, ReplicasWithin: 10 * time.Second}.New(rdb, locker.TTL(time.Minute))
		t.Cleanup(func() { _ = l.Close() })
		lease, err := l.TryLock(t.Context(), "k")
		if err == nil || errors.Is(err, locker.ErrLost) || !granted.Load() {
			t.Errorf("%s: TryLock has a lease: %v, %v; want an error that is not ErrLost", name, lease != nil, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		next, err := other.Lock(ctx, "k")
		if err != nil {
			t.Fatalf("%s: it was not given back: %v", name, err)
		}
		mustUnlock(t, next)
		mustUnlock(t, mustLock(t, l, "k"))
	}
}

// BenchmarkList lists 100,000 keys, and says how long other clients wait for their PING meanwhile.
func BenchmarkList(b *testing.B) {
	const keys = 100_000
	server := redistest.New(b, redistest.Options{})
	rdb := dial(b, server.Addr())
	for from := 0; from < keys; from += 1000 {
		_, err := rdb.Pipelined(b.Context(), func(p redis.Pipeliner) error {
			for i := range 1000 {
				owner := fmt.Sprintf("%032x:host-%d", from+i, i%10)
				p.Set(b.Context(), redislock.DefaultPrefix+"orders/"+strconv.Itoa(from+i), owner, time.Hour)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	l := client(b, rdb)
	other := dial(b, server.Addr())
	ping := func(while func() bool) (took []time.Duration) {
		for while() {
			start := time.Now()
			if err := other.Ping(b.Context()).Err(); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			time.Sleep(time.Millisecond)
		}
		slices.Sort(took)
		return took
	}
	p99 := func(took []time.Duration) float64 { return float64(took[len(took)*99/100].Microseconds()) }
	until := time.Now().Add(time.Second)
	b.ReportMetric(p99(ping(func() bool { return time.Now().Before(until) })), "p99-ping-us-before")
	for b.Loop() {
		listing := make(chan struct{})
		n := 0
		go func() {
			defer close(listing)
			for _, err := range l.List(b.Context(), "orders/") {
				if err != nil {
					b.Error(err)
				}
				n++
			}
		}()
		took := ping(func() bool {
			select {
			case <-listing:
				return false
			default:
				return true
			}
		})
		if n != keys {
			b.Errorf("listed %d keys; want %d", n, keys)
		}
		b.ReportMetric(p99(took), "p99-ping-us")
	}
}

// TestRevokeTimes measures how long it takes from Revoke to the next holder, of holders that let go at once, that do
// not unlock, and that are cut off.
func TestRevokeTimes(t *testing.T) {
	wires.Long(t)
	server := redistest.New(t, redistest.Options{})
	locktest.RevokeTimes(t, func(t *testing.T) (l *locker.Client, cut func() (heal func())) {
		rdb, proxy := wired(t, server)
		return client(t, rdb, locker.TTL(locktest.RevokedTTL)), func() (heal func()) {
			proxy.Set(faultproxy.BlackHole())
			return proxy.Heal
		}
	})
}
