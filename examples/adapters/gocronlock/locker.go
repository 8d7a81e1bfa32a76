package gocronlock

import (
	"context"
	"errors"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/lockerkit/locker"
)

// Locker is a gocron.Locker. The key of a lock is the name of the job: give each one a name of its own, with
// gocron.WithName.
type Locker struct {
	Locks   locker.Locker
	AtLeast time.Duration               // for how long to keep a lock, if the run is shorter: see Lock
	Lost    func(job string, err error) // called when a lock is lost; the run goes on; must not be nil
}

// Lock tries once: another scheduler that has the lock is at work on this tick. One whose clock is behind must not find
// the lock free again after a short run: let AtLeast be longer than clocks differ, and shorter than the time between
// ticks.
func (l Locker) Lock(ctx context.Context, job string) (gocron.Lock, error) {
	lease, err := l.Locks.TryLock(ctx, job)
	if err != nil {
		return nil, err
	}
	go func() {
		if <-lease.Done(); errors.Is(lease.Err(), locker.ErrLost) {
			l.Lost(job, lease.Err())
		}
	}()
	return held{lease, time.Now().Add(l.AtLeast)}, nil
}

type held struct {
	lease *locker.Lease
	until time.Time
}

// Unlock does not use ctx, which has often ended: the run is over. Close of Locks does not wait for the rest of
// AtLeast.
func (h held) Unlock(context.Context) error {
	if rest := time.Until(h.until); rest > 0 {
		time.AfterFunc(rest, func() { _ = h.lease.Unlock() })
		return nil
	}
	return h.lease.Unlock()
}
