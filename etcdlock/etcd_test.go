package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// secret is the password of all users. It must not be in any error.
const secret = "tell-nobody-8d1f"

// What the tests of all stores use.
const patience = locktest.Patience

var (
	unique     = locktest.Unique
	lock       = locktest.Lock
	mustLock   = locktest.MustLock
	mustTry    = locktest.MustTry
	mustUnlock = locktest.MustUnlock
	isLocked   = locktest.IsLocked
	outlives   = locktest.Outlives
	works      = locktest.Works
	eventually = locktest.Eventually
	failures   = locktest.Failures{Backend: "etcd", Secret: secret, Errors: []error{
		etcdlock.ErrNoLeader, etcdlock.ErrNoSpace, etcdlock.ErrPermission, etcdlock.ErrAuth, etcdlock.ErrVersion,
		etcdlock.ErrLeaseExpired, etcdlock.ErrNoAnswer,
	}}
	checkError = failures.Check
)

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
func behind(t testing.TB, m *etcdtest.Member) *faultproxy.Proxy { return faultproxy.New(t, m.Addr()) }

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

// claims returns the keys of who has a lock and who waits for it, in order. They are those of locks that begin with
// name.
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

// acquired is what an acquire returns.
type acquired struct {
	*locker.Lease
	err error
}

// waits starts a Lock.
func waits(l locker.Locker, key string, opts ...locker.CallOption) locktest.Pending[acquired] {
	return locktest.Started(func() acquired {
		lease, err := lock(l, key, opts...)
		return acquired{lease, err}
	})
}

// lockMany locks and unlocks keys that nobody else wants, so many at once. It returns how long each Lock and each
// Unlock took.
func lockMany(t testing.TB, l locker.Locker, atOnce, each int) (locked, unlocked []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for range each {
				start := time.Now()
				lease, err := lock(l, unique("key"))
				if err != nil {
					t.Error(err)
					continue
				}
				granted := time.Now()
				if err := lease.Unlock(); err != nil {
					t.Error(err)
				}
				mu.Lock()
				locked, unlocked = append(locked, granted.Sub(start)), append(unlocked, time.Since(granted))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return locked, unlocked
}

// granted waits for a Lock that is to succeed.
func granted(t testing.TB, p locktest.Pending[acquired], within time.Duration) *locker.Lease {
	t.Helper()
	a := p.Within(t, within, "the lock is granted")
	if a.err != nil {
		t.Fatal(a.err)
	}
	return a.Lease
}
