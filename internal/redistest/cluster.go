package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/portkeep"
)

// clusterPatience bounds the time that a cluster or a group may take for what
// it does by itself: to form, to notice a death, to elect.
const clusterPatience = 60 * time.Second

// slots is how many hash slots a cluster has.
const slots = 16384

// ClusterOptions are the choices for a new cluster. The zero ones are fine.
type ClusterOptions struct {
	// NodeTimeout is after how long a node that does not answer is taken to have
	// failed. 0 means two seconds: enough for a machine that is busy.
	NodeTimeout time.Duration

	// Args are further arguments of all nodes, as in Options.
	Args []string
}

// Cluster is a Redis Cluster of three masters with a replica each. Create one
// with StartCluster or NewCluster.
type Cluster struct {
	nodes   []*Server // first those that were masters at the start
	buses   []*portkeep.Port
	clients map[*Server]*redis.Client
}

// StartCluster starts a cluster on free loopback ports and waits until all of
// its nodes take part in it. On Linux they die with this process.
func StartCluster(opts ClusterOptions) (*Cluster, error) {
	const masters = 3
	if opts.NodeTimeout == 0 {
		opts.NodeTimeout = 2 * time.Second
	}
	c := &Cluster{nodes: make([]*Server, 2*masters), buses: make([]*portkeep.Port, 2*masters), clients: make(map[*Server]*redis.Client)}
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i := range c.nodes {
		wg.Go(func() { errs[i] = c.startNode(i, opts) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	for _, node := range c.nodes {
		c.clients[node] = newClient(node.Addr())
	}
	if err := c.form(masters); err != nil {
		return nil, errors.Join(fmt.Errorf("redistest: form a cluster: %w", err), c.Close())
	}
	return c, nil
}

// newClient returns a client for the administration of a server.
func newClient(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: addr, DisableIdentity: true, ContextTimeoutEnabled: true, DialerRetries: 1,
		ReadTimeout: 5 * time.Second, MaxRetries: -1, PoolSize: 4, PipelinePoolSize: -1,
	})
}

func (c *Cluster) startNode(i int, opts ClusterOptions) (err error) {
	if c.buses[i], err = portkeep.Keep(); err != nil {
		return fmt.Errorf("redistest: find a port: %w", err)
	}
	c.nodes[i], err = start(Options{Args: opts.Args}, func(_ int, _ string) []string {
		return []string{
			"--cluster-enabled", "yes",
			"--cluster-port", strconv.Itoa(c.buses[i].Number()),
			"--cluster-node-timeout", strconv.FormatInt(opts.NodeTimeout.Milliseconds(), 10),
			"--cluster-replica-validity-factor", "0", // a replica may take over however old its data
			"--repl-diskless-sync-delay", "0",
		}
	}, nil)
	return err
}

// form makes a cluster of the nodes, which know nothing of each other yet.
func (c *Cluster) form(masters int) error {
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	for i, node := range c.nodes {
		admin := c.clients[node]
		if err := admin.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if i < masters {
			var own []int
			for slot := i * slots / masters; slot < (i+1)*slots/masters; slot++ {
				own = append(own, slot)
			}
			if err := admin.ClusterAddSlots(ctx, own...).Err(); err != nil {
				return err
			}
		}
		if i > 0 {
			first := c.nodes[0].Addr()
			host, port, _ := strings.Cut(first, ":")
			if err := admin.Do(ctx, "cluster", "meet", host, port, c.buses[0].Number()).Err(); err != nil {
				return err
			}
		}
	}
	for i := masters; i < len(c.nodes); i++ {
		id, err := c.id(ctx, c.nodes[i-masters])
		if err != nil {
			return err
		}
		for c.clients[c.nodes[i]].ClusterReplicate(ctx, id).Err() != nil { // until it has heard of its master
			if !pause(ctx) {
				return ctx.Err()
			}
		}
	}
	return c.await(ctx)
}

// pause waits for a moment, and reports whether ctx still lives.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

func (c *Cluster) id(ctx context.Context, node *Server) (string, error) {
	return c.clients[node].ClusterMyID(ctx).Result()
}

// await waits until every node takes part in the cluster.
func (c *Cluster) await(ctx context.Context) error {
	for {
		var err error
		for _, node := range c.nodes {
			if err = c.ready(ctx, node); err != nil {
				err = fmt.Errorf("%s: %w", node.Addr(), err)
				break
			}
		}
		if err == nil || !pause(ctx) {
			return err
		}
	}
}

// ready returns nil if a node knows all the others, and has a working link to
// its master if it is a replica.
func (c *Cluster) ready(ctx context.Context, node *Server) error {
	info, err := c.clients[node].ClusterInfo(ctx).Result()
	if err != nil {
		return err
	}
	if !strings.Contains(info, "cluster_state:ok") {
		return errors.New("its cluster_state is not ok")
	}
	nodes, err := c.clients[node].ClusterNodes(ctx).Result()
	if err != nil {
		return err
	}
	if n := strings.Count(strings.TrimSpace(nodes), "\n") + 1; n != len(c.nodes) || strings.Contains(nodes, "fail") || strings.Contains(nodes, "handshake") {
		return fmt.Errorf("it sees\n%s", nodes)
	}
	if replicas := strings.Count(nodes, "slave"); replicas != len(c.nodes)/2 {
		return fmt.Errorf("it sees %d replicas", replicas)
	}
	return linkUp(ctx, c.clients[node])
}

// linkUp returns an error if a server is a replica without its master.
func linkUp(ctx context.Context, rdb *redis.Client) error {
	replication, err := rdb.Info(ctx, "replication").Result()
	if err == nil && strings.Contains(replication, "master_link_status:down") {
		err = errors.New("its link to the master is down")
	}
	return err
}

// NewCluster starts a cluster for one test, and closes it when the test is
// over. Where there is no server program, it does as New does.
func NewCluster(tb testing.TB, opts ClusterOptions) *Cluster {
	tb.Helper()
	c, err := StartCluster(opts)
	if err != nil {
		product.Unavailable(tb, err)
	}
	product.CloseAfter(tb, c)
	return c
}

// Nodes returns all nodes. Half of them are masters.
func (c *Cluster) Nodes() []*Server { return slices.Clone(c.nodes) }

// Addrs returns the addresses of all nodes, as host:port.
func (c *Cluster) Addrs() []string { return addrsOf(c.nodes) }

func addrsOf(servers []*Server) (addrs []string) {
	for _, s := range servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// URL returns the addresses as redis+cluster://host:port,host:port...
func (c *Cluster) URL() string { return "redis+cluster://" + strings.Join(c.Addrs(), ",") }

// Admin returns a client of one node, which lives as long as the cluster.
func (c *Cluster) Admin(node *Server) *redis.Client { return c.clients[node] }

// Client returns a client of the cluster that is closed with the test.
func (c *Cluster) Client(tb testing.TB) *redis.ClusterClient {
	tb.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), DisableIdentity: true, DialerRetries: 1})
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// AwaitHealthy waits until every node takes part in the cluster, none of which
// may be down or paused.
func (c *Cluster) AwaitHealthy(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	if err := c.await(ctx); err != nil {
		tb.Fatalf("redistest: the cluster did not become healthy: %v", err)
	}
}

// Master returns the master of a slot, and its replica, if it has one: what most
// of the nodes see.
func (c *Cluster) Master(ctx context.Context, slot int) (master, replica *Server, err error) {
	masters, replicas := make(map[*Server]int), make(map[*Server]int)
	for _, node := range c.nodes {
		nodes, e := c.clients[node].ClusterNodes(ctx).Result()
		if e != nil {
			err = e
			continue
		}
		master, replica := c.masterIn(nodes, slot)
		masters[master]++
		replicas[replica]++
	}
	majority := func(votes map[*Server]int) *Server {
		for server, n := range votes {
			if n > len(c.nodes)/2 {
				return server
			}
		}
		return nil
	}
	if master = majority(masters); master == nil {
		return nil, nil, errors.Join(fmt.Errorf("the nodes do not agree on the master of slot %d", slot), err)
	}
	return master, majority(replicas), nil
}

// masterIn finds the master of a slot, and its replica, in a reply to CLUSTER
// NODES: lines of id, address, flags, master's id, four numbers or words, and
// slots.
func (c *Cluster) masterIn(nodes string, slot int) (master, replica *Server) {
	masterID := ""
	var lines [][]string
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		lines = append(lines, fields)
		for _, r := range fields[8:] {
			first, last, isRange := strings.Cut(r, "-")
			from, err1 := strconv.Atoi(first)
			to, err2 := strconv.Atoi(last)
			if err1 == nil && (!isRange && from == slot || isRange && err2 == nil && from <= slot && slot <= to) {
				masterID, master = fields[0], c.at(fields[1])
			}
		}
	}
	for _, fields := range lines {
		if masterID != "" && fields[3] == masterID && !strings.Contains(fields[2], "fail") {
			replica = c.at(fields[1])
		}
	}
	return master, replica
}

// at returns the node with an address, which may have the port of its bus behind
// it.
func (c *Cluster) at(addr string) *Server {
	addr, _, _ = strings.Cut(addr, "@")
	for _, node := range c.nodes {
		if node.Addr() == addr {
			return node
		}
	}
	return nil
}

// MasterOf is Master for the slot of a key. It fails the test if there is none.
func (c *Cluster) MasterOf(tb testing.TB, key string) (master, replica *Server) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	for {
		master, replica, err := c.Master(ctx, c.Slot(tb, key))
		if err == nil {
			return master, replica
		}
		if !pause(ctx) {
			tb.Fatalf("redistest: %v", err)
		}
	}
}

// Slot returns the slot of a key, as a node computes it.
func (c *Cluster) Slot(tb testing.TB, key string) int {
	tb.Helper()
	for _, node := range c.nodes {
		if slot, err := c.clients[node].ClusterKeySlot(context.Background(), key).Result(); err == nil {
			return int(slot)
		}
	}
	tb.Fatal("redistest: no node answers")
	return 0
}

// AwaitFailover waits until a slot has a master that is not old, and every
// node but old agrees.
func (c *Cluster) AwaitFailover(tb testing.TB, slot int, old *Server) (master *Server) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	for {
		master, _, err := c.Master(ctx, slot)
		if err == nil && master != old {
			return master
		}
		if !pause(ctx) {
			tb.Fatalf("redistest: no failover of slot %d: %v", slot, err)
		}
	}
}

// BeginMove makes a slot one that is on its way from its master to another.
func (c *Cluster) BeginMove(ctx context.Context, slot int, from, to *Server) error {
	fromID, err := c.id(ctx, from)
	if err != nil {
		return err
	}
	toID, err := c.id(ctx, to)
	if err != nil {
		return err
	}
	if err := c.clients[to].Do(ctx, "cluster", "setslot", slot, "importing", fromID).Err(); err != nil {
		return err
	}
	return c.clients[from].Do(ctx, "cluster", "setslot", slot, "migrating", toID).Err()
}

// MoveKeys moves the keys that a slot has now.
func (c *Cluster) MoveKeys(ctx context.Context, slot int, from, to *Server) error {
	host, port, _ := strings.Cut(to.Addr(), ":")
	for {
		keys, err := c.clients[from].ClusterGetKeysInSlot(ctx, slot, 100).Result()
		if err != nil || len(keys) == 0 {
			return err
		}
		args := []any{"migrate", host, port, "", 0, 5000, "keys"}
		for _, key := range keys {
			args = append(args, key)
		}
		if err := c.clients[from].Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
}

// EndMove gives a slot to its new master, on all nodes that are masters.
func (c *Cluster) EndMove(ctx context.Context, slot int, from, to *Server) error {
	id, err := c.id(ctx, to)
	if err != nil {
		return err
	}
	for _, node := range append([]*Server{to, from}, c.nodes...) { // the new master first: else the slot has none for a moment
		err := c.clients[node].Do(ctx, "cluster", "setslot", slot, "node", id).Err()
		if err != nil && !strings.Contains(err.Error(), "only with masters") {
			return err
		}
	}
	return nil
}

// MoveSlot moves a slot to another master, while clients use it, and waits until
// all nodes know. Before that, a second move can leave the slot without an owner:
// nodes that move slots do not ask for votes.
func (c *Cluster) MoveSlot(ctx context.Context, slot int, to *Server) error {
	from, _, err := c.Master(ctx, slot)
	if err != nil || from == to {
		return err
	}
	for _, step := range []func(context.Context, int, *Server, *Server) error{c.BeginMove, c.MoveKeys, c.EndMove, c.awaitMoved} {
		if err := step(ctx, slot, from, to); err != nil {
			return fmt.Errorf("redistest: move slot %d: %w", slot, err)
		}
	}
	return nil
}

// awaitMoved waits until all nodes know that a slot has a new master, and of which
// epoch that is.
func (c *Cluster) awaitMoved(ctx context.Context, slot int, _, to *Server) error {
	id, err := c.id(ctx, to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, clusterPatience)
	defer cancel()
	for {
		epochs := make(map[string]bool)
		for _, node := range c.nodes {
			nodes, err := c.clients[node].ClusterNodes(ctx).Result()
			if err != nil {
				return err
			}
			master, _ := c.masterIn(nodes, slot)
			for line := range strings.Lines(nodes) {
				if fields := strings.Fields(line); fields[0] == id && master == to {
					epochs[fields[6]] = true
				} else if fields[0] == id {
					epochs["another master"] = true
				}
			}
		}
		if len(epochs) == 1 && !epochs["another master"] {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// LogTail returns the end of what each node has logged so far.
func (c *Cluster) LogTail() string { return logTails(c.nodes) }

func logTails(servers []*Server) string {
	var all strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&all, "the end of the log of %s:\n%s\n", s.Addr(), s.LogTail())
	}
	return all.String()
}

// Close kills the nodes and removes their files. Further calls do nothing.
func (c *Cluster) Close() error {
	var errs []error
	for i, node := range c.nodes {
		if rdb := c.clients[node]; rdb != nil {
			_ = rdb.Close()
		}
		if node != nil {
			errs = append(errs, node.Close())
		}
		if c.buses[i] != nil {
			errs = append(errs, c.buses[i].Close())
		}
	}
	return errors.Join(errs...)
}
