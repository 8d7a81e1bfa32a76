package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// The tests named Rule… are for the rules of the Backend contract, in the order of the design.

func TestRule1ValidityCountsFromTheSend(t *testing.T) {
	f := &fake{}
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		time.Sleep(300 * time.Millisecond) // the answer takes its time
		return f.grant(r), nil
	}
	f.renew = func(ctx context.Context, gs []locker.Grant) []error {
		time.Sleep(10 * time.Second) // and the renewal hangs, heeding no ctx
		return make([]error, len(gs))
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		sent := time.Now()
		lease := mustLock(t, l, "k")
		want := sent.Add(validity(time.Second))
		if !lease.Deadline().Equal(want) {
			t.Errorf("Deadline is %v after the request was sent; want %v", lease.Deadline().Sub(sent),
				validity(time.Second))
		}
		<-lease.Done()
		if now := time.Now(); !now.Equal(want) {
			t.Errorf("Done closed %v after the request was sent; want %v", now.Sub(sent), validity(time.Second))
		}
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Err: %v; want ErrLost", err)
		}
		time.Sleep(20 * time.Second) // the renewals return, with success: too late
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Err after the renewal returned: %v; want ErrLost", err)
		}
	})
}

func TestRule1RenewalCountsFromItsSend(t *testing.T) {
	f := &fake{}
	f.renew = func(_ context.Context, gs []locker.Grant) []error {
		time.Sleep(200 * time.Millisecond)
		return make([]error, len(gs))
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		time.Sleep(600 * time.Millisecond)
		if got, want := lease.Deadline(), f.renewals[0].Add(validity(time.Second)); !got.Equal(want) {
			t.Errorf("after a renewal Deadline is %v after it was sent; want %v", got.Sub(f.renewals[0]),
				want.Sub(f.renewals[0]))
		}
	})
}

// A backend may say that a renewal counts from an earlier moment.
func TestRule1RenewalCountsFromWhatTheBackendSays(t *testing.T) {
	f := new(fake)
	const earlier = 100 * time.Millisecond
	f.renewal = func(_ context.Context, _ []locker.Grant, done func(int, locker.Renewal)) {
		done(0, locker.Renewal{Sent: time.Now().Add(-earlier)})
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		for _, renewals, _ := f.calls(); renewals == 0; _, renewals, _ = f.calls() {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if left, want := time.Until(lease.Deadline()), validity(time.Second)-earlier; left > want ||
			left < want-2*time.Millisecond {
			t.Errorf("after a renewal that counts from %v before, the lease is valid for %v; want %v", earlier, left,
				want)
		}
	})
}

func TestRule2TransientErrorsAreRetriedUntilTheDeadline(t *testing.T) {
	f := &fake{}
	var mu sync.Mutex
	var recovers time.Time
	faultyUntil := func(at time.Time) {
		mu.Lock()
		defer mu.Unlock()
		recovers = at
	}
	f.renew = func(ctx context.Context, gs []locker.Grant) []error {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > validity(time.Second) {
			panic("a renewal without a deadline within the validity")
		}
		errs := make([]error, len(gs))
		mu.Lock()
		defer mu.Unlock()
		if time.Now().Before(recovers) {
			for i := range errs {
				errs[i] = errFault
			}
		}
		return errs
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		faultyUntil(time.Now().Add(900 * time.Millisecond)) // just in time
		time.Sleep(5 * time.Second)
		if err := lease.Err(); err != nil {
			t.Errorf("the lease was lost although the store recovered in time: %v", err)
		}
		faultyUntil(time.Now().Add(time.Hour))
		<-lease.Done()
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, errFault) {
			t.Errorf("Err: %v; want ErrLost with the fault as its reason", err)
		}
		if late := time.Until(lease.Deadline()); late != 0 {
			t.Errorf("the lease ended %v from its deadline", late)
		}
	})
}

func TestRule2OnlyNotOursIsFinalAtOnce(t *testing.T) {
	f := &fake{renew: func(_ context.Context, gs []locker.Grant) []error {
		errs := make([]error, len(gs))
		for i := range errs {
			errs[i] = fmt.Errorf("taken over: %w", locker.ErrLost)
		}
		return errs
	}}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		locked := time.Now()
		<-lease.Done()
		if d := time.Since(locked); d > time.Second/3 {
			t.Errorf("the loss that the first renewal reported showed after %v", d)
		}
		if err := lease.Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock: %v; want ErrLost", err)
		}
		if _, _, released := f.calls(); released != 0 {
			t.Errorf("a lost lease was released %d times in the store", released)
		}
	})
}

func TestRule3ErrorIsNotProofOfNothing(t *testing.T) {
	for _, test := range []struct {
		err      error
		released int
	}{
		{errFault, 1},
		{locker.NotAcquired(errFault), 0},
		{locker.ErrLocked, 0},
		{&locker.Held{Holder: "somebody"}, 0},
		{fmt.Errorf("%w: no", locker.ErrInvalidOption), 0},
		{fmt.Errorf("%w: no", locker.ErrInvalidKey), 0},
		{errors.ErrUnsupported, 0},
	} {
		f := &fake{}
		f.acquire = func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, test.err }
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			_, err := l.TryLock(t.Context(), "k")
			if !errors.Is(err, errors.Unwrap(test.err)) && !errors.Is(err, test.err) {
				t.Errorf("TryLock: %v; want %v", err, test.err)
			}
			synctest.Wait()
			if _, _, released := f.calls(); released != test.released {
				t.Errorf("after %v: %d releases; want %d", test.err, released, test.released)
			}
			if test.released > 0 {
				if g := f.released[0]; g.Token != 0 || g.Owner != f.acquired[0].Owner {
					t.Errorf("released %+v; want the owner of the acquire, with token 0", g)
				}
			}
		})
	}
}

func TestRule3AbandonedAcquireIsUndone(t *testing.T) {
	f := &fake{}
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		time.Sleep(400 * time.Millisecond) // longer than the caller waits
		return f.grant(r), nil
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := l.TryLock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("TryLock: %v; want DeadlineExceeded", err)
		}
		if _, _, released := f.calls(); released != 0 {
			t.Error("released before the acquire had ended: the release may overtake it")
		}
		time.Sleep(time.Second)
		if _, _, released := f.calls(); released != 1 || f.released[0].Token == 0 {
			t.Errorf("%d releases of what nobody waits for any more; want 1", released)
		}
	})
}

// The cause of a context may be anything, also an error of another Lock, and is no answer of the store.
func TestRule3CauseOfContextIsNoAnswer(t *testing.T) {
	for _, queue := range []bool{false, true} {
		for _, cause := range []error{locker.ErrLocked, &locker.Held{}, locker.NotAcquired(errFault)} {
			f := new(fake)
			wait := func(ctx context.Context, _ locker.Request) (locker.Grant, error) {
				<-ctx.Done()
				return locker.Grant{}, context.Cause(ctx)
			}
			b := locker.Backend(f)
			if f.acquire = wait; queue {
				b = waiting{f, locker.Features{HeedsContext: true, Queue: true}, wait}
			}
			synctest.Test(t, func(t *testing.T) {
				l := locker.New(b)
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(fmt.Errorf("another: %w", cause)) })
				if _, err := l.Lock(ctx, "k"); !errors.Is(err, cause) {
					t.Errorf("Lock returned %v; want the cause %v", err, cause)
				}
				time.Sleep(time.Hour)
				if _, _, released := f.calls(); released == 0 {
					t.Errorf("queue %v, cause %v: what may have been acquired was not released", queue, cause)
				}
				_ = l.Close()
			})
		}
	}
}

func TestRule3UndoRetriesForOneTTL(t *testing.T) {
	f := &fake{}
	f.acquire = func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, errFault }
	f.release = func(context.Context, locker.Grant) error { return errFault }
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		_, _ = l.TryLock(t.Context(), "k")
		time.Sleep(time.Minute)
		_, _, released := f.calls()
		if first, last := f.releases[0], f.releases[released-1]; released < 4 || last.Sub(first) > time.Second {
			t.Errorf("%d releases within %v; want several, for one TTL", released, last.Sub(first))
		}
	})
}

func TestRule4ClientsMayIgnoreTheirContext(t *testing.T) {
	stuck := make(chan struct{})
	f := &fake{
		acquire: func(context.Context, locker.Request) (locker.Grant, error) { <-stuck; return locker.Grant{}, errFault },
	}
	synctest.Test(t, func(t *testing.T) {
		stuck = make(chan struct{})
		l := locker.New(f, locker.TTL(time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := l.Lock(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(start) != 100*time.Millisecond {
			t.Errorf("Lock: %v after %v; want DeadlineExceeded after 100ms", err, time.Since(start))
		}
		start = time.Now()
		_, err := l.TryLock(context.Background(), "k")
		if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock without an answer: %v; want that the store does not answer", err)
		}
		if took := time.Since(start); took != validity(time.Second) {
			t.Errorf("TryLock without an answer took %v", took)
		}
		// Close does not wait for ever either.
		start = time.Now()
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		close(stuck)
	})
}

func TestRule4ReleaseMayIgnoreItsContext(t *testing.T) {
	f := &fake{release: func(context.Context, locker.Grant) error { time.Sleep(time.Minute); return nil }}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k", locker.NoRenew())
		start := time.Now()
		if err := lease.Unlock(); err == nil {
			t.Error("Unlock succeeded without an answer")
		}
		if took := time.Since(start); took > validity(time.Second) {
			t.Errorf("Unlock took %v; its lease was valid for %v", took, validity(time.Second))
		}
		if !errors.Is(lease.Err(), locker.ErrUnlocked) {
			t.Errorf("Err: %v; want ErrUnlocked", lease.Err())
		}
	})
}

func TestRule5NoRenewalAfterUnlock(t *testing.T) {
	f := &fake{}
	renewing := make(chan struct{}, 10)
	var mu sync.Mutex
	inRenew := false
	f.renew = func(_ context.Context, gs []locker.Grant) []error {
		mu.Lock()
		inRenew = true
		mu.Unlock()
		renewing <- struct{}{}
		time.Sleep(100 * time.Millisecond)
		mu.Lock()
		inRenew = false
		mu.Unlock()
		return make([]error, len(gs))
	}
	f.release = func(context.Context, locker.Grant) error {
		mu.Lock()
		defer mu.Unlock()
		if inRenew {
			t.Error("a release was sent while a renewal of the same lease was under way")
		}
		return nil
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		renewing = make(chan struct{}, 10)
		lease := mustLock(t, l, "k")
		<-renewing
		done := lease.Done()
		unlocked := make(chan error)
		go func() { unlocked <- lease.Unlock() }()
		<-done // at once, before the store was told
		if _, _, released := f.calls(); released != 0 {
			t.Error("the key was released before Done was closed")
		}
		if err := <-unlocked; err != nil {
			t.Errorf("Unlock: %v", err)
		}
		_, before, _ := f.calls()
		time.Sleep(10 * time.Second)
		if _, after, _ := f.calls(); after != before {
			t.Errorf("%d renewals after Unlock", after-before)
		}
	})
}

func TestRule6OwnersAreUniqueAndConstant(t *testing.T) {
	f := &fake{}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		a, b := mustLock(t, l, "a"), mustLock(t, l, "b")
		time.Sleep(5 * time.Second)
		for _, lease := range []*locker.Lease{a, b} {
			if err := lease.Unlock(); err != nil {
				t.Error(err)
			}
		}
		owners := map[string]locker.Owner{"a": f.acquired[0].Owner, "b": f.acquired[1].Owner}
		if owners["a"] == owners["b"] || owners["a"] == (locker.Owner{}) {
			t.Errorf("owners %v and %v", owners["a"], owners["b"])
		}
		for _, gs := range append(f.renewed, f.released) {
			for _, g := range gs {
				if g.Owner != owners[g.Key] || g.Token == 0 {
					t.Errorf("renewed or released %+v; the owner of %q is %v", g, g.Key, owners[g.Key])
				}
			}
		}
	})
}

func TestRule7PollingBacksOffWithinTheHoldersTTL(t *testing.T) {
	f := &fake{}
	refuse(f, 50, &locker.Held{Holder: "somebody"})
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		start := time.Now()
		if _, err := l.Lock(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 50*15*time.Millisecond || took > 50*40*time.Millisecond {
			t.Errorf("50 refusals took %v: it does not back off, or too far", took)
		}
	})
	f = &fake{}
	refuse(f, 20, &locker.Held{Remaining: time.Millisecond}) // about to expire, again and again
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		start := time.Now()
		if _, err := l.Lock(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 20*2*time.Millisecond {
			t.Errorf("with a holder about to expire, 20 refusals took %v", took)
		}
	})
}

func TestPollingEndsWithContextAndClose(t *testing.T) {
	f := &fake{}
	refuse(f, 1<<30, &locker.Held{Holder: "worker 7"})
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := l.Lock(ctx, "k")
		var e *locker.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Holder != "worker 7" {
			t.Errorf("Lock: %v; want DeadlineExceeded, naming worker 7", err)
		}
		failed := make(chan error)
		go func() {
			_, err := l.Lock(context.Background(), "k")
			failed <- err
		}()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; !errors.Is(err, locker.ErrClosed) {
			t.Errorf("Lock: %v; want ErrClosed", err)
		}
	})
}

func TestRule9RenewalsThatAreDueTogetherGoTogether(t *testing.T) {
	f := &fake{}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		const leases = 1000
		for i := range leases {
			mustLock(t, l, fmt.Sprint(i))
			time.Sleep(50 * time.Microsecond) // they are acquired over 50 ms
		}
		time.Sleep(10 * time.Second)
		_, renewals, _ := f.calls()
		if perSecond := renewals / 10; perSecond > 12 {
			t.Errorf("%d calls of Renew a second for %d leases", perSecond, leases)
		}
		gaps := make(map[time.Duration]bool)
		for i := 1; i < len(f.renewals); i++ {
			gaps[f.renewals[i].Sub(f.renewals[i-1])] = true
		}
		if len(gaps) < len(f.renewals)/2 {
			t.Errorf("%d renewals have only %d different distances: no jitter", len(f.renewals), len(gaps))
		}
		renewed := 0
		for _, gs := range f.renewed {
			renewed += len(gs)
		}
		if renewed/renewals < leases/4 || renewed < 25*leases {
			t.Errorf("%d renewals of %d leases altogether, of %d each: not as many, or not at as few times", renewals,
				renewed, leases)
		}
	})
}

func TestRule10StatusNeverWaitsForTheStore(t *testing.T) {
	f := &fake{
		renew:   func(ctx context.Context, gs []locker.Grant) []error { return []error{hang(ctx)} },
		release: func(ctx context.Context, _ locker.Grant) error { return hang(ctx) },
	}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, locker.TTL(time.Second))
		defer func() { _ = l.Close() }() // which cannot unlock anything
		lease, other := mustLock(t, l, "k"), mustLock(t, l, "other", locker.NoRenew())
		time.Sleep(500 * time.Millisecond) // in the middle of a renewal
		go func() { _ = other.Unlock() }()
		synctest.Wait() // and of a release
		start := time.Now()
		_, _, _, _ = lease.Err(), lease.Deadline(), lease.Done(), lease.Token()
		_, _, _ = other.Err(), other.Deadline(), other.Done()
		ctx, cancel := lease.Context(t.Context())
		_ = ctx.Err()
		cancel()
		if took := time.Since(start); took != 0 {
			t.Errorf("asking about leases took %v", took)
		}
	})
}

func TestInvalidArguments(t *testing.T) {
	f := &fake{}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		for _, key := range []string{"", strings.Repeat("x", locker.MaxKeyLen+1)} {
			if _, err := l.TryLock(t.Context(), key); !errors.Is(err, locker.ErrInvalidKey) {
				t.Errorf("key of %d bytes: %v; want ErrInvalidKey", len(key), err)
			}
		}
		for name, o := range map[string]locker.CallOption{
			"TTL(0)": locker.TTL(0), "TTL(-1s)": locker.TTL(-time.Second), "TTL too short": locker.TTL(locker.MinTTL - 1),
			"TTL too long": locker.TTL(locker.MaxTTL + 1),
			"long Holder":  locker.Holder(strings.Repeat("h", locker.MaxHolderLen+1)), "Holder not UTF-8": locker.Holder("\xff"),
			"nil": nil,
		} {
			if _, err := l.Lock(t.Context(), "k", o); !errors.Is(err, locker.ErrInvalidOption) {
				t.Errorf("%s: %v; want ErrInvalidOption", name, err)
			}
		}
		if acquired, _, _ := f.calls(); acquired != 0 {
			t.Errorf("the store was asked %d times", acquired)
		}
	})
	l := locker.New(f, locker.TTL(-1))
	if _, err := l.Lock(t.Context(), "k"); !errors.Is(err, locker.ErrInvalidOption) {
		t.Errorf("with an invalid option of New: %v; want ErrInvalidOption", err)
	}
}

func TestOptionsOfConstructorAndCall(t *testing.T) {
	f := &fake{}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k", locker.TTL(time.Minute), locker.Holder("h"))
		mustLock(t, l, "k2")
		if got, want := f.acquired[0], (locker.Request{Prefix: "p:", Key: "k", Holder: "h", TTL: time.Minute}); got.Name() != "p:k" ||
			got.Holder != want.Holder ||
			got.TTL != want.TTL ||
			lease.Key() != "k" {
			t.Errorf("request %+v; want %+v", got, want)
		}
		if got := f.acquired[1]; got.TTL != time.Second || got.Holder != "default" {
			t.Errorf("the options of a call stuck: %+v", got)
		}
	}, locker.Prefix("p:"), locker.Holder("default"))
}

func TestGrantsThatCannotBeTrusted(t *testing.T) {
	for name, test := range map[string]struct {
		acquire func(*fake, locker.Request) locker.Grant
		want    string
	}{
		"too late": {func(f *fake, r locker.Request) locker.Grant {
			g := f.grant(r)
			g.Sent = time.Now().Add(-time.Second) // what counts is when the request was sent
			return g
		}, "did not answer"},
		"no token": {func(_ *fake, r locker.Request) locker.Grant { return locker.Grant{Request: r} }, "without a fencing token"},
	} {
		f := &fake{}
		f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) { return test.acquire(f, r), nil }
		inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
			_, err := l.TryLock(t.Context(), "k")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v; want an error that says %q", name, err, test.want)
			}
			synctest.Wait()
			if _, _, released := f.calls(); released != 1 {
				t.Errorf("%s: %d releases; want 1", name, released)
			}
		})
	}
}

func TestGrantedTTLIsReported(t *testing.T) {
	f := &fake{}
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		g := f.grant(r)
		g.TTL = 4 * time.Second // a store that rounds up
		return g, nil
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if left := time.Until(mustLock(t, l, "k").Deadline()); left != validity(4*time.Second) {
			t.Errorf("Deadline is %v ahead; want %v", left, validity(4*time.Second))
		}
	})
}

func TestLostByTheStore(t *testing.T) {
	f := &fake{}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		lease := mustLock(t, l, "k")
		ctx, cancel := lease.Context(t.Context())
		defer cancel()
		f.acquired[0].ReportLost(errFault)
		if err := lease.Err(); !errors.Is(err, locker.ErrLost) || !errors.Is(err, errFault) {
			t.Errorf("Err: %v; want ErrLost with its reason", err)
		}
		if !errors.Is(context.Cause(ctx), errFault) {
			t.Errorf("cause of the context: %v", context.Cause(ctx))
		}
		f.acquired[0].ReportLost(errors.New("another"))
		if err := lease.Err(); !errors.Is(err, errFault) {
			t.Errorf("Err changed to %v", err)
		}
	})
}

func TestCloseReportsWhatItCouldNotUnlock(t *testing.T) {
	f := &fake{release: func(context.Context, locker.Grant) error { return errFault }}
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, locker.TTL(time.Second))
		lease := mustLock(t, l, "k")
		start := time.Now()
		if err := l.Close(); !errors.Is(err, errFault) {
			t.Errorf("Close: %v; want the fault", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		if !errors.Is(lease.Err(), locker.ErrUnlocked) || f.closed != 1 {
			t.Errorf("Err: %v, backend closed %d times", lease.Err(), f.closed)
		}
		if err := l.Close(); err != nil || f.closed != 1 {
			t.Errorf("second Close: %v, backend closed %d times", err, f.closed)
		}
	})
}

func TestUnlockAfterALostAnswer(t *testing.T) {
	f := &fake{}
	f.release = func(context.Context, locker.Grant) error {
		if _, _, n := f.calls(); n == 1 {
			return errFault // carried out, but the answer got lost
		}
		return locker.ErrLost
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if err := mustLock(t, l, "k").Unlock(); err != nil {
			t.Errorf("Unlock: %v; the key was ours and is free", err)
		}
	})
	f = &fake{release: func(context.Context, locker.Grant) error { return locker.ErrLost }}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if err := mustLock(t, l, "k").Unlock(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("Unlock of a key that is gone: %v; want ErrLost", err)
		}
	})
}

func TestErrorText(t *testing.T) {
	err := error(
		&locker.Error{Op: "trylock", Key: "orders/42", Backend: "redis", Holder: "worker-7", Err: &locker.Held{}},
	)
	if got, want := err.Error(), `locker: trylock "orders/42" (redis): locked [held by worker-7]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !errors.Is(err, locker.ErrLocked) {
		t.Error("a Held is not ErrLocked")
	}
}

// A client that puts the deadline of ctx on its connection may give up a moment before ctx has ended.
func TestDeadlineSeenByTheClientFirst(t *testing.T) {
	f := &fake{}
	cause := errors.New("out of time")
	f.acquire = func(ctx context.Context, _ locker.Request) (locker.Grant, error) {
		deadline, _ := ctx.Deadline()
		for time.Until(deadline) > 0 { // busy, so that no timer is waited for
		}
		return locker.Grant{}, errFault
	}
	l := locker.New(heeding{f}, locker.TTL(time.Second))
	defer l.Close()
	for range 20 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, cause)
		if _, err := l.TryLock(ctx, "k"); !errors.Is(err, cause) {
			t.Errorf("TryLock: %v; want the cause of its ctx", err)
		}
		cancel()
	}
}

// heeding is a fake whose calls return when their ctx ends.
type heeding struct{ *fake }

func (heeding) Features() locker.Features { return locker.Features{HeedsContext: true} }

func TestLostBeforeItBegan(t *testing.T) {
	f := &fake{}
	f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
		g := f.grant(r)
		r.ReportLost(errFault) // the session ended while the answer was on its way
		return g, nil
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		if _, err := l.TryLock(t.Context(), "k"); errors.Is(err, locker.ErrLost) ||
			!errors.Is(err, locker.ErrUnavailable) ||
			!errors.Is(err, errFault) {
			t.Errorf("TryLock: %v; want ErrUnavailable with its reason, and not ErrLost, as nothing was held", err)
		}
		synctest.Wait()
		if _, _, released := f.calls(); released != 1 {
			t.Errorf("%d releases; want 1", released)
		}
	})
}

// From the moment that a lease has ended, its contexts have.
func TestContextEndsWithItsLease(t *testing.T) {
	f := &fake{}
	l := locker.New(f)
	defer l.Close()
	for range 2000 {
		lease := mustLock(t, l, "k")
		ctx, cancel := lease.Context(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for lease.Err() == nil {
				}
				if ctx.Err() == nil {
					t.Error("Err of the lease is set, that of its context is not")
				}
			})
		}
		_ = lease.Unlock()
		wg.Wait()
		cancel()
	}
}

// In an outage, what is left behind by acquires that failed does not hammer the store for as long as a long TTL lasts.
func TestUndoDoesNotHurry(t *testing.T) {
	f := &fake{
		acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, errFault },
		release: func(context.Context, locker.Grant) error { return errFault },
	}
	inFakeTime(t, f, func(t *testing.T, l *locker.Client) {
		const acquires = 100
		for range acquires { // as Lead does it
			_, _ = l.TryLock(t.Context(), "k")
			time.Sleep(2 * time.Second)
		}
		_, _, before := f.calls()
		time.Sleep(time.Minute)
		if _, _, after := f.calls(); after-before > 15*acquires {
			t.Errorf("%d failed acquires cause %d calls a minute", acquires, after-before)
		}
	}, locker.TTL(time.Hour))
}

func TestContextOfACallEndsWithIt(t *testing.T) {
	f := &fake{}
	var kept []context.Context
	f.acquire = func(ctx context.Context, r locker.Request) (locker.Grant, error) {
		if len(kept)%2 == 1 {
			_ = ctx.Done() // some clients ask for it, some do not
		}
		kept = append(kept, ctx)
		return f.grant(r), nil
	}
	l := locker.New(heeding{f})
	defer l.Close()
	for range 2 {
		_ = mustLock(t, l, "k").Unlock()
	}
	for i, ctx := range kept {
		select {
		case <-ctx.Done():
			if ctx.Err() == nil || ctx.Value(i) != nil {
				t.Errorf("ctx %d has no error", i)
			}
		default:
			t.Errorf("the context of call %d is alive, and nobody will end it", i)
		}
	}
}
