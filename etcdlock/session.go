package etcdlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// sessionKey is what all locks of a session have in common. Prefixes differ if a lease was adopted.
type sessionKey struct {
	prefix string
	ttl    time.Duration // that was asked for
}

func sessionKeyOf(r locker.Request) sessionKey { return sessionKey{r.Prefix, r.TTL} }

// session is an etcd lease, to which the keys of all locks of one TTL are attached. Its end is theirs.
//
// The lease lives on the server for a TTL after it was last kept alive, or longer: a new leader of the cluster gives
// each lease a whole TTL anew. So a lock is safe for a TTL from the moment when the last keep-alive that was answered
// had been sent, and what the server adds only makes rivals wait longer. A leader that was deposed and does not know it
// yet answers keep-alives, see renew, and revokes leases that others have kept alive, see move: before 3.5.13 for as
// long as its raft loop stood still (https://github.com/etcd-io/etcd/issues/15247; hence ErrVersion), since then for
// some milliseconds.
type session struct {
	b     *backend
	asked sessionKey       // under which backend.sessions has it
	ttl   time.Duration    // as granted
	id    clientv3.LeaseID // of the first lease, which is in the names of the keys
	fence fence
	steps batcher       // what changes something
	seen  atomic.Uint64 // the greatest raft term that an answer had

	over  chan struct{} // closed at the end, with cause set
	cause error

	// What follows is guarded by backend.mu.
	lease      clientv3.LeaseID   // that all keys are attached to, or are about to be
	former     []clientv3.LeaseID // that some may still be attached to
	pulse      *pulse             // of the lease
	moving     chan struct{}      // closed when all keys are attached to the lease; nil if they are
	next       *keepAlive         // for all who want one that has not been sent yet
	beating    bool               // those are being sent
	confirmed  time.Time          // when the last keep-alive that was answered had been sent
	used       time.Time          // when the session was made, or last had a claim less
	claims     map[*claim]struct{}
	ordinals   map[string]*ordinals // by the place of the claims
	generation uint64               // of the keys of claims; increases when one is forgotten whose requests may still arrive
	alarm      *time.Timer          // for the next keep-alive, if nobody else sends one before, or the end
	sweeper    *time.Timer          // for the first claim whose time is over; nil until there is one
	sweepAt    time.Time            // when it fires; zero if it does not
}

// idleFor is how long a session without claims is kept alive.
const idleFor = time.Minute

// renewalInterval is the time between two keep-alives: as package locker renews.
func (s *session) renewalInterval() time.Duration { return s.ttl / 3 }

// opening is a session that is on its way.
type opening struct {
	done    chan struct{} // closed when what follows is set
	session *session
	err     error
}

// session returns the session for a request, and opens it if need be.
func (b *backend) session(ctx context.Context, r locker.Request) (*session, error) {
	b.mu.Lock()
	o := b.sessions[sessionKeyOf(r)]
	if o == nil {
		if b.closed {
			b.mu.Unlock()
			return nil, errClosed
		}
		o = &opening{done: make(chan struct{})}
		b.sessions[sessionKeyOf(r)] = o
		b.running.start(func() { b.open(o, r) }) // not closed, or we would not be here
	}
	b.mu.Unlock()
	select { // an answer that is there goes before the end of ctx
	case <-o.done:
		return o.session, o.err
	default:
	}
	select {
	case <-o.done:
		return o.session, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open opens a session. If it fails, the next one who asks tries again.
func (b *backend) open(o *opening, r locker.Request) {
	s, err := b.grant(r)
	b.mu.Lock()
	late := err == nil && b.closed
	switch {
	case late:
		err = errClosed
	case err == nil:
		o.session = s
		s.alarm = time.AfterFunc(s.untilAlarmLocked(), func() { b.running.start(s.ring) })
	}
	if err != nil {
		o.err = err
		delete(b.sessions, sessionKeyOf(r))
	}
	close(o.done)
	b.mu.Unlock()
	if late {
		b.revokeLate(s)
	}
}

// grant makes a session.
func (b *backend) grant(r locker.Request) (*session, error) {
	lease, err := b.grantLease(b.life, r.TTL, r.TTL)
	if err != nil {
		return nil, b.contactFailure(b.life, err)
	}
	id := clientv3.LeaseID(lease.ID)
	s := &session{
		b: b, asked: sessionKeyOf(r), ttl: time.Duration(lease.TTL) * time.Second, id: id, lease: id,
		over: make(chan struct{}), confirmed: lease.sent, used: lease.sent,
		claims: make(map[*claim]struct{}), ordinals: make(map[string]*ordinals),
	}
	s.seen.Store(lease.GetHeader().GetRaftTerm())
	s.fence.key, s.fence.lease, s.fence.saw, s.fence.broken = fenceKey(r.Prefix, id), s.currentLease, s.saw, s.end
	s.steps = newBatcher(b, &s.fence, s.over)
	s.pulse = b.pulseOf(id, s.ttl)
	return s, nil
}

// granted is a lease, and when it was asked for.
type granted struct {
	*pb.LeaseGrantResponse
	sent time.Time
}

// grantLease asks for a lease of at least so long, for locks with a TTL, which bounds an attempt. One whose answer gets
// lost has no keys, and ends by itself. ctx is b.life, or derived from it.
func (b *backend) grantLease(ctx context.Context, least, ttl time.Duration) (granted, error) {
	return writing(ctx, b, ttl, func(ctx context.Context, l *link) (granted, error) {
		if err := b.checkVersion(ctx, l); err != nil {
			return granted{}, err
		}
		sent := time.Now()
		request := &pb.LeaseGrantRequest{TTL: int64((least + time.Second - 1) / time.Second)}
		lease, err := once(ctx, b.endpoints.logins, l.leases.LeaseGrant, request)
		return granted{lease, sent}, err
	})
}

func (b *backend) pulseOf(lease clientv3.LeaseID, ttl time.Duration) *pulse {
	return &pulse{life: b.life, lease: lease, ttl: ttl}
}

func (s *session) currentLease() clientv3.LeaseID {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.lease
}

// keepAlive renews the lease, and with it all keys that are attached to it. If the lease is not there any more, the
// session ends, and it returns ErrLeaseExpired.
func (s *session) keepAlive(ctx context.Context) error {
	sent, err := s.renew(ctx)
	switch {
	case err == nil:
		s.confirm(sent)
		s.b.watches.ping()
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		s.end(ErrLeaseExpired)
		return ErrLeaseExpired
	}
	return s.b.failure(err)
}

// renew has the lease renewed, and returns when what counts was sent.
//
// A leader that stood still while another was elected goes on, for some milliseconds, to answer keep-alives, also in
// etcd 3.5.13 and later: it takes itself for the leader if its clock has ticked just now. The leader since has given
// the lease one TTL when it was elected, and knows nothing of such an answer. So an answer only counts if a read that
// was sent after it, and which a majority has to confirm, finds the cluster in the same raft term as the member that
// has answered. If the term is a later one than when the lease was granted, the keys are moved to another lease first.
func (s *session) renew(ctx context.Context) (sent time.Time, err error) {
	for {
		p, err := s.settledPulse(ctx)
		if err != nil {
			return sent, err
		}
		sent := time.Now()
		term, err := reading(ctx, s.b, s.ttl, p.beat)
		notFound := errors.Is(err, rpctypes.ErrLeaseNotFound)
		if err != nil && !notFound {
			return sent, err
		}
		verified := make(chan error, 1)
		verify := func() {
			now, there, err := s.look()
			switch {
			case err != nil:
			case !s.isSettledAt(p, now):
				err = errDeposed
			case notFound && there: // not by the leader since
				err = errDeposed
			case notFound:
				err = rpctypes.ErrLeaseNotFound
			case now == term, term == 0: // not told, by something else that speaks etcd's protocol
				s.confirm(sent) // even if nobody waits for that any more
			default:
				err = errDeposed
			}
			verified <- err
		}
		if !s.b.running.start(verify) {
			return sent, errClosed
		}
		select {
		case err = <-verified:
		case <-ctx.Done():
			return sent, ctx.Err()
		}
		if !errors.Is(err, errDeposed) {
			return sent, err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil { // it may also be a member that lags behind
			return sent, err
		}
	}
}

// look returns the raft term of the cluster, as of a moment after the call, and whether the key of the fence is there,
// which is only without a doubt if the fence was raised.
func (s *session) look() (term uint64, there bool, err error) {
	r, err := reading(s.b.life, s.b, s.ttl, func(ctx context.Context, l *link) (*clientv3.GetResponse, error) {
		return l.kv.Get(ctx, s.fence.key, clientv3.WithCountOnly())
	})
	if err != nil {
		return 0, false, err
	}
	return r.Header.RaftTerm, r.Count > 0, nil
}

// confirm has the session live from when a keep-alive was sent.
func (s *session) confirm(sent time.Time) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if sent.After(s.confirmed) {
		s.confirmed = sent
		if !s.isOver() && !s.b.closed {
			s.alarm.Reset(s.untilAlarmLocked())
		}
	}
}

func (s *session) lastConfirmed() time.Time {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.confirmed
}

// refresh keeps a session alive of which no keep-alive was answered for too long: a lock that begins on it might end
// before it is used.
func (s *session) refresh(ctx context.Context) error {
	if !s.overdue() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.b.bound(s.ttl))
	defer cancel()
	err := s.keepAliveOnce(ctx)
	if err != nil && ctx.Err() != nil {
		return ErrNoAnswer
	}
	return err
}

// keepAlive is one that is shared by all who asked for it before it was sent.
type keepAlive struct {
	done chan struct{} // closed when err is set
	err  error
}

// keepAliveOnce renews the lease by a keep-alive that is sent after the call. Many who want that get one together.
func (s *session) keepAliveOnce(ctx context.Context) error {
	b := s.b
	b.mu.Lock()
	k := s.next
	if k == nil {
		k = &keepAlive{done: make(chan struct{})}
		s.next = k
	}
	if !s.beating && !b.running.start(s.beat) {
		b.mu.Unlock()
		return errClosed
	}
	s.beating = true
	b.mu.Unlock()
	select {
	case <-k.done:
		return k.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beat sends keep-alives as long as somebody wants one.
func (s *session) beat() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for s.next != nil {
		k := s.next
		s.next = nil
		b.mu.Unlock()
		ctx, cancel := context.WithTimeout(b.life, b.bound(s.ttl))
		k.err = s.keepAlive(ctx)
		cancel()
		close(k.done)
		b.mu.Lock()
	}
	s.beating = false
}

func (s *session) overdue() bool {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.overdueLocked()
}

// overdueLocked reports whether a keep-alive should have been answered by now.
func (s *session) overdueLocked() bool { return time.Since(s.confirmed) > s.renewalInterval()*6/5 }

// untilAlarmLocked is the time until the session has to look after itself: package locker renews the leases that are
// held a little earlier, with one keep-alive for all of them, but not what waits, and not the session when it has
// nothing.
func (s *session) untilAlarmLocked() time.Duration {
	return time.Until(s.confirmed.Add(s.renewalInterval() + s.renewalInterval()/20))
}

// ring is what the alarm calls for.
func (s *session) ring() {
	b := s.b
	b.mu.Lock()
	if b.closed || s.isOver() {
		b.mu.Unlock()
		return
	}
	end := s.confirmed.Add(s.ttl)
	now := time.Now()
	idle := len(s.claims) == 0 && now.Sub(s.used) > max(idleFor, s.ttl)
	expired := !now.Before(end)
	if expired || idle {
		s.endLocked(ErrLeaseExpired)
		b.mu.Unlock()
		b.revoke(s)
		return
	}
	b.mu.Unlock()

	ctx, cancel := context.WithDeadline(b.life, earlier(end, now.Add(b.bound(s.ttl))))
	err := s.keepAlive(ctx)
	cancel()
	if err == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.isOver() && !b.closed {
		pause := s.renewalInterval() / 5
		s.alarm.Reset(min(pause-rand.N(pause/2), max(time.Until(s.confirmed.Add(s.ttl)), 0)))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (s *session) isOver() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// end ends the session: whatever is attached to its lease is lost, and is not to be waited for any more.
func (s *session) end(cause error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.endLocked(cause)
}

func (s *session) endLocked(cause error) {
	if s.isOver() {
		return
	}
	s.cause = cause
	close(s.over)
	s.pulse.close()
	s.steps.end(ErrLeaseExpired)
	if o := s.b.sessions[s.asked]; o != nil && o.session == s {
		delete(s.b.sessions, s.asked)
	}
	if s.alarm != nil {
		s.alarm.Stop()
	}
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	var lost []locker.Request
	for c := range s.claims {
		if c.goneLocked(cause) {
			lost = append(lost, c.request)
		}
	}
	locker.ReportLost(lost, cause)
}

// revoke gives the leases of a session back, in the background: with them go all keys attached to them. It tries until
// they have ended by themselves.
func (b *backend) revoke(s *session) {
	ctx, cancel := context.WithTimeout(b.life, s.ttl)
	defer cancel()
	for b.revokeOnce(ctx, s) != nil {
		select {
		case <-time.After(s.renewalInterval() / 3):
		case <-ctx.Done():
			return
		}
	}
}

// revokeLate gives a lease back that was granted while the Locker was closed. If that fails, the lease, which has no
// keys, ends by itself.
func (b *backend) revokeLate(s *session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.life), time.Second) // Close waits for it
	defer cancel()
	_ = b.revokeOnce(ctx, s)
}

func (b *backend) revokeOnce(ctx context.Context, s *session) error {
	b.mu.Lock()
	leases := append(slices.Clone(s.former), s.lease)
	b.mu.Unlock()
	var failure error
	for _, lease := range leases {
		_, err := writing(ctx, b, s.ttl, func(ctx context.Context, l *link) (*pb.LeaseRevokeResponse, error) {
			request := &pb.LeaseRevokeRequest{ID: int64(lease)}
			resp, err := once(ctx, b.endpoints.logins, l.leases.LeaseRevoke, request)
			return resp, rpctypes.Error(err)
		})
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			failure = err
		}
	}
	return failure
}
