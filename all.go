package locker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Leases are the leases of several keys that were locked together. Each has a fencing token of its own. The lease at an
// index belongs to the key at this index, as the keys were passed to LockAll. A key that was passed twice has one
// lease, which is there twice.
type Leases []*Lease

// LockAll locks several keys: all, or none when it returns an error. It locks one after the other, in an order that is
// the same for everybody, so that callers who want the same keys never wait for each other in a circle. A key that is
// there twice is locked once. Options hold for each lease.
//
// Those that it has are held while it waits for the others. If one of them is lost meanwhile, it gives the others back
// and begins anew. ctx bounds the wait and nothing else.
//
// It returns the errors of Locker.Lock, of which the Key says what could not be locked, and ErrInvalidKey for no keys.
// What was locked before is unlocked then, also if ctx has ended.
//
// A caller who holds a key, by another Lock or LockAll, and waits for more, is outside of that order: two of those can
// wait for each other until their ctx ends.
func LockAll(ctx context.Context, l Locker, keys []string, opts ...CallOption) (Leases, error) {
	if err := checkKeys(opLock, keys); err != nil {
		return nil, err
	}
	for {
		leases, lost, err := lockAll(ctx, l.Lock, keys, opts)
		if lost == nil {
			return leases, err
		}
	}
}

// TryLockAll is LockAll that does not wait: it makes one attempt for each key, and returns the errors of
// Locker.TryLock. That is ErrLocked when any of the keys has a holder.
func TryLockAll(ctx context.Context, l Locker, keys []string, opts ...CallOption) (Leases, error) {
	if err := checkKeys(opTryLock, keys); err != nil {
		return nil, err
	}
	leases, lost, err := lockAll(ctx, l.TryLock, keys, opts)
	if lost != nil {
		err = lost.client.fail(opTryLock, lost.Key(), &notHeld{lost.expire()}) // nothing is held: never ErrLost
	}
	return leases, err
}

// DoAll locks keys, calls f, and unlocks, also if f panics: it is Do for several keys. The context passed to f comes
// from Leases.Context. DoAll returns what LockAll returned if the keys were not locked. Else it returns f's error,
// joined with ErrLost for each lease that was lost while f ran, or with what kept the store from being told of the
// unlock.
func DoAll(
	ctx context.Context, l Locker, keys []string, f func(ctx context.Context, leases Leases) error, opts ...CallOption,
) error {
	leases, err := LockAll(ctx, l, keys, opts...)
	if err != nil {
		return err
	}
	return join(hold(ctx, leases, f))
}

// lockAll locks keys by lock, one after the other. It leaves nothing locked unless it returns leases. If one of them
// was lost before it had all, it returns that.
func lockAll(
	ctx context.Context, lock func(context.Context, string, ...CallOption) (*Lease, error), keys []string,
	opts []CallOption,
) (leases Leases, lost *Lease, err error) {
	var held Leases
	defer func() {
		if leases == nil { // also if lock has panicked
			_ = held.Unlock()
		}
	}()
	byKey := make(map[string]*Lease, len(keys))
	while := ctx // all that are held
	for _, key := range slices.Compact(slices.Sorted(slices.Values(keys))) {
		lease, err := lock(while, key, opts...)
		if err != nil {
			if lost := held.lost(); lost != nil && ctx.Err() == nil {
				return nil, lost, nil
			}
			return nil, nil, err
		}
		held = append(held, lease)
		byKey[key] = lease
		var cancel context.CancelFunc
		while, cancel = lease.Context(while)
		defer cancel()
	}
	if lost := held.lost(); lost != nil {
		return nil, lost, nil
	}
	leases = make(Leases, len(keys))
	for i, key := range keys {
		leases[i] = byKey[key]
	}
	return leases, nil, nil
}

// lost returns one that has ended, nil if none has.
func (ls Leases) lost() *Lease {
	for _, l := range ls {
		if l.Err() != nil {
			return l
		}
	}
	return nil
}

// checkKeys refuses what would be refused later, when others of the keys are locked.
func checkKeys(op string, keys []string) error {
	if len(keys) == 0 {
		return &Error{Op: op, Err: fmt.Errorf("%w: there are no keys", ErrInvalidKey)}
	}
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return &Error{Op: op, Key: key, Err: err}
		}
	}
	return nil
}

// each returns the leases, each once.
func (ls Leases) each() []*Lease {
	seen := make(map[*Lease]bool, len(ls))
	return slices.DeleteFunc(slices.Clone(ls), func(l *Lease) bool {
		again := seen[l]
		seen[l] = true
		return again
	})
}

// Err returns nil while all leases are held. Else it returns the error of one that has ended: of one that is lost, if
// there is one. Like Lease.Err, it compares the clock with the deadlines.
func (ls Leases) Err() error {
	var ended error
	for _, l := range ls {
		err := l.Err()
		if errors.Is(err, ErrLost) {
			return err
		}
		ended = cmp.Or(ended, err)
	}
	return ended
}

// Unlock unlocks all of them at the same time, and returns the errors of Lease.Unlock, joined. It is nil if none was
// lost, and the store was told of each.
func (ls Leases) Unlock() error {
	all := ls.each()
	errs := make([]error, len(all))
	parallel(len(all), func(i int) { errs[i] = all[i].Unlock() })
	return errors.Join(errs...)
}

// Context returns a copy of parent that is cancelled when one of the leases ends, with its Lease.Err as the cause.
// FromContext returns the first of them. Call cancel when the work is done; it does not unlock.
func (ls Leases) Context(parent context.Context) (ctx context.Context, cancel context.CancelFunc) {
	all := ls.each()
	c := &leasesCtx{Context: parent, leases: make([]context.Context, len(all))}
	cancels := make([]context.CancelFunc, len(all))
	for i, l := range slices.Backward(all) {
		c.Context, cancels[i] = l.Context(c.Context)
		c.leases[i] = c.Context
	}
	return c, func() {
		for _, cancel := range cancels {
			cancel()
		}
	}
}

// leasesCtx is a context that ends with each of several leases: the first of its contexts, which is derived from all
// others.
type leasesCtx struct {
	context.Context
	leases []context.Context // of Lease.Context
}

// Err implements context.Context.
func (c *leasesCtx) Err() error {
	for _, lease := range slices.Backward(c.leases) {
		if lease.Err() != nil { // which compares the clock with its deadline, and cancels the others
			break
		}
	}
	return c.Context.Err()
}
