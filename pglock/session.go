package pglock

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
)

// session is a connection that has locks, waits for one, or does without, see hints. What it has, and when it is
// needed, is guarded by the mutex of the backend; what goes over the connection, by that of the wire.
type session struct {
	*wire
	b      *backend
	told   chan struct{} // closed when it is over, and all holders of its locks know
	locks  map[*holding]struct{}
	dead   bool
	used   time.Time // when it was last needed
	place  *place    // that it stands in
	hears  bool      // it listens for revocations
	ticker *time.Timer
}

// adopt makes a session of a connection, or returns nil if it is too late for that.
func (b *backend) adopt(conn server, timeout time.Duration) *session {
	now := time.Now()
	s := &session{
		wire: newWire(conn, timeout, now), b: b,
		locks: make(map[*holding]struct{}), told: make(chan struct{}), used: now,
	}
	s.events = s
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.begin(s.watch) {
		return nil
	}
	b.sessions[s] = struct{}{}
	s.ticker = time.AfterFunc(s.interval(), s.attend)
	return s
}

// boundLocks bounds how long a statement waits for a lock, such as that which an ALTER SEQUENCE has: heartbeats wait
// behind it.
func (s *session) boundLocks(d time.Duration) {
	s.askText(&message{answered: func(answer) {}}, "SELECT %d;SET lock_timeout = %d", max(d.Milliseconds(), 1))
}

// setTimeout makes the idle_session_timeout d with the next message. b.mu is held.
func (s *session) setTimeout(d time.Duration) {
	s.setWanted(d)
	if !s.dead {
		s.ticker.Reset(s.interval()) // which may be shorter now
	}
}

// beat is for how long nothing is sent before there is a heartbeat.
func (s *session) beat() time.Duration { return min(s.idleTimeout()/4, time.Minute) }

// interval is the time between two looks at a session.
func (s *session) interval() time.Duration { return min(s.beat(), silence/2) }

// attend is called regularly: it keeps the session alive, and ends it when it is broken or not needed.
//
// The session is kept alive whether the locks it has are renewed or not, as they end one by one, see Expired. That the
// server ends the session is for when this process cannot. Locks of which nobody has said that they are over are given
// back here: package locker forgets what it cannot release in time, and takes it to end by itself.
func (s *session) attend() {
	now := time.Now()
	b := s.b
	b.mu.Lock()
	if s.dead {
		b.mu.Unlock()
		return
	}
	interval := s.interval()
	s.ticker.Reset(interval)
	var forgotten []locker.Grant
	for h := range s.locks {
		if h.isExpired(now.Add(-interval)) { // long enough ago: their holders know
			forgotten = append(forgotten, locker.Grant{Request: h.request})
		}
	}
	held, idle := len(s.locks), now.Sub(s.used)
	patience := silence
	if held > 0 {
		s.used = now
		patience = s.idleTimeout()
	}
	silent, quiet := s.silentFor(now), s.quietFor(now)
	unneeded := held == 0 && quiet > 0 && b.unneeded(s, idle)
	if p := s.place; p != nil && now.Sub(p.since) > b.lifetimes.standing {
		b.leavePlace(p)
	}
	b.mu.Unlock()
	if len(forgotten) > 0 {
		b.Expired(forgotten)
	}
	switch {
	case silent > patience:
		s.fail(errSilent)
	case unneeded:
		s.close(errUnneeded)
	case quiet >= s.beat()-interval/2:
		s.heartbeat(func(answer) {})
	}
}

// ended has the holders of the session's locks told, before the server learns that these are free.
func (s *session) ended(cause error) {
	b := s.b
	b.mu.Lock()
	s.dead = true
	s.ticker.Stop()
	gone := make([]*slot, 0, len(s.locks))
	lost := make([]locker.Request, 0, len(s.locks))
	for h := range s.locks {
		gone, lost = append(gone, h.slot), append(lost, h.request)
		b.dropHolding(h)
	}
	s.locks = nil
	delete(b.sessions, s)
	b.leases = slices.DeleteFunc(b.leases, func(l *leaseSession) bool { return l.session == s })
	b.waits.drop(s)
	if b.hints.session == s {
		b.hints.session, b.hints.marked = nil, nil
	}
	if b.looksOn(s) {
		b.looking = nil
	}
	b.mu.Unlock()
	locker.ReportLost(lost, cause)
	close(s.told)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, sl := range gone {
		b.arrange(sl) // who was about to get in beside these readers
		b.tidy(sl)
	}
	if !errors.Is(cause, locker.ErrClosed) && !errors.Is(cause, errUnneeded) {
		// Not before all holders have been told: others get the locks when it is buried.
		b.ghosts = append(b.ghosts, ghost{s.conn, time.Now().Add(s.longest())})
	}
}

func (s *session) notified(channel, payload string) {
	key, err := strconv.ParseInt(payload, 10, 64)
	switch {
	case err != nil: // somebody else uses the channel
	case channel == revokedChannel:
		s.b.heard(key)
	default:
		s.b.hinted(key)
	}
}

func (s *session) closed()                                       { s.b.bury() }
func (s *session) tellFree(keys []int64)                         { s.b.tellFree(keys) }
func (s *session) raiseLimit(then func(limit uint64, err error)) { s.b.raiseLimit(then) }
