package locker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// told is the mode and the kind of what an Observer is told.
type told struct {
	mu   sync.Mutex
	what []string
}

func (m *told) add(event string, mode locker.Mode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := event + " " + mode.String(); !slices.Contains(m.what, s) {
		m.what = append(m.what, s)
	}
}

func (m *told) observer() *locker.Observer {
	return &locker.Observer{
		LockStart: func(ctx context.Context, i locker.LockStartInfo) context.Context {
			m.add("start",
				i.Mode)
			return ctx
		},
		LockDone:  func(_ context.Context, i locker.LockDoneInfo) { m.add("done", i.Mode) },
		LeaseDone: func(i locker.LeaseDoneInfo) { m.add("end", i.Mode) },
		Renewed:   func(i locker.RenewedInfo) { m.add("renewed", i.Mode) },
		Retry:     func(i locker.RetryInfo) { m.add("retry of "+i.Op, i.Mode) },
	}
}

// Observers are told the mode of everything, whether it comes from the options of the call or from those of the Client.
func TestObserverIsToldTheMode(t *testing.T) {
	for want, opts := range map[string][]locker.CallOption{
		"exclusive": nil, "shared": {locker.Shared()}, "slots": {locker.Slots(1)},
	} {
		for _, ofClient := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var seen told
				options := []locker.Option{locker.TTL(time.Second), locker.Observe(seen.observer())}
				call := opts
				if ofClient {
					call = nil
					for _, o := range opts {
						options = append(options, o)
					}
				}
				memory := memlock.New()
				l := memory.Peer(options...)
				lease, err := l.Lock(t.Context(), "k", call...)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				_ = lease.Unlock()

				rival, err := memory.Lock(t.Context(), "k")
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Second, func() {
					heal := l.Cut() // while Lock waits
					time.Sleep(10 * time.Second)
					_ = rival.Unlock()
					heal()
				})
				if lease, err = l.Lock(t.Context(), "k", call...); err != nil {
					t.Fatal(err)
				}
				_ = lease.Unlock()

				time.AfterFunc(time.Second, l.Cut())
				over := errors.New("over")
				err = locker.Lead(t.Context(), l, "k", func(context.Context, *locker.Lease) error { return over },
					call...)
				if !errors.Is(err, over) {
					t.Fatal(err)
				}
				_ = l.Close()
				synctest.Wait()
				slices.Sort(seen.what)
				events := []string{"done", "end", "renewed", "retry of lead", "retry of lock", "start"}
				for i := range events {
					events[i] += " " + want
				}
				if !slices.Equal(seen.what, events) {
					t.Errorf("of the Client: %v; told %q; want %q", ofClient, seen.what, events)
				}
			})
		}
	}
	if got := locker.Mode(7).String(); got != "Mode(7)" {
		t.Error(got)
	}
}

// Expired tells a lease whose time has passed from one that was taken away, and from one that was unlocked.
func TestObserverIsToldOfExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ends []locker.LeaseDoneInfo
		l := memlock.New(locker.TTL(time.Second), locker.Observe(&locker.Observer{
			LeaseDone: func(i locker.LeaseDoneInfo) { ends = append(ends, i) },
		}))
		for _, test := range []struct {
			why     string
			opts    []locker.CallOption
			end     func(*locker.Lease)
			expired bool
			lost    bool
		}{
			{"unlocked", nil, func(l *locker.Lease) { _ = l.Unlock() }, false, false},
			{"taken away", nil, func(*locker.Lease) { _ = l.Break(t.Context(), "k") }, false, true},
			{"no renewal", []locker.CallOption{locker.NoRenew()}, func(l *locker.Lease) { <-l.Done() }, true, true},
			{"outage", nil, func(lease *locker.Lease) {
				heal := l.Cut()
				<-lease.Done()
				heal()
			}, true, true},
		} {
			lease, err := l.Lock(t.Context(), "k", test.opts...)
			if err != nil {
				t.Fatal(err)
			}
			ends = nil
			test.end(lease)
			time.Sleep(time.Second) // longer than until the next renewal
			synctest.Wait()
			if len(ends) != 1 || ends[0].Expired != test.expired || errors.Is(ends[0].Err,
				locker.ErrLost) != test.lost {
				t.Errorf("%s: told %+v; want expired %v, lost %v", test.why, ends, test.expired, test.lost)
			}
		}
		_ = l.Close()
	})
}
