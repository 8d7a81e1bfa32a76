package docs_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// What docs/modes.md shows.

func modes(ctx context.Context, l locker.Locker) error {
	writer, err := l.Lock(ctx, "prices") // alone
	if err != nil {
		return err
	}
	defer writer.Unlock()

	reader, err := l.Lock(ctx, "rates", locker.Shared()) // beside other readers
	if err != nil {
		return err
	}
	defer reader.Unlock()

	crawler, err := l.Lock(ctx, "crawler", locker.Slots(3)) // one of three; crawler.Slot() is 0, 1 or 2
	if err != nil {
		return err
	}
	defer crawler.Unlock()

	accounts, err := locker.LockAll(ctx, l, []string{"account/7", "account/3"}) // both
	if err != nil {
		return err
	}
	defer accounts.Unlock()
	return errors.Join(writer.Err(), reader.Err(), crawler.Err(), accounts.Err())
}

// TestModes: who gets a lock beside whom, as the page says.
func TestModes(t *testing.T) {
	t.Parallel()
	l := memlock.New()
	if err := modes(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	options := map[string][]locker.CallOption{
		"alone": nil, "reader": {locker.Shared()}, "slot": {locker.Slots(3)}, "the only slot": {locker.Slots(1)},
	}
	for held, has := range options {
		for wanted, wants := range options {
			lease, err := l.Lock(t.Context(), "k", has...)
			if err != nil {
				t.Fatal(err)
			}
			other, err := l.TryLock(t.Context(), "k", wants...)
			beside := held == "reader" && wanted == held ||
				wanted == "slot" && (held == wanted || held == "the only slot")
			if beside != (err == nil) || err != nil && !errors.Is(err, locker.ErrLocked) {
				t.Errorf("%s beside %s: %v", wanted, held, err)
			}
			if err == nil {
				err = other.Unlock()
			}
			if err := errors.Join(lease.Unlock(), err); err != nil && !errors.Is(err, locker.ErrLocked) {
				t.Fatal(err)
			}
		}
	}
}
