package locker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// campaign runs Lead with a fake for which f.acquire decides, until it returns or an hour has passed.
func campaign(t *testing.T, f *fake, opts ...locker.Option) (took time.Duration, err error) {
	synctest.Test(t, func(t *testing.T) {
		l := locker.New(f, opts...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		err = locker.Lead(ctx, l, "queue", func(context.Context, *locker.Lease) error { return nil })
		took = time.Since(start)
		_ = l.Close()
	})
	return took, err
}

// What is a mistake in the configuration is returned at once, as long as nothing has ever worked; and ridden out later.
func TestLeadWithAStoreThatRefuses(t *testing.T) {
	for _, class := range []error{locker.ErrDenied, locker.ErrUnfit} {
		refusal := errors.Join(errFault, class)
		f := &fake{acquire: func(context.Context, locker.Request) (locker.Grant, error) { return locker.Grant{}, refusal }}
		if took, err := campaign(t, f); !errors.Is(err, class) || !errors.Is(err, errFault) || took > 0 {
			t.Errorf("Lead with a store that says %v from the start: %v after %v; want that at once", class, err, took)
		}

		// An outage first, then the refusal: still nothing has worked.
		f = new(fake)
		f.acquire = func(context.Context, locker.Request) (locker.Grant, error) {
			if n, _, _ := f.calls(); n <= 3 {
				return locker.Grant{}, errors.New("out of reach")
			}
			return locker.Grant{}, refusal
		}
		if took, err := campaign(t, f); !errors.Is(err, class) || took > time.Minute {
			t.Errorf("after an outage: %v after %v; want %v", err, took, class)
		}

		for name, first := range map[string]func(*fake, locker.Request) (locker.Grant, error){
			"it has led":    func(f *fake, r locker.Request) (locker.Grant, error) { return f.grant(r), nil },
			"it has waited": func(*fake, locker.Request) (locker.Grant, error) { return locker.Grant{}, &locker.Held{} },
		} {
			f = new(fake)
			f.acquire = func(_ context.Context, r locker.Request) (locker.Grant, error) {
				if n, _, _ := f.calls(); n == 1 {
					return first(f, r)
				}
				return locker.Grant{}, refusal
			}
			took, err := campaign(t, f)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, class) || took != time.Hour {
				t.Errorf("%s, then: Lead returned %v after %v; want the end of its ctx, with %v", name, err, took, class)
			}
		}
	}
}

// What Lead rides out is told to the Observers, also of a Client within a memlock.Locker.
func TestLeadTellsWhatItRidesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var retries []locker.RetryInfo
		l := memlock.New(locker.Observe(&locker.Observer{Retry: func(i locker.RetryInfo) { retries = append(retries, i) }}))
		defer l.Close()
		heal := l.Cut()
		time.AfterFunc(10*time.Second, heal)
		ctx, stop := context.WithCancel(t.Context())
		err := locker.Lead(ctx, l, "queue", func(ctx context.Context, lease *locker.Lease) error {
			if locker.FromContext(ctx) != lease {
				t.Error("FromContext is not the lease")
			}
			stop()
			return ctx.Err()
		})
		if err != context.Canceled { //nolint:errorlint // nothing else went wrong
			t.Errorf("Lead: %v; want just the end of its ctx", err)
		}
		if len(retries) < 5 || len(retries) > 50 {
			t.Errorf("told of %d failures in 10 s", len(retries))
		}
		for i, r := range retries {
			if r.Op != "lead" || r.Key != "queue" || r.Store != "memory" || r.Attempt != i+1 ||
				!errors.Is(r.Err, memlock.ErrCut) ||
				r.Pause <= 0 {
				t.Errorf("failure %d: %+v", i+1, r)
			}
		}
	})
}

// When ctx ends, the failure that Lead was riding out is part of the result; one that was over is not.
func TestLeadJoinsItsLastFailure(t *testing.T) {
	cause := errors.New("shutting down")
	for name, test := range map[string]struct {
		healAfter time.Duration
		want      bool
	}{"during an outage": {time.Hour, true}, "after one": {time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			l := memlock.New()
			defer l.Close()
			other := l.Peer()
			heal := l.Cut()
			defer heal()
			time.AfterFunc(test.healAfter, heal)
			holder, err := other.Lock(t.Context(), "queue") // so that Lead waits when the outage is over
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Unlock()
			ctx, stop := context.WithCancelCause(t.Context())
			time.AfterFunc(10*time.Minute, func() { stop(cause) })
			err = locker.Lead(ctx, l, "queue", func(context.Context, *locker.Lease) error { t.Error("leads"); return nil })
			if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
				t.Errorf("%s: Lead: %v; want the end of its ctx and its cause", name, err)
			}
			if errors.Is(err, memlock.ErrCut) != test.want {
				t.Errorf("%s: Lead: %v; with ErrCut: %v", name, err, test.want)
			}
		})
	}
}

// With Slots, as many lead as there are, each with a number of its own; when one stops, another leads with its number.
func TestSeveralLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, fleet = 3, 5
		memory := memlock.New()
		defer memory.Close()
		leads := make(chan *locker.Lease, fleet)
		var all sync.WaitGroup
		stop := make([]context.CancelFunc, fleet)
		leader := make(map[*locker.Lease]int)
		var mu sync.Mutex
		for i := range fleet {
			ctx, cancel := context.WithCancel(t.Context())
			stop[i] = cancel
			all.Go(func() {
				peer := memory.Peer()
				defer peer.Close()
				err := locker.Lead(ctx, peer, "k", func(ctx context.Context, lease *locker.Lease) error {
					mu.Lock()
					leader[lease] = i
					mu.Unlock()
					leads <- lease
					<-ctx.Done()
					return nil
				}, locker.Slots(slots))
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Lead: %v; want context.Canceled", err)
				}
			})
		}
		synctest.Wait()
		if len(leads) != slots {
			t.Fatalf("%d lead; want %d", len(leads), slots)
		}
		numbers := make(map[int]bool)
		var first *locker.Lease
		for range slots {
			first = <-leads
			numbers[first.Slot()] = true
		}
		if len(numbers) != slots {
			t.Errorf("the leaders have the slots %v; want %d", numbers, slots)
		}
		stop[leader[first]]()
		synctest.Wait()
		if len(leads) != 1 {
			t.Fatalf("one has stopped, and %d others lead instead", len(leads))
		}
		if next := <-leads; next.Slot() != first.Slot() || next.Token() <= first.Token() {
			t.Errorf("slot %d with token %d; want slot %d with a token above %d", next.Slot(), next.Token(),
				first.Slot(), first.Token())
		}
		for _, cancel := range stop {
			cancel()
		}
		all.Wait()
	})
}
