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
	"github.com/lockerkit/locker/internal/testserver"
)

const (
	masters = 3     // of a cluster, each with a replica
	slots   = 16384 // hash slots of a cluster
)

// ClusterOptions are the choices for a new cluster. The zero ones are fine.
type ClusterOptions struct {
	// NodeTimeout is after how long a node that does not answer is taken to have failed. 0 means two seconds: enough
	// for a machine that is busy.
	NodeTimeout time.Duration

	// Args are further arguments of all nodes, as in Options.
	Args []string
}

// Cluster is a Redis Cluster of three masters with a replica each. Create one with StartCluster or NewCluster.
type Cluster struct {
	group // first those that were masters at the start
	buses []*portkeep.Port
}

// StartCluster starts a cluster on free loopback ports and waits until all of its nodes take part in it. On Linux they
// die with this process.
func StartCluster(opts ClusterOptions) (*Cluster, error) {
	c := &Cluster{group: group{servers: make([]*Server, 2*masters)}, buses: make([]*portkeep.Port, 2*masters)}
	if err := c.start(opts); err != nil {
		return nil, errors.Join(fmt.Errorf("redistest: start a cluster: %w", err), c.Close())
	}
	return c, nil
}

// NewCluster starts a cluster for one test, and closes it when the test is over. Without a server program, it does as
// New does.
func NewCluster(tb testing.TB, opts ClusterOptions) *Cluster {
	tb.Helper()
	return testserver.New(tb, product, func() (*Cluster, error) { return StartCluster(opts) })
}

func (c *Cluster) start(opts ClusterOptions) error {
	if opts.NodeTimeout == 0 {
		opts.NodeTimeout = 2 * time.Second
	}
	errs := make([]error, len(c.servers))
	var wg sync.WaitGroup
	for i := range c.servers {
		wg.Go(func() { errs[i] = c.startNode(i, opts) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.connect()
	ctx, cancel := context.WithTimeout(context.Background(), groupPatience)
	defer cancel()
	return c.form(ctx)
}

func (c *Cluster) startNode(i int, opts ClusterOptions) (err error) {
	if c.buses[i], err = portkeep.Keep(); err != nil {
		return err
	}
	c.servers[i], err = start(Options{Args: opts.Args}, func(_ int, _ string) []string {
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
func (c *Cluster) form(ctx context.Context) error {
	host, port, _ := strings.Cut(c.servers[0].Addr(), ":")
	for i, node := range c.servers {
		admin := c.clients[node]
		if err := admin.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if i < masters {
			if err := admin.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err(); err != nil {
				return err
			}
		}
		if i > 0 {
			if err := admin.Do(ctx, "cluster", "meet", host, port, c.buses[0].Number()).Err(); err != nil {
				return err
			}
		}
	}
	for i := masters; i < len(c.servers); i++ {
		id, err := c.id(ctx, c.servers[i-masters])
		if err != nil {
			return err
		}
		err = testserver.Poll(ctx, groupPatience, func(ctx context.Context) error { // until it has heard of its master
			return c.clients[c.servers[i]].ClusterReplicate(ctx, id).Err()
		})
		if err != nil {
			return err
		}
	}
	return testserver.Poll(ctx, groupPatience, c.healthy)
}

func (c *Cluster) id(ctx context.Context, node *Server) (string, error) {
	return c.clients[node].ClusterMyID(ctx).Result()
}

// healthy returns an error if a node does not know all the others, or has no working link to its master if it is a
// replica.
func (c *Cluster) healthy(ctx context.Context) error {
	for _, node := range c.servers {
		info, err := c.clients[node].ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		if !strings.Contains(info, "cluster_state:ok") {
			return fmt.Errorf("%s: its cluster_state is not ok", node.Addr())
		}
		nodes, err := c.clients[node].ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		if strings.Count(nodes, "\n") != 2*masters || strings.Count(nodes, "slave") != masters ||
			strings.Contains(nodes, "fail") || strings.Contains(nodes, "handshake") {
			return fmt.Errorf("%s sees\n%s", node.Addr(), nodes)
		}
		if err := c.linkUp(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// Nodes returns all nodes. Half of them are masters.
func (c *Cluster) Nodes() []*Server { return slices.Clone(c.servers) }

// Addrs returns the addresses of all nodes, as host:port.
func (c *Cluster) Addrs() []string { return addrsOf(c.servers) }

// URL returns the addresses as redis+cluster://host:port,host:port...
func (c *Cluster) URL() string { return "redis+cluster://" + strings.Join(c.Addrs(), ",") }

// Client returns a client of the cluster that is closed with the test.
func (c *Cluster) Client(tb testing.TB) *redis.ClusterClient {
	tb.Helper()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), DisableIdentity: true, DialerRetries: 1})
	tb.Cleanup(func() { rdb.Close() })
	return rdb
}

// AwaitHealthy waits until every node takes part in the cluster, none of which may be down or paused.
func (c *Cluster) AwaitHealthy(tb testing.TB) {
	tb.Helper()
	c.await(tb, "a healthy cluster", c.healthy)
}

// Master returns the master of a slot, and its replica, if it has one: what most of the nodes see.
func (c *Cluster) Master(ctx context.Context, slot int) (master, replica *Server, err error) {
	masters, replicas := make(map[*Server]int), make(map[*Server]int)
	for _, node := range c.servers {
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
			if n > len(c.servers)/2 {
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

// masterIn finds the master of a slot, and its replica, in a reply to CLUSTER NODES: lines of id, address with the
// port of the bus behind it, flags, master's id, four numbers or words, and slots.
func (c *Cluster) masterIn(nodes string, slot int) (master, replica *Server) {
	masterID := ""
	var lines [][]string
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		fields[1], _, _ = strings.Cut(fields[1], "@")
		lines = append(lines, fields)
		for _, r := range fields[8:] {
			first, last, isRange := strings.Cut(r, "-")
			if !isRange {
				last = first
			}
			from, err1 := strconv.Atoi(first)
			to, err2 := strconv.Atoi(last)
			if err1 == nil && err2 == nil && from <= slot && slot <= to {
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

// MasterOf is Master for the slot of a key. It fails the test if there is none.
func (c *Cluster) MasterOf(tb testing.TB, key string) (master, replica *Server) {
	tb.Helper()
	slot := c.Slot(tb, key)
	c.await(tb, "a master", func(ctx context.Context) (err error) {
		master, replica, err = c.Master(ctx, slot)
		return err
	})
	return master, replica
}

// Slot returns the slot of a key, as a node computes it.
func (c *Cluster) Slot(tb testing.TB, key string) (slot int) {
	tb.Helper()
	for _, node := range c.servers {
		if slot, err := c.clients[node].ClusterKeySlot(context.Background(), key).Result(); err == nil {
			return int(slot)
		}
	}
	tb.Fatal("redistest: no node answers")
	return 0
}

// AwaitFailover waits until a slot has a master that is not old, and most nodes agree.
func (c *Cluster) AwaitFailover(tb testing.TB, slot int, old *Server) (master *Server) {
	tb.Helper()
	c.await(tb, "a failover", func(ctx context.Context) (err error) {
		if master, _, err = c.Master(ctx, slot); err == nil && master == old {
			err = fmt.Errorf("%s is still the master of slot %d", old.Addr(), slot)
		}
		return err
	})
	return master
}

// BeginMove makes a slot one that is on its way from its master to another.
func (c *Cluster) BeginMove(ctx context.Context, slot int, from, to *Server) error {
	fromID, err1 := c.id(ctx, from)
	toID, err2 := c.id(ctx, to)
	if err := errors.Join(err1, err2); err != nil {
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
	// The new master first: else the slot has none for a moment.
	for _, node := range append([]*Server{to, from}, c.servers...) {
		err := c.clients[node].Do(ctx, "cluster", "setslot", slot, "node", id).Err()
		if err != nil && !strings.Contains(err.Error(), "only with masters") {
			return err
		}
	}
	return nil
}

// MoveSlot moves a slot to another master, while clients use it, and waits until all nodes know. Before that, a
// second move can leave the slot without an owner: nodes that move slots do not ask for votes.
func (c *Cluster) MoveSlot(ctx context.Context, slot int, to *Server) error {
	from, _, err := c.Master(ctx, slot)
	if err != nil || from == to {
		return err
	}
	for _, step := range []func(context.Context, int, *Server, *Server) error{c.BeginMove, c.MoveKeys, c.EndMove} {
		if err := step(ctx, slot, from, to); err != nil {
			return fmt.Errorf("redistest: move slot %d: %w", slot, err)
		}
	}
	return testserver.Poll(ctx, groupPatience, func(ctx context.Context) error { return c.moved(ctx, slot, to) })
}

// moved returns an error unless all nodes know that a slot has a new master, and of which epoch that is.
func (c *Cluster) moved(ctx context.Context, slot int, to *Server) error {
	epochs := make(map[string]bool)
	for _, node := range c.servers {
		nodes, err := c.clients[node].ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		if master, _ := c.masterIn(nodes, slot); master != to {
			return fmt.Errorf("%s does not know the new master of slot %d", node.Addr(), slot)
		}
		for line := range strings.Lines(nodes) {
			if fields := strings.Fields(line); strings.HasPrefix(fields[1], to.Addr()+"@") {
				epochs[fields[6]] = true
			}
		}
	}
	if len(epochs) != 1 {
		return fmt.Errorf("the nodes see %s in several epochs", to.Addr())
	}
	return nil
}

// Close kills the nodes and removes their files. Further calls do nothing.
func (c *Cluster) Close() error {
	errs := []error{c.group.Close()}
	for _, bus := range c.buses {
		if bus != nil {
			errs = append(errs, bus.Close())
		}
	}
	return errors.Join(errs...)
}
