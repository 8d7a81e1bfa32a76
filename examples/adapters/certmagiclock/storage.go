package certmagiclock

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/certmagic"

	"github.com/lockerkit/locker"
)

// Storage is the embedded one, but for its locks.
type Storage struct {
	certmagic.Storage
	Locks locker.Locker

	mu   sync.Mutex
	held []*locker.Lease // oldest first; of one name, all but the last are lost, and wait for their Unlock
}

// Lock implements certmagic.Locker.
func (s *Storage) Lock(ctx context.Context, name string) error {
	return s.keep(s.Locks.Lock(ctx, name))
}

func (s *Storage) keep(lease *locker.Lease, err error) error {
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = append(s.held, lease)
	}
	return err
}

// Unlock implements certmagic.Locker. It cannot know whose call it is, if one goroutine has lost the lock and another
// one has it. It therefore takes the oldest lease: what is held is freed when both have called.
func (s *Storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	i := s.find(name)
	if i < 0 {
		s.mu.Unlock()
		return fmt.Errorf("%q is not locked", name)
	}
	lease := s.held[i]
	s.held = slices.Delete(s.held, i, i+1)
	s.mu.Unlock()
	return lease.Unlock()
}

func (s *Storage) find(name string) int {
	return slices.IndexFunc(s.held, func(lease *locker.Lease) bool { return lease.Key() == name })
}
