package etcdlock_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
)

// retries returns an option that has what a Lock rides out sent to a channel.
func retries() (locker.Option, <-chan error) {
	failures := make(chan error, 1000)
	return locker.Observe(&locker.Observer{Retry: func(info locker.RetryInfo) {
		select {
		case failures <- info.Err:
		default:
		}
	}}), failures
}

// awaitRetry waits until a failure was ridden out that is want.
func awaitRetry(t *testing.T, failures <-chan error, want error) {
	t.Helper()
	for limit := time.After(patience); ; {
		select {
		case err := <-failures:
			if errors.Is(err, want) {
				return
			}
		case <-limit:
			t.Fatalf("nothing was ridden out that is %v", want)
		}
	}
}

// TestWaitThroughRestart has the server restarted while one waits who was told that the key is held.
func TestWaitThroughRestart(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	key := unique("key")
	holder := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(time.Minute)), key)
	waiter := waits(open(t, cluster.Endpoints(), locker.TTL(3*time.Second)), key)
	root.awaitLine(key, 2)
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	cluster.AwaitHealthy(t)
	select {
	case a := <-waiter.done:
		t.Fatalf("before Unlock, the wait is over: %v", a.err)
	default:
	}
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}

// TestWaitThroughOutage has a waiter cut off from the server for so long that it loses its place in the line.
func TestWaitThroughOutage(t *testing.T) {
	t.Parallel()
	cluster := etcdtest.New(t, etcdtest.Options{})
	root, proxy := administer(t, cluster.Client(t)), behind(t, cluster.Member(0))
	key := unique("key")
	holder := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(time.Minute)), key)
	observe, failures := retries()
	waiter := waits(open(t, []string{proxy.Addr()}, locker.TTL(2*time.Second), observe), key)
	root.awaitLine(key, 2)
	proxy.Set(faultproxy.Refuse())
	awaitRetry(t, failures, locker.ErrUnavailable)
	awaitRetry(t, failures, etcdlock.ErrLeaseExpired)
	root.awaitLine(key, 1)
	proxy.Heal()
	root.awaitLine(key, 2)
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}

// TestWaitTakenBack has the key of a waiter deleted by an operator. The waiter goes to the end of the line.
func TestWaitTakenBack(t *testing.T) {
	t.Parallel()
	addr := etcdtest.Address(t)
	root, key := administer(t, connect(t, addr)), unique("key")
	holder := mustLock(t, open(t, []string{addr}), key)
	observe, failures := retries()
	waiter := waits(open(t, []string{addr}, locker.TTL(2*time.Second), observe), key)
	keys, _ := root.awaitLine(key, 2)
	root.delete(keys[1])
	awaitRetry(t, failures, locker.ErrUnavailable)
	root.awaitLine(key, 2)
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}
