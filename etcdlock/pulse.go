package etcdlock

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pulse sends keep-alives for a lease. The client's own KeepAlive does not tell when it has sent one, and its
// KeepAliveOnce tries again without any pause while no connection can be made, and opens a stream for each, which with
// a password costs the server a check of that each time.
type pulse struct {
	life  context.Context
	lease clientv3.LeaseID
	ttl   time.Duration // as granted

	mu     sync.Mutex
	idle   *pulseStream // kept for the next
	closed bool         // there is no next
}

type pulseStream struct {
	pb.Lease_LeaseKeepAliveClient
	link *link
	end  context.CancelFunc
}

// beat sends a keep-alive and waits for its answer. It returns the raft term that the member knew of which was asked,
// see session.renew, and ErrLeaseNotFound if the lease is not there any more.
func (p *pulse) beat(ctx context.Context, l *link) (term uint64, err error) {
	p.mu.Lock()
	s := p.idle
	p.idle = nil
	p.mu.Unlock()
	switch {
	case s == nil:
	case s.link != l:
		s.end()
	default:
		term, err := p.beatOn(ctx, s)
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || timedOut(err) {
			return term, err
		}
		// The stream ended while it was idle, or just now.
	}
	streamCtx, end := context.WithCancel(p.life)
	stop := context.AfterFunc(ctx, end)
	stream, err := l.leases.LeaseKeepAlive(streamCtx)
	stop()
	if err != nil {
		end()
		return 0, errorOf(ctx, err)
	}
	return p.beatOn(ctx, &pulseStream{stream, l, end})
}

// beatOn keeps the stream for the next if all goes well, and else ends it.
func (p *pulse) beatOn(ctx context.Context, s *pulseStream) (term uint64, err error) {
	stop := context.AfterFunc(ctx, s.end)
	resp, err := s.ask(p.lease)
	if !stop() || err != nil {
		s.end()
		if err == nil {
			err = ctx.Err()
		}
		return 0, errorOf(ctx, err)
	}
	if resp.GetTTL() <= 0 {
		s.end()
		return 0, rpctypes.ErrLeaseNotFound
	}
	if time.Duration(resp.GetTTL())*time.Second < p.ttl { // a leader that has renewed the lease says its whole TTL
		s.end()
		return 0, errNotRenewed
	}
	p.mu.Lock()
	if !p.closed {
		s, p.idle = p.idle, s
	}
	p.mu.Unlock()
	if s != nil {
		s.end()
	}
	return resp.GetHeader().GetRaftTerm(), nil
}

// close ends the stream that is kept, which would else stay open for as long as the Locker.
func (p *pulse) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.idle != nil {
		p.idle.end()
		p.idle = nil
	}
}

func (s *pulseStream) ask(lease clientv3.LeaseID) (*pb.LeaseKeepAliveResponse, error) {
	// An error of Send is that the stream is over; Recv tells why.
	_ = s.Send(&pb.LeaseKeepAliveRequest{ID: int64(lease)})
	return s.Recv()
}

// errorOf is the error of a call that was made with ctx.
func errorOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return rpctypes.Error(err)
}
