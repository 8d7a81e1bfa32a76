package redislock

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

const (
	// direct is how many commands go out at the same time each on a pooled connection of its own. Up to about
	// this number that is faster; beyond it, sharing a connection is, several times over.
	direct = 8

	// maxTimeout bounds the wait for one answer, for clients that are configured to wait longer or for ever. Redis
	// answers scripts like these within microseconds; a connection that is silent for so long is broken.
	maxTimeout = 2 * time.Second
)

// client sends commands, over the connections of a redis.UniversalClient.
type client struct {
	redis.UniversalClient
	owned     bool // by the one who made it with newClient: close the pipe with it
	cluster   bool // keys in one command must be in one slot
	inFlight  atomic.Int64
	startPipe sync.Once
	pipe      *redis.AutoPipeliner // nil if the client has none
}

// newClient returns a client that uses the connections of uc.
func newClient(uc redis.UniversalClient) *client {
	plain, ok := uc.(*redis.Client)
	if !ok {
		return &client{UniversalClient: uc, cluster: true}
	}
	// A clone shares the connections, and has timeouts and a pipeline of its own. The options of the clone are a copy.
	timeout := plain.Options().ReadTimeout
	if timeout <= 0 || timeout > maxTimeout {
		timeout = maxTimeout
	}
	clone := plain.WithTimeout(timeout)
	if clone.Options() != plain.Options() {
		clone.Options().ContextTimeoutEnabled = true // else go-redis ignores a ctx while it waits for an answer
	}
	return &client{UniversalClient: clone, owned: true}
}

// close stops what newClient and do have started. The connections are the caller's.
func (c *client) close() error {
	c.startPipe.Do(func() {}) // from now on there is none, or there is one
	if c.pipe != nil && c.owned {
		return c.pipe.Close()
	}
	return nil // the pipeline of a shared client belongs to that client
}

// once is a command that go-redis must not repeat by itself: only who knows whether a command may have been executed
// before can tell what its answer means.
type once struct{ *redis.Cmd }

// NoRetry implements redis.Cmder.
func (once) NoRetry() bool { return true }

// command returns an EVALSHA of the script.
func command(ctx context.Context, s *script, keys []string, args ...any) once {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.sha, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	return once{redis.NewCmd(ctx, append(all, args...)...)}
}

// source turns the EVALSHA of a script that the server does not know into an EVAL, which also teaches it.
func source(ctx context.Context, s *script, evalsha once) once {
	args := append([]any(nil), evalsha.Args()...)
	args[0], args[1] = "eval", s.source
	return once{redis.NewCmd(ctx, args...)}
}

// run executes a script. It does not repeat it after an error, except when the server did not know the script.
func (c *client) run(ctx context.Context, s *script, keys []string, args ...any) (any, error) {
	cmd := command(ctx, s, keys, args...)
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

// runAgain executes a script that has the same effect when executed twice, and tries again when the connection fails:
// one from the pool may have been broken long ago. An error is marked as certain if nothing was ever sent.
func (c *client) runAgain(ctx context.Context, s *script, keys []string, args ...any) (any, error) {
	sent := false
	var failure error
	for attempt := 1; ; attempt++ {
		reply, err := c.run(ctx, s, keys, args...)
		if err == nil {
			return reply, nil
		}
		sent = sent || !isDial(err)
		if failure == nil || !isContext(err) {
			failure = err // what went wrong says more than that there was no time left to try again
		}
		if attempt == attempts || !pause(ctx, err, attempt) {
			break
		}
	}
	if !sent {
		return nil, locker.NotAcquired(explain(failure))
	}
	return nil, explain(failure)
}

// attempts is how many times a command is tried when connections fail.
const attempts = 3

// pause reports whether a command that failed with err should be tried again, and waits until then.
func pause(ctx context.Context, err error, attempt int) bool {
	if err == nil || isReply(err) || errors.Is(err, redis.ErrClosed) || ctx.Err() != nil {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(rand.N(time.Duration(attempt) * 20 * time.Millisecond)):
		return true
	}
}

// do sends one command: on a connection of its own while there are few, else along with others on a shared one.
func (c *client) do(ctx context.Context, cmd redis.Cmder) error {
	n := c.inFlight.Add(1)
	defer c.inFlight.Add(-1)
	if n > direct {
		c.startPipe.Do(func() {
			// Full duplex: commands do not wait for the answers of those before them. A client that has no
			// pipelines (redis.Ring) says so with an error.
			c.pipe, _ = c.AutoPipelineWithOptions(&redis.AutoPipelineOptions{FullDuplex: true})
		})
		if c.pipe != nil {
			return c.pipe.Process(ctx, cmd)
		}
	}
	return c.Process(ctx, cmd)
}

// batch is a script to be run several times in one round trip.
type batch struct {
	script *script
	cmds   []once
}

func (b *batch) add(ctx context.Context, keys []string, args ...any) {
	b.cmds = append(b.cmds, command(ctx, b.script, keys, args...))
}

// runBatch executes a batch; each of its commands then has its own result. It returns the error of the connection.
func (c *client) runBatch(ctx context.Context, b *batch) error {
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
	return c.send(ctx, again)
}

// send sends commands in one round trip. Errors that are answers are left in the commands.
func (c *client) send(ctx context.Context, cmds []once) error {
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, cmd := range cmds {
			_ = p.Process(ctx, cmd) // only queues it
		}
		return nil
	})
	if err != nil && !isReply(err) {
		return err
	}
	return nil
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}
