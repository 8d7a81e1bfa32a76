package etcdtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockerkit/locker/internal/portkeep"
	"github.com/lockerkit/locker/internal/testserver"
)

// patience bounds the time that a member may take to start, which can include
// an election, and to end.
const patience = 30 * time.Second

// Options are the choices for a new cluster. The zero Options are fine.
type Options struct {
	// Members is how many the cluster has; 0 means 1.
	Members int

	// Flags are further arguments of all members, such as
	// "--quota-backend-bytes=16777216". They come last and so override the
	// defaults of this package: to elect a new leader within a second, so that
	// a lease may have a TTL as short as that, to leave the writing to the
	// disk to the operating system, and to log nothing but warnings.
	Flags []string

	// Fsync is how long each write to the disk takes at least. It takes CanSlowDisks.
	Fsync time.Duration

	// TLS makes the members speak TLS with their clients, and ask them for a
	// certificate; see Cluster.TLS.
	TLS bool
}

// defaults are flags in which a server for tests differs from others.
var defaults = []string{
	"--heartbeat-interval=50",
	"--election-timeout=500", // the shortest TTL of a lease is 1.5 times that, in whole seconds
	"--log-level=warn",

	// What is lost without it when the machine crashes goes with the test.
	// A crash of the server alone loses nothing.
	"--unsafe-no-fsync",
}

// Cluster is an etcd cluster of one member or more. Create one with Start or
// New. All methods are safe for concurrent use.
type Cluster struct {
	members []*Member
	flags   []string
	fsync   time.Duration
	pki     *pki // nil: no TLS

	mu sync.Mutex
	up map[*Member]bool // those that are to run, and not paused
}

// Start starts a cluster on free loopback ports and waits until every member
// takes part in it. On Linux the members die with this process, however that ends.
func Start(opts Options) (*Cluster, error) {
	program, err := product.Find()
	if err != nil {
		return nil, err
	}
	c := &Cluster{flags: opts.Flags, fsync: opts.Fsync, up: make(map[*Member]bool)}
	if opts.TLS {
		if c.pki, err = newPKI(); err != nil {
			return nil, fmt.Errorf("%s: %w", product.Package, err)
		}
	}
	for i := range max(opts.Members, 1) {
		m := &Member{cluster: c, name: "m" + strconv.Itoa(i)}
		if m.peer, err = portkeep.Keep(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: find a port: %w", product.Package, err), c.Close())
		}
		c.members = append(c.members, m)
	}
	// The token keeps members apart from those of a cluster that had the ports
	// before.
	formation := []string{"--initial-cluster=" + formationOf(c.members), "--initial-cluster-token=" + rand.Text()}
	// At once, as none of them is up before a majority is.
	for _, m := range c.members {
		c.up[m] = true
	}
	err = each(c.members, func(_ int, m *Member) (err error) {
		m.server, err = testserver.Start(m.spec(program, formation))
		return err
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// formationOf names members and where they listen to each other.
func formationOf(members []*Member) string {
	peers := make([]string, len(members))
	for i, m := range members {
		peers[i] = m.name + "=" + m.peerURL()
	}
	return strings.Join(peers, ",")
}

// spec says how to start the member.
func (m *Member) spec(program string, formation []string) testserver.Spec {
	c := m.cluster
	return testserver.Spec{
		Name:    product.Package,
		TempDir: product.TempDir(),
		Prepare: func(_ int, dir string) error { return c.pki.write(dir) },
		Command: func(port int, dir string) testserver.Command {
			url := c.url("127.0.0.1:" + strconv.Itoa(port))
			args := []string{
				"--name=" + m.name,
				"--data-dir=" + filepath.Join(dir, "data"),
				"--listen-client-urls=" + url, "--advertise-client-urls=" + url,
				"--listen-peer-urls=" + m.peerURL(), "--initial-advertise-peer-urls=" + m.peerURL(),
			}
			for _, more := range [][]string{formation, c.pki.flags(dir), defaults, c.flags} {
				args = append(args, more...)
			}
			program, args := c.slowed(program, args)
			return testserver.Command{Program: program, Args: args, Dir: dir, Env: product.Environment()}
		},
		IsUp:     m.isUp,
		Busy:     []string{"address already in use"},
		Patience: patience,
	}
}

// url returns the URL of a member for clients.
func (c *Cluster) url(addr string) string {
	if c.pki != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

// each does something with members, at once.
func each(members []*Member, do func(i int, m *Member) error) error {
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { errs[i] = do(i, m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) setUp(m *Member, up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up[m] = up
}

// running returns the members that are neither down nor paused.
func (c *Cluster) running() (members []*Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if c.up[m] {
			members = append(members, m)
		}
	}
	return members
}

// isMajority reports whether so many members get anything done.
func (c *Cluster) isMajority(members int) bool { return members > len(c.members)/2 }

// Size returns how many members the cluster has, up or down.
func (c *Cluster) Size() int { return len(c.members) }

// Member returns a member. The first one is number 0.
func (c *Cluster) Member(i int) *Member { return c.members[i] }

// Endpoints returns the addresses of all members, as host:port. They stay the
// same for the cluster's whole life.
func (c *Cluster) Endpoints() []string {
	addrs := make([]string, len(c.members))
	for i, m := range c.members {
		addrs[i] = m.Addr()
	}
	return addrs
}

// TLS returns what a client needs to speak TLS with the cluster, with its
// certificate, or nil if the cluster does without.
func (c *Cluster) TLS() *tls.Config {
	if c.pki == nil {
		return nil
	}
	return c.pki.client.Clone()
}

// Client returns a client that is closed when the test is over. It has all
// members as its endpoints, if none are named.
func (c *Cluster) Client(tb testing.TB, endpoints ...string) *clientv3.Client {
	tb.Helper()
	if len(endpoints) == 0 {
		endpoints = c.Endpoints()
	}
	client, err := c.newClient(endpoints)
	if err != nil {
		tb.Fatalf("%s: %v", product.Package, err)
	}
	tb.Cleanup(func() { client.Close() })
	return client
}

func (c *Cluster) newClient(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: c.TLS(), Logger: zap.NewNop()})
}

// AwaitHealthy waits until every member that runs takes part in the cluster:
// it can read what was last written, which needs a leader and a majority.
func (c *Cluster) AwaitHealthy(tb testing.TB) {
	tb.Helper()
	c.await(tb, "every member takes part in the cluster", func(running []*Member, try time.Time) error {
		return each(running, func(_ int, m *Member) error { return m.ready(m.Addr(), try) })
	})
}

// Leader waits until a majority of the members agree on a leader, of those
// that are neither down nor paused, and returns its number. After the leader
// was killed or paused that is another one.
func (c *Cluster) Leader(tb testing.TB) (number int) {
	tb.Helper()
	c.await(tb, "there is a leader", func(running []*Member, try time.Time) error {
		statuses := make([]*clientv3.StatusResponse, len(running))
		err := each(running, func(i int, m *Member) (err error) {
			statuses[i], err = m.status(try)
			return err
		})
		for i, leader := range statuses {
			votes := 0
			for _, s := range statuses {
				if leader != nil && s != nil && s.Leader == leader.Header.MemberId && s.RaftTerm == leader.RaftTerm {
					votes++
				}
			}
			if c.isMajority(votes) {
				number = slices.Index(c.members, running[i])
				return nil
			}
		}
		return errors.Join(errors.New("no majority agrees on one"), err)
	})
	return number
}

// await polls the members that run, and fails the test if that takes too long or they are no majority.
func (c *Cluster) await(tb testing.TB, what string, try func(running []*Member, deadline time.Time) error) {
	tb.Helper()
	err := testserver.Poll(context.Background(), patience, func(context.Context) error {
		running := c.running()
		if !c.isMajority(len(running)) {
			tb.Fatalf("etcdtest: waiting until %s: only %d of %d members run", what, len(running), len(c.members))
		}
		// Not the whole time for one try: a member may just have ended.
		return try(running, time.Now().Add(time.Second))
	})
	if err != nil {
		tb.Fatalf("etcdtest: waiting in vain until %s: %v", what, err)
	}
}

// Restart starts all members again, with the same data, and waits until every
// one takes part in the cluster. Those that still run are killed before.
func (c *Cluster) Restart() error {
	each(c.members, func(_ int, m *Member) error {
		m.Kill()
		return nil
	})
	return each(c.members, func(_ int, m *Member) error { return m.Restart() })
}

// LogTail returns the end of what each member has logged so far.
func (c *Cluster) LogTail() string {
	var all strings.Builder
	for _, m := range c.members {
		fmt.Fprintf(&all, "the end of the log of %s, %s:\n%s\n", m.name, m.Addr(), m.LogTail())
	}
	return all.String()
}

// Close kills the members, paused or not, and removes their data. Further
// calls do nothing.
func (c *Cluster) Close() error {
	return each(c.members, func(_ int, m *Member) error {
		c.setUp(m, false)
		return m.close()
	})
}

func (m *Member) close() (err error) {
	if m.server != nil { // it started
		err = m.server.Close()
	}
	return errors.Join(err, m.peer.Close())
}
