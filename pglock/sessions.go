package pglock

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

const (
	// maxLeaseSessions is how many sessions there are for locks taken without waiting, at most. There is one for each
	// TTL that is in use, as a session has one idle timeout. A further TTL shares the session of the next longer one;
	// if its holder is cut off or frozen, it is that longer time after which the server frees the lock.
	maxLeaseSessions = 4
)

// lifetimes says how long sessions are kept that are not needed, or harm.
type lifetimes struct {
	// lease is how long a session for leases stays that is not needed.
	lease time.Duration

	// parked is the same for a session that somebody has waited on, of which there may be more.
	parked time.Duration

	// standing is how long a session waits in Postgres's line before it takes its place anew, at its end. A statement
	// under way keeps VACUUM from removing what was deleted since it began, in the whole database, and CREATE INDEX
	// CONCURRENTLY waiting for its end; and a worker may stand by for days.
	standing time.Duration
}

var defaultLifetimes = lifetimes{lease: time.Minute, parked: 10 * time.Second, standing: 30 * time.Second}

// leaseSession is a session for locks taken without waiting, or one in the making.
type leaseSession struct {
	timeout time.Duration
	ready   chan struct{} // closed when one of the following is set
	session *session
	err     error
}

// await waits until the session has been made, or cannot be.
func (l *leaseSession) await(ctx context.Context) error {
	select {
	case <-l.ready:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// isGivenUp reports whether nothing is asked of a session any more, as it did not answer. b.mu is held.
func (b *backend) isGivenUp(s *session) bool {
	return !b.waits.has(s) && !slices.ContainsFunc(b.leases, func(l *leaseSession) bool { return l.session == s })
}

// dropSilent gives up the sessions for leases that may be dead: nothing is asked of them any more. b.mu is held.
func (b *backend) dropSilent() {
	now := time.Now()
	b.leases = slices.DeleteFunc(b.leases, func(l *leaseSession) bool {
		return l.session != nil && l.session.silentFor(now) > silence
	})
}

// leaseSession returns the session for locks with the given TTL. b.mu is held.
func (b *backend) leaseSession(ttl time.Duration) *leaseSession {
	l := b.chooseLease(ttl)
	if l == nil {
		l = b.openLease(ttl)
	} else if l.timeout < ttl {
		l.timeout = ttl
		if l.session != nil {
			l.session.setTimeout(ttl)
		}
	}
	if l.session != nil {
		l.session.used = time.Now()
	}
	return l
}

// chooseLease returns the session that locks with the given TTL share, or nil if it is to be made. b.mu is held.
func (b *backend) chooseLease(ttl time.Duration) *leaseSession {
	var longer, longest *leaseSession
	for _, l := range b.leases {
		switch {
		case l.timeout == ttl:
			return l
		case l.timeout > ttl && (longer == nil || l.timeout < longer.timeout):
			longer = l
		}
		if longest == nil || l.timeout > longest.timeout {
			longest = l
		}
	}
	switch {
	case len(b.leases) < maxLeaseSessions:
		return nil
	case longer != nil:
		return longer
	}
	return longest // and becomes longer
}

// openLease begins to make a session for leases. b.mu is held.
func (b *backend) openLease(ttl time.Duration) *leaseSession {
	l := &leaseSession{timeout: ttl, ready: make(chan struct{})}
	b.leases = append(b.leases, l)
	if !b.begin(func() {
		s, err := b.open(ttl, toLock)
		if err == nil {
			s.boundLocks(ttl / 8)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		l.session, l.err = s, err
		switch {
		case err != nil || s.dead:
			b.dropLease(l)
		case l.timeout != ttl:
			s.setTimeout(l.timeout)
		}
		close(l.ready)
		b.begin(b.bury)
	}) {
		b.dropLease(l)
		l.err = locker.ErrClosed
		close(l.ready)
	}
	return l
}

// dropLease forgets a session for leases. b.mu is held.
func (b *backend) dropLease(l *leaseSession) {
	b.leases = slices.DeleteFunc(b.leases, func(other *leaseSession) bool { return other == l })
}

// begin runs f on a goroutine that Close waits for, unless it is too late for that. b.mu is held.
func (b *backend) begin(f func()) bool {
	if !b.closed {
		b.running.Go(f)
	}
	return !b.closed
}

// connecting returns a session for leases that is in the making, nil if there is none.
func (b *backend) connecting() *leaseSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.leases {
		if l.session == nil {
			return l
		}
	}
	return nil
}

// open makes a session.
func (b *backend) open(timeout time.Duration, why purpose) (*session, error) {
	server, err := b.connect(b.life, timeout, why)
	if err != nil {
		return nil, err
	}
	s := b.adopt(server, timeout)
	if s == nil {
		_ = server.Conn().Close()
		return nil, locker.ErrClosed
	}
	return s, nil
}

// raiseLimit has the limit of tokens raised, and calls then. It takes a new connection, as each reads the limit, and
// raises it where there is not much room: what may have to wait is not sent on a session with locks. That is once for
// hundreds of thousands of tokens.
func (b *backend) raiseLimit(then func(limit uint64, err error)) {
	b.mu.Lock()
	b.raising = append(b.raising, then)
	begun := len(b.raising) > 1 || b.begin(func() {
		conn, err := b.connect(b.life, connectWithin, toLock)
		if err == nil {
			_ = conn.Close(b.life)
		}
		b.raised(conn.limit, err)
	})
	b.mu.Unlock()
	if !begun {
		b.raised(0, locker.ErrClosed)
	}
}

// raised tells who waits for a limit.
func (b *backend) raised(limit uint64, err error) {
	b.mu.Lock()
	waiting := b.raising
	b.raising = nil
	b.mu.Unlock()
	for _, then := range waiting {
		then(limit, err)
	}
}

// unneeded reports whether a session without locks has not been used for long enough to be closed. It cannot be used
// any more then. b.mu is held.
func (b *backend) unneeded(s *session, idle time.Duration) bool {
	lease := slices.IndexFunc(b.leases, func(l *leaseSession) bool { return l.session == s })
	parked := slices.Index(b.waits.idle, s)
	switch {
	case lease >= 0 && idle >= b.lifetimes.lease:
		b.leases = slices.Delete(b.leases, lease, lease+1)
	case parked >= 0 && idle >= b.lifetimes.parked:
		b.waits.idle = slices.Delete(b.waits.idle, parked, parked+1)
	case b.hints.session == s:
		if len(b.waits.starved) > 0 || idle < b.lifetimes.parked {
			return false
		}
		b.hints.session, b.hints.marked = nil, nil
	case b.looksOn(s):
		if b.watched > 0 || idle < b.lifetimes.parked {
			return false
		}
		b.looking = nil
	default:
		// In use; or just made, and not yet put to use; or replaced, because it did not answer.
		return lease < 0 && parked < 0 && !b.waits.has(s) && idle >= silence
	}
	return true
}

// ghost is a process of the server whose session is over for us. If the connection was cut somewhere on the way, it
// still has the locks, up to the idle timeout.
type ghost struct {
	server
	until time.Time
}

// endSQL ends a process of the server, and returns 0 if there was none. It is a format: the number of the message, the
// process id and when it was started. A role that may not see when it was started, because the session has changed its
// role, cannot know whether it is that one, and leaves it alone.
const endSQL = `SELECT %d, count(*) FILTER (WHERE backend_start IS NULL OR pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE pid = %d AND coalesce(to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') = '%s', true)`

// bury ends the ghosts, so that the keys they have need not be waited for.
func (b *backend) bury() {
	b.mu.Lock()
	now := time.Now()
	b.ghosts = slices.DeleteFunc(b.ghosts, func(g ghost) bool { return now.After(g.until) })
	if len(b.ghosts) == 0 {
		b.mu.Unlock()
		return
	}
	i := slices.IndexFunc(b.leases,
		func(l *leaseSession) bool { return l.session != nil && l.session.silentFor(now) < silence })
	if i < 0 { // there will be one, if anything is to be locked
		b.mu.Unlock()
		return
	}
	s, ghosts := b.leases[i].session, b.ghosts
	b.ghosts = nil
	b.mu.Unlock()
	for _, g := range ghosts {
		s.askText(&message{answered: func(a answer) {
			if a.err == nil {
				return
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.ghosts = append(b.ghosts, g)
		}}, endSQL, g.PID(), g.started)
	}
}

// Close implements locker.Backend. Everything has been released, or never will be.
func (b *backend) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	// Waits are better cancelled than cut off: the server may keep those in line for a while.
	patience := time.After(writePatience)
	done := make(chan struct{})
	go func() {
		b.waits.leaving.Wait()
		b.end()
		b.closeSessions()
		b.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-patience:
		b.end()
		b.closeSessions()
	}
	return nil
}

func (b *backend) closeSessions() {
	b.mu.Lock()
	all := make([]*session, 0, len(b.sessions))
	for s := range b.sessions {
		all = append(all, s)
	}
	b.mu.Unlock()
	for _, s := range all {
		s.close(locker.ErrClosed)
	}
}

// newBackend returns a backend that makes its sessions with c.
func newBackend(c *connector, waits int) *backend {
	c.id = 1 + rand.Int32N(math.MaxInt32)
	b := &backend{
		connector: c,
		slots:     make(map[int64]*slot),
		sessions:  make(map[*session]struct{}),
		waits:     waitSessions{most: waits},
		lifetimes: defaultLifetimes,
	}
	b.life, b.end = context.WithCancel(context.Background())
	return b
}
