package locktest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// RevokedTTL is the TTL of the leases in RevokeTimes.
const RevokedTTL = time.Second

// RevokeTimes revokes holders that let go at once, holders that do not unlock, and holders that are cut off from the
// store, a hundred of each. There are never two holders. It logs how long it takes from Revoke to the next one. Each
// Locker that open returns has leases with a TTL of RevokedTTL, and can be cut off by itself.
func RevokeTimes(t *testing.T, open func(t *testing.T) (l *locker.Client, cut func() (heal func()))) {
	t.Helper()
	for _, kind := range []string{"polite", "stubborn", "cut off"} {
		t.Run(kind, func(t *testing.T) {
			const lanes, each = 10, 10
			by, _ := open(t)
			next, _ := open(t)
			var mu sync.Mutex
			var took []time.Duration
			var all sync.WaitGroup
			for range lanes {
				l, cut := open(t)
				all.Go(func() {
					for range each {
						d, err := revokeTime(t, kind, by, l, next, cut)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						took = append(took, d)
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if slices.Sort(took); len(took) > 0 {
				t.Logf("from Revoke to the next holder, %d times: %v at least, %v in the middle, %v at most",
					len(took), took[0], took[len(took)/2], took[len(took)-1])
			}
		})
	}
}

func revokeTime(t *testing.T, kind string, by, l, next *locker.Client, cut func() func()) (time.Duration, error) {
	key := Unique("revoked")
	var lease *locker.Lease
	var err error
	Within(Patience, func() bool { // a connection may be over since it was cut off the last time
		if lease, err = l.Lock(t.Context(), key); err != nil {
			return !errors.Is(err, locker.ErrUnavailable)
		}
		for at := lease.Deadline(); lease.Deadline().Equal(at) && lease.Err() == nil; time.Sleep(RevokedTTL / 100) {
			// until it is renewed: from then on it is told at once
		}
		return lease.Err() == nil // or it was not renewed in time, on a machine that is busy
	})
	if err != nil {
		return 0, err
	}
	heal := func() {}
	if kind == "cut off" {
		heal = cut()
	}
	defer heal()
	waiting := Started(func() *locker.Lease { return MustLock(t, next, key) })
	Within(RevokedTTL/2, func() bool { // it is no failure if the machine is too busy for that
		info, err := by.Inspect(t.Context(), key)
		return err != nil || info.Waiting > 0
	})
	start := time.Now()
	if err := by.Revoke(t.Context(), key, "to see how long it takes"); err != nil && lease.Err() == nil {
		return 0, err
	}
	if kind == "polite" {
		<-lease.Done()
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			return 0, errors.New("the Unlock of a lease that was revoked returned no ErrLost")
		}
	}
	second := waiting.Get(t)
	got := time.Now()
	switch {
	case lease.Err() == nil:
		return 0, errors.New("two holders")
	case kind != "polite" && got.Before(lease.Deadline()):
		return 0, errors.New("the next holder had the lock before the end of the lease of one that had not unlocked")
	}
	if err := second.Unlock(); !errors.Is(err, locker.ErrLost) { // as it may be when the machine is busy
		return got.Sub(start), err
	}
	return got.Sub(start), nil
}
