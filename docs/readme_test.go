package docs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

func reportExists(string) bool                        { return false }
func writeReport(ctx context.Context, _ string) error { return ctx.Err() }

func TestReadmeJob(t *testing.T) {
	ctx, l, day := t.Context(), memlock.New(), "2026-12-01"
	err := locker.Do(ctx, l, "report", func(ctx context.Context) error {
		if reportExists(day) { // only who has the lock can tell
			return nil
		}
		return writeReport(ctx, day) // ctx ends if the lock is lost
	})
	if err != nil {
		t.Error(err)
	}
}

// In fake time, the lock is taken away while the work waits, however busy the machine is.
func TestReadmeBreak(t *testing.T) { synctest.Test(t, readmeBreak) }

func readmeBreak(t *testing.T) {
	ctx := t.Context()
	yourWork := func(ctx context.Context) error { <-ctx.Done(); return nil }
	l := memlock.New()
	time.AfterFunc(time.Second, func() { _ = l.Break(ctx, "orders") }) // somebody takes the lock away
	err := locker.Do(ctx, l, "orders", yourWork)
	// errors.Is(err, locker.ErrLost): has yourWork stopped, and written nothing?
	if !errors.Is(err, locker.ErrLost) {
		t.Error(err)
	}
}
