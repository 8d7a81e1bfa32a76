package locker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// Observers are not told of the lease of a Ping.
func TestPingIsNotObserved(t *testing.T) {
	o := &locker.Observer{LeaseDone: func(i locker.LeaseDoneInfo) { t.Errorf("LeaseDone of Ping: %+v", i) }}
	inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) { _ = l.Ping(t.Context()) }, locker.Observe(o))
}

// What is told of one outage is counted, however long each attempt hangs.
func TestAttemptsOfOneHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) {
			if n, _, _ := f.calls(); n == 1 {
				return locker.Grant{}, &locker.Held{}
			}
			return locker.Grant{}, hang(ctx)
		}
		f.release = func(ctx context.Context, g locker.Grant) error { return hang(ctx) }
		var attempts []int
		l := locker.New(heeding{f}, locker.TTL(10*time.Second), locker.Observe(&locker.Observer{
			Retry: func(i locker.RetryInfo) { attempts = append(attempts, i.Attempt) },
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		_, err := l.Lock(ctx, "k")
		t.Log(err)
		for i, a := range attempts {
			if a != i+1 {
				t.Errorf("attempts of one outage: %v", attempts)
				break
			}
		}
		_ = l.Close()
	})
}

// When the context of LockStart ends does not matter.
func TestLockStartWithAContextThatHasEnded(t *testing.T) {
	f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) {
		return locker.Grant{}, locker.NotAcquired(fmt.Errorf("pool: %w", context.Canceled)) // of the client's own
	}}
	f2 := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) {
		return locker.Grant{}, fmt.Errorf("pool: %w", context.Canceled) // of the client's own
	}}
	o := &locker.Observer{LockStart: func(ctx context.Context, _ locker.LockStartInfo) context.Context {
		ctx, cancel := context.WithCancel(ctx)
		cancel() // "When it ends does not matter"
		return ctx
	}}
	for _, f := range []*fake{f, f2} {
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			_, err := l.TryLock(t.Context(), "k")
			if !errors.Is(err, locker.ErrUnavailable) {
				t.Errorf("TryLock: %v", err)
			}
		}, locker.Observe(o))
	}
}

// The context of LockStart does not hide why the one of the caller has ended.
func TestLockStartHidesNoCause(t *testing.T) {
	cause := errors.New("shutting down")
	o := &locker.Observer{LockStart: func(ctx context.Context, _ locker.LockStartInfo) context.Context {
		ctx, cancel := context.WithTimeout(ctx, time.Second/2)
		_ = cancel
		return ctx
	}}
	inFakeTime(t, &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) {
		return locker.Grant{}, &locker.Held{}
	}}, func(t *testing.T, l *locker.Client) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		_, err := l.Lock(ctx, "k")
		if !errors.Is(err, cause) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock: %v; want canceled: shutting down, and not DeadlineExceeded", err)
		}
	}, locker.Observe(o))
}

type sliceCtx struct {
	context.Context
	tags []string
}

// A context may be of a type that cannot be compared.
func TestLockWithAContextThatCannotBeCompared(t *testing.T) {
	o := &locker.Observer{LockStart: func(ctx context.Context, _ locker.LockStartInfo) context.Context { return ctx }}
	inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) {
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("panic: %v", p)
			}
		}()
		lease, err := l.TryLock(sliceCtx{t.Context(), nil}, "k")
		if err == nil {
			_ = lease.Unlock()
		}
	}, locker.Observe(o))
}

// The end of a lease is told after its beginning, also if it is lost in between.
func TestLeaseDoneComesAfterLockDone(t *testing.T) {
	var mu sync.Mutex
	var order []string
	o := &locker.Observer{
		LockDone: func(context.Context, locker.LockDoneInfo) {
			time.Sleep(time.Millisecond)
			mu.Lock()
			order = append(order, "LockDone")
			mu.Unlock()
		},
		LeaseDone: func(locker.LeaseDoneInfo) { mu.Lock(); order = append(order, "LeaseDone"); mu.Unlock() },
	}
	inFakeTime(t, new(fake), func(t *testing.T, l *locker.Client) {
		f := new(fake)
		l2 := locker.New(f, locker.TTL(time.Second), locker.Observe(&locker.Observer{
			LockDone: func(context.Context, locker.LockDoneInfo) {
				f.acquired[0].ReportLost(errFault)
				time.Sleep(time.Millisecond)
			},
		}), locker.Observe(o))
		_, _ = l2.TryLock(t.Context(), "k")
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(order) != 2 || order[0] != "LockDone" {
			t.Errorf("order %v", order)
		}
		_ = l2.Close()
	})
}

// What the backend rides out for an owner who has given up is nothing to the lease.
func TestRetryOfAnEarlierOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		var first locker.Request
		w := secondTime(f, &first, func(locker.Request) {})
		f.renew = func(context.Context, []locker.Grant) []error { return []error{errFault} }
		var mu sync.Mutex
		var got []int
		l := locker.New(w, locker.TTL(time.Second), locker.Observe(&locker.Observer{
			Renewed: func(i locker.RenewedInfo) { mu.Lock(); got = append(got, i.Failures); mu.Unlock() },
		}))
		_, err := l.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		first.ReportRetry(errFault)
		time.Sleep(400 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if len(got) == 0 || got[0] != 1 {
			t.Errorf("failures of the first renewal: %v", got)
		}
		_ = l.Close()
	})
}

// Outages that are an hour apart are counted one by one.
func TestRetriesOfSeveralOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got []int
		w := waiting{
			new(fake),
			locker.Features{Queue: true},
			func(ctx context.Context, r locker.Request) (locker.Grant, error) {
				for range 3 { // outages an hour apart, the place is kept
					r.ReportHolder("h")
					r.ReportRetry(errFault)
					time.Sleep(time.Hour)
				}
				return locker.Grant{}, locker.NotAcquired(locker.ErrDenied)
			},
		}
		l := locker.New(w, locker.Observe(&locker.Observer{
			Retry: func(i locker.RetryInfo) { mu.Lock(); got = append(got, i.Attempt); mu.Unlock() },
		}))
		_, _ = l.Lock(t.Context(), "k")
		mu.Lock()
		defer mu.Unlock()
		if got[2] != 1 {
			t.Errorf("attempts %v of three outages an hour apart; want 1 1 1 (in a row)", got)
		}
		_ = l.Close()
	})
}

// An Observer that takes its time delays no renewal.
func TestSlowObserverOfRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memlock.New(locker.TTL(time.Second),
			locker.Observe(&locker.Observer{Renewed: func(locker.RenewedInfo) { time.Sleep(time.Millisecond) }}))
		var ls []*locker.Lease
		for i := range 2000 {
			ls = append(ls, mustLock(t, l, fmt.Sprint(i)))
		}
		time.Sleep(5 * time.Second)
		lost := 0
		for _, x := range ls {
			if x.Err() != nil {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d of 2000 lost, store healthy, Observer takes 1 ms; %v", lost, ls[1999].Err())
		}
		_ = l.Close()
		time.Sleep(time.Hour) // it is told what is left
	})
}

// An Observer of losses that takes its time costs no other lease.
func TestSlowObserverOfLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(fake)
		slow := &locker.Observer{LeaseDone: func(locker.LeaseDoneInfo) { time.Sleep(5 * time.Millisecond) }}
		l := locker.New(f, locker.TTL(time.Second), locker.Observe(slow))
		var healthy []*locker.Lease
		for i := range 100 {
			healthy = append(healthy, mustLock(t, l, fmt.Sprint("h", i)))
		}
		stop := make(chan struct{})
		go func() { // every 10 ms some NoRenew leases end
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				for j := range 30 {
					_, _ = l.TryLock(t.Context(), fmt.Sprint("s", i, "/", j), locker.NoRenew(), locker.TTL(200*time.Millisecond))
				}
			}
		}()
		time.Sleep(3 * time.Second)
		close(stop)
		lost := 0
		for _, h := range healthy {
			if h.Err() != nil {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d of %d healthy leases lost: the Observer of others takes 5 ms", lost, len(healthy))
		}
		time.Sleep(time.Hour)
		_ = l.Close()
	})
}

// Whoever asks for Err may hold a mutex that an Observer wants: it is told by another goroutine.
func TestErrCallsNoObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goroutine := func() string { name, _, _ := strings.Cut(string(debug.Stack()), "["); return name }
		asks := goroutine()
		var app sync.Mutex
		told := 0
		l := locker.New(new(fake), locker.TTL(time.Second), locker.NoRenew(), locker.Observe(&locker.Observer{
			LeaseDone: func(locker.LeaseDoneInfo) {
				if goroutine() == asks {
					t.Error("LeaseDone on the goroutine that asks Err with a mutex held: deadlock")
					return
				}
				app.Lock()
				defer app.Unlock()
				told++
			},
		}))
		lease := mustLock(t, l, "k")
		ctx, cancel := lease.Context(t.Context())
		defer cancel()
		time.Sleep(time.Until(lease.Deadline()))
		app.Lock()
		_ = ctx.Err()
		app.Unlock()
		_ = l.Close()
		synctest.Wait()
		if told != 1 {
			t.Errorf("LeaseDone was called %d times; want once", told)
		}
	})
}

// An Observer may close the Client.
func TestCloseWithinLeaseDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *locker.Client
		took := time.Duration(-1)
		l = locker.New(
			new(fake),
			locker.TTL(10*time.Second),
			locker.NoRenew(),
			locker.Observe(&locker.Observer{LeaseDone: func(i locker.LeaseDoneInfo) {
				if errors.Is(i.Err, locker.ErrLost) {
					start := time.Now()
					_ = l.Close()
					took = time.Since(start)
				}
			}}),
		)
		mustLock(t, l, "k")
		time.Sleep(time.Minute)
		synctest.Wait()
		if took != 0 {
			t.Errorf("Close in LeaseDone took %v", took)
		}
	})
}
