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

// pulse sends keep-alives for a lease. The client's own KeepAlive does not tell when it has sent one, and its KeepAliveOnce tries again
// without any pause while no connection can be made, and opens a stream for each, which with a password costs the
// server a check of that each time.
type pulse struct {
	client pb.LeaseClient
	conn   *conn
	life   context.Context
	lease  clientv3.LeaseID
	ttl    time.Duration // as granted

	endpoints func() int
	bound     time.Duration // of a keep-alive

	mu     sync.Mutex
	idle   *pulseStream // kept for the next
	closed bool         // there is no next
}

type pulseStream struct {
	pb.Lease_LeaseKeepAliveClient
	end context.CancelFunc
}

// beat sends a keep-alive and waits for its answer. It returns the raft term that the member knew of which was asked, see
// session.renew, and ErrLeaseNotFound if the lease is not there any more. If there are several
// endpoints, another is asked beside the first if that does not answer soon: a dead connection must not cost a third of the TTL, as
// the next attempt may be made on it, too.
func (p *pulse) beat(ctx context.Context) (term uint64, err error) {
	n := p.endpoints()
	if n <= 1 {
		return p.beatOnce(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait() // after cancel
	defer cancel()
	type answer struct {
		term uint64
		err  error
	}
	answers := make(chan answer, n+1)
	patience := time.NewTicker(p.bound / time.Duration(n+1))
	defer patience.Stop()
	for asked, answered := 0, 0; ; {
		if asked <= n {
			asked++
			running.Go(func() {
				term, err := p.beatOnce(ctx)
				answers <- answer{term, err}
			})
		}
		select {
		case a := <-answers:
			answered++
			if !isOutage(a.err) || answered > n || ctx.Err() != nil {
				return a.term, a.err
			}
		case <-patience.C:
		}
	}
}

func (p *pulse) beatOnce(ctx context.Context) (term uint64, err error) {
	p.mu.Lock()
	s := p.idle
	p.idle = nil
	p.mu.Unlock()
	if s != nil {
		term, err := p.beatOn(ctx, s)
		if err == nil || errors.Is(err, rpctypes.ErrLeaseNotFound) || timedOut(err) {
			return term, err
		}
		// The stream ended while it was idle, or just now.
	}
	streamCtx, end := context.WithCancel(p.life)
	stop := context.AfterFunc(ctx, end)
	stream, err := openOnSome(streamCtx, p.conn, p.client.LeaseKeepAlive)
	stop()
	if err != nil {
		end()
		return 0, errorOf(ctx, err)
	}
	return p.beatOn(ctx, &pulseStream{stream, end})
}

// beatOn keeps the stream for the next if all goes well, and else ends it.
func (p *pulse) beatOn(ctx context.Context, s *pulseStream) (term uint64, err error) {
	stop := context.AfterFunc(ctx, s.end)
	sent := time.Now()
	resp, err := s.ask(p.lease)
	p.conn.heard(endpointOf(s.Context()), sent, err)
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
