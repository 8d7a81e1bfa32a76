package redislock

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// cluster sends scripts to the nodes of a Redis Cluster.
//
// Each node is a server with a client of its own, so that its commands heed their ctx and share connections as those of a
// single server do. go-redis's ClusterClient does neither unless its options say so. It keeps the map of the slots, and
// follows the redirections by which a node tells that a slot is not, or no longer, its own.
type cluster struct {
	cc    *redis.ClusterClient
	known atomic.Bool // the map of the slots: to ask for the node of a key then takes no round trip

	mu       sync.Mutex
	closed   bool
	nodes    map[*redis.Client]*client
	learning *lesson
}

// lesson is a request for the map of the slots.
type lesson struct {
	began time.Time
	done  chan struct{}
	err   error // valid when done is closed
}

func newCluster(cc *redis.ClusterClient) *cluster {
	return &cluster{cc: cc, nodes: make(map[*redis.Client]*client)}
}

// close stops what the clients of the nodes have started.
func (c *cluster) close() error {
	c.mu.Lock()
	nodes := c.nodes
	c.nodes, c.closed = nil, true
	c.mu.Unlock()
	var errs []error
	for _, node := range nodes {
		errs = append(errs, node.close())
	}
	return errors.Join(errs...)
}

// node returns the client of the master that has the slot of key, as far as that is known.
func (c *cluster) node(ctx context.Context, key string) (*client, error) {
	if !c.known.Load() {
		if err := c.learn(ctx); err != nil {
			return nil, &unsentError{err}
		}
	}
	rdb, err := c.cc.MasterForKey(ctx, key)
	if err != nil {
		return nil, &unsentError{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.nodes[rdb]
	switch {
	case node != nil:
	case c.closed:
		return nil, &unsentError{redis.ErrClosed}
	default:
		node = newServerClient(rdb)
		c.nodes[rdb] = node
	}
	return node, nil
}

// learn gets the map of the slots, or waits until another caller has got it. It asks one node after the other, in random
// order and without regard to ctx; one that hangs is not waited for long.
func (c *cluster) learn(ctx context.Context) error {
	ctx, cancel := timed(ctx)
	defer cancel()
	again := time.NewTicker(learnPatience)
	defer again.Stop()
	for {
		c.mu.Lock()
		l := c.learning
		if l == nil || time.Since(l.began) >= learnPatience {
			l = &lesson{began: time.Now(), done: make(chan struct{})}
			c.learning = l
			go c.study(l)
		}
		c.mu.Unlock()
		select {
		case <-l.done:
			return l.err
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			if c.known.Load() {
				return nil
			}
		}
	}
}

// learnPatience is how long one request for the map of the slots may take before another one is made as well.
const learnPatience = time.Second

func (c *cluster) study(l *lesson) {
	ctx, cancel := context.WithTimeout(context.Background(), maxTimeout)
	defer cancel()
	if _, l.err = c.cc.MasterForKey(ctx, "any"); l.err == nil {
		c.known.Store(true)
	}
	c.mu.Lock()
	if c.learning == l {
		c.learning = nil
	}
	c.mu.Unlock()
	close(l.done)
}

// forget drops the client of a node that go-redis has closed, because the node is not in the cluster any more.
func (c *cluster) forget(node *client) {
	c.mu.Lock()
	for rdb, n := range c.nodes {
		if n == node {
			delete(c.nodes, rdb)
		}
	}
	c.mu.Unlock()
	_ = node.close()
}

// errNodeLeft is why a command has failed, perhaps after it was sent.
var errNodeLeft = errors.New("redis: the node has left the cluster")

// failed draws the conclusions from an error of a node's connection. go-redis by itself would learn that a master has been
// replaced only from other nodes' answers, or after a minute.
func (c *cluster) failed(ctx context.Context, node *client, err error) error {
	c.cc.ReloadState(ctx) // in the background
	if errors.Is(err, redis.ErrClosed) {
		c.forget(node)
		ctx, cancel := timed(ctx)
		defer cancel()
		if pong := orDone(ctx, func() error { return c.cc.Ping(ctx).Err() }); !errors.Is(pong, redis.ErrClosed) {
			return errNodeLeft // and the cluster's client is not closed
		}
	}
	return err
}

// run is client.run. While the slot of the keys is on its way to another node, it waits and tries again: as long as some
// of several keys, or none, are there, neither node executes anything.
func (c *cluster) run(ctx context.Context, s *script, keys int, words []string) (any, error) {
	moving := false
	for pause := unsettledPause; ; pause = min(2*pause, longestUnsettledPause) {
		node, err := c.node(ctx, words[0])
		if err != nil {
			return nil, err
		}
		reply, err := node.run(ctx, s, keys, words)
		switch {
		case err == nil:
			return reply, nil
		case isUnsettled(err):
			reply, err = c.follow(ctx, s, command(ctx, s, keys, words))
		case !isReply(err):
			err = c.failed(ctx, node, err)
		case redis.IsReadOnlyError(err): // the client is one of redis.NewFailoverClusterClient's, whose master has been replaced
			c.cc.ReloadState(ctx)
		}
		switch {
		case isUnsettled(err):
			moving = true
		case moving && err != nil && !isReply(err):
			return nil, inMotion{err}
		default:
			return reply, err
		}
		if !wait(ctx, pause) {
			return nil, err
		}
	}
}

// The pauses between attempts at a slot that is being moved, which takes milliseconds for one with few keys.
const (
	unsettledPause        = 2 * time.Millisecond
	longestUnsettledPause = 50 * time.Millisecond
)

// wait waits for up to d, and reports whether there is time left after that.
func wait(ctx context.Context, d time.Duration) bool {
	d = d/2 + rand.N(d)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
	}
	return sleep(ctx, d)
}

// follow has go-redis send a command to where redirections lead. It repeats nothing that may have been executed.
func (c *cluster) follow(ctx context.Context, s *script, cmd once) (any, error) {
	ctx, cancel := timed(ctx)
	defer cancel()
	err := orDone(ctx, func() error { return c.cc.Process(ctx, cmd) })
	if isNoScript(err) {
		cmd = source(ctx, s, cmd)
		err = orDone(ctx, func() error { return c.cc.Process(ctx, cmd) })
	}
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// followers is how many commands of a batch are redirected at the same time.
const followers = 16

// runBatch is client.runBatch: one batch for each node, and those all at the same time. A node that hangs delays
// nothing of the others.
func (c *cluster) runBatch(ctx context.Context, b *batch) error {
	parts := make(map[*client][]int)
	var failure error
	for i, cmd := range b.cmds {
		node, err := c.node(ctx, *cmd.Args()[3].(*string))
		if err != nil {
			cmd.SetErr(err)
			b.tell(i)
			failure = err
			continue
		}
		parts[node] = append(parts[node], i)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for node, part := range parts {
		all.Go(func() {
			if err := c.runPart(ctx, b, node, part); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failure = err
			}
		})
	}
	all.Wait()
	return failure
}

// runPart sends that part of a batch to a node which is for its keys.
func (c *cluster) runPart(ctx context.Context, b *batch, node *client, part []int) error {
	work := &batch{script: b.script}
	for _, i := range part {
		work.cmds = append(work.cmds, b.cmds[i])
	}
	err := node.sendBatch(ctx, work)
	if err != nil {
		err = c.failed(ctx, node, err)
	}
	var moved []int
	for j, i := range part {
		b.cmds[i] = work.cmds[j]
		switch failure := b.cmds[i].Err(); {
		case isUnsettled(failure):
			moved = append(moved, i)
			continue
		case errors.Is(failure, redis.ErrClosed) && err != nil:
			b.cmds[i].SetErr(err)
		}
		b.tell(i)
	}
	c.followPart(ctx, b, moved)
	return err
}

// followPart sends those commands of a batch again that were redirected.
func (c *cluster) followPart(ctx context.Context, b *batch, moved []int) {
	room := make(chan struct{}, followers)
	var all sync.WaitGroup
	for _, i := range moved {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			again := once{redis.NewCmd(ctx, b.cmds[i].Args()...)}
			val, err := c.follow(ctx, b.script, again)
			result := once{redis.NewCmd(ctx, b.cmds[i].Args()...)} // again may still be written to, if ctx has ended
			result.SetVal(val)
			result.SetErr(err)
			b.cmds[i] = result
			b.tell(i)
		})
	}
	all.Wait()
}

// reload makes sure that a client of a cluster learns before long which nodes there are.
func (c *client) reload() {
	if c.nodes != nil {
		c.nodes.cc.ReloadState(context.Background())
	}
}
