package modes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

func approved(context.Context, Payment) error { return nil }

func wantBalances(t *testing.T, bank *Bank, a, b int) {
	t.Helper()
	if gotA, gotB := bank.Balance("a"), bank.Balance("b"); gotA != a || gotB != b {
		t.Errorf("balances are %d and %d; want %d and %d", gotA, gotB, a, b)
	}
}

// Many pay in both directions at the same time: nobody waits for ever, and each payment is made once.
func TestTransfer(t *testing.T) {
	t.Parallel()
	memory, bank := memlock.New(), NewBank(map[string]int{"a": 1000, "b": 1000})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			p := Payment{ID: fmt.Sprint(i), From: "a", To: "b", Amount: 10}
			if i%4 == 0 {
				p.From, p.To = p.To, p.From
			}
			l := memory.Peer()
			for range 2 { // it is repeated, as if there had been an error
				if err := Transfer(t.Context(), l, bank, p, approved); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantBalances(t, bank, 900, 1100)
}

// One of the accounts is lost while the payment is approved: nothing is moved. It can be repeated.
func TestTransferLost(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"account/a", "account/b"} {
		memory, bank := memlock.New(), NewBank(map[string]int{"a": 100, "b": 100})
		p := Payment{"1", "b", "a", 10}
		err := Transfer(t.Context(), memory, bank, p, func(ctx context.Context, _ Payment) error {
			_ = memory.Break(t.Context(), lost)
			if !errors.Is(context.Cause(ctx), locker.ErrLost) {
				t.Errorf("the context of approve: %v", context.Cause(ctx))
			}
			return nil
		})
		if !errors.Is(err, locker.ErrLost) {
			t.Errorf("%s is lost: %v", lost, err)
		}
		wantBalances(t, bank, 100, 100)
		if err := Transfer(t.Context(), memory, bank, p, approved); err != nil {
			t.Error(err)
		}
		wantBalances(t, bank, 110, 90)
	}
}

func TestTransferRefused(t *testing.T) {
	t.Parallel()
	l, bank := memlock.New(), NewBank(map[string]int{"a": 100, "b": 100})
	errNo := errors.New("no")
	no := func(context.Context, Payment) error { return errNo }
	if err := Transfer(t.Context(), l, bank, Payment{"1", "a", "b", 10}, no); !errors.Is(err, errNo) {
		t.Errorf("not approved: %v", err)
	}
	if err := Transfer(t.Context(), l, bank, Payment{"2", "a", "b", 101}, approved); !errors.Is(err, ErrFunds) {
		t.Errorf("too much: %v", err)
	}
	for _, p := range []Payment{{"3", "a", "a", 10}, {"4", "a", "b", -10}, {"5", "a", "c", 10}, {"6", "c", "a", 10}} {
		if err := Transfer(t.Context(), l, bank, p, approved); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
	wantBalances(t, bank, 100, 100)
}

// Who comes late to one of the two accounts is refused at both.
func TestBank(t *testing.T) {
	t.Parallel()
	bank := NewBank(map[string]int{"a": 100, "b": 100})
	if err := errors.Join(bank.Enter("a", 5), bank.Enter("b", 5)); err != nil {
		t.Fatal(err)
	}
	p := Payment{"1", "a", "b", 10}
	for _, tokens := range [][2]uint64{{4, 5}, {5, 4}} {
		if err := bank.Pay(p, tokens[0], tokens[1]); !errors.Is(err, ErrStale) {
			t.Errorf("with tokens %v: %v", tokens, err)
		}
	}
	if err := bank.Enter("a", 4); !errors.Is(err, ErrStale) {
		t.Errorf("enters late: %v", err)
	}
	wantBalances(t, bank, 100, 100)
	for range 2 { // the answer gets lost
		if err := bank.Pay(p, 5, 5); err != nil {
			t.Error(err)
		}
	}
	wantBalances(t, bank, 90, 110)
}
