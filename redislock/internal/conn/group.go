package conn

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock/internal/scripts"
)

const (
	// together is how many calls are under way at the same time. Whoever comes while there are so many goes with the
	// next one: the busier the server, the more requests share a call. More of them do not make it faster, and fewer
	// make it slower for a handful of goroutines, which then wait for one another.
	together = 4

	// groupSize is how many requests share a call at most. Redis does nothing else meanwhile, for less than a
	// millisecond.
	groupSize = 100

	// slow is for how long requests wait for one of these calls to be answered. Then the server is far away, or one
	// of its connections hangs, and they go by another one.
	slow = 5 * time.Millisecond

	// maxCalls is how many calls may be under way to a slow server.
	maxCalls = 16

	// patience is how long a caller waits for an answer that it reads itself, which spares two changes of goroutine.
	// Such a wait does not end with the caller's ctx, so it has to be short.
	patience = 50 * time.Millisecond

	// nearby is the time within which a server answers that is worth waiting for in this way.
	nearby = patience / 5
)

// group sends the requests of many goroutines to one server: as one call of a script, or, to a node of a cluster,
// where keys are in different slots, as one pipeline. That is group commit, as databases do it: nobody waits for
// others to come, and whoever comes while calls are under way shares the next one. Each call has a pooled connection
// to itself, so that go-redis drops it when an answer says that it should, and one that hangs holds up nobody for
// long.
type group struct {
	client *Client
	unused sync.Pool // requests; the group's own, as a channel of one test's fake time is no good in that of another

	mu       sync.Mutex
	closed   bool
	near     bool // the last answer came fast, and none has failed to come since
	calls    int
	waiting  []*request
	underWay [][]*request // those of each call
	timing   bool         // a timer looks after both
	ticks    int          // of that timer
	running  sync.WaitGroup
}

// request is one run of a script.
type request struct {
	script *scripts.Script
	words  scripts.Words
	ctx    context.Context

	// wake has room for two: there is a reply, and, before that, perhaps, the caller shall heed his ctx from now on.
	// That he does not do so from the beginning, where answers come fast, saves making what tells him of its end.
	wake     chan struct{}
	answered atomic.Bool
	reply    any
	err      error

	// Guarded by group.mu.
	sent  bool
	heeds bool // the caller heeds his ctx, or has been told to
	since int  // group.ticks when it came
}

func (g *group) newRequest() *request {
	if r, ok := g.unused.Get().(*request); ok {
		return r
	}
	return &request{wake: make(chan struct{}, 2)}
}

// done returns the reply to a request that its caller alone knows now, and keeps what can be used again.
func (g *group) done(r *request) (any, error) {
	reply, err := r.reply, r.err
	if !r.heeds { // else there is something in wake, or about to be
		*r = request{wake: r.wake}
		g.unused.Put(r)
	}
	return reply, err
}

// run sends a request and waits for its reply, or until ctx ends, or the given time has come, if there is one.
func (g *group) run(ctx context.Context, until time.Time, s *scripts.Script, w scripts.Words) (any, error) {
	if ctx.Err() != nil {
		return nil, &unsentError{ctx.Err()}
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, &unsentError{redis.ErrClosed}
	}
	near := g.near
	r := g.newRequest()
	r.script, r.words, r.ctx, r.heeds, r.since = s, w, ctx, !near, g.ticks
	if near && g.calls < together && len(g.waiting) == 0 && g.client.impatient.PoolStats().IdleConns > 0 {
		g.calls++
		g.mu.Unlock()
		g.client.briefly(ctx, r)
		g.answered(r.err == nil || IsReply(r.err))
		return g.done(r)
	}
	g.waiting = append(g.waiting, r)
	if g.calls < together {
		g.callLocked()
	}
	g.watchLocked()
	g.mu.Unlock()
	if near {
		<-r.wake
		if r.answered.Load() {
			return g.done(r)
		}
	}
	return g.await(ctx, until, r)
}

// await waits for a reply, or until ctx ends, or the given time has come.
func (g *group) await(ctx context.Context, until time.Time, r *request) (any, error) {
	ctx, cancel := Until(ctx, until)
	defer cancel()
	select {
	case <-r.wake:
		return r.reply, r.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !r.sent {
		g.waiting = slices.DeleteFunc(g.waiting, func(w *request) bool { return w == r })
		return nil, &unsentError{ctx.Err()}
	}
	return nil, ctx.Err()
}

// answered notes the end of a caller's own call, after which those who have come meanwhile are sent.
func (g *group) answered(well bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls--
	g.near = g.near && well // the next attempt can be broken off
	if len(g.waiting) > 0 && g.calls < together {
		g.callLocked()
	}
}

// callLocked has a goroutine send those who wait, until there is none.
func (g *group) callLocked() {
	g.calls++
	g.running.Go(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for len(g.waiting) > 0 {
			n := min(len(g.waiting), groupSize)
			part := slices.Clone(g.waiting[:n])
			g.waiting = slices.Delete(g.waiting, 0, n)
			for _, r := range part {
				r.sent = true
			}
			g.underWay = append(g.underWay, part)
			g.mu.Unlock()
			start := time.Now()
			well := g.client.patiently(part)
			g.mu.Lock()
			g.near = well && g.client.Single && time.Since(start) < nearby
			g.underWay = slices.DeleteFunc(g.underWay, func(p []*request) bool { return p[0] == part[0] })
			g.mu.Unlock()
			for _, r := range part {
				r.answered.Store(true)
				r.wake <- struct{}{}
			}
			g.mu.Lock()
		}
		g.calls--
	})
}

// watchLocked looks after the requests for as long as there are any: those who wait do not do so for long for calls
// that are not answered, and after a while callers heed their ctx.
func (g *group) watchLocked() {
	if g.timing {
		return
	}
	g.timing = true
	time.AfterFunc(slow, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.timing = false
		g.ticks++
		if len(g.waiting) > 0 && g.ticks-g.waiting[0].since > 1 && g.calls < maxCalls && !g.closed {
			g.callLocked()
		}
		g.tellLocked(g.waiting)
		for _, part := range g.underWay {
			g.tellLocked(part)
		}
		if len(g.waiting)+len(g.underWay) > 0 {
			g.watchLocked()
		}
	})
}

// tellLocked has those callers heed their ctx who have waited for long.
func (g *group) tellLocked(rs []*request) {
	for _, r := range rs {
		if !r.heeds && g.ticks-r.since > int(patience/slow) {
			r.heeds = true
			r.wake <- struct{}{}
		}
	}
}

// close waits until what is under way has been answered. What comes later is refused.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}

// briefly sends a request on this goroutine, and does not wait long for the reply: that costs less than to have ctx
// end it.
func (c *Client) briefly(ctx context.Context, r *request) {
	ctx = context.WithoutCancel(ctx)
	process := func(cmd Once) error { return c.impatient.Process(ctx, cmd) }
	alone := call{r}
	cmd, _ := alone.command(ctx).by(ctx, process)
	alone.answer(cmd)
}

// patiently sends requests, and reports whether they have been answered.
func (c *Client) patiently(rs []*request) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(rs[0].ctx), MaxTimeout)
	defer cancel()
	calls := c.share(rs)
	cmds := make([]Once, len(calls))
	for i, part := range calls {
		cmds[i] = part.command(ctx)
	}
	err := c.sendBatch(ctx, cmds)
	for i, part := range calls {
		part.answer(cmds[i])
	}
	return err == nil
}

// call is one command for one request, or for several that are parts of quick.lua.
type call []*request

// share returns the calls for requests. To one server, parts of quick.lua are one call.
func (c *Client) share(rs []*request) []call {
	var calls []call
	var gives, takes call // in this order
	for _, r := range rs {
		switch {
		case c.Cluster || r.script.Part == scripts.None:
			calls = append(calls, call{r})
		case r.script.Part == scripts.Gives:
			gives = append(gives, r)
		default:
			takes = append(takes, r)
		}
	}
	if quick := append(gives, takes...); len(quick) > 0 {
		calls = append(calls, quick)
	}
	return calls
}

// command returns the command for a call.
func (c call) command(ctx context.Context) Once {
	script := c[0].script
	if script.Part == scripts.None {
		return command(ctx, script, c[0].words)
	}
	const most = 4 + 3 // keys and arguments of one
	args := make([]any, 3, 4+most*len(c))
	gives := 0
	for _, r := range c {
		args = addWords(args, r.words.All[:r.words.Keys])
		if r.script.Part == scripts.Gives {
			gives++
		}
	}
	args[0], args[1], args[2] = "evalsha", &script.SHA, len(args)-3
	args = append(args, gives)
	for _, r := range c {
		args = addWords(args, r.words.All[r.words.Keys:])
	}
	return Once{redis.NewCmd(ctx, args...), script}
}

// answer gives each request its part of the reply.
func (c call) answer(cmd Once) {
	if c[0].script.Part == scripts.None || cmd.Err() != nil {
		for _, r := range c {
			r.reply, r.err = cmd.Val(), cmd.Err()
		}
		return
	}
	replies, _ := cmd.Val().([]any)
	for i, r := range c {
		if len(replies) == len(c) {
			r.reply = replies[i]
		} else {
			r.err = fmt.Errorf("redis: unexpected reply %v to %d requests", cmd.Val(), len(c))
		}
	}
}
