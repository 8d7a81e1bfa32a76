package redislock

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxTimeout bounds the wait for one answer, for clients that are configured to wait longer or for ever. Redis
// answers scripts like these within microseconds; a connection that is silent for so long is broken.
const maxTimeout = 2 * time.Second

const (
	// direct is how many commands go out at the same time each on a connection of its own. Up to about this many
	// that is faster than sharing one: a goroutine that waits for its own answer is spared two changes of goroutine,
	// each of which takes about as long as Redis does. Beyond it, sharing is several times as fast.
	direct = 8

	// patience is how long a command on a connection of its own waits for its answer. Such a wait cannot be broken off
	// when the caller's ctx is cancelled, so it has to be short.
	patience = 50 * time.Millisecond

	// nearby is the time within which a server answers that is worth waiting for in this way.
	nearby = patience / 5
)

// client sends commands over the connections of a redis.UniversalClient.
//
// A command goes out on a pooled connection of its own while there are few and the server is near and answers.
// Otherwise it goes through go-redis's automatic pipeline: the commands of all goroutines share one connection, in full
// duplex, so that none waits for the answers of those before it, and a caller whose ctx ends can stop waiting without
// breaking the connection. Batches go over pooled connections, so that renewals do not depend on that one.
type client struct {
	redis.UniversalClient
	single  bool     // of one server, and then newClient's own: nobody shares its pipeline, and it heeds ctx deadlines
	cluster bool     // keys in one command must be in one slot
	nodes   *cluster // finds the client of the node that has a key; nil if there is but one server

	inFlight  atomic.Int32
	near      atomic.Bool // the last answer by the pipeline came fast, and none has failed to come since
	inquiry   inquiry     // what kind of server does not answer as Redis does
	startPipe sync.Once
	pipe      *redis.AutoPipeliner // nil if the client has none
}

// newClient returns a client that uses the connections of uc.
func newClient(uc redis.UniversalClient) *client {
	switch uc := uc.(type) {
	case *redis.Client:
		return newServerClient(uc)
	case *redis.ClusterClient:
		return &client{UniversalClient: uc, cluster: true, nodes: newCluster(uc), inquiry: newInquiry()}
	}
	// Somebody's wrapper: what is in it is not known.
	return &client{UniversalClient: uc, cluster: true, inquiry: newInquiry()}
}

// newServerClient returns a client of one server, or of the one that Sentinel calls the master.
func newServerClient(plain *redis.Client) *client {
	// A clone shares the connections, and has timeouts and a pipeline of its own. The options of the clone are a copy.
	timeout := plain.Options().ReadTimeout
	if timeout <= 0 || timeout > maxTimeout {
		timeout = maxTimeout
	}
	clone := plain.WithTimeout(timeout)
	if clone.Options() != plain.Options() {
		clone.Options().ContextTimeoutEnabled = true // else go-redis ignores a ctx while it waits for an answer
		clone.Options().MaxRetries = 0               // backend.acquire repeats what may be repeated
	}
	return &client{UniversalClient: clone, single: true, inquiry: newInquiry()}
}

// close stops what the client has started. The connections are the caller's.
func (c *client) close() error {
	if c.nodes != nil {
		return c.nodes.close()
	}
	c.startPipe.Do(func() {}) // from now on there is none, or there is one
	if c.pipe == nil || !c.single {
		return nil // the pipeline of a client that is not our clone goes with that client
	}
	return c.pipe.Close()
}

// once is a command that go-redis must not repeat by itself: only who knows whether a command may have been executed
// before can tell what its answer means.
type once struct{ *redis.Cmd }

// NoRetry implements redis.Cmder.
func (once) NoRetry() bool { return true }

// command returns an EVALSHA of the script with the given keys, which come first, and arguments.
func command(ctx context.Context, s *script, keys int, words []string) once {
	args := make([]any, 3, 3+len(words))
	args[0], args[1], args[2] = "evalsha", &s.sha, keys
	for i := range words {
		args = append(args, &words[i]) // a pointer, to save copying each into an interface of its own
	}
	return once{redis.NewCmd(ctx, args...)}
}

// source turns the EVALSHA of a script that the server does not know into an EVAL, which also teaches it.
func source(ctx context.Context, s *script, evalsha once) once {
	args := slices.Clone(evalsha.Args())
	args[0], args[1] = "eval", &s.source
	return once{redis.NewCmd(ctx, args...)}
}

// run executes a script. It does not repeat it after an error, except when the server did not know the script.
func (c *client) run(ctx context.Context, s *script, keys int, words []string) (any, error) {
	if c.nodes != nil {
		return c.nodes.run(ctx, s, keys, words)
	}
	cmd := command(ctx, s, keys, words)
	err := c.do(ctx, cmd)
	if isNoScript(err) {
		cmd = source(ctx, s, cmd)
		err = c.do(ctx, cmd)
	}
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// attempts is how many times a command is tried when connections fail.
const attempts = 3

// pause reports whether a command that failed with err should be tried again, and waits until then.
func pause(ctx context.Context, err error, attempt int) bool {
	if err == nil || isReply(err) || errors.Is(err, ErrReplicas) || errors.Is(err, redis.ErrClosed) || ctx.Err() != nil || past(ctx) {
		return false
	}
	return sleep(ctx, rand.N(time.Duration(attempt)*20*time.Millisecond))
}

// sleep reports whether it has waited for d, which it has not if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// past reports whether the deadline of ctx has passed, though it may not have ended yet.
func past(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) <= 0
}

// do sends one command and waits for the answer, or until ctx ends; cmd may then not be touched any more.
func (c *client) do(ctx context.Context, cmd once) error {
	defer c.inFlight.Add(-1)
	if c.inFlight.Add(1) <= direct && c.near.Load() && ctx.Err() == nil {
		err := c.Process(&brief{Context: ctx, until: time.Now().Add(patience)}, cmd)
		if err != nil && !isReply(err) && !past(ctx) {
			c.near.Store(false) // the next attempt goes by the pipeline, and can be broken off
		}
		return err
	}
	c.startPipe.Do(func() {
		// A client that has no pipelines (redis.Ring) says so with an error. The delay counts only while more than a
		// hundred commands await answers: more of them then go into one write.
		c.pipe, _ = c.AsyncAutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true, MaxFlushDelay: 100 * time.Microsecond})
	})
	ctx, cancel := timed(ctx)
	defer cancel()
	if c.pipe != nil {
		start := time.Now()
		err := c.pipe.Submit(ctx, cmd).WaitContext(ctx)
		if c.single && !c.near.Load() && err == nil && time.Since(start) < nearby {
			c.near.Store(true)
		}
		return err
	}
	return orDone(ctx, func() error { return c.Process(ctx, cmd) })
}

// orDone calls f, which may take longer than ctx lasts, and returns what it returns, or why ctx ended.
func orDone(ctx context.Context, f func() error) error {
	answer := make(chan error, 1)
	go func() { answer <- f() }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hurried is a context with an earlier deadline, which has no timer: do turns it into a real one where it has to.
type hurried struct {
	context.Context
	until time.Time
}

// Deadline implements context.Context.
func (h hurried) Deadline() (time.Time, bool) { return h.until, true }

// timed returns a context whose Done is closed when its deadline has passed.
func timed(ctx context.Context) (context.Context, context.CancelFunc) {
	if h, ok := ctx.(hurried); ok {
		return context.WithDeadline(h.Context, h.until)
	}
	return ctx, func() {}
}

// brief is the context of a command on a connection of its own. go-redis turns its deadline into that of the connection,
// so that it needs no timer, and asks for Done to see whether it has ended already, which do has done, and again if it
// has to wait for a free connection, or to make one, which is when it gets a timer. To make a channel that ends when
// everything does that may end a call costs about as much as to write the command.
type brief struct {
	context.Context
	until time.Time
	asked atomic.Bool
}

// Deadline implements context.Context.
func (b *brief) Deadline() (time.Time, bool) {
	if deadline, ok := b.Context.Deadline(); ok && deadline.Before(b.until) {
		return deadline, true
	}
	return b.until, true
}

// Done implements context.Context.
func (b *brief) Done() <-chan struct{} {
	if !b.asked.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithDeadline(b.Context, b.until)
	context.AfterFunc(ctx, cancel) // which is soon, in any case
	return ctx.Done()
}

// Err implements context.Context.
func (b *brief) Err() error {
	if err := b.Context.Err(); err != nil {
		return err
	}
	if past(b) {
		return context.DeadlineExceeded
	}
	return nil
}

// batch is a script to be run several times in one round trip.
type batch struct {
	script *script
	cmds   []once
	done   func(i int) // may be nil; called when a command has its own result, or error, by any goroutine
}

func (b *batch) add(ctx context.Context, keys int, words []string) {
	b.cmds = append(b.cmds, command(ctx, b.script, keys, words))
}

func (b *batch) tell(i int) {
	if b.done != nil {
		b.done(i)
	}
}

// runBatch executes a batch. It calls done for each of its commands, as soon as possible, and before it returns. It
// returns the error of a connection, if one failed.
func (c *client) runBatch(ctx context.Context, b *batch) error {
	if c.nodes != nil {
		return c.nodes.runBatch(ctx, b)
	}
	err := c.sendBatch(ctx, b)
	for i := range b.cmds {
		b.tell(i)
	}
	return err
}

// sendBatch sends a batch to one server, and sends again those commands whose script the server did not know.
func (c *client) sendBatch(ctx context.Context, b *batch) error {
	err := c.send(ctx, b.cmds)
	var unknown []int
	for i, cmd := range b.cmds {
		if isNoScript(cmd.Err()) {
			unknown = append(unknown, i)
		}
	}
	if len(unknown) == 0 {
		return err
	}
	again := make([]once, len(unknown))
	for i, at := range unknown {
		again[i] = source(ctx, b.script, b.cmds[at])
		b.cmds[at] = again[i]
	}
	return cmp.Or(c.send(ctx, again), err)
}

// send sends commands in one round trip. Errors that are answers to them are left in the commands.
func (c *client) send(ctx context.Context, cmds []once) error {
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, cmd := range cmds {
			_ = p.Process(ctx, cmd) // only queues it
		}
		return nil
	})
	if err == nil {
		return nil
	}
	unanswered := false
	for _, cmd := range cmds {
		if cmd.Err() == nil && cmd.Val() == nil { // also when the server has refused the connection with an answer
			cmd.SetErr(err)
			unanswered = true
		}
	}
	if isReply(err) && !unanswered {
		return nil
	}
	return err
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}
