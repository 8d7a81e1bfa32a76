package locker

import "context"

// Locker hands out leases on named keys. It is safe for concurrent use. A key is any 1 to MaxKeyLen bytes.
//
// It is what applications should accept, so that a test can give them a memlock, or something around a Client. It will
// never have more methods: what else a store can do is a method of Client.
type Locker interface {
	// Lock waits until the key is free and this caller's turn has come, and returns the lease of it. ctx bounds
	// the wait and nothing else: the lease does not end with it. Locks are not reentrant: a second Lock of a key
	// that this same Locker holds waits like any other.
	//
	// If the store cannot be reached when Lock begins, it returns ErrUnavailable after a few attempts, mostly within
	// the TTL. Once the store has answered that somebody holds the key, Lock rides out that error for as long as ctx
	// lasts, in its place in line where the store has kept that. ErrDenied and ErrUnfit are returned at once.
	//
	// When ctx ends, Lock returns an error that matches both ctx.Err and the cause of ctx, and names the holder where
	// that is known. Nothing stays locked then. Also ErrClosed, ErrInvalidKey, ErrInvalidOption and
	// errors.ErrUnsupported.
	Lock(ctx context.Context, key string, opts ...CallOption) (*Lease, error)

	// TryLock makes one attempt and does not wait: it returns ErrLocked when the key has a holder, or others who
	// wait in line for it, and every other error at once, as Lock does. When ctx ends before the store has answered, it
	// returns an error that matches ctx.Err and the cause of ctx, and nothing stays locked.
	TryLock(ctx context.Context, key string, opts ...CallOption) (*Lease, error)

	// Close fails those who wait with ErrClosed, unlocks what is held, waits for clean-up that is under way, and frees
	// the resources that the Locker itself opened. It usually takes one round trip. If the store hangs, it returns
	// after what is left of the leases' validity, plus one TTL, plus what the backend takes (redislock: at most two
	// seconds). It returns what could not be unlocked. A second Close waits for the first and returns nil; any later
	// Lock returns ErrClosed.
	Close() error
}
