package etcdlock_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// membersTTL is that of the leases here: an election takes a second, and several on a busy machine.
const membersTTL = 5 * time.Second

// TestMembers has the tests of clusters of several members, which take turns: with many such clusters at the same time,
// none hears of its leader in time, and what is tested is a machine that has too much to do.
func TestMembers(t *testing.T) {
	t.Parallel()
	t.Run("Fails", testMemberFails)
	t.Run("Frozen", testMemberFrozen)
	t.Run("MajorityLost", testMajorityLost)
	t.Run("LeaderKilled", testLeaderKilled)
	t.Run("LeaderResumes", testLeaderResumes)
	t.Run("LeaderStandsStill", testLeaderStandsStill)
	t.Run("Tokens", testTokens)
	t.Run("TwoSessions", testTwoSessions)
	t.Run("LoginBesideADeadEndpoint", testLoginBesideADeadEndpoint)
	t.Run("LoginsExpire", testLoginsExpire)
	t.Run("Conformance", testConformanceOfMembers)
}

// relay checks that no two hold a lock at once, and that tokens increase.
type relay struct {
	t    testing.TB
	mu   sync.Mutex
	last *locker.Lease
}

// granted is called by who is granted the lock, at once.
func (r *relay) granted(lease *locker.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil && r.last.Err() == nil {
		r.t.Error("two hold the lock at once")
	}
	if r.last != nil && lease.Token() <= r.last.Token() {
		r.t.Errorf("token %d after %d", lease.Token(), r.last.Token())
	}
	r.last = lease
}

// testMemberFails has something happen to a member of a cluster while a lock is held and others wait for it.
func testMemberFails(t *testing.T) {
	for name, fail := range map[string]func(t *testing.T, c *etcdtest.Cluster, leader int) (heal func()){
		"leader killed": func(t *testing.T, c *etcdtest.Cluster, leader int) func() {
			c.Member(leader).Kill()
			return func() { c.Member(leader).Restart() }
		},
		"leader paused":   func(t *testing.T, c *etcdtest.Cluster, leader int) func() { return pause(t, c.Member(leader)) },
		"follower paused": func(t *testing.T, c *etcdtest.Cluster, leader int) func() { return pause(t, c.Member((leader+1)%3)) },
	} {
		t.Run(name, func(t *testing.T) {
			cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
			root := administer(t, cluster.Client(t))
			key := unique("key")
			r := &relay{t: t}
			holder := mustLock(t, open(t, cluster.Endpoints(), locker.TTL(membersTTL)), key)
			r.granted(holder)
			const waiters = 3
			order := make(chan int, waiters)
			var all sync.WaitGroup
			defer all.Wait()
			for i := range waiters {
				l, joined := joining(t, connect(t, cluster.Endpoints()...), locker.TTL(membersTTL))
				all.Go(func() {
					lease, err := lock(l, key)
					if err != nil {
						t.Errorf("waiter %d: %v", i, err)
						order <- -1
						return
					}
					r.granted(lease)
					order <- i
					if err := lease.Unlock(); err != nil {
						t.Errorf("waiter %d: %v", i, err)
					}
				})
				root.awaitLine(key, 2+i)
				joined(key, 1)
			}
			heal := fail(t, cluster, cluster.Leader(t))
			start := time.Now()
			eventually(t, "the lease is renewed, or lost", func() bool {
				return holder.Err() != nil || holder.Deadline().After(start.Add(2*membersTTL))
			})
			mustUnlock(t, holder)
			for i := range waiters {
				if got := <-order; got != i {
					t.Errorf("waiter %d has the lock; want %d", got, i)
				}
			}
			all.Wait()
			heal() // not before: what a leader that was paused can do then is for TestLeaderResumes
			eventually(t, "the lock is granted", func() bool {
				next, err := lock(open(t, cluster.Endpoints(), locker.TTL(membersTTL)), key)
				if err != nil {
					return false
				}
				r.granted(next)
				return next.Unlock() == nil
			})
		})
	}
}

// pause pauses a member.
func pause(t *testing.T, m *etcdtest.Member) (resume func()) {
	t.Helper()
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := m.Resume(); err != nil {
			t.Error(err)
		}
	}
}

// testMajorityLost has the majority of the members gone for a while.
func testMajorityLost(t *testing.T) {
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	key := unique("key")
	r := &relay{t: t}
	l, rival := open(t, cluster.Endpoints(), locker.TTL(membersTTL)), open(t, cluster.Endpoints(),
		locker.TTL(membersTTL))
	holder := mustLock(t, l, key)
	r.granted(holder)
	leader := cluster.Leader(t)
	gone := []*etcdtest.Member{cluster.Member(leader), cluster.Member((leader + 1) % 3)}
	for _, m := range gone {
		m.Kill()
	}
	end := locktest.Started(func() time.Time { <-holder.Done(); return time.Now() })
	for op, call := range map[string]func() error{
		"trylock": func() error { _, err := rival.TryLock(t.Context(), key); return err },
		"lock":    func() error { _, err := lock(rival, key); return err },
	} {
		start := time.Now()
		err := call()
		t.Logf("%s without a majority, after %v: %v", op, time.Since(start).Round(time.Millisecond), err)
		if err == nil || errors.Is(err, locker.ErrLocked) {
			t.Errorf("%s without a majority: %v", op, err)
		}
	}
	late := end.Within(t, 2*membersTTL, "the holder is told").Sub(holder.Deadline())
	// It is late by a moment, or more on a machine that is busy.
	if err := holder.Err(); !errors.Is(err, locker.ErrLost) || late < 0 || late > membersTTL/3 {
		t.Errorf("the holder is told %v, %v after its deadline", err, late)
	}
	// By now, the remaining member knows that it has no leader.
	_, err := rival.TryLock(t.Context(), key)
	if !errors.Is(err, etcdlock.ErrNoLeader) && !errors.Is(err, etcdlock.ErrNoAnswer) {
		t.Errorf("TryLock without a majority: %v; want ErrNoLeader or ErrNoAnswer", err)
	}
	if err := gone[0].Restart(); err != nil {
		t.Fatal(err)
	}
	cluster.Leader(t)
	next := mustLock(t, rival, key)
	r.granted(next)
	outlives(t, next, 1)
	if err := gone[1].Restart(); err != nil {
		t.Fatal(err)
	}
	mustUnlock(t, next)
}

// testTokens has the token of a lock increase, whatever happens to the servers.
func testTokens(t *testing.T) {
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	key := unique("key")
	last := uint64(0)
	check := func(what string) {
		t.Helper()
		l := open(t, cluster.Endpoints(), locker.TTL(membersTTL))
		var lease *locker.Lease
		eventually(t, "the lock is granted", func() (ok bool) {
			var err error
			lease, err = lock(l, key)
			return err == nil
		})
		if lease.Token() <= last {
			t.Errorf("%s: token %d after %d", what, lease.Token(), last)
		}
		last = lease.Token()
		mustUnlock(t, lease)
	}
	check("at first")
	if err := cluster.Restart(); err != nil {
		t.Fatal(err)
	}
	check("all members killed and restarted")
	for i := range cluster.Size() {
		leader := cluster.Member(cluster.Leader(t))
		leader.Kill()
		check(fmt.Sprint("leader killed ", i))
		if err := leader.Restart(); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprint("and restarted ", i))
	}
}

// testLeaderKilled has holders cut off in each way that a network has, and the leader killed soon after. The new one
// gives each lease its whole TTL anew, which makes rivals wait longer: what counts is that the holders are told before.
func testLeaderKilled(t *testing.T) {
	const ttl = 3 * time.Second // all are still held when they are cut off, also on a machine that is busy
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	w := wires.New(cluster.Endpoints()...)
	faults := map[string]faultproxy.Fault{
		"refuse": faultproxy.Refuse(), "black-hole": faultproxy.BlackHole(), "hang": faultproxy.Hang(), "drop-replies": faultproxy.DropReplies(),
	}
	rivals, joined := joining(t, connect(t, cluster.Endpoints()...), locker.TTL(time.Minute)) // elections take time
	margins := make(map[string][]time.Duration)
	var longest time.Duration
	type granting struct {
		lease *locker.Lease
		err   error
		at    time.Time
	}
	for range wires.Trials(t, 2) {
		leader := cluster.Member(cluster.Leader(t))
		holders := make(map[string]*locker.Lease)
		told := make(map[string]locktest.Pending[time.Time])
		next := make(map[string]locktest.Pending[granting])
		cuts := make(map[string]func())
		for name, fault := range faults {
			var endpoints []string
			proxies := w.Proxies(t)
			for _, p := range proxies {
				endpoints = append(endpoints, p.Addr())
			}
			l := open(t, endpoints, locker.TTL(ttl))
			key := unique("key")
			holder := mustLock(t, l, key)
			holders[name] = holder
			told[name] = locktest.Started(func() time.Time { <-holder.Done(); return time.Now() })
			next[name] = locktest.Started(func() granting {
				lease, err := lock(rivals, key)
				return granting{lease, err, time.Now()}
			})
			joined(key, 1)
			cuts[name] = func() {
				for _, p := range proxies {
					p.Set(fault)
				}
			}
		}
		for _, cut := range cuts {
			cut()
		}
		time.Sleep(rand.N(ttl))
		leader.Kill()
		for name, holder := range holders {
			g := next[name].Within(t, 2*patience, "a rival is granted the lock")
			if g.err != nil {
				t.Fatalf("%s: %v", name, g.err)
			}
			if err := holder.Err(); !errors.Is(err, locker.ErrLost) {
				t.Errorf("%s: a rival has the lock, and the holder says %v", name, err)
			}
			if g.lease.Token() <= holder.Token() {
				t.Errorf("%s: token %d after %d", name, g.lease.Token(), holder.Token())
			}
			margins[name] = append(margins[name], g.at.Sub(told[name].Within(t, ttl, "the holder is told")))
			longest = max(longest, g.at.Sub(holder.Deadline()))
			_ = g.lease.Unlock() // which may be late, without a leader
		}
		if err := leader.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	for name, m := range margins {
		slices.Sort(m)
		t.Logf("%s: the holder was told before the rival got in, %d times, by at least %v, median %v", name, len(m),
			m[0], m[len(m)/2])
		if m[0] < 0 {
			t.Errorf("%s: and once %v too late", name, -m[0])
		}
	}
	t.Logf("a rival waited up to %v after the holder's deadline", longest)
}

// testMemberFrozen has a member of three that accepts everything, and does nothing.
func testMemberFrozen(t *testing.T) {
	const holders, atOnce, each = 8, 8, 8
	cluster := etcdtest.New(t, etcdtest.Options{Members: 3})
	var leases []*locker.Lease
	for range holders {
		leases = append(leases, mustLock(t, open(t, cluster.Endpoints(), locker.TTL(membersTTL)), unique("key")))
	}
	l := open(t, cluster.Endpoints(), locker.TTL(membersTTL))
	works(t, l, l, 1)
	resume, paused := pause(t, cluster.Member((cluster.Leader(t)+1)%3)), time.Now()
	took, _ := lockMany(t, l, atOnce, each)
	slices.Sort(took)
	median := took[len(took)/2]
	if median > membersTTL/6 { // half the time that one attempt would have, if there was one endpoint
		t.Errorf("half of the Locks take %v or more", median)
	}
	t.Logf("half of the Locks take no more than %v, the slowest %v", median.Round(time.Millisecond),
		took[len(took)-1].Round(time.Millisecond))
	until := paused.Add(3 * membersTTL)
	for _, lease := range leases {
		eventually(t, "all are renewed", func() bool { return lease.Err() != nil || lease.Deadline().After(until) })
		if err := lease.Err(); err != nil {
			t.Error(err)
		}
	}
	resume()
}
