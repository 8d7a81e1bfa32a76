package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// useWhileHung has a Locker hold keys, of which the ill ones are at a server that then hangs, for several TTLs, while
// other keys are taken and given back; in the end, it closes the Locker. It returns how long each Unlock took that does
// not depend on what hangs, how many of those leases were lost, and an error if anything failed.
func useWhileHung(t *testing.T, l locker.Locker, sick *redistest.Server, well, others, ill []string, ttl time.Duration,
) (took []time.Duration, lost int, err error) {
	t.Helper()
	defer func() { _ = l.Close() }()
	stalls := watchStalls(t)
	var held []*locker.Lease
	for i, key := range slices.Concat(well, ill) {
		lease, err := locktest.Lock(l, key)
		if err != nil {
			return nil, 0, fmt.Errorf("Lock before anything hangs: %w", err)
		}
		if i < len(well) {
			held = append(held, lease)
		}
	}
	if err := sick.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() { err = errors.Join(err, sick.Resume()) }() // before Close, which would wait for it
	unlock := func(lease *locker.Lease) error {
		begun := time.Now()
		err := lease.Unlock()
		took = append(took, time.Since(begun))
		return err
	}
	during := 3 * ttl
	for start := time.Now(); time.Since(start) < during; {
		for _, key := range others {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			lease, err := l.Lock(ctx, key)
			cancel()
			if err != nil {
				return nil, 0, fmt.Errorf("Lock of a key that has nothing to do with what hangs: %w", err)
			}
			time.Sleep(10 * time.Millisecond)
			if err := unlock(lease); err != nil {
				return nil, 0, err
			}
		}
	}
	for _, lease := range held {
		if err := lease.Err(); err != nil {
			lost++
			if worst := stalls(); worst < ttl/6 {
				const what = "a lease that has nothing to do with what hangs"
				return nil, 0, fmt.Errorf("%s: %w (this process stood still for %v)", what, err, worst)
			}
			continue
		}
		if err := unlock(lease); err != nil {
			return nil, 0, err
		}
	}
	return took, lost, nil
}

// watchStalls returns a function that returns for how long this process, or the machine, has stood still at the most.
func watchStalls(t *testing.T) func() time.Duration {
	var worst atomic.Int64
	go func() {
		const nap = 10 * time.Millisecond
		for t.Context().Err() == nil {
			start := time.Now()
			time.Sleep(nap)
			worst.Store(max(worst.Load(), int64(time.Since(start)-nap)))
		}
	}()
	return func() time.Duration { return time.Duration(worst.Load()) }
}

func logUnlocks(t *testing.T, took []time.Duration, lost, of int) {
	slices.Sort(took)
	t.Logf("%d of %d leases lost; %d unlocks: p50 %v, p99 %v, max %v",
		lost, of, len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}

// shards makes a cluster not notice for a long time that a node hangs, and returns the master that has the key "sick",
// at least so many keys that are on others, and so many that are on the same.
func shards(t *testing.T, c *redistest.Cluster, onOthers, onSick int) (sick *redistest.Server, well, ill []string) {
	t.Helper()
	for _, node := range c.Nodes() {
		if err := c.Admin(node).ConfigSet(t.Context(), "cluster-node-timeout", "600000").Err(); err != nil {
			t.Fatal(err)
		}
	}
	sick, _ = c.MasterOf(t, redislock.DefaultPrefix+"sick")
	for i := 0; len(well) < onOthers || len(ill) < onSick; i++ {
		key := "k" + strconv.Itoa(i)
		if master, _ := c.MasterOf(t, redislock.DefaultPrefix+key); master == sick {
			ill = append(ill, key)
		} else {
			well = append(well, key)
		}
	}
	return sick, well, ill
}

// TestShardHangs stops one master of a cluster whose nodes do not notice for a while. Leases on the others go on.
func TestShardHangs(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	const ttl = 1500 * time.Millisecond
	sick, well, ill := shards(t, c, 30, 10)
	var all []time.Duration
	lost, of := 0, 0
	for range wires.Trials(t, 2) {
		locktest.Tries(t, func() error {
			l := redislock.New(c.Client(t), locker.TTL(ttl))
			took, gone, err := useWhileHung(t, l, sick, well[:20], well[20:30], ill, ttl)
			if err == nil {
				all, lost, of = append(all, took...), lost+gone, of+20
			}
			return err
		})
	}
	logUnlocks(t, all, lost, of)
}

// TestRedlockServerHangs stops one server of three.
func TestRedlockServerHangs(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	const ttl = 1500 * time.Millisecond
	var keys, others []string
	for i := range 20 {
		keys = append(keys, "k"+strconv.Itoa(i))
		others = append(others, "other"+strconv.Itoa(i))
	}
	var all []time.Duration
	lost, of := 0, 0
	for trial := range wires.Trials(t, 2) {
		locktest.Tries(t, func() error {
			clients, closeAll := redistest.DialAll(servers.Addresses())
			defer closeAll()
			l := redlock.New(clients, locker.TTL(ttl))
			took, gone, err := useWhileHung(t, l, servers[trial%3], keys, others, nil, ttl)
			if err == nil {
				all, lost, of = append(all, took...), lost+gone, of+len(keys)
			}
			return err
		})
	}
	logUnlocks(t, all, lost, of)
}

// TestWaiterOnAHealthyShard hands a lock over at one node of a cluster while the same process has waiters at another
// that hangs, and all messages get lost: the poll must not wait for that one.
func TestWaiterOnAHealthyShard(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	sick, well, _ := shards(t, c, 1, 0)
	key := well[0]
	// Nobody can publish: only polls find out that a key is free.
	for _, node := range c.Nodes() {
		if err := c.Admin(node).Do(t.Context(), "acl", "setuser", "default", "-publish").Err(); err != nil {
			t.Fatal(err)
		}
	}
	holder, waiter := open(t, c.Client(t), locker.TTL(time.Minute)), open(t, c.Client(t), locker.TTL(time.Minute))
	first, hung := mustLock(t, holder, key), mustLock(t, holder, "sick")
	_ = hung
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	queue := func(key string) string { return "{" + redislock.DefaultPrefix + key + "}:locker:queue:" }
	inLineAt := func(key string) bool {
		master, _ := c.MasterOf(t, redislock.DefaultPrefix+key)
		return c.Admin(master).ZCard(t.Context(), queue(key)).Val() == 1
	}
	waits.Go(func() { _, _ = waiter.Lock(ctx, "sick") })
	eventually(t, "one waits at the node that will hang", func() bool { return inLineAt("sick") })
	if err := sick.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sick.Resume() }()
	locktest.Tries(t, func() error {
		var longest time.Duration
		for range 3 {
			next := locktest.Started(func() *locker.Lease { return mustLock(t, waiter, key) })
			eventually(t, "one waits at the other", func() bool { return inLineAt(key) })
			released := time.Now()
			mustUnlock(t, first)
			first = next.Get(t)
			longest = max(longest, time.Since(released))
		}
		t.Logf("handed over within %v", longest)
		if longest > 2500*time.Millisecond {
			return fmt.Errorf("a handover took %v; want a second, which is how often is asked", longest)
		}
		return nil
	})
	mustUnlock(t, first)
}

// TestRedlockHungServerCostsNoMore makes thousands of calls while one server of three hangs: the number of goroutines
// does not grow with that of the calls.
func TestRedlockHungServerCostsNoMore(t *testing.T) {
	servers := redistest.NewIndependent(t, 3)
	clients, closeAll := redistest.DialAll(servers.Addresses())
	l := redlock.New(clients, locker.TTL(time.Minute))
	defer closeAll()
	defer func() { _ = l.Close() }()
	locktest.Warm(l, 3)
	if err := servers[0].Pause(); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 32 {
		callers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				lease, err := l.TryLock(t.Context(), fmt.Sprint("k", i, "/", n))
				calls.Add(1)
				switch {
				case err == nil:
					_ = lease.Unlock()
				case !errors.Is(err, redlock.ErrNoQuorum): // a machine that is busy
					t.Error(err)
				}
			}
		})
	}
	most := func(during time.Duration) (goroutines int, n int64) {
		n = calls.Load()
		for start := time.Now(); time.Since(start) < during; time.Sleep(5 * time.Millisecond) {
			goroutines = max(goroutines, runtime.NumGoroutine())
		}
		return goroutines, calls.Load() - n
	}
	early, calledEarly := most(4 * time.Second) // longer than any request is waited for
	late, calledLate := most(8 * time.Second)
	close(stop)
	callers.Wait()
	if err := servers[0].Resume(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d goroutines at most during %d calls, then %d during %d", early, calledEarly, late, calledLate)
	if late > 2*early+500 {
		t.Errorf("goroutines grow with the number of calls: %d, then %d", early, late)
	}
}

// TestUnlockBesideARenewalThatHangs unlocks leases while they are renewed together with others whose server hangs:
// Unlock waits for the renewal of its own lease, and must not wait for theirs.
func TestUnlockBesideARenewalThatHangs(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // a renewal that hangs does so for two seconds
	test := func(t *testing.T, l locker.Locker, well, ill []string, sick *redistest.Server) {
		var held []*locker.Lease
		for i := range max(len(well), len(ill)) { // by turns, so that they are renewed together
			if i < len(ill) {
				mustLock(t, l, ill[i])
			}
			if i < len(well) {
				held = append(held, mustLock(t, l, well[i]))
			}
		}
		if err := sick.Pause(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sick.Resume() }()
		stalls := watchStalls(t)
		var mu sync.Mutex
		var took []time.Duration
		var unlocks sync.WaitGroup
		for _, lease := range held {
			time.Sleep(ttl * 2 / 3 / time.Duration(len(held)))
			unlocks.Go(func() {
				begun := time.Now()
				mustUnlock(t, lease)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(begun))
			})
		}
		unlocks.Wait()
		slow := 0
		for _, d := range took {
			if d > 500*time.Millisecond {
				slow++
			}
		}
		logUnlocks(t, took, 0, len(took))
		// Of a server that is near, some wait for an answer for 50 ms.
		if worst := stalls(); slow > 0 && worst < 40*time.Millisecond {
			t.Errorf("%d of %d took more than half a second (this process stood still for %v)", slow, len(took), worst)
		}
	}
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.NewCluster(t, redistest.ClusterOptions{})
		sick, well, ill := shards(t, c, 60, 30)
		test(t, open(t, c.Client(t), locker.TTL(ttl)), well[:60], ill, sick)
	})
	t.Run("redlock", func(t *testing.T) {
		t.Parallel()
		servers := redistest.NewIndependent(t, 3)
		var keys []string
		for i := range 60 {
			keys = append(keys, "k"+strconv.Itoa(i))
		}
		test(t, openRedlock(t, servers.Addresses(), locker.TTL(ttl)), keys, nil, servers[1])
	})
}
