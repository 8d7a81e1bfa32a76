package etcdlock

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// bound bounds one attempt of whatever is asked of the server for a lock with that TTL.
func (b *backend) bound(ttl time.Duration) time.Duration {
	if t := b.config.RequestTimeout; t > 0 {
		return t
	}
	return min(max(ttl/3, 100*time.Millisecond), 3*time.Second)
}

// attempts calls f until it succeeds, or fails for a reason that is not the fault of one endpoint alone, or has been tried enough. ctx is
// b.life, or derived from it.
//
// If there are several endpoints, f is called again beside the first call if that takes long, and so on: what was sent to one that is
// dead must not use up the time that the others have. The call after meets another endpoint, see conn. When attempts returns, the contexts
// of all calls have ended, but calls may not have returned.
func attempts[T any](ctx context.Context, b *backend, ttl time.Duration, f func(context.Context) (T, error)) (T, error) {
	if b.client.Ctx().Err() != nil {
		var none T
		return none, errClientClosed // the client itself would try again until the attempt is over
	}
	n, bound := b.endpoints(), b.bound(ttl)
	if n <= 1 {
		ctx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		v, err := f(ctx)
		b.reconnectAfter(err)
		return v, err
	}
	r := &race[T]{
		backend: b, call: f, endpoints: n, patience: max(bound/time.Duration(n), 100*time.Millisecond),
		running: 1, done: make(chan struct{}),
	}
	r.ctx, r.end = context.WithTimeout(context.WithValue(ctx, owingKey{}, new(owing)), 3*bound)
	defer r.end()
	r.mu.Lock()
	r.timer = time.AfterFunc(r.pauseLocked(), r.another)
	r.mu.Unlock()
	defer r.timer.Stop()
	r.run()
	<-r.done
	return r.result, r.err
}

// race is calls of the same function, of which the first with a result counts.
type race[T any] struct {
	backend   *backend
	call      func(context.Context) (T, error)
	ctx       context.Context
	end       context.CancelFunc
	endpoints int
	patience  time.Duration // with the first calls

	mu      sync.Mutex
	timer   *time.Timer // for the next call
	again   int         // how often it was called after the first time
	running int
	over    bool
	done    chan struct{} // closed when it is over, with what follows set
	result  T
	err     error
}

// pauseLocked is the time until the next call. It grows, lest a cluster that is slow is taken for one that is not there.
func (r *race[T]) pauseLocked() time.Duration {
	pause := r.patience * time.Duration(1+r.again/r.endpoints)
	return pause*3/4 + rand.N(pause/2)
}

// another makes another call beside the others.
func (r *race[T]) another() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || !r.countLocked() {
		return
	}
	r.timer.Reset(r.pauseLocked())
	r.running++
	if !r.backend.running.start(r.run) {
		r.running-- // the Locker is closed, and the contexts of the others end
	}
}

// countLocked counts another call, if there have not been enough.
func (r *race[T]) countLocked() bool {
	if r.again+1 >= 2*r.endpoints {
		return false
	}
	r.again++
	return true
}

// run calls the function, and again after failures, until another call of it takes longer than the race.
func (r *race[T]) run() {
	for {
		v, err := r.call(r.ctx)
		r.backend.reconnectAfter(err)
		if r.ends(v, err) {
			return
		}
	}
}

// ends takes note of what a call has returned, and reports whether there is to be no other instead.
func (r *race[T]) ends(v T, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return true
	case err != nil && isOutage(err) && r.ctx.Err() == nil:
		if r.countLocked() {
			return false
		}
		if r.running--; r.running > 0 {
			return true
		}
	}
	r.over = true
	r.result, r.err = v, err
	r.end()
	close(r.done)
	return true
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
