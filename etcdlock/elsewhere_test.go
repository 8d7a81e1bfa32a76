package etcdlock_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/strangers"
)

// TestLearner has a member among the endpoints that refuses nearly everything. Nobody is to notice.
func TestLearner(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	learner := cluster.AddLearner(t)
	for range 4 { // it is left to chance which endpoint is asked first
		l := open(t, []string{learner, cluster.Member(0).Addr()}, locker.TTL(3*time.Second))
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { mustUnlock(t, mustLock(t, l, unique("key"))) })
		}
		all.Wait()
		held := mustTry(t, l, unique("key"))
		outlives(t, held, 1)
		mustUnlock(t, held)
	}
	_, err := lock(open(t, []string{learner}), unique("key"))
	if !errors.Is(err, etcdlock.ErrUnreachable) || !errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("Lock at a learner alone: %v; want ErrUnreachable", err)
	}
}

// TestProposalDropped has a member drop proposals, as while its leader changes. Another is asked; and if there is none,
// the error says what that is, and nothing is left behind.
func TestProposalDropped(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	var drops atomic.Int32
	hook := func(r request) (*clientv3.TxnResponse, error) {
		if drops.Add(-1) >= 0 {
			return nil, status.Error(codes.Unknown, "raft proposal dropped")
		}
		return pass(r)
	}
	l := hooked(t, connect(t, addr, addr), hook)
	root := administer(t, connect(t, addr))
	drops.Store(1)
	lease := mustLock(t, l, unique("key"))
	if root.exists(etcdlock.FenceOf(lease)) {
		t.Error("a proposal that was dropped was taken for one that may arrive")
	}
	mustUnlock(t, lease)
	drops.Store(100)
	_, err := lock(l, unique("key"))
	if !errors.Is(err, etcdlock.ErrUnreachable) {
		t.Errorf("Lock: %v; want ErrUnreachable", err)
	}
}

// TestConnectingInVain has the packets lost by which connections to all endpoints are made. When the network is back,
// nobody may go on to wait for those: package grpc does, for 20 seconds.
func TestConnectingInVain(t *testing.T) {
	t.Parallel()
	const ttl = 15 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	over := make(chan struct{})
	silent := strangers.Serve(t, func(net.Conn) { <-over })
	t.Cleanup(func() { close(over) })
	var lost atomic.Bool
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		if lost.Load() {
			addr = silent
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	one, two := behind(t, cluster.Member(0)), behind(t, cluster.Member(0))
	l := with(t, connectWith(t, clientv3.Config{
		Endpoints: []string{one.Addr(), two.Addr()}, DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	}), locker.TTL(ttl))
	lease := mustLock(t, l, unique("key"))
	lost.Store(true)
	one.ResetAll()
	two.ResetAll()
	time.Sleep(ttl * 8 / 15) // it is renewed after a third, by one endpoint and then the other
	lost.Store(false)
	outlives(t, lease, 2)
	mustUnlock(t, lease)
}

// TestDataGoesBack has the data of the servers put back to an older state, in which a fence stands that was raised
// since. The Locker begins anew, at once.
func TestDataGoesBack(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root := administer(t, connect(t, addr))
	key := unique("key")
	d := &delayed{which: func(r request) bool { return r.claims(key) }}
	var back atomic.Bool
	var raised atomic.Int32
	fence := etcdlock.DefaultPrefix + "!"
	l := hooked(t, connect(t, addr, addr), func(r request) (*clientv3.TxnResponse, error) {
		raises := slices.ContainsFunc(r.puts, func(k string) bool { return strings.HasPrefix(k, fence) })
		resp, err := d.hook(r)
		if err == nil && raises && back.Load() {
			raised.Add(1)
			resp.Header.Revision = 2
		}
		return resp, err
	}, locker.TTL(6*time.Second))
	held := mustLock(t, l, unique("key"))
	mustUnlock(t, mustLock(t, l, key)) // raises the fence, as its first request got no answer
	eventually(t, "the fence is raised", func() bool { return root.exists(etcdlock.FenceOf(held)) })
	mustUnlock(t, mustLock(t, l, unique("key")))
	back.Store(true)
	root.delete(etcdlock.FenceOf(held))
	mustUnlock(t, mustLock(t, l, unique("key")))
	if err := told(t, held, patience); !errors.Is(err, etcdlock.ErrLeaseExpired) {
		t.Errorf("the lease: %v; want ErrLeaseExpired", err)
	}
	if n := raised.Load(); n != 1 {
		t.Errorf("the fence was raised %d times in vain; want once", n)
	}
}

// TestLoginsAreShared has many requests under way when the token expires that the client logged in for. Of those, one
// logs in again: to check a password takes the server long, on purpose.
func TestLoginsAreShared(t *testing.T) {
	t.Parallel()
	const atOnce, times = 50, 3
	cluster, root := withPasswords(t)
	root.addRole("app", etcdlock.DefaultPrefix)
	root.addUser("app", "app")
	var logins atomic.Int32
	l := with(t, connectWith(t, clientv3.Config{
		Endpoints: cluster.Endpoints(), Username: "app", Password: secret,
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(countLogins(&logins))},
	}), locker.TTL(time.Minute))
	var ttls []time.Duration // a session each, whose requests do not share transactions
	for i := range atOnce {
		ttls = append(ttls, time.Minute+time.Duration(i)*time.Second)
		mustUnlock(t, mustLock(t, l, unique("key"), locker.TTL(ttls[i])))
	}
	for range times {
		if err := cluster.Restart(); err != nil { // it has forgotten who is logged in
			t.Fatal(err)
		}
		before := logins.Load()
		var all sync.WaitGroup
		for _, ttl := range ttls {
			all.Go(func() {
				lease, err := lock(l, unique("key"), locker.TTL(ttl))
				if err == nil {
					err = lease.Unlock()
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := logins.Load() - before; n > atOnce/5 {
			t.Errorf("%d logins for %d requests at once", n, atOnce)
		} else {
			t.Logf("%d logins for %d requests at once", n, atOnce)
		}
	}
}

// testLoginBesideADeadEndpoint has the endpoint die that the requests went to, when the other one has forgotten the
// token: the client logs in at both in turn, and what waits for that goes on as soon as one answers.
func testLoginBesideADeadEndpoint(t *testing.T) {
	const ttl, many = 12 * time.Second, 6
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3, Flags: []string{"--bcrypt-cost=4", "--auth-token-ttl=2"}})
	root := askForPasswords(t, cluster)
	root.addRole("app", etcdlock.DefaultPrefix)
	root.addUser("app", "app")
	one, two := behind(t, cluster.Member(0)), behind(t, cluster.Member(1))
	config := clientv3.Config{Endpoints: []string{one.Addr(), two.Addr()}, Username: "app", Password: secret}
	var ls []*locker.Client
	for range many {
		ls = append(ls, with(t, connectWith(t, config), locker.TTL(ttl)))
	}
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(100 * time.Millisecond) {
		for _, l := range ls { // which keeps the token alive where they go, and lets the other member forget it
			mustUnlock(t, mustLock(t, l, unique("key")))
		}
	}
	one.Set(faultproxy.BlackHole())
	var all sync.WaitGroup
	for _, l := range ls {
		for range 3 {
			all.Go(func() {
				start := time.Now()
				lease, err := lock(l, unique("key"))
				if err != nil {
					t.Errorf("after %v: %v", time.Since(start), err)
					return
				}
				mustUnlock(t, lease)
			})
		}
	}
	all.Wait()
	one.Heal()
}

// callCredentials are a caller's own, which count how often they are asked for.
type callCredentials struct{ asked *atomic.Int32 }

func (c callCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	c.asked.Add(1)
	return map[string]string{"tenant": "seven"}, nil
}

func (callCredentials) RequireTransportSecurity() bool { return false }

// TestCallersOptions has a client with options of its caller's for all requests: they hold for what the Locker asks,
// too, also if there are several endpoints.
func TestCallersOptions(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	for _, endpoints := range [][]string{{addr}, {addr, addr}} {
		var asked, requests atomic.Int32
		count := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
			opts ...grpc.CallOption) error {
			requests.Add(1)
			if _, told := ctx.Deadline(); told {
				t.Errorf("%s: to tell the server a deadline takes time", method)
			}
			return invoke(ctx, method, req, reply, conn, opts...)
		}
		l := with(t, connectWith(t, clientv3.Config{Endpoints: endpoints, DialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.PerRPCCredentials(callCredentials{&asked})),
			grpc.WithChainUnaryInterceptor(count),
		}}))
		for range 3 {
			mustUnlock(t, mustLock(t, l, unique("key")))
		}
		if a, n := asked.Load(), requests.Load(); n < 6 || a < n {
			t.Errorf("%d endpoints: the caller's credentials were asked for %d times, for %d requests", len(endpoints),
				a, n)
		}
	}
}
