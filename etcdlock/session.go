package etcdlock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"github.com/lockerkit/locker"
)

// session is an etcd lease, to which the keys of all locks of one TTL are attached. Its end is theirs.
//
// The lease lives on the server for a TTL after it was last kept alive, or longer: a new leader of the cluster gives each lease a
// whole TTL anew. So a lock is safe for a TTL from the moment when the last keep-alive that was answered had been sent, and what
// the server adds only makes rivals wait longer. (Before 3.5.13, a leader that had been deposed and did not know it yet answered
// keep-alives of which the new leader knew nothing: https://github.com/etcd-io/etcd/pull/17460. Hence ErrVersion.)
type session struct {
	b     *backend
	asked time.Duration // the TTL that was asked for, under which backend.sessions has it
	ttl   time.Duration // as granted
	lease clientv3.LeaseID
	fence fence
	steps batcher // what changes something
	pulse pulse

	over  chan struct{} // closed at the end, with cause set
	cause error

	// What follows is guarded by backend.mu.
	confirmed time.Time // when the last keep-alive that was answered had been sent
	used      time.Time // when a claim was last made or dropped
	claims    map[*claim]struct{}
	alarm     *time.Timer // for the next keep-alive, if nobody else sends one before, or the end
	sweeper   *time.Timer // for the first claim whose time is over; nil until there is one
	sweepAt   time.Time   // when it fires; zero if it does not
}

// idleFor is how long a session without claims is kept alive.
const idleFor = time.Minute

// renewalInterval is the time between two keep-alives: as package locker renews.
func (s *session) renewalInterval() time.Duration { return s.ttl / 3 }

// attemptBound bounds one attempt of whatever is asked of the server for a lease with that TTL.
func attemptBound(ttl time.Duration) time.Duration {
	return min(max(ttl/3, 100*time.Millisecond), 3*time.Second)
}

// attempts returns how often something is asked of so many endpoints, and the bound of each attempt, where there would be
// one with the given bound if there was one endpoint. The client asks the endpoints in turn, but for all requests together: it may happen
// that the next attempt meets the same one.
func attempts(endpoints int, bound time.Duration) (n int, each time.Duration) {
	if endpoints <= 1 {
		return 1, bound
	}
	return 2 * endpoints, max(bound/time.Duration(endpoints), 100*time.Millisecond)
}

// opening is a session that is on its way.
type opening struct {
	done    chan struct{} // closed when what follows is set
	session *session
	err     error
}

// session returns the session for a TTL, and opens it if need be.
func (b *backend) session(ctx context.Context, r locker.Request) (*session, error) {
	b.mu.Lock()
	o := b.sessions[r.TTL]
	if o == nil {
		if b.closed {
			b.mu.Unlock()
			return nil, errClosed
		}
		o = &opening{done: make(chan struct{})}
		b.sessions[r.TTL] = o
		b.running.Add(1)
		go b.open(o, r)
	}
	b.mu.Unlock()
	select {
	case <-o.done:
		return o.session, o.err
	default:
	}
	select {
	case <-o.done:
		return o.session, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// open opens a session. If it fails, the next one who asks tries again.
func (b *backend) open(o *opening, r locker.Request) {
	defer b.running.Done()
	s, err := b.grant(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil && b.closed:
		err = errClosed // the lease has no keys, and ends by itself
	case err == nil:
		o.session = s
		s.alarm = time.AfterFunc(s.untilAlarmLocked(), s.ring)
	}
	if err != nil {
		o.err = err
		delete(b.sessions, r.TTL)
	}
	close(o.done)
}

// grant asks for a lease. One whose answer gets lost has no keys, and ends by itself.
func (b *backend) grant(r locker.Request) (*session, error) {
	tries, bound := attempts(b.endpoints(), attemptBound(r.TTL))
	var sent time.Time
	var lease *clientv3.LeaseGrantResponse
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(b.life, bound)
		err := b.checkVersion(ctx)
		if err == nil {
			sent = time.Now()
			lease, err = b.leases.Grant(ctx, int64(r.TTL/time.Second))
		}
		cancel()
		if err == nil {
			break
		}
		if b.life.Err() != nil {
			return nil, errClosed
		}
		if !isOutage(err) || try >= tries {
			err, _ = explain(err)
			return nil, err
		}
	}
	s := &session{
		b: b, asked: r.TTL, ttl: time.Duration(lease.TTL) * time.Second, lease: lease.ID,
		over: make(chan struct{}), confirmed: sent, used: sent, claims: make(map[*claim]struct{}),
	}
	s.fence.key, s.fence.lease = fenceKey(r.Prefix, lease.ID), lease.ID
	s.steps = b.batcher(&s.fence)
	s.pulse = pulse{client: pb.NewLeaseClient(b.conn), life: b.life, lease: lease.ID, endpoints: b.endpoints, bound: attemptBound(s.ttl)}
	return s, nil
}

// keepAlive renews the lease, and with it all keys that are attached to it. It returns ErrLost if the lease is not there any more.
func (s *session) keepAlive(ctx context.Context) error {
	sent := time.Now()
	err := s.pulse.beat(ctx)
	switch {
	case err == nil:
		s.b.mu.Lock()
		if sent.After(s.confirmed) {
			s.confirmed = sent
			if !s.isOver() && !s.b.closed {
				s.alarm.Reset(s.untilAlarmLocked())
			}
		}
		s.b.mu.Unlock()
		s.b.watches.ping()
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		s.end(ErrLeaseExpired)
		return fmt.Errorf("%w: %w", locker.ErrLost, ErrLeaseExpired)
	case code(err) == codes.Unavailable:
		// Left alone, the client would wait longer from one failed attempt to connect to the next than many a lease lasts.
		s.b.conn.ResetConnectBackoff()
	}
	err, _ = explain(err)
	return err
}

// untilAlarmLocked is the time until the session has to look after itself: package locker renews the leases that are held a
// little earlier, with one keep-alive for all of them, but not what waits, and not the session when it has nothing.
func (s *session) untilAlarmLocked() time.Duration {
	return time.Until(s.confirmed.Add(s.renewalInterval() + s.renewalInterval()/20))
}

// ring is the function of the alarm.
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
	b.running.Add(1)
	defer b.running.Done()
	if expired || idle {
		s.endLocked(ErrLeaseExpired)
		b.mu.Unlock()
		b.revoke(s)
		return
	}
	b.mu.Unlock()

	ctx, cancel := context.WithDeadline(b.life, earlier(end, now.Add(attemptBound(s.ttl))))
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
	if o := s.b.sessions[s.asked]; o != nil && o.session == s {
		delete(s.b.sessions, s.asked)
	}
	if s.alarm != nil {
		s.alarm.Stop()
	}
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	for c := range s.claims {
		c.loseLocked(cause)
	}
}

// revoke gives a lease back, in the background: with it go all keys attached to it. It tries until the lease has ended by itself.
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

func (b *backend) revokeOnce(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, attemptBound(s.ttl))
	defer cancel()
	_, err := b.leases.Revoke(ctx, s.lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}
