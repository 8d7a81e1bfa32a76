package etcdlock

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// conn is the connection of the client, which asks its endpoints in turn, whether they answer or not. This one passes over those that
// did not answer lately, if there are others: a lock takes several requests, and two endpoints of which one is dead would
// else answer all of them rarely.
//
// The client takes its pick when a request is sent, and lets nobody have a say in it. But credentials are asked for after that, and
// a request for which there are none is not sent: so it is made again, and the next endpoint is picked. (A client with credentials of
// its own in grpc.WithDefaultCallOptions would be without them. What etcd has for that, users and certificates, is not affected.)
type conn struct {
	*grpc.ClientConn
	endpoints func() int

	suspects atomic.Int32 // how many there are in silent; mostly none
	mu       sync.Mutex
	silent   map[string]*silence // by the address of the endpoint
}

// silence is that of an endpoint that does not answer.
type silence struct {
	length time.Duration // for which it is passed over; grows with each time
	until  time.Time
}

const (
	firstSilence   = time.Second
	longestSilence = 30 * time.Second
)

// onSome makes a request of an endpoint that is not passed over.
func onSome[Q, A any](ctx context.Context, c *conn, request func(context.Context, Q, ...grpc.CallOption) (A, error), q Q, opts []grpc.CallOption) (A, error) {
	return passing(ctx, c, opts, func(p *pick, opts []grpc.CallOption) (A, error) {
		sent := time.Now()
		a, err := request(ctx, q, opts...)
		c.heard(p.endpoint, sent, err)
		return a, err
	})
}

// openOnSome opens a stream, which says nothing about the endpoint: what is asked on it does.
func openOnSome[S any](ctx context.Context, c *conn, open func(context.Context, ...grpc.CallOption) (S, error)) (S, error) {
	return passing(ctx, c, nil, func(_ *pick, opts []grpc.CallOption) (S, error) { return open(ctx, opts...) })
}

// passing calls f until an endpoint was picked that is not passed over.
func passing[A any](ctx context.Context, c *conn, opts []grpc.CallOption, f func(*pick, []grpc.CallOption) (A, error)) (A, error) {
	if c.endpoints() <= 1 {
		return f(&anywhere, opts)
	}
	p := &pick{conn: c}
	p.owing, _ = ctx.Value(owingKey{}).(*owing)
	defer p.answered()
	opts = append(opts[:len(opts):len(opts)], grpc.PerRPCCredentials(p))
	for {
		if a, err := f(p, opts); !wasPassedOver(err) {
			return a, err
		}
	}
}

// heard takes note of how a request has ended that was sent to an endpoint. One that was given up after a while, because another
// answered before or time was up, speaks against it.
func (c *conn) heard(endpoint string, sent time.Time, err error) {
	if endpoint == "" || wasPassedOver(err) || timedOut(err) && time.Since(sent) < overdueAfter {
		return
	}
	if !timedOut(err) && c.suspects.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.silent[endpoint]
	switch {
	case !timedOut(err):
		delete(c.silent, endpoint)
	case s == nil:
		if c.silent == nil {
			c.silent = make(map[string]*silence)
		}
		c.silent[endpoint] = &silence{firstSilence, time.Now().Add(firstSilence)}
	case sent.After(s.until): // and not while it was passed over
		s.length = min(2*s.length, longestSilence)
		s.until = time.Now().Add(s.length)
	}
	c.suspects.Store(int32(len(c.silent)))
}

// passesOver reports whether another endpoint is to be asked.
func (c *conn) passesOver(endpoint string) bool {
	if c.suspects.Load() == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s := c.silent[endpoint]
	if s == nil || now.After(s.until) {
		return false
	}
	silent := 0
	for _, s := range c.silent {
		if now.Before(s.until) {
			silent++
		}
	}
	return silent < c.endpoints()
}

// owing is the endpoints that owe an answer to one who has sent the same request several times; see attempts.
type owing struct {
	mu        sync.Mutex
	endpoints []string
}

// owingKey is the key of a context's *owing.
type owingKey struct{}

// pick is the credentials of a request: none, but for an endpoint that is to be passed over they cannot be had.
type pick struct {
	conn     *conn
	owing    *owing // or nil
	endpoint string // that was picked last
	passed   int    // how often one was passed over
}

var anywhere pick // of a client that has no choice

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p *pick) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	p.answered() // without success, if this is the client's own repetition
	endpoint := endpointOf(ctx)
	most := 3 * p.conn.endpoints() // as often as that, the others have no connection, or are picked by others
	if p.passed < most && (p.conn.passesOver(endpoint) || p.owes(endpoint)) {
		p.passed++
		return nil, errPassedOver
	}
	p.endpoint = endpoint
	if o := p.owing; o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.endpoints = append(o.endpoints, endpoint)
	}
	return nil, nil
}

// owes reports whether the endpoint owes an answer to another attempt, unless all do.
func (p *pick) owes(endpoint string) bool {
	o := p.owing
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.endpoints) < p.conn.endpoints() && slices.Contains(o.endpoints, endpoint)
}

// answered is called when the endpoint that was picked does not owe an answer any more.
func (p *pick) answered() {
	if o := p.owing; o != nil && p.endpoint != "" {
		o.mu.Lock()
		defer o.mu.Unlock()
		if i := slices.Index(o.endpoints, p.endpoint); i >= 0 {
			o.endpoints = slices.Delete(o.endpoints, i, i+1)
		}
	}
	p.endpoint = ""
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*pick) RequireTransportSecurity() bool { return false }

func endpointOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

const passedOver = "etcd: this endpoint does not answer, another is asked"

var errPassedOver = status.Error(codes.Unavailable, passedOver)

// wasPassedOver reports whether a request was not sent because of the endpoint that was picked.
func wasPassedOver(err error) bool {
	return err != nil && code(err) == codes.Unavailable && strings.Contains(err.Error(), passedOver)
}
