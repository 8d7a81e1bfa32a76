package redlock_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestTokensIncrease takes locks, while of five servers at most two at a time are killed and come back, with their
// data at once or without it after a TTL, or are paused; and holders unlock, or let their leases expire. LOCKER_TRIALS
// is in thousands.
func TestTokensIncrease(t *testing.T) {
	t.Parallel()
	const ttl = 400 * time.Millisecond
	acquisitions := int64(1000 * wires.Trials(t, 1))
	keepsData := func(i int) bool { return i%2 == 0 }
	persistent := []string{"--appendonly", "yes", "--appendfsync", "always"}
	var servers redistest.Independent
	for i := range 5 {
		options := redistest.Options{}
		if keepsData(i) {
			options.Args = persistent
		}
		servers = append(servers, redistest.New(t, options))
	}
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	var killed, paused atomic.Int64
	for _, some := range [][]int{{0, 1}, {2, 3, 4}} { // at most one of each at a time
		chaos.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(rand.N(2 * ttl)):
				}
				i := some[rand.N(len(some))]
				server := servers[i]
				if rand.N(2) == 0 {
					paused.Add(1)
					if err := server.Pause(); err != nil {
						t.Error(err)
					}
					time.Sleep(rand.N(2 * ttl))
					if err := server.Resume(); err != nil {
						t.Error(err)
					}
					continue
				}
				killed.Add(1)
				server.Kill()
				if !keepsData(i) {
					time.Sleep(ttl) // see the package documentation
				}
				if err := server.Restart(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}

	// history is what was granted for one key, in order: while a lease is valid, there is no other.
	type history struct {
		sync.Mutex
		last uint64
	}
	var done, expired, failed atomic.Int64
	var workers sync.WaitGroup
	start := time.Now()
	for k := range 8 {
		h := new(history)
		for range 2 {
			clients, closeClients := redistest.DialAll(servers.Addresses())
			l := redlock.New(clients, locker.TTL(ttl))
			workers.Go(func() {
				defer closeClients()
				defer func() { _ = l.Close() }()
				for done.Load() < acquisitions && !t.Failed() {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					lease, err := l.Lock(ctx, "k"+strconv.Itoa(k))
					cancel()
					if err != nil {
						failed.Add(1) // two servers down, and a third one slow
						continue
					}
					h.Lock()
					if lease.Err() == nil {
						done.Add(1)
						if lease.Token() <= h.last {
							t.Errorf("token %d after %d", lease.Token(), h.last)
						}
						h.last = lease.Token()
					}
					h.Unlock()
					if rand.N(1000) == 0 {
						expired.Add(1)
						time.Sleep(rand.N(3 * ttl)) // as if the process stood still: it renews its lease, or is late
					}
					_ = lease.Unlock()
				}
			})
		}
	}
	workers.Wait()
	close(stop)
	chaos.Wait()
	t.Logf(
		"%d acquisitions in %v, %d refused for lack of a quorum; %d servers killed, %d paused; %d leases kept for long",
		done.Load(), time.Since(start).Round(time.Second), failed.Load(), killed.Load(), paused.Load(), expired.Load())
}

// TestBeyondItsAssumptions shows that what the documentation says can happen does happen.
func TestBeyondItsAssumptions(t *testing.T) {
	t.Parallel()
	restart := func(t *testing.T, server *redistest.Server) {
		server.Kill()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a lock on a bare majority, one server of which forgets it", func(t *testing.T) {
		servers := redistest.NewIndependent(t, 4)
		// The first holder does not reach the third server, ever: in its place it has one that is down. Were that one
		// only down for a while, a request that waits for a connection could bring the lock there.
		servers[3].Kill()
		addrs := servers.Addresses()
		l, rival := openRedlock(t, []string{addrs[0], addrs[1], addrs[3]}), openRedlock(t, addrs[:3])
		first := mustLock(t, l, "k", locker.TTL(time.Minute), locker.NoRenew())
		if _, err := rival.TryLock(t.Context(), "k"); err == nil {
			t.Error("a second holder, though a majority has the lock")
		}
		restart(t, servers[1])
		second := mustLock(t, rival, "k", locker.TTL(time.Minute))
		if err := first.Err(); err != nil {
			t.Errorf("the first holder's lease has ended, so there were not two: %v", err)
		}
		if second.Token() <= first.Token() {
			t.Errorf("the second holder has token %d, the first one had %d", second.Token(), first.Token())
		}
		mustUnlock(t, second)
	})
	t.Run("tokens ahead of the clocks, forgotten by a majority", func(t *testing.T) {
		servers := redistest.NewIndependent(t, 3)
		ahead := uint64(time.Now().Add(time.Hour).UnixMicro()) //nolint:gosec // positive
		for _, rdb := range servers.DialEach(t) {              // as if their clocks had been set back by an hour
			rdb.Set(t.Context(), "{"+redlock.DefaultPrefix+"k}:locker:fence:", ahead, time.Hour)
		}
		l := openRedlock(t, servers.Addresses())
		before := mustLock(t, l, "k")
		mustUnlock(t, before)
		restart(t, servers[0])
		still := mustLock(t, l, "k")
		mustUnlock(t, still)
		if still.Token() <= before.Token() {
			t.Errorf("one server has forgotten: token %d after %d", still.Token(), before.Token())
		}
		for _, server := range servers {
			restart(t, server)
		}
		after := mustLock(t, l, "k")
		if after.Token() >= before.Token() {
			t.Errorf(
				"all servers have forgotten a token ahead of their clocks, and it increased all the same: %d after %d",
				after.Token(), before.Token())
		}
		mustUnlock(t, after)
	})
}
