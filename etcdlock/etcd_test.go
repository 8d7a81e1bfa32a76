package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// secret is the password of all users. It must not be in any error.
const secret = "tell-nobody-8d1f"

// patience is what a test can bear.
const patience = 20 * time.Second

// unique returns a name that nothing else has on any server.
func unique(what string) string { return fmt.Sprintf("%s-%x", what, rand.Uint64()) }

// connect returns a client that is closed with the test.
func connect(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	return connectWith(t, clientv3.Config{Endpoints: endpoints})
}

func connectWith(t testing.TB, config clientv3.Config) *clientv3.Client {
	t.Helper()
	config.Logger = zap.NewNop()
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// open returns a Locker with a client of its own, both closed with the test.
func open(t testing.TB, endpoints []string, opts ...locker.Option) *locker.Client {
	t.Helper()
	return with(t, connect(t, endpoints...), opts...)
}

// with returns a Locker with a client, closed with the test.
func with(t testing.TB, client *clientv3.Client, opts ...locker.Option) *locker.Client {
	t.Helper()
	l := etcdlock.New(client, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// openURL returns a Locker of Open, closed with the test.
func openURL(t testing.TB, url string, opts ...locker.Option) *locker.Client {
	t.Helper()
	l, err := etcdlock.Open(t.Context(), url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// behind puts a proxy in front of a member.
func behind(t testing.TB, m *etcdtest.Member) *faultproxy.Proxy {
	t.Helper()
	proxy, err := faultproxy.Start(m.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	return proxy
}

// admin looks at a cluster and changes it.
type admin struct {
	t testing.TB
	*clientv3.Client
}

func administer(t testing.TB, client *clientv3.Client) admin { return admin{t, client} }

// do calls f with the patience of a test.
func (a admin) do(f func(ctx context.Context) error) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f(ctx); err != nil {
		a.t.Fatal(err)
	}
}

// claims returns the keys of who has a lock and who waits for it, in order. They are those of locks that begin with name.
func (a admin) claims(name string) (keys []string, leases []clientv3.LeaseID) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Get(ctx, etcdlock.DefaultPrefix+name, clientv3.WithPrefix(),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			keys = append(keys, string(kv.Key))
			leases = append(leases, clientv3.LeaseID(kv.Lease))
		}
		return nil
	})
	return keys, leases
}

// awaitLine waits until so many have a lock or wait for it.
func (a admin) awaitLine(name string, n int) (keys []string, leases []clientv3.LeaseID) {
	a.t.Helper()
	eventually(a.t, fmt.Sprintf("%d have the lock or wait for it", n), func() bool {
		keys, leases = a.claims(name)
		return len(keys) == n
	})
	return keys, leases
}

// delete deletes a key that is there.
func (a admin) delete(key string) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Delete(ctx, key)
		if err == nil && r.Deleted == 0 {
			err = fmt.Errorf("there is no %s", key)
		}
		return err
	})
}

func (a admin) revoke(lease clientv3.LeaseID) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		_, err := a.Revoke(ctx, lease)
		return err
	})
}

func mustLock(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := lock(l, key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// lock is Lock with the patience of a test.
func lock(l locker.Locker, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return l.Lock(ctx, key, opts...)
}

func mustTry(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := l.TryLock(context.Background(), key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

func mustUnlock(t testing.TB, lease *locker.Lease) {
	t.Helper()
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// isLocked checks that a key is refused, and for the right reason.
func isLocked(t testing.TB, l locker.Locker, key string) {
	t.Helper()
	lease, err := l.TryLock(context.Background(), key)
	if err == nil {
		_ = lease.Unlock()
	}
	if !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock of a key that is held: %v; want ErrLocked", err)
	}
}

// eventually waits until cond is true, for as long as the test can bear.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// outlives checks that a lease is held and renewed for so many of its TTLs.
func outlives(t testing.TB, lease *locker.Lease, ttls int) {
	t.Helper()
	until := time.Now().Add(time.Duration(ttls) * locker.GrantOf(lease).TTL)
	eventually(t, "the lease is renewed", func() bool { return lease.Err() != nil || lease.Deadline().After(until) })
	if err := lease.Err(); err != nil {
		t.Fatal(err)
	}
}

// told waits for the end of a lease that has been taken away, and returns why.
func told(t testing.TB, lease *locker.Lease, within time.Duration) error {
	t.Helper()
	select {
	case <-lease.Done():
	case <-time.After(within):
		t.Fatalf("the holder has not been told within %v", within)
	}
	err := lease.Err()
	if !errors.Is(err, locker.ErrLost) {
		t.Errorf("a lease that was taken away: %v; want ErrLost", err)
	}
	return err
}

// pending is what a function is going to return.
type pending[T any] struct{ done chan T }

// started runs f beside the test.
func started[T any](f func() T) pending[T] {
	p := pending[T]{make(chan T, 1)}
	go func() {
		defer close(p.done) // also if f ends the test
		p.done <- f()
	}()
	return p
}

// get waits for the result, and ends the test if f has.
func (p pending[T]) get(t testing.TB) T {
	t.Helper()
	v, ok := <-p.done
	if !ok {
		t.FailNow()
	}
	return v
}

// within is get with a limit.
func (p pending[T]) within(t testing.TB, limit time.Duration, what string) T {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v, ok := <-p.done:
		if !ok {
			t.FailNow()
		}
		return v
	case <-timer.C:
		t.Fatalf("not within %v: %s", limit, what)
		panic("unreachable")
	}
}

// acquired is what an acquire returns.
type acquired struct {
	*locker.Lease
	err error
}

// waits starts a Lock.
func waits(l locker.Locker, key string, opts ...locker.CallOption) pending[acquired] {
	return started(func() acquired {
		lease, err := lock(l, key, opts...)
		return acquired{lease, err}
	})
}

// granted waits for a Lock that is to succeed.
func granted(t testing.TB, p pending[acquired], within time.Duration) *locker.Lease {
	t.Helper()
	a := p.within(t, within, "the lock is granted")
	if a.err != nil {
		t.Fatal(a.err)
	}
	return a.Lease
}

// works checks that a Locker can do what Lockers do: lock, refuse, wait, renew, and unlock. other may be the same one.
func works(t testing.TB, l, other locker.Locker, ttls int) {
	t.Helper()
	key := unique("works")
	lease := mustTry(t, l, key)
	for _, next := range []locker.Locker{other, l} {
		waiter := waits(next, key)
		isLocked(t, l, key)
		if ttls > 0 {
			outlives(t, lease, ttls)
		}
		select {
		case a := <-waiter.done:
			t.Fatalf("before Unlock, the wait is over: %v", a.err)
		default:
		}
		mustUnlock(t, lease)
		successor := granted(t, waiter, patience)
		if successor.Token() <= lease.Token() {
			t.Errorf("token %d after %d", successor.Token(), lease.Token())
		}
		lease = successor
	}
	mustUnlock(t, lease)
}

// checkError checks that err, from the op of a key, is want, and nothing else that means something, and what it says.
func checkError(t testing.TB, err error, op, key string, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", op, err, want)
	}
	if err == nil {
		return
	}
	for _, other := range []error{
		locker.ErrLocked, locker.ErrLost, locker.ErrClosed, context.DeadlineExceeded, context.Canceled, etcdlock.ErrNoLeader,
		etcdlock.ErrNoSpace, etcdlock.ErrPermission, etcdlock.ErrAuth, etcdlock.ErrVersion, etcdlock.ErrLeaseExpired, etcdlock.ErrNoAnswer,
	} {
		if errors.Is(err, other) && !errors.Is(want, other) {
			t.Errorf("%s: %v, which is a %v", op, err, other)
		}
	}
	var typed *locker.Error
	if op != "open" && (!errors.As(err, &typed) || typed.Op != op || typed.Key != key || typed.Backend != "etcd") {
		t.Errorf("%s: %#v; want an *Error with the op, the key %q, and the backend etcd", op, err, key)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %q in it", op, err, text)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("%s: the password is in %v", op, err)
	}
}

// checkFailure checks that Lock and TryLock fail with want.
func checkFailure(t testing.TB, l locker.Locker, key string, want error, texts ...string) {
	t.Helper()
	var both sync.WaitGroup
	defer both.Wait()
	for op, call := range map[string]func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){
		"trylock": l.TryLock, "lock": l.Lock,
	} {
		both.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			lease, err := call(ctx, key)
			if err == nil {
				_ = lease.Unlock()
			}
			checkError(t, err, op, key, want, texts...)
		})
	}
}
