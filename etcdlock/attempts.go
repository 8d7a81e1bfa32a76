package etcdlock

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// bound bounds one attempt of whatever is asked of the server for a lock with that TTL.
func (b *backend) bound(ttl time.Duration) time.Duration {
	if t := b.config.RequestTimeout; t > 0 {
		return t
	}
	return min(max(ttl/3, 100*time.Millisecond), 3*time.Second)
}

// call is something that is asked of an endpoint.
type call[T any] func(context.Context, *link) (T, error)

// reading makes a call that only reads, of one endpoint after the other until one answers, or they have been asked
// enough. ctx is b.life, or derived from it.
//
// If an endpoint takes long, another is asked beside it: what was sent to one that is dead must not use up the time
// that the others have. When reading returns, the contexts of all calls have ended, but calls may not have returned.
func reading[T any](ctx context.Context, b *backend, ttl time.Duration, f call[T]) (T, error) {
	return ask(ctx, b, ttl, false, f)
}

// writing is reading for what writes. No other endpoint is asked while one that was asked is alive: its disk may be
// slow, and to write again would make it slower.
func writing[T any](ctx context.Context, b *backend, ttl time.Duration, f call[T]) (T, error) {
	return ask(ctx, b, ttl, true, f)
}

func ask[T any](ctx context.Context, b *backend, ttl time.Duration, writes bool, f call[T]) (T, error) {
	if b.client.Ctx().Err() != nil {
		var none T
		return none, errClientClosed
	}
	only, n := b.endpoints.next(nil)
	bound := b.bound(ttl)
	if n == 1 {
		ctx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		v, err := use(ctx, ctx, only, f)
		if isOutage(err) && ctx.Err() == nil { // the next connection may lead to another member, or the same again
			only, _ = b.endpoints.next(nil)
			v, err = use(ctx, ctx, only, f)
		}
		return v, err
	}
	r := &race[T]{
		backend: b, caller: ctx, call: f, writes: writes, endpoints: n,
		patience: max(bound/time.Duration(n), 2*leastPatience), running: 1, done: make(chan struct{}),
	}
	r.ctx, r.end = context.WithTimeout(ctx, 3*bound)
	defer r.end()
	r.mu.Lock()
	r.setTimerLocked()
	r.mu.Unlock()
	r.run()
	<-r.done
	return r.result, r.err
}

// race is the same call of several endpoints, of which the first with a result counts.
type race[T any] struct {
	backend   *backend
	caller    context.Context
	call      call[T]
	writes    bool
	ctx       context.Context
	end       context.CancelFunc
	endpoints int
	patience  time.Duration // with the first calls

	mu      sync.Mutex
	timer   *time.Timer // for the next call
	again   int         // how often it was called after the first time
	running int
	owing   []*debt
	over    bool
	done    chan struct{} // closed when it is over, with what follows set
	result  T
	err     error
}

// debt is the answer to a call that an endpoint owes.
type debt struct {
	endpoint *endpoint
	began    time.Time
}

// debtorsLocked returns the endpoints that owe answers.
func (r *race[T]) debtorsLocked() []*endpoint {
	all := make([]*endpoint, len(r.owing))
	for i, d := range r.owing {
		all[i] = d.endpoint
	}
	return all
}

// setTimerLocked has another call made after a pause, which grows, lest a cluster that is slow is taken for one that is
// not there. In the second half of it, one that writes asks how the endpoints are.
func (r *race[T]) setTimerLocked() {
	pause, within := r.patience*time.Duration(1+r.again/r.endpoints), time.Duration(0)
	pause = pause*3/4 + rand.N(pause/2)
	if r.writes {
		pause, within = pause/2, pause/2
	}
	r.timer = time.AfterFunc(pause, func() { r.another(within) })
}

// another makes another call beside the others, unless it writes, and one of their endpoints is alive.
func (r *race[T]) another(within time.Duration) {
	alive := r.writes && r.oneIsAlive(within)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.over:
		return
	case alive:
		r.setTimerLocked()
		return
	case !r.countLocked():
		return
	}
	for _, d := range r.owing {
		d.endpoint.suspect(d.began)
	}
	r.setTimerLocked()
	r.running++
	if !r.backend.running.start(r.run) {
		r.running-- // the Locker is closed, and the contexts of the others end
	}
}

// oneIsAlive reports whether one of the endpoints that owe an answer says within a time that it is alive.
func (r *race[T]) oneIsAlive(within time.Duration) bool {
	r.mu.Lock()
	owing := r.debtorsLocked()
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.ctx, within)
	defer cancel()
	answers := make(chan bool, len(owing))
	for _, e := range owing {
		go func() { answers <- e.isAlive(ctx) }() // for so long
	}
	for range owing {
		if <-answers {
			return true
		}
	}
	return false
}

// countLocked counts another call, if there have not been enough.
func (r *race[T]) countLocked() bool {
	if r.again+1 >= 2*r.endpoints {
		return false
	}
	r.again++
	return true
}

// run calls one endpoint, and after failures another, until a call takes longer than the race.
func (r *race[T]) run() {
	for {
		v, err := r.callNext()
		if r.ends(v, err) {
			return
		}
	}
}

func (r *race[T]) callNext() (T, error) {
	r.mu.Lock()
	e, _ := r.backend.endpoints.next(r.debtorsLocked())
	d := &debt{e, time.Now()}
	r.owing = append(r.owing, d)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.Index(r.owing, d)
		r.owing = slices.Delete(r.owing, i, i+1)
	}()
	return use(r.ctx, r.caller, e, r.call)
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
	r.timer.Stop()
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
