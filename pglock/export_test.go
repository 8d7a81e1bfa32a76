package pglock

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
)

// NewBackend returns the Backend of the Locker that New returns.
func NewBackend(pool *pgxpool.Pool) locker.Backend { return Config{}.forPool(pool) }

// NewBackend is like the function NewBackend.
func (c Config) NewBackend(pool *pgxpool.Pool) locker.Backend { return c.forPool(pool) }

// The marks on sessions of Lockers.
const (
	LockerMark = lockerMark
	HearsMark  = hearsMark
)

// InLine returns how many calls of Wait are in line for a name at a Backend.
func InLine(b locker.Backend, name string) int {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.slots[Key(name)]; s != nil {
		return len(s.line)
	}
	return 0
}

// Unsettled returns how many calls have asked whether a name is locked, or wait until that is known, at a Backend.
func Unsettled(b locker.Backend, name string) int {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.slots[Key(name)]; s != nil {
		return len(s.asked) + len(s.unsettled)
	}
	return 0
}

// WaitSessions returns how many sessions to wait on a Backend has, with those in the making.
func WaitSessions(b locker.Backend) int {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waits.count
}

// Parked sets for how long a Backend keeps sessions that somebody has waited on.
func Parked(b locker.Backend, d time.Duration) {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lifetimes.parked = d
}

// Holds reports whether a Backend has the lock of a name, and knows it.
func Holds(b locker.Backend, name string) bool {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.slots[Key(name)]
	if s == nil || len(s.held) == 0 {
		return false
	}
	_, ok := s.held[0].session.locks[s.held[0]]
	return ok
}

// Covered reports whether the sessions of those who hold a name at a Backend last for as long as their TTLs, at least.
func Covered(b locker.Backend, name string) bool {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.slots[Key(name)].held {
		if h.session.idleTimeout() < h.request.TTL {
			return false
		}
	}
	return true
}

// Left returns what a Backend still remembers of locks, none of which are held or asked for: "" if nothing.
func Left(b locker.Backend) (left string) {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.slots {
		left += fmt.Sprintf("a slot: held %v, leaving %v, busy %d, %d delayed, %d joined, %d unsettled, %d in line, "+
			"place %v, polling %v; ",
			len(s.held) > 0, len(s.leaving) > 0, s.busy+len(s.asked), len(s.delayed), len(s.joined), len(s.unsettled),
			len(s.line), s.place != nil, s.starved)
	}
	w := &p.waits
	if len(w.starved) > 0 || w.spare || w.count != len(w.all) || len(w.idle) != len(w.all) || w.count > w.most {
		left += fmt.Sprintf("sessions to wait on: %d of at most %d, %d made, %d idle, spare %v, %d starved; ",
			w.count, w.most, len(w.all), len(w.idle), w.spare, len(w.starved))
	}
	if len(p.hints.free) > 0 || len(p.hints.marked) > 0 {
		left += fmt.Sprintf("hints: %d to be sent, %d keys marked; ", len(p.hints.free), len(p.hints.marked))
	}
	if n := len(p.records.add) + len(p.records.remove); n > 0 || p.watched != 0 {
		left += fmt.Sprintf("%d records to be written or removed, %d locks watched; ", n, p.watched)
	}
	for s := range p.sessions {
		s.mu.Lock()
		if len(s.locks) > 0 || len(s.waiting) > 0 || s.batches > 0 || s.place != nil {
			left += fmt.Sprintf("a session: %d locks, %d waiting, %d batches, place %v; ", len(s.locks), len(s.waiting),
				s.batches, s.place != nil)
		}
		s.mu.Unlock()
	}
	return left
}

// SetLifetimes changes how long sessions to wait on are kept, and how long they stand in line.
func SetLifetimes(b locker.Backend, parked, standing time.Duration) {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lifetimes.parked, p.lifetimes.standing = parked, standing
}

// EndedByServer reports whether err, the reason for which a session is over, is taken for that the server has ended it.
func EndedByServer(err error) bool { return endedByServer(&sessionOver{explain(err)}) }

// Marked returns how many keys a Backend has marked as polled for.
func Marked(b locker.Backend) int {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hints.marked)
}

// Messages returns how many messages a Backend has sent on the sessions that it has.
func Messages(b locker.Backend) (n int64) {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.sessions {
		s.mu.Lock()
		n += s.seq
		s.mu.Unlock()
	}
	return n
}
