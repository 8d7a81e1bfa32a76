package locker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// A backend may count renewals from long ago: they are not repeated at once for that.
func TestRenewalsThatCountFromLongAgo(t *testing.T) {
	f := new(fake)
	var n atomic.Int64
	var start time.Time
	f.renewal = func(_ context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
		beat := start.Add(time.Since(start).Truncate(500 * time.Millisecond)) // a heartbeat each half of the TTL
		for i := range gs {
			if n.Add(1) > 1000 {
				done(i, locker.Renewal{Err: locker.ErrLost}) // and no end of it, else
				continue
			}
			done(i, locker.Renewal{Sent: beat})
		}
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		start = time.Now()
		lease := mustLock(t, l, "k")
		time.Sleep(5 * time.Second)
		if c := n.Load(); c > 150 || lease.Err() != nil {
			t.Errorf("%d renewals in 5 s; Err: %v", c, lease.Err())
		}
	})
}

// The bound of a renewal is not later than the end of its lease.
func TestRenewalEndsWithItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		var under atomic.Int32
		var lease *locker.Lease
		f.renewal = func(ctx context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
			d, _ := ctx.Deadline()
			if over := d.Sub(lease.Deadline()); over > 0 {
				t.Errorf("at %v before its end, a renewal gets a ctx that ends %v after the lease",
					time.Until(lease.Deadline()), over)
			}
			under.Add(1)
			defer under.Add(-1)
			done(0, locker.Renewal{Err: hang(ctx)})
		}
		e := expiring{f, func([]locker.Grant) {
			if under.Load() > 0 {
				t.Error("Expired (nobody will renew any more) while a renewal is under way whose ctx has not ended")
			}
		}}
		l := locker.New(e, locker.TTL(time.Second))
		lease = mustLock(t, l, "k")
		<-lease.Done()
		synctest.Wait()
		time.Sleep(time.Second)
		_ = l.Close()
	})
}

// One connection that hangs does not cost a third of a long TTL.
func TestUnlockWithALongTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		f.release = func(ctx context.Context, _ locker.Grant) error {
			if _, _, n := f.calls(); n == 1 {
				return hang(ctx) // one connection that hangs
			}
			return nil
		}
		l := locker.New(heeding{f}, locker.TTL(time.Hour))
		lease := mustLock(t, l, "k")
		start := time.Now()
		done := make(chan error)
		go func() { done <- lease.Unlock() }()
		time.Sleep(time.Second)
		closing := time.Now()
		if err := l.Close(); err != nil || time.Since(closing) > time.Minute {
			t.Errorf("Close: %v after %v", err, time.Since(closing))
		}
		if err := <-done; err != nil || time.Since(start) > time.Minute {
			t.Errorf("Unlock: %v after %v", err, time.Since(start))
		}
	})
}

// The same for an Unlock behind a renewal that hangs.
func TestUnlockBehindARenewalWithALongTTL(t *testing.T) {
	f := new(fake)
	f.renewal = func(ctx context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		done(0, locker.Renewal{Err: hang(ctx)})
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(heeding{f}, locker.TTL(time.Hour))
		lease := mustLock(t, l, "k")
		time.Sleep(20*time.Minute + time.Second)
		a := time.Now()
		_ = lease.Unlock()
		if d := time.Since(a); d > time.Minute {
			t.Errorf("Unlock took %v", d)
		}
		_ = l.Close()
	})
}

// Close ends those who are asking a store that hangs.
func TestCloseEndsAnAcquireThatHangs(t *testing.T) {
	for _, heeds := range []bool{false, true} {
		f := &fake{
			acquire: func(ctx context.Context, _ locker.Request) (locker.Grant, error) { return locker.Grant{}, hang(ctx) },
		}
		synctest.Test(t, func(t *testing.T) {
			l := locker.New(stating{f, locker.Features{HeedsContext: heeds}}, locker.TTL(time.Hour))
			ended := make(chan time.Duration, 1)
			start := time.Now()
			go func() { _, _ = l.Lock(context.Background(), "k"); ended <- time.Since(start) }()
			time.Sleep(time.Second)
			closing := time.Now()
			_ = l.Close()
			took := time.Since(closing)
			if waiter := <-ended - time.Second; waiter > 2*time.Second || took > 2*time.Second {
				t.Errorf("heeds %v: Close took %v, and the waiter %v to return", heeds, took, waiter)
			}
		})
	}
}

// A Renew that never returns costs a bounded number of goroutines.
func TestRenewThatNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var stuck atomic.Int32
		f := &fake{
			renewal: func(context.Context, []locker.Grant, func(int, locker.Renewal)) { stuck.Add(1); <-free; stuck.Add(-1) },
		}
		l := locker.New(f, locker.TTL(time.Second))
		for range locker.MostUnanswered {
			lease := mustLock(t, l, "k")
			<-lease.Done()
		}
		if n := stuck.Load(); n > locker.MostUnanswered+10 {
			t.Errorf("%d goroutines in Renew after 1000 leases one after the other", n)
		}
		close(free)
		time.Sleep(time.Second)
		_ = l.Close()
	})
}

// As many calls may be without an answer in the second outage as in the first: none is counted for longer than it
// lasts.
func TestOutagesAreCountedAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free chan struct{}
		var asked atomic.Int64
		f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) {
			asked.Add(1)
			<-free
			return locker.Grant{}, locker.NotAcquired(locker.ErrDenied)
		}}
		l := locker.New(f, locker.TTL(time.Hour))
		for range 3 {
			free = make(chan struct{})
			asked.Store(0)
			for range 2 * locker.MostUnanswered {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				_, _ = l.TryLock(ctx, "k")
				cancel()
			}
			if n := asked.Load(); n != locker.MostUnanswered {
				t.Errorf("%d calls are without an answer; want %d", n, locker.MostUnanswered)
			}
			close(free)
			synctest.Wait()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Some calls that never return do not keep others from a part of the store that is well.
func TestCallsThatNeverReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		f := new(fake)
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
			if r.Key == "hung shard" {
				<-free
			}
			return f.grant(r), nil
		}
		l := locker.New(f, locker.TTL(10*time.Second))
		held := mustLock(t, l, "held")
		for range 128 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_, _ = l.TryLock(ctx, "hung shard")
			cancel()
		}
		_, err := l.TryLock(t.Context(), "healthy")
		if err != nil {
			t.Errorf("TryLock on a healthy shard: %v", err)
		}
		start := time.Now()
		err = held.Unlock()
		if err != nil {
			t.Errorf("Unlock on a healthy shard: %v after %v", err, time.Since(start))
		}
		close(free)
		time.Sleep(time.Second)
		_ = l.Close()
	})
}

// Many who give up together, and take a moment to leave, do not keep others away.
func TestManyGiveUpTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := waiting{
			new(fake),
			locker.Features{Queue: true},
			func(ctx context.Context, r locker.Request) (locker.Grant, error) {
				r.ReportHolder("")
				<-ctx.Done()
				time.Sleep(5 * time.Millisecond) // a round trip to leave the line
				return locker.Grant{}, locker.NotAcquired(context.Cause(ctx))
			},
		}
		l := locker.New(w, locker.TTL(10*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i := range 200 {
			go func() { _, _ = l.Lock(ctx, fmt.Sprint(i%4)) }()
		}
		time.Sleep(time.Second + time.Millisecond)
		_, err := l.TryLock(t.Context(), "other")
		if err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		_ = l.Close()
	})
}

// What was granted for longer than asked for is released for as long.
func TestCleanupLastsForTheTTLThatWasGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		ctx, cancel := context.WithCancel(t.Context())
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
			g := f.grant(r)
			g.TTL = time.Hour
			cancel()
			return g, nil
		}
		down := between(0, 5*time.Second)
		ok := false
		f.release = func(context.Context, locker.Grant) error {
			if down() {
				return errFault
			}
			ok = true
			return nil
		}
		l := locker.New(heeding{f}, locker.TTL(time.Second))
		_, _ = l.TryLock(ctx, "k")
		time.Sleep(time.Minute)
		synctest.Wait()
		if !ok {
			t.Error("granted for an hour, given up after a second")
		}
		_ = l.Close()
	})
}

// A store that refuses many releases is not stormed.
func TestCleanupOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		var n atomic.Int64
		f.acquire = func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, errFault }
		f.release = func(context.Context, locker.Grant) error { n.Add(1); return errFault }
		l := locker.New(f, locker.TTL(10*time.Second))
		for i := range 10_000 {
			_, _ = l.TryLock(t.Context(), fmt.Sprint(i))
			if i%1000 == 999 {
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Minute)
		if n.Load() > 70_000 {
			t.Errorf("%d releases within 70 s for 10,000 TryLocks that failed", n.Load())
		}
		_ = l.Close()
	})
}

// The backend is told of leases that have ended just before Close.
func TestExpiredBeforeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		l := locker.New(expiring{new(fake), func([]locker.Grant) { told++ }}, locker.TTL(time.Second), locker.NoRenew())
		lease := mustLock(t, l, "k")
		for time.Until(lease.Deadline()) > 0 {
			time.Sleep(time.Until(lease.Deadline()))
		}
		_ = lease.Err()
		_ = l.Close()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}

// A renewal that was overtaken may have been carried out last.
func TestOvertakenRenewalForLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
			if _, n, _ := f.calls(); n == 1 {
				time.Sleep(5 * time.Second) // carried out last
				done(0, locker.Renewal{TTL: time.Second})
				return
			}
			done(0, locker.Renewal{})
		}
		l := locker.New(f, locker.TTL(12*time.Second))
		lease := mustLock(t, l, "k")
		time.Sleep(9*time.Second + time.Millisecond)
		if left := time.Until(lease.Deadline()); left > time.Second {
			t.Errorf("the store's last answer said 1s; trusted for %v", left)
		}
		_ = l.Close()
	})
}
