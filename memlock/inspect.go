package memlock

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// Inspect implements locker.Inspector.
func (b backend) Inspect(_ context.Context, name string) (locker.LockInfo, error) {
	if b.link.severed.Load() {
		return locker.LockInfo{}, ErrCut
	}
	s := b.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info(name, time.Now()), nil
}

// List implements locker.Inspector.
func (b backend) List(ctx context.Context, prefix string) iter.Seq2[locker.LockInfo, error] {
	return func(yield func(locker.LockInfo, error) bool) {
		for i := range b.shards {
			s := &b.shards[i]
			for _, name := range s.names(prefix) {
				switch info, err := b.Inspect(ctx, name); {
				case err != nil:
					yield(locker.LockInfo{}, err)
					return
				case ctx.Err() != nil:
					yield(locker.LockInfo{}, ctx.Err())
					return
				case len(info.Holders) > 0 && !yield(info, nil):
					return
				}
			}
		}
	}
}

// names returns those that begin with a prefix, of locks that somebody may hold.
func (s *shard) names(prefix string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.entries {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// info returns who has the lock of a name, and who waits for it.
func (s *shard) info(name string, now time.Time) locker.LockInfo {
	info := locker.LockInfo{Key: name}
	e := s.lookup(name, now)
	if e == nil {
		return info
	}
	for _, h := range e.holders {
		info.Holders = append(info.Holders, locker.HolderInfo{
			Name: h.grant.Holder, Mode: h.grant.Mode, Slot: h.grant.Slot, Token: h.grant.Token, Since: h.grant.Sent,
			Left: h.expires.Sub(now),
		})
	}
	for _, w := range e.line {
		info.Waiters = append(info.Waiters, locker.WaiterInfo{
			Name: w.request.Holder, Mode: w.request.Mode, Since: w.since,
		})
	}
	info.Waiting = len(info.Waiters)
	return info
}
