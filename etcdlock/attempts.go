package etcdlock

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
)

// attemptBound bounds one attempt of whatever is asked of the server for a lock with that TTL, if there is one endpoint.
func attemptBound(ttl time.Duration) time.Duration {
	return min(max(ttl/3, 100*time.Millisecond), 3*time.Second)
}

// attempts calls f until it succeeds, or fails for a reason that is not the fault of one endpoint alone, or has been tried enough. The client
// asks its endpoints in turn, but for all requests together, so that the next attempt may meet the same one. ctx is b.life, or derived
// from it.
func (b *backend) attempts(ctx context.Context, ttl time.Duration, f func(context.Context) error) error {
	if b.client.Ctx().Err() != nil {
		return errClientClosed // the client itself would try again until the attempt is over
	}
	n, bound := max(b.endpoints(), 1), attemptBound(ttl)
	tries := 1
	if n > 1 {
		tries = 2 * n
		bound = max(bound/time.Duration(n), 100*time.Millisecond)
	}
	var err error
	for try := range tries {
		// Later ones get more time, lest a cluster that is slow is taken for one that is not there.
		attempt, cancel := context.WithTimeout(ctx, bound*time.Duration(1+try/n))
		err = f(attempt)
		cancel()
		b.reconnectAfter(err)
		if err == nil || !isOutage(err) || ctx.Err() != nil {
			break
		}
	}
	return err
}

// requestOf returns a context for the requests that a call with ctx makes, which also ends with the Locker.
func (b *backend) requestOf(ctx context.Context) (context.Context, context.CancelFunc) {
	request, cancel := context.WithCancel(b.life)
	stop := context.AfterFunc(ctx, cancel)
	return request, func() { stop(); cancel() }
}

// reconnectAfter has the client connect again at once if it has no connection. Left alone, it would wait for up to two minutes from one failed
// attempt to the next: longer than most leases last, and long after the server is back.
func (b *backend) reconnectAfter(err error) {
	const pause = 200 * time.Millisecond
	if err == nil || code(err) != codes.Unavailable {
		return
	}
	b.mu.Lock()
	again := time.Since(b.reconnected) > pause
	if again {
		b.reconnected = time.Now()
	}
	b.mu.Unlock()
	if again {
		b.conn.ResetConnectBackoff()
	}
}
