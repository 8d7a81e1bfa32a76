package locktest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/lockerkit/locker"
)

// Failures checks the errors of a store.
type Failures struct {
	Backend string  // the name of the store
	Errors  []error // of the store, each of which means something of its own
	Secret  string  // is in no error
}

// Check checks that err, from the op of a key, is want, and nothing else that means something, and what it says. Where
// the op is "open", there is no key.
func (f Failures) Check(t testing.TB, err error, op, key string, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", op, err, want)
	}
	if err == nil {
		return
	}
	others := append([]error{
		locker.ErrLocked, locker.ErrLost, locker.ErrClosed, context.DeadlineExceeded, context.Canceled,
	}, f.Errors...)
	for _, other := range others {
		if errors.Is(err, other) && !errors.Is(want, other) {
			t.Errorf("%s: %v, which is a %v", op, err, other)
		}
	}
	for _, class := range classes {
		if errors.Is(want, class) && errors.Is(err, class) {
			CheckClass(t, op, err, class)
		}
	}
	var typed *locker.Error
	if op != "open" && (!errors.As(err, &typed) || typed.Op != op || typed.Key != key || typed.Backend != f.Backend) {
		t.Errorf("%s: %#v; want an *Error with the op, the key %q, and the backend %s", op, err, key, f.Backend)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %q in it", op, err, text)
		}
	}
	if f.Secret != "" && strings.Contains(err.Error(), f.Secret) {
		t.Errorf("%s: the password is in %v", op, err)
	}
}

// classes are what an error of a store can be.
var classes = []error{locker.ErrUnavailable, locker.ErrDenied, locker.ErrUnfit}

// CheckClass checks that err is of one class of package locker, and of no other.
func CheckClass(t testing.TB, what string, err, want error) {
	t.Helper()
	if wrong := WrongClass(what, err, want); wrong != nil {
		t.Error(wrong)
	}
}

// WrongClass returns what CheckClass finds wrong, and nil if that is nothing.
func WrongClass(what string, err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: %v; want %w", what, err, want) //nolint:errorlint // err may be nil
	}
	for _, other := range classes {
		if other != want && errors.Is(err, other) { //nolint:errorlint // want is one of these
			return fmt.Errorf("%s: %w, which is also %w", what, err, other)
		}
	}
	return nil
}

// CheckAcquires checks that Lock and TryLock fail with want. It returns the errors.
func (f Failures) CheckAcquires(t testing.TB, l locker.Locker, key string, want error, texts ...string) []error {
	t.Helper()
	errs := make([]error, 2)
	var both sync.WaitGroup
	for i, acquire := range []struct {
		op   string
		call func(context.Context, string, ...locker.CallOption) (*locker.Lease, error)
	}{{"trylock", l.TryLock}, {"lock", l.Lock}} {
		both.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), Patience)
			defer cancel()
			lease, err := acquire.call(ctx, key)
			if err == nil {
				_ = lease.Unlock()
			}
			f.Check(t, err, acquire.op, key, want, texts...)
			errs[i] = err
		})
	}
	both.Wait()
	return errs
}
