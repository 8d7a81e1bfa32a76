package etcdlock_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
)

// fill writes until the server has no space left.
func (a admin) fill() {
	a.t.Helper()
	value := strings.Repeat("x", 256<<10)
	a.do(func(ctx context.Context) error {
		for {
			if _, err := a.Put(ctx, "filling", value); errors.Is(err, rpctypes.ErrNoSpace) {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
}

// drain undoes fill, as the documentation of etcd says.
func (a admin) drain() {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		r, err := a.Client.Delete(ctx, "filling")
		if err == nil {
			_, err = a.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
		}
		if err == nil {
			_, err = a.Defragment(ctx, a.Endpoints()[0])
		}
		if err == nil {
			_, err = a.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		}
		return err
	})
}

func TestNoSpace(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second // a third of it bounds an attempt, which takes a while on a machine that is busy
	cluster := etcdtest.New(t, etcdtest.Options{Flags: []string{"--quota-backend-bytes=4194304"}})
	root := administer(t, cluster.Client(t))
	l := open(t, cluster.Endpoints(), locker.TTL(ttl))
	key := unique("key")
	lease := mustTry(t, l, key)
	next := waits(open(t, cluster.Endpoints(), locker.TTL(ttl)), key)
	root.awaitLine(key, 2)
	// So many that they are unlocked while others are refused, also in one transaction.
	leases := make([]*locker.Lease, 200)
	for i := range leases {
		leases[i] = mustTry(t, l, unique("key"))
	}
	root.fill()

	failures.CheckAcquires(t, l, unique("key"), etcdlock.ErrNoSpace)
	failures.CheckAcquires(t, open(t, cluster.Endpoints()), unique("key"), etcdlock.ErrNoSpace) // who has no lease either
	isLocked(t, l, key)
	outlives(t, lease, 1) // it is renewed after there was no space
	mustUnlock(t, lease)
	mustUnlock(t, granted(t, next, patience))

	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan struct{})
	for range 8 {
		go func() {
			for ctx.Err() == nil {
				if lease, err := l.Lock(ctx, unique("key")); err == nil {
					_ = lease.Unlock()
				}
			}
			refused <- struct{}{}
		}()
	}
	start, took := time.Now(), []time.Duration(nil)
	for _, lease := range leases {
		start := time.Now()
		mustUnlock(t, lease)
		took = append(took, time.Since(start))
	}
	cancel()
	for range 8 {
		<-refused
	}
	slices.Sort(took)
	most := took[len(took)*9/10] // the slowest say how busy the machine is
	t.Logf("%d Unlocks among refused Locks took %v, most of them no more than %v, and the slowest %v", len(leases),
		time.Since(start), most, took[len(took)-1])
	if most > 500*time.Millisecond {
		t.Errorf("among refused Locks, a tenth of the Unlocks took %v and longer", most)
	}

	root.drain()
	works(t, l, l, 0)
}
