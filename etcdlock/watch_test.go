package etcdlock_test

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
)

// watchStreams returns how many streams of watches a member has been asked for so far.
func watchStreams(t testing.TB, m *etcdtest.Member) int {
	return watchCount(t, m, "grpc_server_started_total")
}

// watchRequests returns how many watches it has been asked for, or to cancel, so far.
func watchRequests(t testing.TB, m *etcdtest.Member) int {
	return watchCount(t, m, "grpc_server_msg_received_total")
}

// watchCount returns what a member has counted of the streams of watches.
func watchCount(t testing.TB, m *etcdtest.Member, metric string) (n int) {
	t.Helper()
	resp, err := http.Get(m.URL() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(name, metric+"{") && strings.Contains(name, `grpc_method="Watch"`) {
			if n, err = strconv.Atoi(value); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// TestWatchStreamStays has many keep-alives, and then a server at rest: nobody must take its silence for a stream that
// is dead.
func TestWatchStreamStays(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second      // so that a stream has more than a second for its answer
	locktest.Tries(t, func() error { // on a machine that is busy, it may have less
		cluster := etcdtest.New(t, etcdtest.Options{})
		key := unique("key")
		l, other := open(t, cluster.Endpoints(), locker.TTL(ttl)), open(t, cluster.Endpoints(), locker.TTL(ttl))
		lease := mustLock(t, l, key)
		waiter := waits(other, key)
		administer(t, cluster.Client(t)).awaitLine(key, 2)
		var all sync.WaitGroup
		for range 50 { // each with a keep-alive
			all.Go(func() { mustUnlock(t, mustTry(t, other, unique("key"), locker.NoRenew())) })
		}
		all.Wait()
		outlives(t, lease, 2) // so that there are three more
		n, start := watchStreams(t, cluster.Member(0)), time.Now()
		mustUnlock(t, lease)
		mustUnlock(t, granted(t, waiter, patience))
		took := time.Since(start)
		if n != 2 {
			return fmt.Errorf("%d streams of watches; want one of the holder's, and one of the waiter's", n)
		}
		if took > ttl/4 {
			return fmt.Errorf("the waiter has the lock %v after the Unlock began", took)
		}
		return nil
	})
}

// TestWatchStreamBreaks has the connection of a waiter break for a moment. However long the TTL is, it soon looks for
// itself.
func TestWatchStreamBreaks(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Minute
	cluster := etcdtest.New(t, etcdtest.Options{})
	root, proxy, key := administer(t, cluster.Client(t)), behind(t, cluster.Member(0)), unique("key")
	holder := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(ttl)), key)
	waiter := waits(open(t, []string{proxy.Addr()}, locker.TTL(ttl)), key)
	root.awaitLine(key, 2)
	eventually(t, "the waiter watches", func() bool { return watchStreams(t, cluster.Member(0)) > 0 })
	proxy.Set(faultproxy.Refuse())
	proxy.ResetAll()
	eventually(t, "the connection is broken", func() bool { return proxy.Open() == 0 })
	time.Sleep(time.Second) // it looks at least once, and is refused
	proxy.Heal()
	mustUnlock(t, holder)
	mustUnlock(t, granted(t, waiter, patience))
}

// TestWatchStreamDead has the connection die without a word that the watches are on. Nothing else tells.
func TestWatchStreamDead(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	cluster := etcdtest.New(t, etcdtest.Options{})
	root := administer(t, cluster.Client(t))
	one, two := behind(t, cluster.Member(0)), behind(t, cluster.Member(0))
	l := open(t, []string{one.Addr(), two.Addr()}, locker.TTL(ttl))
	lease := mustLock(t, l, unique("key"))
	dies := one
	eventually(t, "there are the client's connections, and one of the Locker's", func() bool {
		if two.Open() == 2 {
			dies = two
		}
		return one.Open()+two.Open() == 3
	})
	outlives(t, lease, 1)
	dies.Set(faultproxy.BlackHole())
	root.delete(etcdlock.ClaimOf(lease))
	start := time.Now()
	err := told(t, lease, 3*ttl)
	t.Logf("told after %v: %v", time.Since(start).Round(time.Millisecond), err)
}
