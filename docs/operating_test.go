package docs_test

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// kind tells apart what a fleet should count apart.
func kind(err error) string {
	var e *locker.Error
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, locker.ErrLost):
		return "lost" // it had the lock: alert, unless the store was restarted
	case errors.Is(err, locker.ErrLocked):
		return "locked" // somebody has it: normal
	case errors.Is(err, locker.ErrClosed), errors.Is(err, locker.ErrUnlocked):
		return "closed" // a shutdown, or a mistake in the program
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "gave up" // its own context ended the wait
	case errors.Is(err, locker.ErrInvalidKey), errors.Is(err, locker.ErrInvalidOption), errors.Is(err, errors.ErrUnsupported):
		return "misuse" // trying again does not help
	case !errors.As(err, &e):
		return "work" // what the work under Do or Lead has returned, or the cause of a context
	default:
		return "store" // the store failed, or did not answer
	}
}

func TestKinds(t *testing.T) {
	memory := memlock.New()
	try := func(l locker.Locker, key string) error {
		_, err := l.TryLock(t.Context(), key)
		return err
	}
	want := func(want string, err error) {
		t.Helper()
		if got := kind(err); got != want {
			t.Errorf("%v is of the kind %q; want %q", err, got, want)
		}
	}
	lease, err := memory.Lock(t.Context(), "k")
	want("ok", err)
	want("locked", try(memory, "k"))
	wait, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = memory.Lock(wait, "k")
	want("gave up", err)
	memory.Break("k")
	want("lost", lease.Unlock())
	want("misuse", try(memory, ""))
	severed := memory.Peer()
	severed.Cut()
	want("store", try(severed, "k"))
	closed := memory.Peer()
	want("ok", closed.Close())
	want("closed", try(closed, "k"))
	want("work", locker.Do(t.Context(), memory, "k", func(context.Context) error { return errors.New("no such order") }))
}

// observed is a Locker that reports what Lead rides out.
type observed struct {
	locker.Locker
	report func(kind string, err error)
}

func (o observed) Lock(ctx context.Context, key string, opts ...locker.Option) (*locker.Lease, error) {
	lease, err := o.Locker.Lock(ctx, key, opts...)
	if err != nil && ctx.Err() == nil {
		o.report(kind(err), err)
	}
	return lease, err
}

func observe(ctx context.Context, l locker.Locker, report func(kind string, err error), work func(context.Context, *locker.Lease) error) error {
	return locker.Lead(ctx, observed{l, report}, "queue", work)
}

// TestObserved has Lead ride out an outage, which nobody would hear of otherwise.
func TestObserved(t *testing.T) {
	memory := memlock.New()
	l := memory.Peer()
	heal := l.Cut()
	reported := make(map[string]int)
	allDone := errors.New("all done")
	err := observe(t.Context(), l, func(kind string, _ error) {
		if reported[kind]++; reported[kind] == 2 {
			heal()
		}
	}, func(context.Context, *locker.Lease) error { return allDone })
	if err != allDone { //nolint:errorlint // just that
		t.Errorf("Lead: %v", err)
	}
	if len(reported) != 1 || reported["store"] != 2 {
		t.Errorf("it reported %v; want 2 of the kind store", reported)
	}
}

// lead is how a program ends.
func lead(open func() (locker.Locker, error), work func(context.Context, *locker.Lease) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := open()
	if err != nil {
		return err
	}
	defer l.Close() // when no work is under way any more
	return locker.Lead(ctx, l, "queue", work)
}

// TestShutdown has the program end while another one waits for its lock: which has it then, and not when its TTL has passed.
func TestShutdown(t *testing.T) {
	memory := memlock.New(locker.TTL(time.Hour))
	working, done := make(chan struct{}), make(chan error, 1)
	stopped := false
	go func() {
		done <- lead(func() (locker.Locker, error) { return memory, nil }, func(ctx context.Context, _ *locker.Lease) error {
			close(working)
			<-ctx.Done()
			stopped = true
			return ctx.Err()
		})
	}()
	<-working
	next := memory.Peer()
	defer next.Close()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	wait, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := next.Lock(wait, "queue"); err != nil {
		t.Error(err)
	}
	if !stopped {
		t.Error("the work was still under way")
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
