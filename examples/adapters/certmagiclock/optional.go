package certmagiclock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockerkit/locker"
)

// TryLock implements certmagic.TryLocker.
func (s *Storage) TryLock(ctx context.Context, name string) (bool, error) {
	err := s.keep(s.Locks.TryLock(ctx, name))
	if errors.Is(err, locker.ErrLocked) {
		return false, nil
	}
	return err == nil, err
}

// RenewLockLease implements certmagic.LockLeaseRenewer. Leases renew themselves; this says whether one is lost.
func (s *Storage) RenewLockLease(_ context.Context, name string, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(name); i >= 0 {
		return s.held[i].Err()
	}
	return fmt.Errorf("%q is not locked", name)
}
