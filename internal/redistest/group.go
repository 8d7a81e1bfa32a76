package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/testserver"
)

// groupPatience bounds the time that a cluster or a group may take for what it does by itself: to form, to notice a
// death, to elect.
const groupPatience = 60 * time.Second

// group is servers that know each other.
type group struct {
	servers []*Server
	clients map[*Server]*redis.Client // for their administration
}

// connect makes the clients.
func (g *group) connect() {
	g.clients = make(map[*Server]*redis.Client)
	for _, s := range g.servers {
		g.clients[s] = redis.NewClient(&redis.Options{
			Addr: s.Addr(), DisableIdentity: true, ContextTimeoutEnabled: true, DialerRetries: 1,
			ReadTimeout: 5 * time.Second, MaxRetries: -1, PoolSize: 4, PipelinePoolSize: -1,
		})
	}
}

// Admin returns a client of one server, which lives as long as the server.
func (g *group) Admin(server *Server) *redis.Client { return g.clients[server] }

// LogTail returns the end of what each server has logged so far.
func (g *group) LogTail() string {
	var all strings.Builder
	for _, s := range g.servers {
		if s != nil {
			fmt.Fprintf(&all, "%s:\n%s\n", s.Addr(), s.LogTail())
		}
	}
	return all.String()
}

// Close kills the servers and removes their files. Further calls do nothing.
func (g *group) Close() error {
	var errs []error
	for _, s := range g.servers {
		if rdb := g.clients[s]; rdb != nil {
			rdb.Close()
		}
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

func addrsOf(servers []*Server) (addrs []string) {
	for _, s := range servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// at returns the server with an address.
func (g *group) at(addr string) *Server {
	i := slices.IndexFunc(g.servers, func(s *Server) bool { return s.Addr() == addr })
	if i < 0 {
		return nil
	}
	return g.servers[i]
}

// await polls until the servers are what a test waits for, and fails the test if they are not in time.
func (g *group) await(tb testing.TB, what string, try func(ctx context.Context) error) {
	tb.Helper()
	if err := testserver.Poll(context.Background(), groupPatience, try); err != nil {
		tb.Fatalf("redistest: waiting for %s: %v\n%s", what, err, g.LogTail())
	}
}

// linkUp returns an error if a server is a replica without its master.
func (g *group) linkUp(ctx context.Context, server *Server) error {
	replication, err := g.clients[server].Info(ctx, "replication").Result()
	if err == nil && strings.Contains(replication, "master_link_status:down") {
		err = fmt.Errorf("%s: its link to the master is down", server.Addr())
	}
	return err
}

// isMaster returns an error if a server does not say itself that it is a master.
func (g *group) isMaster(ctx context.Context, server *Server) error {
	replication, err := g.clients[server].Info(ctx, "replication").Result()
	if err == nil && !strings.Contains(replication, "role:master") {
		err = fmt.Errorf("%s is not a master", server.Addr())
	}
	return err
}
