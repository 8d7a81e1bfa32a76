package locker_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// outage is a store that is held by somebody, and fails at times.
type outage struct {
	*fake
	queue bool
	fails func() error // what the store says at the moment; nil if it answers
	held  func() bool
}

func (o *outage) Features() locker.Features { return locker.Features{Queue: o.queue} }

func (o *outage) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	g, _ := o.fake.Acquire(ctx, r)
	if err := o.fails(); err != nil {
		return locker.Grant{}, err
	}
	if o.held() {
		return locker.Grant{}, &locker.Held{Holder: "worker 7"}
	}
	return g, nil
}

func (o *outage) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	for {
		sent := time.Now()
		g, err := o.Acquire(ctx, r)
		if !errors.Is(err, locker.ErrLocked) {
			g.Sent = sent
			return g, err
		}
		r.ReportHolder("worker 7")
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return locker.Grant{}, locker.NotAcquired(context.Cause(ctx))
		}
	}
}

// between returns a function that reports whether now is within a time from the start.
func between(from, to time.Duration) func() bool {
	start := time.Now()
	return func() bool { d := time.Since(start); return d >= from && d < to }
}

// A wait that the store has begun to answer rides out failures that may pass, and tells of them.
func TestWaitRidesOut(t *testing.T) {
	for _, queue := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			down, held := between(time.Second, time.Minute), between(0, 2*time.Minute)
			o := &outage{fake: new(fake), queue: queue, held: held, fails: func() error {
				if down() {
					return errFault
				}
				return nil
			}}
			var retries []locker.RetryInfo
			l := locker.New(o, locker.TTL(time.Second), locker.Observe(&locker.Observer{
				Retry: func(i locker.RetryInfo) { retries = append(retries, i) },
			}))
			start := time.Now()
			lease, err := l.Lock(t.Context(), "k")
			if took := time.Since(start); err != nil || took < 2*time.Minute ||
				took > 2*time.Minute+100*time.Millisecond {
				t.Fatalf("queue %v: Lock: %v after %v; want the lock when it is free, after two minutes", queue, err,
					took)
			}
			if n := len(retries); n < 25 || n > 100 {
				t.Errorf("queue %v: %d attempts in an outage of a minute", queue, n)
			}
			for i, r := range retries {
				if r.Op != "lock" || r.Key != "k" || r.Attempt != i+1 || !errors.Is(r.Err, errFault) ||
					!errors.Is(r.Err, locker.ErrUnavailable) || r.Pause <= 0 || r.Pause > 2*time.Second {
					t.Errorf("queue %v: retry %d: %+v", queue, i, r)
				}
			}
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			// What may be left of each failed attempt was released, and the lease was that of the last owner.
			if n := o.unreleased(); n > 0 {
				t.Errorf("queue %v: nothing was released of %d owners", queue, n)
			}
			_ = l.Close()
		})
	}
}

// Nothing is ridden out before the store has answered, nor what does not pass, nor by TryLock.
func TestWaitDoesNotRideOut(t *testing.T) {
	for _, queue := range []bool{false, true} {
		for _, failure := range []error{errFault, locker.ErrDenied, locker.ErrUnfit, locker.ErrInvalidKey, errors.ErrUnsupported} {
			for _, answered := range []bool{false, true} {
				if answered && errors.Is(failure, errFault) {
					continue // see TestWaitRidesOut
				}
				synctest.Test(t, func(t *testing.T) {
					from := time.Duration(0)
					if answered {
						from = time.Second
					}
					down := between(from, time.Hour)
					o := &outage{fake: new(fake), queue: queue, held: func() bool { return true }, fails: func() error {
						if down() {
							return failure
						}
						return nil
					}}
					l := locker.New(o, locker.TTL(time.Second))
					start := time.Now()
					_, err := l.Lock(t.Context(), "k")
					if took := time.Since(start); !errors.Is(err, failure) || took > from+100*time.Millisecond {
						t.Errorf("queue %v, answered %v: Lock: %v after %v; want %v at once", queue, answered, err,
							took-from, failure)
					}
					start = time.Now()
					if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, failure) || time.Since(start) > 0 {
						t.Errorf("TryLock: %v after %v", err, time.Since(start))
					}
					_ = l.Close()
				})
			}
		}
	}
}

// A wait that ends by its ctx while it rides something out says both, and one that ends by Close says that.
func TestWaitEndsWhileItRidesOut(t *testing.T) {
	for _, queue := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			down := between(time.Second, time.Hour)
			o := &outage{fake: new(fake), queue: queue, held: func() bool { return true }, fails: func() error {
				if down() {
					return errFault
				}
				return nil
			}}
			l := locker.New(o, locker.TTL(time.Second))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			start := time.Now()
			_, err := l.Lock(ctx, "k")
			var e *locker.Error
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errFault) ||
				time.Since(start) != time.Minute {
				t.Errorf("queue %v: Lock: %v after %v; want DeadlineExceeded after a minute, with the fault", queue,
					err, time.Since(start))
			}
			if !errors.As(err, &e) || e.Holder != "worker 7" {
				t.Errorf("queue %v: Lock: %v; want that worker 7 held it", queue, err)
			}
			down = between(time.Second, time.Hour)
			ended := make(chan error)
			go func() {
				_, err := l.Lock(context.Background(), "k")
				ended <- err
			}()
			time.Sleep(10 * time.Second)
			go func() { _ = l.Close() }()
			if err := <-ended; !errors.Is(err, locker.ErrClosed) {
				t.Errorf("queue %v: Lock: %v; want ErrClosed", queue, err)
			}
			time.Sleep(time.Hour)
		})
	}
}

// What the store says of an owner who has given up is nothing to the one who goes on.
func TestLossOfAnEarlierOwner(t *testing.T) {
	f := new(fake)
	var first locker.Request
	w := secondTime(f, &first, func(r locker.Request) {
		if r.Owner == first.Owner {
			t.Error("asked again for the owner that may be left behind")
		}
		first.ReportLost(errFault) // before and after the grant
	})
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(w)
		lease, err := l.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		first.ReportLost(errFault)
		if err := lease.Err(); err != nil {
			t.Errorf("the lease ended with the owner before: %v", err)
		}
		if err := lease.Unlock(); err != nil {
			t.Error(err)
		}
		_ = l.Close()
	})
}

// In an outage of which many waiters of a fleet learn at once, they do not come back at once.
func TestFleetComesBackSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waiters = 200
		m := memlock.New()
		ctx, cancel := context.WithCancel(t.Context())
		holder, err := m.Lock(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		pauses := make(map[time.Duration]int)
		var done sync.WaitGroup
		var heals []func()
		for range waiters {
			l := m.Peer(locker.Observe(&locker.Observer{Retry: func(i locker.RetryInfo) {
				mu.Lock()
				defer mu.Unlock()
				if i.Attempt == 1 {
					pauses[i.Pause.Round(time.Millisecond)]++
				}
			}}))
			done.Go(func() { _, _ = l.Lock(ctx, "k"); _ = l.Close() })
			synctest.Wait()
			heals = append(heals, l.Cut())
		}
		synctest.Wait()
		for pause, n := range pauses {
			if n > waiters/8 {
				t.Errorf("%d of %d come back after %v", n, waiters, pause)
			}
		}
		if len(pauses) < 10 {
			t.Errorf("pauses %v", pauses)
		}
		for _, heal := range heals {
			heal()
		}
		cancel()
		done.Wait()
		_ = holder.Unlock()
		_ = m.Close()
	})
}

// Many short outages, and grants whose answers get lost: the key is free in the end, and never held by two.
func TestWaitersInAStormOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memlock.New(locker.TTL(time.Second))
		var holders int
		var mu sync.Mutex
		var done sync.WaitGroup
		for range 20 {
			l := m.Peer(locker.TTL(time.Second))
			done.Go(func() {
				defer func() { _ = l.Close() }()
				for range 20 {
					lease, err := l.Lock(t.Context(), "k")
					if errors.Is(err, locker.ErrUnavailable) {
						continue // cut off when it began
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if holders++; holders > 1 {
						t.Error("two holders")
					}
					mu.Unlock()
					time.Sleep(rand.N(20 * time.Millisecond))
					mu.Lock()
					holders--
					mu.Unlock()
					_ = lease.Unlock()
				}
			})
			done.Go(func() {
				for range 20 {
					time.Sleep(rand.N(500 * time.Millisecond))
					heal := l.Cut()
					time.Sleep(rand.N(300 * time.Millisecond))
					heal()
				}
			})
		}
		done.Wait()
		if lease, err := m.TryLock(t.Context(), "k"); err != nil {
			time.Sleep(time.Second) // what could not be unlocked ends with its TTL
			if lease, err = m.TryLock(t.Context(), "k"); err != nil {
				t.Error(err)
				return
			}
			_ = lease.Unlock()
		} else {
			_ = lease.Unlock()
		}
		_ = m.Close()
	})
}

// lateContext tells of its end when its deadline has passed for a while, as on a busy machine.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

// A call says why its ctx has ended, also if the store's client notices that earlier than ctx.
func TestCauseOfALateContext(t *testing.T) {
	for _, test := range []struct {
		late time.Duration
		want error
	}{{100 * time.Millisecond, errFault}, {time.Minute, context.DeadlineExceeded}} {
		synctest.Test(t, func(t *testing.T) {
			deadline := time.Now().Add(time.Second)
			ctx, cancel := context.WithDeadlineCause(t.Context(), deadline.Add(test.late), errFault)
			defer cancel()
			l := locker.New(&outage{fake: new(fake), held: func() bool { return false }, fails: func() error {
				time.Sleep(time.Until(deadline))
				return context.DeadlineExceeded // that of the connection
			}}, locker.TTL(time.Minute))
			for what, lock := range map[string]lockFunc{
				"Lock": l.Lock, "TryLock": l.TryLock,
			} {
				_, err := lock(lateContext{ctx, deadline}, "k")
				if !errors.Is(err, test.want) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s, ctx is late by %v: %v; want %v", what, test.late, err, test.want)
				}
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
