package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// inspect returns what is known of a key.
func inspect(t testing.TB, l *locker.Client, key string) locker.LockInfo {
	t.Helper()
	info, err := l.Inspect(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// listed returns the keys of what is listed.
func listed(t testing.TB, l *locker.Client, prefix string) (keys []string) {
	t.Helper()
	for info, err := range l.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	return keys
}

// TestInspectLine has two readers, a writer who waits for them, and a reader and one who wants a slot behind that one.
func TestInspectLine(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	var names []string
	line := func(opts ...locker.CallOption) *locker.Client {
		name := fmt.Sprint("worker ", len(names))
		names = append(names, name)
		l := open(t, []string{addr}, locker.TTL(ttl), locker.Holder(name))
		if len(names) <= 2 {
			lease := mustLock(t, l, key, opts...)
			t.Cleanup(func() { mustUnlock(t, lease) })
			return l
		}
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		go func() { _, _ = l.Lock(ctx, key, opts...) }()
		root.awaitLine(key, len(names))
		return l
	}
	l := line(locker.Shared())
	for _, opts := range [][]locker.CallOption{
		{locker.Shared()}, nil, {locker.Shared()}, {locker.Slots(3)},
	} {
		line(opts...)
	}
	info := inspect(t, l, key)
	if len(info.Holders) != 2 || len(info.Waiters) != 3 || info.Waiting != 3 {
		t.Fatalf("%+v; want two holders and three who wait", info)
	}
	claims, leases := root.claims(key)
	for i, h := range info.Holders {
		session := fmt.Sprintf("lease %x", leases[i])
		if h.Name != names[i] || h.Mode != locker.ModeShared || h.Session != session || !h.Since.IsZero() {
			t.Errorf("holder %d is %+v", i, h)
		}
		if h.Left <= ttl/2 || h.Left > ttl {
			t.Errorf("%v are left of %v", h.Left, ttl)
		}
		root.do(func(ctx context.Context) error {
			is := clientv3.Compare(clientv3.CreateRevision(claims[i]), "=", int64(h.Token))
			r, err := root.Txn(ctx).If(is).Commit()
			if err == nil && !r.Succeeded {
				t.Errorf("holder %d has the token %d, which is not its create revision", i, h.Token)
			}
			return err
		})
	}
	for i, mode := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		if w := info.Waiters[i]; w.Name != names[2+i] || w.Mode != mode || !w.Since.IsZero() {
			t.Errorf("waiter %d is %+v", i, w)
		}
	}
}

// TestInspectAgrees has locks taken and given back at random, in all modes. When nothing happens any more, Inspect
// tells of those who hold the key, and of no others.
func TestInspectAgrees(t *testing.T) {
	t.Parallel()
	const steps, lockers = 60, 3
	addr := etcdtest.Address(t)
	key := unique("key")
	var ls []*locker.Client
	for range lockers {
		ls = append(ls, open(t, []string{addr}, locker.TTL(time.Minute)))
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	var held []*locker.Lease
	waiting := 0
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer all.Wait()
	defer cancel()
	modes := [][]locker.CallOption{nil, {locker.Shared()}, {locker.Slots(2)}, {locker.Slots(3)}}
	seen := make(map[string]int)
	agree := func() bool {
		info := inspect(t, ls[r.IntN(lockers)], key)
		mu.Lock()
		defer mu.Unlock()
		if len(info.Holders) != len(held) || info.Waiting != waiting {
			return false
		}
		for _, lease := range held {
			if !slices.ContainsFunc(info.Holders, func(h locker.HolderInfo) bool {
				return h.Token == lease.Token() && h.Mode == lease.Mode() && h.Slot == lease.Slot()
			}) {
				return false
			}
		}
		for _, h := range info.Holders {
			seen[h.Mode.String()]++
		}
		return true
	}
	for step := range steps {
		mu.Lock()
		if len(held) > 0 && (waiting > 6 || r.IntN(2) == 0) {
			i := r.IntN(len(held))
			lease := held[i]
			held = slices.Delete(held, i, i+1)
			mu.Unlock()
			mustUnlock(t, lease)
		} else {
			waiting++
			mu.Unlock()
			l, opts := ls[r.IntN(lockers)], modes[r.IntN(len(modes))]
			all.Go(func() {
				lease, err := l.Lock(ctx, key, opts...)
				mu.Lock()
				defer mu.Unlock()
				waiting--
				if err == nil {
					held = append(held, lease)
				} else if ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		eventually(t, fmt.Sprintf("seed %d, step %d: Inspect agrees", seed, step), agree)
	}
	if len(seen) < 3 {
		t.Errorf("seed %d: only holders of these modes: %v", seed, seen)
	}
}

// counted counts what a Locker asks.
type counted struct {
	mu    sync.Mutex
	reads []int // how many keys each had
	ttls  atomic.Int32
}

type countedKV struct {
	clientv3.KV
	c *counted
}

func (kv countedKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	resp, err := kv.KV.Do(ctx, op)
	if err == nil && op.IsGet() {
		kv.c.mu.Lock()
		defer kv.c.mu.Unlock()
		kv.c.reads = append(kv.c.reads, len(resp.Get().Kvs))
	}
	return resp, err
}

type countedLeases struct {
	pb.LeaseClient
	c *counted
}

func (l countedLeases) LeaseTimeToLive(
	ctx context.Context, r *pb.LeaseTimeToLiveRequest, opts ...grpc.CallOption,
) (*pb.LeaseTimeToLiveResponse, error) {
	l.c.ttls.Add(1)
	return l.LeaseClient.LeaseTimeToLive(ctx, r, opts...)
}

// puts makes keys with an etcd lease, a hundred in a transaction.
func (a admin) puts(lease clientv3.LeaseID, keys ...string) {
	a.t.Helper()
	for some := range slices.Chunk(keys, 100) {
		var ops []clientv3.Op
		for _, key := range some {
			ops = append(ops, clientv3.OpPut(key, "somebody", clientv3.WithLease(lease)))
		}
		a.do(func(ctx context.Context) error { _, err := a.Txn(ctx).Then(ops...).Commit(); return err })
	}
}

func (a admin) grant(ttl time.Duration) (id clientv3.LeaseID) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Grant(ctx, int64(ttl/time.Second))
		if err == nil {
			id = r.ID
		}
		return err
	})
	return id
}

// TestListPages lists thousands of locks, some of which have very many who wait, and keys of other programs among them.
func TestListPages(t *testing.T) {
	t.Parallel()
	const n, page, short, long = 3000, 500, time.Minute, time.Hour
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	leases := []clientv3.LeaseID{root.grant(short), root.grant(long)}
	base := unique("list")
	claim := func(key string, lease clientv3.LeaseID, ordinal int) string {
		return fmt.Sprintf("%s%x.0.%x", etcdlock.Key(etcdlock.DefaultPrefix+key), lease, ordinal)
	}
	want := make(map[string]int) // how many wait
	for i, lease := range leases {
		var claims []string
		for j := range n / 2 {
			key := fmt.Sprintf("%s/%d/%d!@%%\xff é", base, i, j)
			want[key] = 0
			claims = append(claims, claim(key, lease, j))
		}
		root.puts(lease, claims...)
	}
	lines := map[string]int{"/0/1/line": 300, "/1": 700, "/1/5/line": 1200, "/": 20, "/1/8": 1000}
	for rest, waiters := range lines { // shorter than a page, and longer
		var claims []string
		for j := range waiters {
			claims = append(claims, claim(base+rest, leases[0], 1+j))
		}
		root.puts(leases[1], claim(base+rest, leases[1], 0))
		root.puts(leases[0], claims...)
		want[base+rest] = waiters
	}
	var foreign []string
	for i := range 2*page + 1 {
		foreign = append(foreign, fmt.Sprintf("%s%s/0/5/%d", etcdlock.DefaultPrefix, base, i))
	}
	root.puts(leases[0], foreign...)
	c := new(counted)
	l := locker.New(etcdlock.NewBackendOn(connect(t, addr), func(kv clientv3.KV) clientv3.KV {
		return countedKV{kv,
			c}
	},
		func(l pb.LeaseClient) pb.LeaseClient { return countedLeases{l, c} }), locker.Prefix(etcdlock.DefaultPrefix))
	t.Cleanup(func() { _ = l.Close() })
	for info, err := range l.List(t.Context(), base+"/") {
		if err != nil {
			t.Fatal(err)
		}
		waiters, ok := want[info.Key]
		if !ok || len(info.Holders) != 1 || info.Waiting != waiters {
			t.Fatalf("%q: %d holders, %d wait; want it once, with %d", info.Key, len(info.Holders), info.Waiting,
				waiters)
		}
		delete(want, info.Key)
		limit := short
		if waiters > 0 || strings.HasPrefix(info.Key, base+"/1/") {
			limit = long
		}
		if left := info.Holders[0].Left; left > limit || left < limit/2 {
			t.Fatalf("%q: %v are left; want up to %v", info.Key, left, limit)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d locks were not listed", len(want))
	}
	reads, keys, alone := len(c.reads), 0, 0
	for _, read := range c.reads {
		keys += read
		if read > page {
			alone++
		}
	}
	if reads < 8 || alone > 3 || keys > 2*(n+3225)+len(foreign) {
		t.Errorf("%d reads, of %d keys; %d of more than a page; want as many as there are lines as long as that", reads,
			keys, alone)
	}
	if n := c.ttls.Load(); n != int32(len(leases)) {
		t.Errorf("for %d etcd leases, their ends were asked for %d times", len(leases), n)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stopped, yields := errors.New("enough"), 0
	for _, err := range l.List(ctx, base+"/") {
		if yields++; yields == 1 {
			cancel(stopped)
		}
		if err != nil {
			if !errors.Is(err, context.Canceled) || !errors.Is(err, stopped) {
				t.Errorf("List when its ctx has ended: %v", err)
			}
			stopped = nil
		}
	}
	if stopped != nil || yields > page+1 {
		t.Errorf("List has yielded %d times; its ctx has ended at the first", yields)
	}
}

// TestKeysOfOthers has keys beside those of locks, and among them, that no Locker has made.
func TestKeysOfOthers(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	base := unique("strange")
	l := open(t, []string{addr})
	lease := mustLock(t, l, base+"/a")
	none := clientv3.LeaseID(clientv3.NoLease)
	prefix := etcdlock.DefaultPrefix + base
	root.puts(none, prefix, prefix+"/", prefix+"/ @x", prefix+"/%zz@1.0.0", prefix+"/%c3@1.0.0", prefix+"/b",
		prefix+"/@",
		prefix+"/a!1", prefix+"/a\xff@1.0.0")
	session, err := concurrency.NewSession(root.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	mutex := concurrency.NewMutex(session, prefix+"/mutex")
	root.do(mutex.Lock)
	if keys := listed(t, l, base+"/"); !slices.Equal(keys, []string{base + "/", base + "/a"}) {
		t.Errorf("listed: %q; want %q and what somebody has put there as if it were a lock", keys, base+"/a")
	}

	for place, parts := range map[string]string{"": "1.0.0.3.x", "#": "1.0.0", "r": "1.0.0.3.x"} {
		for name, c := range map[string]struct {
			key   string
			lease clientv3.LeaseID
		}{
			"nobody":  {"somebody", session.Lease()},
			"noLease": {"1.0.0.3.x", none},
			"parts":   {parts, session.Lease()},
			"numbers": {"1.zz.0.3.x", session.Lease()},
		} {
			key := fmt.Sprint(base, "/", place, "/", name)
			claim := etcdlock.Key(etcdlock.DefaultPrefix+key) + place + c.key
			root.puts(c.lease, claim)
			waiter := waits(l, key)
			root.awaitLine(key, 2)
			info := inspect(t, l, key)
			if len(info.Holders) != 1 || info.Waiting != 1 || info.Holders[0].Session != "key "+claim ||
				info.Holders[0].Token != 0 {
				t.Errorf("%s%s: %+v; want the key as the holder's session", place, name, info)
			}
			if err := l.Revoke(t.Context(), key, "why"); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Revoke of what another program holds: %v; want ErrUnsupported", err)
			}
			if !root.exists(claim) {
				t.Error("Revoke has deleted the key of another program")
			}
			if err := l.Break(t.Context(), key); err != nil {
				t.Errorf("Break of what another program holds: %v", err)
			}
			mustUnlock(t, granted(t, waiter, patience))
		}
	}
	mustUnlock(t, lease)
}

// TestInspectWithoutAnswers has the server not answer.
func TestInspectWithoutAnswers(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	proxy := behind(t, etcdtest.New(t, etcdtest.Options{}).Member(0))
	l := open(t, []string{proxy.Addr()}, locker.TTL(ttl))
	lease := mustLock(t, l, unique("key"))
	proxy.Set(faultproxy.BlackHole())
	_, err := l.Inspect(t.Context(), lease.Key())
	checkError(t, err, "inspect", lease.Key(), etcdlock.ErrNoAnswer)
	checkError(t, l.Revoke(t.Context(), lease.Key(), "why"), "revoke", lease.Key(), etcdlock.ErrNoAnswer)
	checkError(t, l.Break(t.Context(), lease.Key()), "break", lease.Key(), etcdlock.ErrNoAnswer)
	for _, err := range l.List(t.Context(), "") {
		checkError(t, err, "list", "", etcdlock.ErrNoAnswer)
	}
	proxy.Heal()
}
