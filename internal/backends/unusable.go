package backends

import (
	"context"

	"github.com/lockerkit/locker"
)

// Unusable is the Backend of a Client that cannot lock anything, because of what its constructor was given: a client
// that is nil, say. Err should be an ErrInvalidOption.
type Unusable struct {
	Name string // of the store, as in errors
	Err  error
}

var _ locker.Backend = Unusable{}

// Acquire implements locker.Backend.
func (u Unusable) Acquire(context.Context, locker.Request) (locker.Grant, error) {
	return locker.Grant{}, locker.NotAcquired(u.Err)
}

// Renew implements locker.Backend. There is never anything to renew.
func (u Unusable) Renew(context.Context, []locker.Grant, func(int, locker.Renewal)) {}

// Release implements locker.Backend. There is never anything to release.
func (u Unusable) Release(context.Context, locker.Grant) error { return u.Err }

// Close implements locker.Backend.
func (u Unusable) Close() error { return nil }

// Features implements the optional method of locker.Backend.
func (u Unusable) Features() locker.Features { return locker.Features{HeedsContext: true} }

// String names the store.
func (u Unusable) String() string { return u.Name }
