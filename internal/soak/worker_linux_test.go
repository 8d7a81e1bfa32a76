package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/soak/history"
	"github.com/lockerkit/locker/memlock"
)

// old is a Locker whose store has no modes.
type old struct{ locker.Locker }

func (o old) TryLock(ctx context.Context, key string, opts ...locker.CallOption) (*locker.Lease, error) {
	if len(opts) > 0 {
		return nil, fmt.Errorf("no modes: %w", errors.ErrUnsupported)
	}
	return o.Locker.TryLock(ctx, key)
}

// TestModes: all modes that a store has are used, and what is recorded is what was asked for.
func TestModes(t *testing.T) {
	l := memlock.New()
	seen := make(map[history.Mode]bool)
	for _, m := range modesOf(l) {
		seen[m.Mode] = true
		lease, err := l.TryLock(t.Context(), "k", m.options...)
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		want := map[history.Mode]locker.Mode{
			history.Exclusive: locker.ModeExclusive, history.Shared: locker.ModeShared, history.Slots: locker.ModeSlots,
		}[m.Mode]
		if grant := locker.GrantOf(lease); grant.Mode != want || grant.Slots != m.slots {
			t.Errorf("%+v asks for the mode %d, with %d slots", m, grant.Mode, grant.Slots)
		}
		if err := lease.Unlock(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("only %v of a store with all modes", seen)
	}
	if modes := modesOf(old{l}); len(modes) != 1 || modes[0].Mode != history.Exclusive || modes[0].options != nil {
		t.Errorf("%+v of a store without modes", modes)
	}
	if got := slices.DeleteFunc([]string{"soak-0", "soak-1", "soak-2", "soak-13"},
		func(key string) bool { return !mixed(key) }); !slices.Equal(got, []string{"soak-1", "soak-13"}) {
		t.Errorf("mixed are %v", got)
	}
}
