package locker_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// expiring is a fake that wants to know of leases that have ended by themselves.
type expiring struct {
	*fake
	expired func([]locker.Grant)
}

func (expiring) Features() locker.Features       { return locker.Features{Expirer: true} }
func (e expiring) Expired(grants []locker.Grant) { e.expired(grants) }

// The backend is told of leases that end by themselves, when their holders know; not of those that are unlocked, that
// Renew or ReportLost says are lost, or that were never granted.
func TestBackendIsToldOfExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		var watched *locker.Lease
		e := expiring{fake: new(fake)}
		e.renew = func(_ context.Context, gs []locker.Grant) []error {
			errs := make([]error, len(gs))
			for i, g := range gs {
				switch g.Key {
				case "refused":
					errs[i] = locker.ErrLost
				case "unanswered":
					errs[i] = errFault
				}
			}
			return errs
		}
		e.expired = func(gs []locker.Grant) {
			for _, g := range gs {
				told = append(told, g.Key)
				if g.Token == 0 || g.Owner == (locker.Owner{}) {
					t.Errorf("told of %+v; want the whole grant", g)
				}
			}
			if watched.Err() == nil {
				t.Error("the backend is told of the end of a lease before its holder is")
			}
		}
		l := locker.New(e, locker.TTL(time.Second))
		mustLock(t, l, "unlocked")
		mustLock(t, l, "lost")
		e.acquired[1].ReportLost(errFault)
		mustLock(t, l, "refused")
		_ = mustLock(t, l, "held")
		watched = mustLock(t, l, "unanswered")
		done := watched.Done()
		mustLock(t, l, "not renewed", locker.NoRenew())
		asked := mustLock(t, l, "asked at its deadline", locker.NoRenew())
		time.Sleep(time.Until(asked.Deadline()))
		_ = asked.Err() // which notices its end by itself, maybe before the timer does
		<-done
		synctest.Wait()
		want := map[string]bool{"unanswered": true, "not renewed": true, "asked at its deadline": true}
		for _, key := range told {
			if !want[key] {
				t.Errorf("told of the end of %q", key)
			}
			delete(want, key)
		}
		if len(want) > 0 {
			t.Errorf("not told of %v", want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Many leases that end at the same time: each is told, and none before its deadline, whether many or few of them are
// watched.
func TestManyEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leases = 5000
		l := locker.New(new(fake), locker.TTL(time.Second), locker.NoRenew())
		var told atomic.Int32
		var wg sync.WaitGroup
		long := mustLock(t, l, "long", locker.TTL(time.Hour))
		for i := range leases {
			lease := mustLock(t, l, fmt.Sprint(i))
			if i%2 == 0 {
				done := lease.Done()
				wg.Go(func() {
					<-done
					if lease.Err() == nil || time.Until(lease.Deadline()) > 0 {
						t.Error("told before the end")
					}
					told.Add(1)
				})
			} else {
				ctx, cancel := lease.Context(t.Context())
				wg.Go(func() {
					defer cancel()
					<-ctx.Done()
					if !errors.Is(context.Cause(ctx), locker.ErrLost) {
						t.Errorf("cause: %v", context.Cause(ctx))
					}
					told.Add(1)
				})
			}
		}
		wg.Wait()
		if told.Load() != leases || long.Err() != nil {
			t.Errorf("%d of %d leases have ended; the other one: %v", told.Load(), leases, long.Err())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestManyLostTogether has many of the leases of two Clients be lost at once; the others go on.
func TestManyLostTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leases = 1000
		var lost []locker.Request
		var watched, gone, kept []*locker.Lease
		for range 2 {
			f := new(fake)
			l := locker.New(f, locker.TTL(time.Second))
			defer l.Close() //nolint:errcheck // nothing can go wrong there
			for i := range leases {
				lease := mustLock(t, l, fmt.Sprint(i))
				switch i % 3 {
				case 0:
					_ = lease.Done()
					watched = append(watched, lease)
				case 1:
					gone = append(gone, lease)
				default:
					kept = append(kept, lease)
					continue
				}
				lost = append(lost, f.acquired[i])
			}
		}
		lost = append(lost, lost[0], locker.Request{Key: "of nobody"})
		locker.ReportLost(lost, errFault)
		for _, lease := range watched {
			select {
			case <-lease.Done():
			default:
				t.Fatal("ReportLost has returned before Done is closed")
			}
		}
		for _, lease := range append(watched, gone...) {
			if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, errFault) {
				t.Fatalf("Err: %v; want ErrLost with its reason", err)
			}
		}
		time.Sleep(3 * time.Second)
		for _, lease := range kept {
			if err := lease.Err(); err != nil {
				t.Fatalf("of one that was not lost: %v", err)
			}
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
		}
	})
}

// How long after their common deadline the last of many leases is told that it has ended.
func BenchmarkEndTogether(b *testing.B) {
	for _, leases := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				f := &fake{renewal: func(ctx context.Context, _ []locker.Grant, _ func(int, locker.Renewal)) { <-ctx.Done() }}
				sent := time.Now()
				f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
					g := f.grant(r)
					g.Sent = sent
					return g, nil
				}
				l := locker.New(heeding{f}, locker.TTL(2*time.Second), locker.NoRenew())
				dones := make([]<-chan struct{}, leases)
				var deadline time.Time
				for i := range dones {
					lease, err := l.TryLock(b.Context(), fmt.Sprint(i))
					if err != nil {
						b.Fatal(err)
					}
					dones[i], deadline = lease.Done(), lease.Deadline()
				}
				time.Sleep(time.Until(deadline))
				b.StartTimer()
				for _, done := range dones {
					<-done
				}
				late := time.Since(deadline)
				b.StopTimer()
				b.ReportMetric(float64(late.Microseconds())/1000, "ms-late")
				_ = l.Close()
				b.StartTimer()
			}
		})
	}
}
