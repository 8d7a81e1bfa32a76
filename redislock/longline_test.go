package redislock_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// TestManyDeadWaiters has a holder die, and with it ten thousand waiters. Who waits behind them has the lock when they
// are taken for dead, as behind a single one.
func TestManyDeadWaiters(t *testing.T) {
	t.Parallel()
	const dead, ttl, liveness = 10_000, time.Second, 3 * time.Second
	server := redistest.New(t, redistest.Options{Args: []string{"--slowlog-log-slower-than", "1000"}})
	admin := dial(t, server.Addr())
	l := open(t, dial(t, server.Addr()))
	mustUnlock(t, mustLock(t, l, "k"))
	holder := redislock.DefaultPrefix + "k"
	if err := admin.Set(t.Context(), holder, strings.Repeat("0", 32), ttl).Err(); err != nil {
		t.Fatal(err)
	}
	dieInLine(t, admin, "k", dead)
	died := time.Now()
	next := locktest.Started(func() *locker.Lease { return mustLock(t, l, "k") })
	lease := next.Within(t, time.Minute, "the waiter has the lock")
	took := time.Since(died)
	mustUnlock(t, lease)
	t.Logf("served %v after %d waiters had died; the slowest script: %v", took, dead, slowest(t, admin))
	// How much one script does is what bounds its time. That says nothing of a machine that is busy.
	if calls, least := callsOf(t, admin, "zrem"), 2*dead/scripts.DropTogether; calls < least {
		t.Errorf("the dead were dropped by %d calls of ZREM; want %d, for scripts of %d each", calls, least,
			scripts.DropTogether)
	}
	// A thousand a second were dropped once, which took 11 s in all.
	if limit := liveness + 5*time.Second; took > limit {
		t.Errorf("the waiter was served after %v; want %v, and a little more", took, liveness)
	}
}

// slowest returns how long the slowest script took that the server has kept, by its clock.
func slowest(t *testing.T, rdb *redis.Client) (longest time.Duration) {
	t.Helper()
	logged, err := rdb.SlowLogGet(t.Context(), -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range logged {
		if strings.HasPrefix(strings.ToLower(entry.Args[0]), "eval") {
			longest = max(longest, entry.Duration)
		}
	}
	return longest
}

// serverCPU returns the processor time that the server has used.
func serverCPU(t *testing.T, rdb *redis.Client) (used time.Duration) {
	t.Helper()
	for line := range strings.Lines(rdb.Info(t.Context(), "cpu").Val()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			seconds, _ := strconv.ParseFloat(value, 64)
			used += time.Duration(seconds * float64(time.Second))
		}
	}
	return used
}

// TestManyWaitersOfOneKey has a process wait so often for one key that one script would take long to ask for all. The
// server does nothing else meanwhile, so that it is asked for some at a time.
func TestManyWaitersOfOneKey(t *testing.T) {
	t.Parallel()
	const waiters, together = 1000, 200
	logAll := []string{"--slowlog-log-slower-than", "0", "--slowlog-max-len", "100000"}
	server := redistest.New(t, redistest.Options{Args: logAll})
	admin := dial(t, server.Addr())
	holder, l := open(t, dial(t, server.Addr())), open(t, dial(t, server.Addr()))
	lease := mustLock(t, holder, "k")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waits sync.WaitGroup
	for range waiters {
		waits.Go(func() { _, _ = l.Lock(ctx, "k") })
	}
	eventuallyWithin(t, time.Minute, "all are in line", func() bool { return inLine(t, admin, "k") == waiters })
	before := membersInLine(t, admin, "k")
	if err := admin.Do(t.Context(), "slowlog", "reset").Err(); err != nil {
		t.Fatal(err)
	}
	// As many words as it takes to ask for all of them twice.
	var most int
	eventuallyWithin(t, time.Minute, "all have been asked for twice", func() bool {
		asked := 0
		most = 0
		for _, entry := range admin.SlowLogGet(context.Background(), -1).Val() {
			if n := argsOf(entry); strings.EqualFold(entry.Args[0], "evalsha") && n > 20 {
				const other = 7 // evalsha, its name, the number of keys, and these
				asked += n - other
				most = max(most, n-other)
			}
		}
		return asked >= 2*waiters
	})
	if most > together {
		t.Errorf("a script asked for %d waiters; want %d at most", most, together)
	}
	// Who was taken for dead, on a machine that stood still, takes the old place again.
	eventuallyWithin(t, 10*time.Second, "all have the places that they had",
		func() bool { return slices.Equal(membersInLine(t, admin, "k"), before) })
	t.Logf("a script asks for %d waiters; the slowest took %v", most, slowest(t, admin))
	cancel()
	waits.Wait()
	mustUnlock(t, lease)
}

// argsOf returns how many arguments a command had: the log shows the first ones, and how many more there were.
func argsOf(entry redis.SlowLog) int {
	n := len(entry.Args)
	if rest, ok := strings.CutPrefix(entry.Args[n-1], "... ("); ok {
		more, _ := strconv.Atoi(strings.TrimSuffix(rest, " more arguments)"))
		n += more - 1
	}
	return n
}

// TestManyKeysWaitedFor has one process wait for many keys at once. It stays in all of the lines, and is served at once
// when a key comes free. More than some thousand keys want a machine for themselves.
func TestManyKeysWaitedFor(t *testing.T) {
	t.Run("2000", func(t *testing.T) { waitForKeys(t, 2000, time.Second) })
	for _, keys := range []int{10_000, 50_000} {
		t.Run(strconv.Itoa(keys), func(t *testing.T) {
			wires.Thorough(t)
			waitForKeys(t, keys, 10*time.Second)
		})
	}
}

func waitForKeys(t *testing.T, keys int, watched time.Duration) {
	const (
		step    = 1000 // keys that are asked about in one round trip of the test
		sampled = 500  // keys that are handed over
	)
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	holder, l := open(t, dial(t, server.Addr()), locker.TTL(time.Hour)), open(t, dial(t, server.Addr()))
	key := strconv.Itoa
	missing := func() (n int) { // lines that are not there
		for from := 0; from < keys; from += step {
			var names []string
			for i := from; i < min(from+step, keys); i++ {
				names = append(names, "{"+redislock.DefaultPrefix+key(i)+"}:locker:queue:")
			}
			n += len(names) - int(admin.Exists(context.Background(), names...).Val())
		}
		return n
	}
	leases := make([]*locker.Lease, sampled)
	for i := range leases {
		leases[i] = mustLock(t, holder, key(i))
	}
	pipe := admin.Pipeline()
	for i := sampled; i < keys; i++ {
		pipe.Set(t.Context(), redislock.DefaultPrefix+key(i), strings.Repeat("0", 32), time.Hour)
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waits sync.WaitGroup
	served := make([]chan *locker.Lease, sampled)
	for i := range keys {
		if i < sampled {
			served[i] = make(chan *locker.Lease, 1)
		}
		if i > 0 && i%step == 0 {
			eventuallyWithin(t, time.Minute, "those before are in line", func() bool {
				return admin.Exists(ctx, "{"+redislock.DefaultPrefix+key(i-1)+"}:locker:queue:").Val() == 1
			})
		}
		waits.Go(func() {
			lease, err := l.Lock(ctx, key(i))
			switch {
			case err == nil && i < sampled:
				served[i] <- lease
			case err == nil:
				t.Errorf("key %d was locked twice", i)
			case ctx.Err() == nil:
				t.Errorf("key %d: %v", i, err)
			}
		})
	}
	eventuallyWithin(t, time.Minute, "all are in line", func() bool { return missing() == 0 })

	stalled := watchStalls(t)
	begun, before, cpu, own := time.Now(), polls(t, admin), serverCPU(t, admin), ownCPU()
	looks, lost, slowestLook := 0, 0, time.Duration(0)
	for time.Since(begun) < watched {
		look := time.Now()
		lost += missing()
		looks++
		slowestLook = max(slowestLook, time.Since(look))
		time.Sleep(watched / 20)
	}
	took := time.Since(begun)
	cpu, own = serverCPU(t, admin)-cpu, ownCPU()-own
	perKey := float64(polls(t, admin)-before) / float64(keys) / took.Seconds()
	t.Logf("%.2f polls a second for each key; %d lines missing in %d looks", perKey, lost, looks)
	t.Logf("processor: server %.0f %%, this process %.0f %%", 100*cpu.Seconds()/took.Seconds(),
		100*own.Seconds()/took.Seconds())

	handoffs := make([]time.Duration, sampled)
	for i, lease := range leases {
		released := time.Now()
		mustUnlock(t, lease)
		next := locktest.Receive(t, served[i])
		handoffs[i] = time.Since(released)
		mustUnlock(t, next)
	}
	slices.Sort(handoffs)
	t.Logf("from Unlock to the next holder: p50 %v, p99 %v", handoffs[sampled/2], handoffs[sampled*99/100])
	// Two seconds without a poll are too many. The programs of a busy machine take turns.
	if stall := max(stalled(), slowestLook); lost > 0 && stall > time.Second {
		t.Logf("the machine stood still for %v", stall)
	} else if lost > 0 {
		t.Errorf("in %d looks %d lines were missing, of %d", looks, lost, keys)
	}
	cancel()
	waits.Wait()
}
