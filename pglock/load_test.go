package pglock_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/pglock"
)

// TestManyLocksOneConnection holds a thousand locks at once for longer than their TTL, or for as long as the
// environment says.
func TestManyLocksOneConnection(t *testing.T) { // not in parallel: it needs the processor in time
	const ttl = 9 * time.Second // renewals are in time also when the machine is busy
	hold := ttl * 5 / 4
	if s := os.Getenv("LOCKER_HOLD"); s != "" {
		var err error
		if hold, err = time.ParseDuration(s); err != nil {
			t.Fatalf("LOCKER_HOLD: %v", err)
		}
	}
	locktest.Tries(t, func() error { return holdMany(t, ttl, hold) })
}

// holdMany returns an error if it takes more connections than it should, as a connection may be given up that is
// silent since the machine is busy.
func holdMany(t *testing.T, ttl, hold time.Duration) error {
	const n = 1000
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	l := openWatched(t, pglock.Config{}, server.URL(), locker.TTL(ttl))
	most := sample(t, server.URL(), l.app)
	leases := make([]*locker.Lease, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() { leases[i], _ = l.TryLock(context.Background(), fmt.Sprint("key ", i)) })
	}
	wg.Wait()
	took := time.Since(start)
	if slices.Contains(leases, nil) {
		t.Fatal("not all could be locked")
	}
	time.Sleep(hold)
	for _, lease := range leases {
		if err := lease.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if locks := admin.locks(l.app); locks != n {
		t.Errorf("%d locks for %d leases", locks, n)
	}
	start = time.Now()
	for _, lease := range leases {
		wg.Go(func() { mustUnlock(t, lease) })
	}
	wg.Wait()
	t.Logf("%d locks taken in %v, held for %v, unlocked in %v", n, took, hold, time.Since(start))
	if locks := admin.locks(l.app); locks != 0 {
		t.Errorf("%d locks are left", locks)
	}
	if n := most(); n != 2 {
		return fmt.Errorf("%d connections; want one for the locks, and one to look", n)
	}
	return nil
}

// TestManyTTLs has leases of more TTLs than there are sessions for. Each ends at its own, and the key is free then.
func TestManyTTLs(t *testing.T) {
	t.Parallel()
	url, prefix := pgtest.URL(t), unique("key")
	l := openWatched(t, pglock.Config{}, url)
	most := sample(t, url, l.app)
	rival := open(t, url)
	admin := connect(t, url)
	var wg sync.WaitGroup
	const longest = 2400 * time.Millisecond
	for i, steps := range rand.Perm(6) {
		ttl := longest - time.Duration(steps)*200*time.Millisecond
		key := fmt.Sprint(prefix, i)
		asked := time.Now()
		lease := mustTry(t, l, key, locker.TTL(ttl), locker.NoRenew())
		if got := lease.Deadline().Sub(asked); got < ttl*9/10 {
			t.Errorf("TTL %v: the lease is for %v", ttl, got)
		}
		wg.Go(func() {
			next := mustLock(t, rival, key)
			at := time.Now()
			if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
				t.Errorf("TTL %v: two holders at once; Err: %v", ttl, err)
			}
			if early := lease.Deadline().Sub(at); early > 0 {
				t.Errorf("TTL %v: the key was free %v too soon", ttl, early)
			}
			if late := at.Sub(asked) - ttl; late > 5*longest { // next to nothing, on a machine that is not busy
				t.Errorf("TTL %v: the key was free %v too late", ttl, late)
			}
			mustUnlock(t, next)
		})
		wg.Go(func() {
			<-lease.Done()
			if late := time.Since(asked) - ttl; late > longest {
				t.Errorf("TTL %v: the lease ended %v too late", ttl, late)
			}
		})
	}
	wg.Wait()
	if n := most(); n > 4 {
		t.Errorf("%d connections for leases; want 4 at most", n)
	}
	if n := admin.locks(l.app); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// TestSessionTerminated has an administrator end the session that has the lock, which frees it: its holder is told at
// once.
func TestSessionTerminated(t *testing.T) { // not in parallel: it measures
	locktest.Tries(t, func() error {
		var told []time.Duration
		for _, at := range terminate(t, wires.Trials(t, 50)) {
			told = append(told, at.told)
		}
		slices.Sort(told)
		median, longest := told[len(told)/2], told[len(told)-1]
		t.Logf("the holder was told after p50 %v, at most %v", median, longest)
		if median > 100*time.Millisecond { // the longest says how busy the machine is
			return fmt.Errorf("the holder was told after %v, half of the time; want 100ms", median)
		}
		return nil
	})
}

// terminated says when somebody learned that a session was terminated, since that was asked for.
type terminated struct {
	told   time.Duration // its holder
	margin time.Duration // and how much later a rival that waited had the lock
	both   bool          // the holder still trusted its lease at that moment
}

// terminate has sessions terminated that have a lock for which a rival waits.
func terminate(t testing.TB, n int) (all []terminated) {
	t.Helper()
	url, key := pgtest.URL(t), unique("key")
	admin := connect(t, url)
	holder, rival := open(t, url), open(t, url)
	for range n {
		lease := mustTry(t, holder, key)
		type grant struct {
			lease *locker.Lease
			at    time.Time
			both  bool
		}
		next := locktest.Started(func() (g grant) {
			g.lease = mustLock(t, rival, key)
			g.both = lease.Err() == nil
			g.at = time.Now()
			return g
		})
		eventually(t, "the rival waits", func() bool { return admin.inLine(key) == 1 })
		lost := locktest.Started(func() time.Time {
			<-lease.Done()
			return time.Now()
		})
		pid := admin.count("SELECT pid FROM pg_locks WHERE granted AND "+oneKey, pglock.Key(key))
		start := time.Now()
		admin.do("SELECT pg_terminate_backend($1)", pid)
		at, granted := lost.Get(t), next.Get(t)
		all = append(all, terminated{at.Sub(start), granted.at.Sub(at), granted.both})
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, pglock.ErrShutdown) {
			t.Errorf("%v; want ErrLost, because of ErrShutdown", err)
		}
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v; want ErrLost", err)
		}
		if granted.lease.Token() <= lease.Token() {
			t.Errorf("token %d after %d", granted.lease.Token(), lease.Token())
		}
		mustUnlock(t, granted.lease)
	}
	return all
}

// TestStatementsCancelled has an administrator cancel whatever the sessions of some Lockers are doing. That may make
// calls fail, but nothing is locked for good, and nobody is told what is not true.
func TestStatementsCancelled(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin, other := connect(t, server.URL()), connect(t, server.URL())
	config := pglock.Config{WaitSessions: 3}
	var lockers []watched
	for range 3 {
		l := openWatched(t, config, server.URL(), locker.TTL(30*time.Second))
		mustUnlock(t, mustLock(t, l, "warm")) // connects
		lockers = append(lockers, l)
	}
	const enough = 100 // locks that are taken
	least := time.Duration(wires.Trials(t, 20)) * 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), least+locktest.Patience)
	defer cancel()
	var mu sync.Mutex
	counts := make(map[string]int)
	count := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		counts[what]++
	}
	var wg sync.WaitGroup
	// use takes a lock and gives it back, and calls then if both are said to have happened.
	use := func(l locker.Locker, key string, then func()) {
		lease, err := lock(l, key)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock waited in vain: %v", err)
		}
		if err != nil {
			count("failed: " + errorText(err))
			return
		}
		switch err := lease.Unlock(); {
		case err == nil:
			count("done")
			then()
		case errors.Is(err, locker.ErrLost):
			count("lost")
		default:
			t.Errorf("Unlock: %v; want nil or ErrLost", err)
		}
	}
	for i, l := range lockers {
		for j := range 3 {
			own := fmt.Sprint("own ", i, j)
			wg.Go(func() {
				for ctx.Err() == nil {
					use(l, own, func() {
						if !other.isFree(own) {
							t.Error("after Unlock, the key is not free")
						}
					})
				}
			})
			wg.Go(func() {
				for ctx.Err() == nil {
					use(l, fmt.Sprint("common ", rand.N(4)), func() {})
				}
			})
		}
	}
	done := func() int {
		mu.Lock()
		defer mu.Unlock()
		return counts["done"]
	}
	cancels := 0
	for start := time.Now(); ctx.Err() == nil && (time.Since(start) < least || done() < enough); {
		for _, l := range lockers {
			cancels += admin.count(`SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
				WHERE application_name = $1 AND random() < 0.3`, l.app)
		}
		time.Sleep(rand.N(4 * time.Millisecond))
	}
	cancel()
	wg.Wait()
	t.Logf("%d statements cancelled, or none: %v", cancels, counts)
	eventually(t, "no lock is left", func() bool {
		return admin.count("SELECT count(*) FROM pg_locks WHERE "+anyLock) == 0
	})
	for _, l := range lockers {
		works(t, l, lockers[0], 0)
	}
	if counts["done"] < enough {
		t.Errorf("only %d locks were taken", counts["done"])
	}
}

// errorText returns the innermost error as text, without what differs each time.
func errorText(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	return fmt.Sprintf("%.60v", err)
}
