package modes

import (
	"context"
	"errors"
	"sync"

	"github.com/lockerkit/locker"
)

// ErrFunds says that there is not enough in an account.
var ErrFunds = errors.New("insufficient funds")

// Payment is an amount to be moved from one account to another.
type Payment struct {
	ID       string // to make it once, however often it is tried
	From, To string
	Amount   int
}

// Transfer makes a payment that somebody has to approve first, which takes longer than a transaction of the bank may
// last. It holds both accounts meanwhile. Somebody who pays the other way locks them in the same order, so that neither
// waits for the other. After an error, it may have been made all the same: repeat it, with its ID.
func Transfer(
	ctx context.Context, l locker.Locker, bank *Bank, p Payment, approve func(context.Context, Payment) error,
) error {
	if p.From == p.To || p.Amount <= 0 {
		return errors.New("that is no payment")
	}
	accounts := []string{"account/" + p.From, "account/" + p.To}
	return locker.DoAll(ctx, l, accounts, func(ctx context.Context, leases locker.Leases) error {
		from, to := leases[0].Token(), leases[1].Token() // in the order of accounts
		// Both fences are raised before anything is read.
		if err := errors.Join(bank.Enter(p.From, from), bank.Enter(p.To, to)); err != nil {
			return err
		}
		if bank.Made(p.ID) {
			return nil
		}
		if err := approve(ctx, p); err != nil {
			return err
		}
		if ctx.Err() != nil { // one of the accounts is lost
			return context.Cause(ctx)
		}
		return bank.Pay(p, from, to)
	})
}

// Bank keeps accounts, each with a fence.
type Bank struct {
	mu       sync.Mutex
	accounts map[string]*account
	made     map[string]bool // payments by ID
}

type account struct {
	balance int
	fence   uint64
}

// NewBank returns a bank with accounts.
func NewBank(balances map[string]int) *Bank {
	b := &Bank{accounts: make(map[string]*account), made: make(map[string]bool)}
	for name, balance := range balances {
		b.accounts[name] = &account{balance: balance}
	}
	return b
}

// Enter shuts an account to those who have locked it before.
func (b *Bank) Enter(name string, token uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.accounts[name]
	if a == nil {
		return errors.New("there is no account " + name)
	}
	if token < a.fence {
		return ErrStale
	}
	a.fence = token
	return nil
}

// Made reports whether a payment has been made.
func (b *Bank) Made(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.made[id]
}

// Pay makes a payment, whole or not at all, if nobody has entered one of the accounts since with a greater token.
func (b *Bank) Pay(p Payment, fromToken, toToken uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	from, to := b.accounts[p.From], b.accounts[p.To]
	switch {
	case b.made[p.ID]: // the answer got lost
		return nil
	case fromToken < from.fence || toToken < to.fence:
		return ErrStale
	case from.balance < p.Amount:
		return ErrFunds
	}
	from.balance -= p.Amount
	to.balance += p.Amount
	b.made[p.ID] = true
	return nil
}

// Balance returns what is in an account.
func (b *Bank) Balance(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.accounts[name].balance
}
