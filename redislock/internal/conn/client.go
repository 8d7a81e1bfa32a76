// Package conn sends scripts to a Redis by a client of go-redis, and says what is wrong when that fails.
package conn

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// MaxTimeout bounds the wait for one answer, for clients that are configured to wait longer or for ever. Redis
// answers scripts like these within microseconds; a connection that is silent for so long is broken.
const MaxTimeout = 2 * time.Second

// Client sends scripts over the connections of a redis.UniversalClient.
type Client struct {
	redis.UniversalClient               // with timeouts of ours if it is of one server
	impatient             *redis.Client // the same with a timeout of patience; nil if it is not of one server
	Single                bool          // of one server, or of one node of a cluster
	Cluster               bool          // keys in one command must be in one slot
	nodes                 *cluster      // finds the client of the node that has a key; nil if there is but one server
	group                 *group        // by which requests go to the one server
	inquiry               inquiry       // what kind of server does not answer as Redis does
}

// New returns a client that uses the connections of uc.
func New(uc redis.UniversalClient) *Client {
	switch uc := uc.(type) {
	case *redis.Client:
		return newServerClient(uc, false)
	case *redis.ClusterClient:
		return &Client{UniversalClient: uc, Cluster: true, nodes: newCluster(uc), inquiry: newInquiry()}
	}
	// Somebody's wrapper: what is in it is not known.
	c := &Client{UniversalClient: uc, Cluster: true, inquiry: newInquiry()}
	c.group = &group{client: c}
	return c
}

// newServerClient returns a client of one server, or of the one that Sentinel calls the master, or of a node of a
// cluster.
func newServerClient(plain *redis.Client, node bool) *Client {
	timeout := plain.Options().ReadTimeout
	if timeout <= 0 || timeout > MaxTimeout {
		timeout = MaxTimeout
	}
	c := &Client{
		UniversalClient: withTimeout(plain, timeout), impatient: withTimeout(plain, min(timeout, patience)),
		Single: true, Cluster: node, inquiry: newInquiry(),
	}
	c.group = &group{client: c}
	return c
}

// withTimeout returns a clone, which shares the connections. The options of the clone are a copy.
func withTimeout(plain *redis.Client, timeout time.Duration) *redis.Client {
	clone := plain.WithTimeout(timeout)
	if clone.Options() != plain.Options() {
		clone.Options().ContextTimeoutEnabled = true // else go-redis ignores a ctx while it waits for an answer
		clone.Options().MaxRetries = 0               // Server.Try repeats what may be repeated
		clone.AddHook(connectHook{})
		clone.AddHook(hooksOf{plain: plain})
	}
	return clone
}

// Drain waits for what is under way. The connections are the caller's.
func (c *Client) Drain() {
	if c.nodes != nil {
		c.nodes.close()
	} else {
		c.group.close()
	}
}

// Once is a run of a script that go-redis must not repeat by itself: only who knows whether it may have been executed
// before can tell what its answer means.
type Once struct {
	*redis.Cmd
	script *scripts.Script
}

// NoRetry implements redis.Cmder.
func (Once) NoRetry() bool { return true }

// command returns an EVALSHA of the script.
func command(ctx context.Context, s *scripts.Script, w scripts.Words) Once {
	args := make([]any, 3, 3+len(w.All))
	args[0], args[1], args[2] = "evalsha", &s.SHA, w.Keys
	return Once{redis.NewCmd(ctx, addWords(args, w.All)...), s}
}

// addWords adds pointers to words, to save copying each into an interface of its own.
func addWords(args []any, words []string) []any {
	for i := range words {
		args = append(args, &words[i])
	}
	return args
}

// source turns the EVALSHA of a script that the server does not know into an EVAL, which also teaches it.
func (o Once) source(ctx context.Context) Once {
	args := slices.Clone(o.Args())
	args[0], args[1] = "eval", &o.script.Source
	return Once{redis.NewCmd(ctx, args...), o.script}
}

// by has process send a command, and its source if the server does not know the script. It returns the one that was
// answered, or failed.
func (o Once) by(ctx context.Context, process func(Once) error) (Once, error) {
	err := process(o)
	if isNoScript(err) {
		o = o.source(ctx)
		err = process(o)
	}
	return o, err
}

// Run executes a script. It does not repeat it after an error, except when the server did not know the script. It ends
// with ctx, and at the given time, if there is one: that costs less than a ctx which ends then. With a server that is
// near it may end late, by a little more than patience.
func (c *Client) Run(ctx context.Context, until time.Time, s *scripts.Script, w scripts.Words) (any, error) {
	if c.nodes == nil {
		return c.group.run(ctx, until, s, w)
	}
	ctx, cancel := Until(ctx, until)
	defer cancel()
	return c.nodes.run(ctx, s, w)
}

// Until returns ctx, ended at the given time if there is one. cancel must be called.
func Until(ctx context.Context, until time.Time) (_ context.Context, cancel context.CancelFunc) {
	if until.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, until)
}

// RunConfirmed executes a script that may be repeated, waits until so many replicas have received what it wrote, and
// returns what the script did, and how many have. Both go out on one connection, as WAIT is about what was written on
// its own.
func (c *Client) RunConfirmed(
	ctx context.Context, s *scripts.Script, w scripts.Words, replicas int, within time.Duration,
) (reply any, confirmed int64, err error) {
	if c.nodes != nil {
		return c.nodes.runConfirmed(ctx, s, w, replicas, within)
	}
	run := command(ctx, s, w).source(ctx)
	var waited *redis.Cmd
	rdb := withTimeout(c.UniversalClient.(*redis.Client), within+MaxTimeout)
	_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		_ = p.Process(ctx, run) // only queues it
		waited = p.Do(ctx, "wait", replicas, within.Milliseconds())
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	confirmed, err = waited.Int64()
	return run.Val(), confirmed, err
}

// Attempts is how many times a command is tried when connections fail.
const Attempts = 3

// Pause reports whether a command that failed with err should be tried again, and waits until then.
func Pause(ctx context.Context, err error, attempt int) bool {
	if err == nil || IsReply(err) || errors.Is(err, redis.ErrClosed) || ctx.Err() != nil {
		return false
	}
	return Sleep(ctx, rand.N(time.Duration(attempt)*20*time.Millisecond))
}

// Sleep reports whether it has waited for d, which it has not if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
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

// Masters returns the clients of the servers that have keys: this one, unless it is a cluster's.
func (c *Client) Masters(ctx context.Context) ([]*Client, error) {
	if c.nodes == nil {
		return []*Client{c}, nil
	}
	return c.nodes.masters(ctx)
}

// Batch is a script to be run several times in one round trip.
type Batch struct {
	Script *scripts.Script
	Cmds   []Once
	Done   func(i int) // may be nil; called when a command has its own result, or error, by any goroutine
}

// Add adds a run of the script.
func (b *Batch) Add(ctx context.Context, w scripts.Words) {
	b.Cmds = append(b.Cmds, command(ctx, b.Script, w))
}

func (b *Batch) tell(i int) {
	if b.Done != nil {
		b.Done(i)
	}
}

// RunBatch executes a batch. It calls done for each of its commands, as soon as possible, and before it returns. It
// returns the error of a connection, if one failed.
func (c *Client) RunBatch(ctx context.Context, b *Batch) error {
	if c.nodes != nil {
		return c.nodes.runBatch(ctx, b)
	}
	err := c.sendBatch(ctx, b.Cmds)
	for i := range b.Cmds {
		b.tell(i)
	}
	return err
}

// sendBatch sends commands to one server, and sends those again whose script the server did not know. The errors that
// are answers to them are left in the commands.
func (c *Client) sendBatch(ctx context.Context, cmds []Once) error {
	err := c.send(ctx, cmds)
	var again []Once
	for i, cmd := range cmds {
		if isNoScript(cmd.Err()) {
			cmds[i] = cmd.source(ctx)
			again = append(again, cmds[i])
		}
	}
	if len(again) == 0 {
		return err
	}
	return cmp.Or(c.send(ctx, again), err)
}

// send sends commands in one round trip.
func (c *Client) send(ctx context.Context, cmds []Once) error {
	if len(cmds) == 1 {
		err := c.Process(ctx, cmds[0])
		if IsReply(err) && IsReply(cmds[0].Err()) {
			return nil
		}
		return err
	}
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, cmd := range cmds {
			_ = p.Process(ctx, cmd) // only queues it
		}
		return nil
	})
	if err == nil {
		return nil
	}
	if i := slices.IndexFunc(cmds, func(cmd Once) bool { return redis.IsReadOnlyError(cmd.Err()) }); i >= 0 {
		// go-redis drops a connection to what is a replica by now, but not after a pipeline. This command is likely to
		// go by the same one, and was not executed.
		_ = c.Process(ctx, cmds[i])
	}
	unanswered := false
	for _, cmd := range cmds {
		if cmd.Err() == nil && cmd.Val() == nil { // also when the server has refused the connection with an answer
			cmd.SetErr(err)
			unanswered = true
		}
	}
	if IsReply(err) && !unanswered {
		return nil
	}
	return err
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}
