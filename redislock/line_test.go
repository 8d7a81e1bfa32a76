package redislock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
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

// membersInLine returns who waits for a key, in order.
func membersInLine(t testing.TB, rdb *redis.Client, key string) []string {
	return redistest.MembersInLine(t, rdb, redislock.DefaultPrefix+key)
}

// inLine returns how many do.
func inLine(t testing.TB, rdb *redis.Client, key string) int { return len(membersInLine(t, rdb, key)) }

// listening returns how many of those who wait for a key are in a Locker that has subscribed to the channel of its own.
func listening(t testing.TB, rdb *redis.Client, key string) (n int) {
	channels := rdb.PubSubChannels(context.Background(), "*").Val()
	for _, member := range membersInLine(t, rdb, key) {
		if slices.ContainsFunc(channels, func(name string) bool { return strings.HasSuffix(name, member[:32]) }) {
			n++
		}
	}
	return n
}

// subscriptions returns how many connections of a client of that name have subscribed to anything.
func subscriptions(t testing.TB, rdb *redis.Client, name string) (n int) {
	t.Helper()
	for conn := range strings.Lines(rdb.ClientList(t.Context()).Val()) {
		if strings.Contains(conn, " name="+name+" ") && !strings.Contains(conn, " sub=0 ") {
			n++
		}
	}
	return n
}

// commandCalls returns how many commands of clients the server has executed since CONFIG RESETSTAT: scripts, and
// whatever else does not run inside them.
func commandCalls(t testing.TB, rdb *redis.Client) (total, evalsha int) {
	stats := rdb.Info(context.Background(), "commandstats").Val()
	inner := map[string]bool{
		"set": true, "get": true, "mget": true, "del": true, "exists": true,
		"pexpire": true, "pttl": true, "time": true, "zadd": true, "zrem": true,
		"zrange": true, "zrangebyscore": true, "zscore": true, "zmscore": true, "zcard": true, "zrank": true,
		"publish": true,
	}
	for _, m := range regexp.MustCompile(`cmdstat_([^:]+):calls=(\d+)`).FindAllStringSubmatch(stats, -1) {
		n, _ := strconv.Atoi(m[2])
		if m[1] == "evalsha" {
			evalsha = n
		}
		if !inner[m[1]] && m[1] != "config|resetstat" && m[1] != "info" {
			total += n
		}
	}
	return total, evalsha
}

// callsOf returns how many times the server has carried out a command since CONFIG RESETSTAT, in scripts or not.
func callsOf(t testing.TB, rdb *redis.Client, command string) int {
	t.Helper()
	stat := rdb.InfoMap(context.Background(), "commandstats").Item("Commandstats", "cmdstat_"+command)
	calls, _, _ := strings.Cut(strings.TrimPrefix(stat, "calls="), ",")
	n, _ := strconv.Atoi(calls) // there is none if it has not been carried out
	return n
}

// TestLine has a hundred waiters from ten Lockers on one key: served in order of arrival, for at most four commands
// each.
func TestLine(t *testing.T) {
	const lockers, waiters = 10, 100
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	ls := make([]locker.Locker, lockers)
	for i := range ls {
		ls[i] = open(t, dial(t, server.Addr()))
	}
	for _, l := range ls { // connect
		locktest.Warm(l, 1)
	}
	first := mustLock(t, ls[0], "k")
	var mu sync.Mutex
	var served []int
	var handoffs []time.Duration
	var unlocking time.Time // guarded by the lock itself, and by mu for the race detector
	var wg sync.WaitGroup
	for i := range waiters {
		wg.Go(func() {
			lease := mustLock(t, ls[i%lockers], "k")
			at := time.Now()
			mu.Lock()
			served = append(served, i)
			handoffs = append(handoffs, at.Sub(unlocking))
			mu.Unlock()
			mu.Lock()
			unlocking = time.Now()
			mu.Unlock()
			mustUnlock(t, lease)
		})
		eventually(t, "the waiter is in line", func() bool { return inLine(t, rdb, "k") == i+1 })
	}
	rdb.ConfigResetStat(t.Context())
	mu.Lock()
	unlocking = time.Now()
	mu.Unlock()
	mustUnlock(t, first)
	wg.Wait()
	total, evalsha := commandCalls(t, rdb)
	if !slices.IsSorted(served) || len(served) != waiters {
		t.Errorf("served in the order %v", served)
	}
	// To join the line takes a waiter one script, which is counted here in its place, as the line took a while to form.
	perHandoff := 1 + float64(evalsha)/waiters
	if perHandoff > 4 {
		t.Errorf("%.2f scripts per handoff; want at most 4", perHandoff)
	}
	slices.Sort(handoffs)
	p50 := handoffs[waiters/2]
	t.Logf("%.2f scripts per handoff (%d commands of other kinds in all); from Unlock to the next holder p50 %v, p90 %v",
		perHandoff, total-evalsha, p50, handoffs[waiters*9/10])
	// A PING in a tight loop finds every thread awake; a handoff wakes three, and so does a PING after a pause.
	for pause, name := range map[time.Duration]string{0: "in a tight loop", time.Millisecond: "after a pause"} {
		pings := make([]time.Duration, 200)
		for i := range pings {
			time.Sleep(pause)
			start := time.Now()
			rdb.Ping(t.Context())
			pings[i] = time.Since(start)
		}
		slices.Sort(pings)
		ping := pings[len(pings)/2]
		t.Logf("PING %s: p50 %v; a handoff takes %.1f times as long", name, ping, float64(p50)/float64(ping))
	}
}

// TestCancelledAcquiresLeaveNothing cancels many acquires at random moments among handoffs.
func TestCancelledAcquiresLeaveNothing(t *testing.T) {
	acquires := wires.Trials(t, 2000)
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	before := runtime.NumGoroutine()
	var lockers []locker.Locker
	var clients []*redis.Client
	for range 4 {
		c := redis.NewClient(&redis.Options{Addr: server.Addr(), DisableIdentity: true})
		clients = append(clients, c)
		lockers = append(lockers, redislock.New(c, locker.TTL(time.Minute))) // an orphan would be seen
	}
	keys := []string{"a", "b", "c", "d", "e"}
	var granted atomic.Int64
	var wg sync.WaitGroup
	room := make(chan struct{}, 40) // few enough that many are served in time
	for i := range acquires {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(context.Background(), rand.N(20*time.Millisecond))
			defer cancel()
			lock := lockers[i%len(lockers)].Lock
			if i%3 == 0 {
				lock = lockers[i%len(lockers)].TryLock
			}
			lease, err := lock(ctx, keys[rand.N(len(keys))])
			switch {
			case err == nil:
				granted.Add(1)
				mustUnlock(t, lease)
			case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, locker.ErrLocked):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, key := range keys {
		lease, err := lockers[0].Lock(t.Context(), key) // there is a line only for as long as clean-up is under way
		if err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, lease)
	}
	eventuallyWithin(t, 6*time.Second, "nothing but fences and tombstones is left", func() bool {
		for _, name := range rdb.Keys(context.Background(), "*").Val() {
			if !strings.Contains(name, "}:locker:fence:") && !strings.Contains(name, "}:locker:tombstone:") {
				return false
			}
		}
		return true
	})
	for i, l := range lockers {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		_ = clients[i].Close()
	}
	eventuallyWithin(t, 5*time.Second, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	t.Logf("%d of %d acquires were granted", granted.Load(), acquires)
}

// wired returns a client whose connections go through a proxy.
func wired(t *testing.T, server *redistest.Server) (*redis.Client, *faultproxy.Proxy) {
	rdb, proxy, _ := dialWire(t, wires.New(server.Addr()))
	return rdb, proxy
}

func isSubscription(sent []byte) bool {
	return bytes.Contains(bytes.ToLower(sent), []byte("subscribe"))
}

// TestLostMessages loses every message: that costs up to a second, and nothing else.
func TestLostMessages(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	deaf, proxy := wired(t, server)
	proxy.SetWhere(isSubscription, faultproxy.BlackHole())
	holder, waiter := open(t, dial(t, server.Addr())), open(t, deaf)
	for range 3 {
		locktest.Tries(t, func() error {
			key := locktest.Unique("k")
			lease := mustLock(t, holder, key)
			var granted time.Time
			next := locktest.Started(func() *locker.Lease {
				lease := mustLock(t, waiter, key)
				granted = time.Now()
				return lease
			})
			eventually(t, "the waiter is in line", func() bool { return inLine(t, rdb, key) == 1 })
			released := time.Now()
			mustUnlock(t, lease)
			mustUnlock(t, next.Get(t))
			if took := granted.Sub(released); took > 1500*time.Millisecond {
				return fmt.Errorf("without its message, the waiter had the lock after %v; want a second at most", took)
			}
			return nil
		})
	}
}

// TestBrokenSubscription breaks the subscription: waiters are called again as soon as it is back.
func TestBrokenSubscription(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	holder, waiter := open(t, dial(t, server.Addr())), open(t, dial(t, server.Addr()))
	lease := mustLock(t, holder, "k")
	granted := make(chan *locker.Lease, 1)
	go func() { granted <- mustLock(t, waiter, "k") }()
	subscribed := func() bool {
		return strings.Contains(rdb.ClientList(context.Background()).Val(), "sub=2")
	}
	eventually(t, "the waiter has subscribed", subscribed)
	if err := rdb.Do(t.Context(), "client", "kill", "type", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 5*time.Second, "the waiter has subscribed again", subscribed)
	mustUnlock(t, lease)
	mustUnlock(t, <-granted)
}

// TestDeadWaiterIsSkipped cuts off the first in line: it delays the next one by its reservation, which is a second, and
// not until it is taken to be dead, which takes another one at least.
func TestDeadWaiterIsSkipped(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	dying, proxy := wired(t, server)
	holder, first, second := open(t, dial(t, server.Addr())), open(t, dying), open(t, dial(t, server.Addr()))
	const ttl = 3 * time.Second // long enough for two to get in line
	end := func(t *testing.T, lease *locker.Lease, unlocks bool) (free time.Time) {
		if !unlocks {
			time.Sleep(time.Until(lease.Deadline()) - ttl/10) // or the first is taken to be dead by then
			proxy.Set(faultproxy.BlackHole())
			<-lease.Done()
			return lease.Deadline()
		}
		proxy.Set(faultproxy.BlackHole())
		defer mustUnlock(t, lease)
		return time.Now()
	}
	for what, unlocks := range map[string]bool{"unlocked": true, "expired": false} {
		t.Run(what, func(t *testing.T) {
			locktest.Tries(t, func() error {
				defer proxy.Heal()
				key := locktest.Unique("k")
				lease := mustLock(t, holder, key, locker.TTL(ttl), locker.NoRenew())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { _, _ = first.Lock(ctx, key) }()
				eventually(t, "the first waiter is in line", func() bool { return inLine(t, rdb, key) == 1 })
				granted := locktest.Started(func() *locker.Lease { return mustLock(t, second, key) })
				eventually(t, "the second waiter is in line", func() bool { return inLine(t, rdb, key) == 2 })
				free := end(t, lease, unlocks)
				next := granted.Get(t)
				took := time.Since(free)
				mustUnlock(t, next)
				eventuallyWithin(t, 5*time.Second, "the dead waiter has left the line",
					func() bool { return inLine(t, rdb, key) == 0 })
				if took > 1500*time.Millisecond {
					return fmt.Errorf("behind a dead waiter it took %v to get the lock", took)
				}
				return nil
			})
		})
	}
}

// TestTurnIsKept has the first in line, whose turn it is, ask late: nobody gets the lock before it meanwhile.
func TestTurnIsKept(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	slow, proxy := wired(t, server)
	holder, first := open(t, dial(t, server.Addr())), open(t, slow)
	const late = 300 * time.Millisecond // of the second that it has
	locktest.Tries(t, func() error {
		defer proxy.Heal()
		key := locktest.Unique("k")
		lease := mustLock(t, holder, key)
		granted := locktest.Started(func() *locker.Lease { return mustLock(t, first, key) })
		eventually(t, "it is in line", func() bool { return inLine(t, rdb, key) == 1 })
		proxy.Set(faultproxy.Fault{ToServer: faultproxy.Flow{Delay: late}})
		mustUnlock(t, lease)
		for {
			select {
			case lease := <-granted.Done:
				mustUnlock(t, lease)
				return nil
			case <-time.After(late / 30):
			}
			stolen, err := holder.TryLock(t.Context(), key)
			if err == nil {
				mustUnlock(t, stolen)
				mustUnlock(t, granted.Get(t))
				return errors.New("somebody else got the lock before the first in line")
			}
			if !errors.Is(err, locker.ErrLocked) {
				t.Fatal(err)
			}
		}
	})
}

// TestLineSurvivesFlush loses the line itself: those who wait join it again, at their old places.
func TestLineSurvivesFlush(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	l := open(t, dial(t, server.Addr()))
	lease := mustLock(t, l, "k")
	var waits sync.WaitGroup
	for i := range 3 {
		waits.Go(func() { mustUnlock(t, mustLock(t, l, "k")) })
		eventually(t, "the waiter is in line", func() bool { return inLine(t, rdb, "k") == i+1 })
	}
	rdb.FlushAll(t.Context())
	waits.Wait() // as the lock was lost with everything else, they get it: in order, or nearly
	if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Unlock after FLUSHALL: %v; want ErrLost", err)
	}
}

func TestOneSubscriptionForManyKeys(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := dial(t, server.Addr())
	named := redis.NewClient(&redis.Options{Addr: server.Addr(), ClientName: "waiter"})
	t.Cleanup(func() { _ = named.Close() })
	holder, waiter := open(t, dial(t, server.Addr())), open(t, named)
	const keys = 200
	var leases []*locker.Lease
	var waits sync.WaitGroup
	for i := range keys {
		key := strconv.Itoa(i)
		leases = append(leases, mustLock(t, holder, key))
		waits.Go(func() { mustUnlock(t, mustLock(t, waiter, key)) })
	}
	eventually(t, "all of them wait", func() bool { return inLine(t, rdb, strconv.Itoa(keys-1)) == 1 })
	eventually(t, "the waiter has subscribed",
		func() bool { return subscriptions(t, rdb, "waiter") > 0 })
	if n := subscriptions(t, rdb, "waiter"); n != 1 { // who holds locks subscribes, too
		t.Errorf("%d subscriptions for %d waiters of one Locker; want 1", n, keys)
	}
	// Two Lockers: eight direct, one shared, one subscription each; batches, and what a busy machine makes them redial.
	if n := strings.Count(rdb.ClientList(t.Context()).Val(), "\n"); n > 40 {
		t.Errorf("%d connections for %d locks and as many waiters", n, keys)
	}
	// While nothing happens, the waiters of a process ask together.
	rdb.ConfigResetStat(t.Context())
	start := time.Now()
	time.Sleep(3 * time.Second)
	_, evalsha := commandCalls(t, rdb)
	if perKey := float64(evalsha) / keys / time.Since(start).Seconds(); perKey > 2 {
		t.Errorf("%.1f scripts per second for each key that is waited for", perKey)
	}
	for _, lease := range leases {
		mustUnlock(t, lease)
	}
	waits.Wait()
}

// TestGivesUpUnanswered has a waiter give up before it knows that it is in line, while the server cannot be told, for
// longer than the TTL. It is out of line as soon as the server can be, and not when it is taken for dead.
func TestGivesUpUnanswered(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	locktest.Tries(t, func() error { return givesUpUnanswered(t, server, locktest.Unique("k")) })
}

// givesUpUnanswered returns an error if the machine was so busy that the waiter has given up, or was taken for dead.
func givesUpUnanswered(t *testing.T, server *redistest.Server, key string) error {
	t.Helper()
	const ttl = 300 * time.Millisecond
	admin := dial(t, server.Addr())
	rdb, proxy := wired(t, server)
	other, l := open(t, dial(t, server.Addr())), open(t, rdb, locker.TTL(ttl))
	locktest.Warm(l, 5) // connect
	// The server knows the script that joins the line.
	mustUnlock(t, mustLock(t, l, "warm", locker.Shared(), locker.TTL(time.Minute)))
	lease := mustLock(t, other, key)
	defer func() { mustUnlock(t, lease) }()
	joins := func(sent []byte) bool { return bytes.Contains(sent, []byte(":locker:alive:")) }
	proxy.SetWhere(joins, faultproxy.DropReplies())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	waits := locktest.Started(func() error { _, err := l.Lock(ctx, key); return err })
	var member string
	if !locktest.Within(2*ttl, func() bool {
		members := membersInLine(t, admin, key)
		if len(members) == 1 {
			member = members[0]
		}
		return member != ""
	}) {
		return errors.New("the waiter was not seen in line")
	}
	proxy.Set(faultproxy.Refuse())
	cancel()
	if err := waits.Get(t); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("Lock: %w; want Canceled", err)
	}
	stalled := watchStalls(t)
	// The next one keeps the line from expiring.
	next := locktest.Started(func() *locker.Lease { return mustLock(t, other, key) })
	time.Sleep(4 * ttl) // Release has given up: an attempt to connect takes half a second
	proxy.Heal()
	alive := "{" + redislock.DefaultPrefix + key + "}:locker:alive:"
	till := admin.ZScore(t.Context(), alive, member).Val()
	eventuallyWithin(t, 10*time.Second, "it is out of line", func() bool {
		return !slices.Contains(membersInLine(t, admin, key), member)
	})
	now := admin.Time(t.Context()).Val()
	left := time.UnixMicro(int64(till * 1000)).Sub(now)
	t.Logf("out of line %v before it would have been taken for dead", left)
	mustUnlock(t, lease)
	lease = next.Within(t, 10*time.Second, "the next one has the lock")
	if worst := stalled(); left <= 0 && worst > 500*time.Millisecond {
		return fmt.Errorf("it was in line until it was taken for dead, and the machine stood still for %v", worst)
	}
	if left <= 0 {
		t.Error("it was in line until it was taken for dead")
	}
	return nil
}
