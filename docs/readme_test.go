package docs_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// What the README shows.

func TestReadme(t *testing.T) {
	words := len(strings.Fields(read(t, "README.md")))
	if words > 900 {
		t.Errorf("the README has %d words, and 900 at most are read", words)
	}
	t.Logf("%d words", words)
}

func writeReport(ctx context.Context) error { return ctx.Err() }

func TestReadmeJob(t *testing.T) {
	ctx, l := t.Context(), memlock.New()
	err := locker.Do(ctx, l, "report/2026-12-01", func(ctx context.Context) error {
		return writeReport(ctx) // nobody else is at it; ctx ends if the lock is lost
	})
	if err != nil {
		t.Error(err)
	}
}

func TestReadmeBreak(t *testing.T) {
	ctx := t.Context()
	l := memlock.New()
	lease, err := l.Lock(ctx, "orders/42")
	err = errors.Join(err, l.Break(ctx, "orders/42")) // somebody takes the lock away
	<-lease.Done()                                    // what does your program do now?
	if err != nil || !errors.Is(lease.Err(), locker.ErrBroken) {
		t.Error(err, lease.Err())
	}
}
