package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// kind tells apart what a fleet should count apart.
func kind(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, locker.ErrLost):
		return "lost" // it had the lock: alert, unless the store was restarted
	case errors.Is(err, locker.ErrLocked):
		return "locked" // somebody has it: normal
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "gave up" // its own context ended the wait
	case errors.Is(err, locker.ErrUnavailable):
		return "unavailable" // the store failed, or did not answer: passes by itself
	case errors.Is(err, locker.ErrDenied), errors.Is(err, locker.ErrUnfit):
		return "misconfigured" // credentials, or the wrong server: somebody has to mend it
	default:
		return "other" // a closed Client, an invalid key or option, or what the work under Do or Lead has returned
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
	_ = memory.Break(t.Context(), "k")
	want("lost", lease.Unlock())
	want("other", try(memory, ""))
	severed := memory.Peer()
	severed.Cut()
	want("unavailable", try(severed, "k"))
	closed := memory.Peer()
	want("ok", closed.Close())
	want("other", try(closed, "k"))
	want("other", locker.Do(t.Context(), memory, "k", func(context.Context) error { return errors.New("no such order") }))
}

func options(logger *slog.Logger) []locker.Option {
	host, _ := os.Hostname()
	return []locker.Option{locker.Holder(host), locker.Log(logger)}
}

func counted(count func(event, kind string)) locker.Option {
	return locker.Observe(&locker.Observer{
		LockDone:  func(_ context.Context, i locker.LockDoneInfo) { count(i.Op, kind(i.Err)) },
		LeaseDone: func(i locker.LeaseDoneInfo) { count("held", kind(i.Err)) },
		Retry:     func(i locker.RetryInfo) { count("retry", kind(i.Err)) },
	})
}

// TestObserved has Lead ride out an outage, of which the counters and the log tell.
func TestObserved(t *testing.T) {
	memory := memlock.New()
	counts := make(map[string]int)
	var log bytes.Buffer
	var heal func()
	opts := append(options(slog.New(slog.NewTextHandler(&log, nil))), counted(func(event, kind string) {
		if counts[event+" "+kind]++; counts["retry unavailable"] == 2 {
			heal()
		}
	}))
	l := memory.Peer(opts...)
	heal = l.Cut()
	allDone := errors.New("all done")
	err := locker.Lead(t.Context(), l, "queue", func(context.Context, *locker.Lease) error { return allDone })
	if err != allDone { //nolint:errorlint // just that
		t.Errorf("Lead: %v", err)
	}
	want := map[string]int{"lock unavailable": 2, "retry unavailable": 2, "lock ok": 1, "held ok": 1}
	if !maps.Equal(counts, want) {
		t.Errorf("counted %v; want %v", counts, want)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "severed by Cut") {
		t.Errorf("the log has %d warnings; want one:\n%s", n, log.String())
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

// TestShutdown has the program end while another one waits for its lock: which has it then, and not when its TTL has
// passed.
func TestShutdown(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot interrupt itself there")
	}
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

func show(ctx context.Context, l *locker.Client, key string) error {
	info, err := l.Inspect(ctx, key)
	if err != nil {
		return err
	}
	for _, h := range info.Holders {
		fmt.Println(h.Name, h.Mode, h.Token, h.Since, h.Left)
	}
	fmt.Println(info.Waiting, "wait")
	return nil
}

func TestShow(t *testing.T) {
	memory := memlock.New(locker.Holder("a"))
	if _, err := memory.Lock(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := show(t.Context(), memory.Client, "k"); err != nil {
		t.Error(err)
	}
}
