// Package locktest has what the tests of several stores do with Lockers.
package locktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// Patience bounds every wait for something that should happen soon.
const Patience = 30 * time.Second

// Unique returns a name that nothing else has on any server.
func Unique(what string) string { return fmt.Sprintf("%s_%x", what, rand.Uint64()) }

// Lock is Locker.Lock with the patience of a test.
func Lock(l locker.Locker, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return l.Lock(ctx, key, opts...)
}

// MustLock is Lock for what has to work. On a goroutine that outlasts the test, it ends that.
func MustLock(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	lease, err := l.Lock(ctx, key, opts...)
	if t.Context().Err() != nil {
		runtime.Goexit() // to fail a test that is over would end those of the whole package
	}
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// MustTry is Locker.TryLock for what has to work.
func MustTry(t testing.TB, l locker.Locker, key string, opts ...locker.CallOption) *locker.Lease {
	t.Helper()
	lease, err := l.TryLock(context.Background(), key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// MustUnlock is Lease.Unlock for what has to work.
func MustUnlock(t testing.TB, lease *locker.Lease) {
	t.Helper()
	if err := lease.Unlock(); err != nil {
		t.Error(err)
	}
}

// IsLocked checks that a key is refused, and for the right reason.
func IsLocked(t testing.TB, l locker.Locker, key string) {
	t.Helper()
	lease, err := l.TryLock(context.Background(), key)
	if err == nil {
		_ = lease.Unlock()
	}
	if !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock of a key that is held: %v; want ErrLocked", err)
	}
}

// Outlives checks that a lease is held and renewed for so many of its TTLs.
func Outlives(t testing.TB, lease *locker.Lease, ttls int) {
	t.Helper()
	until := time.Now().Add(time.Duration(ttls) * locker.GrantOf(lease).TTL)
	Eventually(t, "the lease is renewed", func() bool { return lease.Err() != nil || lease.Deadline().After(until) })
	if err := lease.Err(); err != nil {
		t.Fatal(err)
	}
}

// Works checks that a Locker can do what Lockers do: lock, refuse, wait, renew for so many TTLs, and unlock. other
// may be the same one.
func Works(t testing.TB, l, other locker.Locker, ttls int) {
	t.Helper()
	key := Unique("works")
	lease := MustTry(t, l, key)
	for _, next := range []locker.Locker{other, l} {
		waiter := Started(func() *locker.Lease { return MustLock(t, next, key) })
		IsLocked(t, l, key)
		if ttls > 0 {
			Outlives(t, lease, ttls)
		}
		select {
		case _, granted := <-waiter.Done:
			t.Fatalf("before Unlock, the wait is over; two holders at once: %v", granted)
		case <-lease.Done():
			t.Fatalf("the lease ended: %v", lease.Err())
		default:
		}
		MustUnlock(t, lease)
		successor := waiter.Get(t)
		if successor.Token() <= lease.Token() {
			t.Errorf("token %d after %d", successor.Token(), lease.Token())
		}
		lease = successor
	}
	MustUnlock(t, lease)
}

// Warm has a Locker take and give back a lock that nobody else wants, so often that it has connections, and knows how
// near its servers are. Some of the attempts may fail, on a machine that is busy.
func Warm(l locker.Locker, times int) {
	for range 5 * times {
		lease, err := l.Lock(context.Background(), "warm")
		if err != nil {
			continue
		}
		_ = lease.Unlock()
		if times--; times == 0 {
			return
		}
	}
}
