package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/backends"
)

// Diagnose returns a better error for a command that failed, if there is one. A server that wants a password just hangs
// up on long commands, and says so to a short one. A server of another kind hangs up, or says what go-redis cannot
// read.
func (c *Client) Diagnose(ctx context.Context, failure error) error {
	if IsReply(failure) || isUnconnected(failure) || isOver(ctx, failure) {
		return failure
	}
	if c.nodes != nil && c.nodes.known.Load() {
		return failure // a server that has a map of the slots is Redis
	}
	if c.nodes == nil {
		err := orDone(ctx, func() error { return c.Ping(ctx).Err() }) // a PING does not end with ctx
		switch {
		case IsReply(err):
			return err
		case err == nil || isUnconnected(err) || isOver(ctx, err):
			return failure
		}
	}
	if kind := c.inquiry.ask(ctx, c.dialer()); kind != "" && kind != "Redis" {
		return fmt.Errorf("%w: this is %s: %w", ErrWrongServer, kind, failure)
	}
	return failure
}

// isOver reports whether nothing more can be said about a failure: the server does not answer, the client was closed,
// or there is no time left.
func isOver(ctx context.Context, failure error) bool {
	return IsSilence(failure) || errors.Is(failure, redis.ErrClosed) || ctx.Err() != nil
}

// dialer returns what connects to the server, or to one that a cluster was said to have; nil if that is not known.
func (c *Client) dialer() backends.Dial {
	switch rdb := c.UniversalClient.(type) {
	case *redis.Client:
		o := rdb.Options()
		return func(ctx context.Context) (net.Conn, error) { return o.Dialer(ctx, o.Network, o.Addr) }
	case *redis.ClusterClient:
		o := rdb.Options()
		dial := o.Dialer
		if dial == nil {
			dial = redis.NewDialer(&redis.Options{DialTimeout: o.DialTimeout, TLSConfig: o.TLSConfig})
		}
		if len(o.Addrs) > 0 {
			return func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", o.Addrs[0]) }
		}
	}
	return nil
}

// inquiry finds out what kind of server is at an address, now and then.
type inquiry struct {
	turn  chan struct{} // has room for one: who asks
	kind  string        // the last answer
	until time.Time     // for so long it is good
}

func newInquiry() inquiry { return inquiry{turn: make(chan struct{}, 1)} }

// inquireEvery is how long an answer is good: with a server of another kind, every call fails, and each asks.
const inquireEvery = 5 * time.Second

func (q *inquiry) ask(ctx context.Context, dial backends.Dial) string {
	if dial == nil {
		return ""
	}
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return ""
	}
	if time.Now().After(q.until) {
		q.kind = backends.Speaks(ctx, dial)
		q.until = time.Now().Add(inquireEvery)
	}
	return q.kind
}
