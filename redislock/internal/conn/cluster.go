package conn

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// cluster sends scripts to the nodes of a Redis Cluster.
//
// Each node is a server with a client of its own, so that its commands heed their ctx and share connections as those
// of a single server do. go-redis's ClusterClient does neither unless its options say so. It keeps the map of the
// slots, and follows the redirections by which a node tells that a slot is not, or no longer, its own.
type cluster struct {
	cc    *redis.ClusterClient
	known atomic.Bool // the map of the slots: to ask for the node of a key then takes no round trip

	mu      sync.Mutex
	closed  bool
	nodes   map[*redis.Client]*Client
	request *mapRequest
}

// mapRequest is a request for the map of the slots.
type mapRequest struct {
	began time.Time
	done  chan struct{}
	err   error // valid when done is closed
}

func newCluster(cc *redis.ClusterClient) *cluster {
	return &cluster{cc: cc, nodes: make(map[*redis.Client]*Client)}
}

// close stops what the clients of the nodes have started.
func (c *cluster) close() {
	c.mu.Lock()
	nodes := c.nodes
	c.nodes, c.closed = nil, true
	c.mu.Unlock()
	for _, node := range nodes {
		node.Drain()
	}
}

// node returns the client of the master that has the slot of key, as far as that is known.
func (c *cluster) node(ctx context.Context, key string) (*Client, error) {
	if !c.known.Load() {
		if err := c.fetchMap(ctx); err != nil {
			return nil, &unsentError{err}
		}
	}
	rdb, err := c.cc.MasterForKey(ctx, key)
	if err != nil {
		return nil, &unsentError{err}
	}
	return c.clientOf(rdb)
}

// clientOf returns the client of a node that go-redis has one for.
func (c *cluster) clientOf(rdb *redis.Client) (*Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.nodes[rdb]
	switch {
	case node != nil:
	case c.closed:
		return nil, &unsentError{redis.ErrClosed}
	default:
		node = newServerClient(rdb, true)
		c.nodes[rdb] = node
	}
	return node, nil
}

// masters returns the clients of all nodes that are masters.
func (c *cluster) masters(ctx context.Context) (nodes []*Client, err error) {
	var mu sync.Mutex
	err = orDone(ctx, func() error {
		return c.cc.ForEachMaster(ctx, func(_ context.Context, rdb *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			node, err := c.clientOf(rdb)
			nodes = append(nodes, node)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return nodes, nil
}

// fetchMap gets the map of the slots, or waits until another caller has got it. It asks one node after the other, in
// random order and without regard to ctx; one that hangs is not waited for long.
func (c *cluster) fetchMap(ctx context.Context) error {
	again := time.NewTicker(mapPatience)
	defer again.Stop()
	for {
		c.mu.Lock()
		r := c.request
		if r == nil || time.Since(r.began) >= mapPatience {
			r = &mapRequest{began: time.Now(), done: make(chan struct{})}
			c.request = r
			go c.answer(r)
		}
		c.mu.Unlock()
		select {
		case <-r.done:
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			if c.known.Load() {
				return nil
			}
		}
	}
}

// mapPatience is how long one request for the map of the slots may take before another one is made as well.
const mapPatience = time.Second

func (c *cluster) answer(r *mapRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), MaxTimeout)
	defer cancel()
	if _, r.err = c.cc.MasterForKey(ctx, "any"); r.err == nil {
		c.known.Store(true)
	}
	c.mu.Lock()
	if c.request == r {
		c.request = nil
	}
	c.mu.Unlock()
	close(r.done)
}

// forget drops the client of a node that go-redis has closed, because the node is not in the cluster any more.
func (c *cluster) forget(node *Client) {
	c.mu.Lock()
	for rdb, n := range c.nodes {
		if n == node {
			delete(c.nodes, rdb)
		}
	}
	c.mu.Unlock()
	node.Drain()
}

// errNodeLeft is why a command has failed, perhaps after it was sent.
var errNodeLeft = errors.New("redis: the node has left the cluster")

// failed draws the conclusions from an error of a node's connection. go-redis by itself would learn that a master has
// been replaced only from other nodes' answers, or after a minute.
func (c *cluster) failed(ctx context.Context, node *Client, err error) error {
	c.cc.ReloadState(ctx) // in the background
	if errors.Is(err, redis.ErrClosed) {
		c.forget(node)
		if pong := orDone(ctx, func() error { return c.cc.Ping(ctx).Err() }); !errors.Is(pong, redis.ErrClosed) {
			return errNodeLeft // and the cluster's client is not closed
		}
	}
	return err
}

// run is Client.Run. While the slot of the keys is on its way to another node, it waits and tries again: as long as
// some of several keys, or none, are there, neither node executes anything.
func (c *cluster) run(ctx context.Context, s *scripts.Script, w scripts.Words) (any, error) {
	moving := false
	for pause := unsettledPause; ; pause = min(2*pause, longestUnsettledPause) {
		node, err := c.node(ctx, w.All[0])
		if err != nil {
			return nil, err
		}
		reply, err := node.group.run(ctx, time.Time{}, s, w)
		switch {
		case err == nil:
			return reply, nil
		case IsUnsettled(err) && s.Part != scripts.None:
			return nil, nil // nothing was done, and the script for all cases is next
		case IsUnsettled(err):
			reply, err = c.follow(ctx, command(ctx, s, w))
		case !IsReply(err):
			err = c.failed(ctx, node, err)
		case redis.IsReadOnlyError(err):
			// The client is one of redis.NewFailoverClusterClient's, whose master has been replaced.
			c.cc.ReloadState(ctx)
		}
		switch {
		case IsUnsettled(err):
			moving = true
		case moving && err != nil && !IsReply(err):
			return nil, inMotion{err}
		default:
			return reply, err
		}
		if !wait(ctx, pause) {
			return nil, err
		}
	}
}

// runConfirmed is Client.RunConfirmed. It does not follow redirections, as those lead to a connection that is not
// known: it tries again until the map of the slots is right.
func (c *cluster) runConfirmed(
	ctx context.Context, s *scripts.Script, w scripts.Words, replicas int, within time.Duration,
) (reply any, confirmed int64, err error) {
	for pause := unsettledPause; ; pause = min(2*pause, longestUnsettledPause) {
		node, err := c.node(ctx, w.All[0])
		if err != nil {
			return nil, 0, err
		}
		reply, confirmed, err := node.RunConfirmed(ctx, s, w, replicas, within)
		switch {
		case err == nil:
			return reply, confirmed, nil
		case !IsReply(err):
			return nil, 0, c.failed(ctx, node, err)
		case !IsUnsettled(err):
			return nil, 0, err
		}
		c.cc.ReloadState(ctx)
		if !wait(ctx, pause) {
			return nil, 0, err
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
	return Sleep(ctx, d)
}

// follow has go-redis send a command to where redirections lead. It repeats nothing that may have been executed.
func (c *cluster) follow(ctx context.Context, cmd Once) (any, error) {
	cmd, err := cmd.by(ctx, func(cmd Once) error {
		return orDone(ctx, func() error { return c.cc.Process(ctx, cmd) })
	})
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// followers is how many commands of a batch are redirected at the same time.
const followers = 16

// runBatch is Client.RunBatch: one batch for each node, and those all at the same time. A node that hangs delays
// nothing of the others.
func (c *cluster) runBatch(ctx context.Context, b *Batch) error {
	parts := make(map[*Client][]int)
	var failure error
	for i, cmd := range b.Cmds {
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
func (c *cluster) runPart(ctx context.Context, b *Batch, node *Client, part []int) error {
	work := make([]Once, len(part))
	for j, i := range part {
		work[j] = b.Cmds[i]
	}
	err := node.sendBatch(ctx, work)
	if err != nil {
		err = c.failed(ctx, node, err)
	}
	var moved []int
	for j, i := range part {
		b.Cmds[i] = work[j]
		switch failure := b.Cmds[i].Err(); {
		case IsUnsettled(failure):
			moved = append(moved, i)
			continue
		case errors.Is(failure, redis.ErrClosed) && err != nil:
			b.Cmds[i].SetErr(err)
		}
		b.tell(i)
	}
	c.followPart(ctx, b, moved)
	return err
}

// followPart sends those commands of a batch again that were redirected.
func (c *cluster) followPart(ctx context.Context, b *Batch, moved []int) {
	room := make(chan struct{}, followers)
	var all sync.WaitGroup
	for _, i := range moved {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			again := Once{redis.NewCmd(ctx, b.Cmds[i].Args()...), b.Script}
			val, err := c.follow(ctx, again)
			result := Once{redis.NewCmd(ctx, b.Cmds[i].Args()...), b.Script} // again may still be written to, if ctx has ended
			result.SetVal(val)
			result.SetErr(err)
			b.Cmds[i] = result
			b.tell(i)
		})
	}
	all.Wait()
}

// Reload makes sure that a client of a cluster learns before long which nodes there are.
func (c *Client) Reload() {
	if c.nodes != nil {
		c.nodes.cc.ReloadState(context.Background())
	}
}
