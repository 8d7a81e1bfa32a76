package etcdlock_test

import (
	"context"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/wires"
)

// TestBesideMutexOnSlowDisks has members whose disks are slow, and many who lock: by this package, and by the Mutex of
// etcd's client, whose session has the same TTL. What that keeps is kept here, too, and takes no more of the disks.
func TestBesideMutexOnSlowDisks(t *testing.T) {
	wires.Long(t)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("no strace, which makes disks slow")
	}
	const ttl, goroutines, lasts = 3 * time.Second, 16, 8 * time.Second
	for _, fsync := range []time.Duration{60 * time.Millisecond, 150 * time.Millisecond} {
		for _, members := range []int{1, 3} {
			t.Run(fsync.String()+map[int]string{1: ", one member", 3: ", three members"}[members], func(t *testing.T) {
				cluster := etcdtest.New(t, etcdtest.Options{
					Members: members, Fsync: fsync, Flags: []string{"--heartbeat-interval=100", "--election-timeout=1000"},
				})
				root, client := administer(t, cluster.Client(t)), cluster.Client(t)
				session, err := concurrency.NewSession(client, concurrency.WithTTL(int(ttl/time.Second)))
				if err != nil {
					t.Fatal(err)
				}
				l := with(t, client, locker.TTL(ttl))
				held := mustLock(t, l, unique("held"))
				theirs := concurrency.NewMutex(session, unique("held"))
				if err := theirs.Lock(t.Context()); err != nil {
					t.Fatal(err)
				}
				mutex := func(ctx context.Context, key string) error {
					m := concurrency.NewMutex(session, "mutex/"+key)
					if err := m.Lock(ctx); err != nil {
						return err
					}
					return m.Unlock(ctx)
				}
				ours := func(ctx context.Context, key string) error {
					lease, err := l.Lock(ctx, key)
					if err != nil {
						return err
					}
					return lease.Unlock()
				}
				term := root.term()
				a := root.onSlowDisks(t, "Mutex", goroutines, lasts, mutex)
				b := root.onSlowDisks(t, "etcdlock", goroutines, lasts, ours)
				t.Logf("raft term %d, %d when it began", root.term(), term)
				select {
				case <-session.Done():
					t.Log("the session of Mutex is over")
				default:
					if err := held.Err(); err != nil {
						t.Errorf("Mutex has kept its lease; here: %v", err)
					}
					if b.failed > a.failed {
						t.Errorf("%d calls failed; of Mutex %d", b.failed, a.failed)
					}
				}
				if b.pairs < a.pairs/2 {
					t.Errorf("%d pairs, where Mutex had %d", b.pairs, a.pairs)
				}
				if b.perPair > a.perPair {
					t.Errorf("%.2f proposals a pair, where Mutex took %.2f", b.perPair, a.perPair)
				}
			})
		}
	}
}

// term returns the raft term of the cluster: it increases with each election.
func (a admin) term() (term uint64) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Status(ctx, a.Endpoints()[0])
		if err == nil {
			term = r.RaftTerm
		}
		return err
	})
	return term
}

// onDisks is what came of locks on slow disks.
type onDisks struct {
	pairs, failed int64
	perPair       float64 // proposals
}

func (a admin) onSlowDisks(
	t *testing.T, what string, goroutines int, lasts time.Duration, pair func(context.Context, string) error,
) onDisks {
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
