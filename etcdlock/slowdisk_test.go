package etcdlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/wires"
)

// TestBesideMutexOnSlowDisks has members whose disks are slow, and many who lock: by this package, and by the Mutex of
// etcd's client, whose session has the same TTL. What that keeps is kept here, too, and takes no more of the disks.
func TestBesideMutexOnSlowDisks(t *testing.T) {
	wires.Long(t)
	if !etcdtest.CanSlowDisks() {
		t.Skip("no strace, which makes disks slow")
	}
	// A renewal is two reads, too, which wait for the disks.
	for fsync, ttl := range map[time.Duration]time.Duration{
		60 * time.Millisecond: 3 * time.Second, 150 * time.Millisecond: 6 * time.Second,
	} {
		for _, members := range []int{1, 3} {
			t.Run(fmt.Sprint(fsync, ", members: ", members), func(t *testing.T) {
				locktest.Tries(t, func() error { return besideMutex(t, fsync, ttl, members) })
			})
		}
	}
}

func besideMutex(t *testing.T, fsync, ttl time.Duration, members int) error {
	cluster := etcdtest.New(t, etcdtest.Options{
		Members: members, Fsync: fsync, Flags: []string{"--heartbeat-interval=100", "--election-timeout=1000"},
	})
	defer func() { _ = cluster.Close() }()
	root, client := administer(t, cluster.Client(t)), cluster.Client(t)
	session, err := concurrency.NewSession(client, concurrency.WithTTL(int(ttl/time.Second)))
	if err != nil {
		t.Fatal(err)
	}
	l := with(t, client, locker.TTL(ttl))
	held := mustLock(t, l, unique("held"))
	theirs := root.onSlowDisks("concurrency.Mutex", func(ctx context.Context, key string) error {
		m := concurrency.NewMutex(session, key)
		if err := m.Lock(ctx); err != nil {
			return err
		}
		return m.Unlock(ctx)
	})
	ours := root.onSlowDisks("etcdlock", func(ctx context.Context, key string) error {
		lease, err := l.Lock(ctx, key)
		if err != nil {
			return err
		}
		return lease.Unlock()
	})
	var errs []error
	select {
	case <-session.Done():
		t.Log("the session of Mutex is over")
	default:
		if err := held.Err(); err != nil {
			errs = append(errs, fmt.Errorf("the session of Mutex lives; here: %w", err))
		}
		if ours.failed > theirs.failed {
			errs = append(errs, fmt.Errorf("%d calls failed; of Mutex %d", ours.failed, theirs.failed))
		}
	}
	if ours.pairs == 0 || ours.perPair > theirs.perPair {
		errs = append(errs, fmt.Errorf("%+v, and Mutex %+v; want no more proposals for a pair", ours, theirs))
	}
	return errors.Join(errs...)
}

// onDisks is what came of locks on slow disks.
type onDisks struct {
	pairs, failed int64
	perPair       float64 // proposals
}

// onSlowDisks has many lock and unlock keys of their own.
func (a admin) onSlowDisks(what string, pair func(context.Context, string) error) onDisks {
	const goroutines, lasts = 16, 8 * time.Second
	t := a.t
	t.Helper()
	var all sync.WaitGroup
	var pairs, failed atomic.Int64
	before, start := a.state(), time.Now()
	for range goroutines {
		all.Go(func() {
			for key := unique("key"); time.Since(start) < lasts; {
				if err := pair(t.Context(), key); err != nil {
					t.Logf("%s: %v", what, err)
					failed.Add(1)
					continue
				}
				pairs.Add(1)
			}
		})
	}
	all.Wait()
	took, proposals := time.Since(start), a.state().proposals-before.proposals
	d := onDisks{pairs.Load(), failed.Load(), float64(proposals) / float64(max(pairs.Load(), 1))}
	t.Logf("%s: %.1f pairs per second, %.2f proposals a pair, %d failed", what,
		float64(d.pairs)/took.Seconds(), d.perPair, d.failed)
	return d
}
