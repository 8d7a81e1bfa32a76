package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// MasterName is what the sentinels call the master.
const MasterName = "mymaster"

// SentinelOptions are the choices for a new group. The zero ones are fine.
type SentinelOptions struct {
	// DownAfter is after how long a master that does not answer is replaced. 0
	// means two seconds. Not one or less: a sentinel first asks a new master
	// after a second (or after DownAfter, if that is shorter), and would
	// sometimes replace it before it has asked.
	DownAfter time.Duration

	// Args are further arguments of the servers, as in Options.
	Args []string
}

// Sentinels is a master with two replicas, and three sentinels that watch them.
// Create one with StartSentinels or NewSentinels.
type Sentinels struct {
	servers   []*Server // the first was the master at the start
	sentinels []*Server
	clients   map[*Server]*redis.Client // of servers
	watchers  map[*Server]*redis.SentinelClient
}

// StartSentinels starts a group on free loopback ports and waits until all of
// it works. On Linux the processes die with this one.
func StartSentinels(opts SentinelOptions) (*Sentinels, error) {
	if opts.DownAfter == 0 {
		opts.DownAfter = 2 * time.Second
	}
	s := &Sentinels{clients: make(map[*Server]*redis.Client), watchers: make(map[*Server]*redis.SentinelClient)}
	if err := s.start(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sentinels) start(opts SentinelOptions) error {
	args := append([]string{"--repl-diskless-sync-delay", "0"}, opts.Args...)
	master, err := Start(Options{Args: args})
	if err != nil {
		return err
	}
	s.servers = []*Server{master}
	host, port, _ := strings.Cut(master.Addr(), ":")
	for range 2 {
		replica, err := Start(Options{Args: append([]string{"--replicaof", host + " " + port}, args...)})
		if err != nil {
			return err
		}
		s.servers = append(s.servers, replica)
	}
	config := fmt.Sprintf("sentinel monitor %s %s %s 2\n"+
		"sentinel down-after-milliseconds %[1]s %[4]d\nsentinel failover-timeout %[1]s 3000\nsentinel parallel-syncs %[1]s 2\n",
		MasterName, host, port, opts.DownAfter.Milliseconds())
	s.sentinels = make([]*Server, 3)
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i := range s.sentinels {
		wg.Go(func() {
			s.sentinels[i], errs[i] = start(Options{}, func(_ int, dir string) []string {
				return []string{filepath.Join(dir, "sentinel.conf"), "--sentinel"}
			}, func(_ int, dir string) error {
				return os.WriteFile(filepath.Join(dir, "sentinel.conf"), []byte(config), 0o600)
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, server := range s.servers {
		s.clients[server] = newClient(server.Addr())
	}
	for _, sentinel := range s.sentinels {
		s.watchers[sentinel] = redis.NewSentinelClient(&redis.Options{
			Addr: sentinel.Addr(), DisableIdentity: true, ContextTimeoutEnabled: true, DialerRetries: 1, ReadTimeout: time.Second, MaxRetries: -1,
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	return s.await(ctx)
}

// NewSentinels starts a group for one test, and closes it when the test is
// over. Where there is no server program, it does as New does.
func NewSentinels(tb testing.TB, opts SentinelOptions) *Sentinels {
	tb.Helper()
	s, err := StartSentinels(opts)
	if err != nil {
		product.Unavailable(tb, err)
	}
	product.CloseAfter(tb, s)
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(s.LogTail())
		}
	})
	return s
}

// Servers returns the master and its replicas, in no order that lasts.
func (s *Sentinels) Servers() []*Server { return append([]*Server(nil), s.servers...) }

// Sentinels returns the sentinels.
func (s *Sentinels) Sentinels() []*Server { return append([]*Server(nil), s.sentinels...) }

// SentinelAddrs returns the addresses of the sentinels, as host:port.
func (s *Sentinels) SentinelAddrs() []string { return addrsOf(s.sentinels) }

// URL returns the addresses of the sentinels as redis+sentinel://host:port,.../mymaster/0.
func (s *Sentinels) URL() string {
	return "redis+sentinel://" + strings.Join(s.SentinelAddrs(), ",") + "/" + MasterName + "/0"
}

// Admin returns a client of one server, which lives as long as the group.
func (s *Sentinels) Admin(server *Server) *redis.Client { return s.clients[server] }

// FailoverOptions returns what a client needs to follow the master.
func (s *Sentinels) FailoverOptions() *redis.FailoverOptions {
	return &redis.FailoverOptions{MasterName: MasterName, SentinelAddrs: s.SentinelAddrs(), DisableIdentity: true, DialerRetries: 1}
}

// Client returns a client that follows the master and is closed with the test.
func (s *Sentinels) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	rdb := redis.NewFailoverClient(s.FailoverOptions())
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// master returns the server that most of the sentinels take for the master.
func (s *Sentinels) master(ctx context.Context) (*Server, error) {
	votes := make(map[string]int)
	var failure error
	for _, sentinel := range s.sentinels {
		addr, err := s.watchers[sentinel].GetMasterAddrByName(ctx, MasterName).Result()
		if err != nil || len(addr) != 2 {
			failure = err
			continue
		}
		votes[addr[0]+":"+addr[1]]++
	}
	for _, server := range s.servers {
		if votes[server.Addr()] > len(s.sentinels)/2 {
			return server, nil
		}
	}
	return nil, errors.Join(errors.New("the sentinels do not agree on a master"), failure)
}

// Master waits until most of the sentinels agree on a master, and returns it.
func (s *Sentinels) Master(tb testing.TB) *Server {
	tb.Helper()
	return s.AwaitFailover(tb, nil)
}

// AwaitFailover waits until most of the sentinels agree on a master that is not
// old, which says itself that it is one.
func (s *Sentinels) AwaitFailover(tb testing.TB, old *Server) (master *Server) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	for {
		master, err := s.master(ctx)
		if err == nil && master != old {
			if err = isMaster(ctx, s.clients[master]); err == nil {
				return master
			}
		}
		if !pause(ctx) {
			tb.Fatalf("redistest: no failover: %v\n%s", err, logTails(s.sentinels))
		}
	}
}

func isMaster(ctx context.Context, rdb *redis.Client) error {
	replication, err := rdb.Info(ctx, "replication").Result()
	if err == nil && !strings.Contains(replication, "role:master") {
		err = errors.New("not a master")
	}
	return err
}

// AwaitHealthy waits until there is a master, both others replicate it, and the
// sentinels know all of them and each other. None may be down or paused.
func (s *Sentinels) AwaitHealthy(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	if err := s.await(ctx); err != nil {
		tb.Fatalf("redistest: the group did not become healthy: %v\n%s", err, logTails(s.sentinels))
	}
}

func (s *Sentinels) await(ctx context.Context) error {
	for {
		err := s.ready(ctx)
		if err == nil || !pause(ctx) {
			return err
		}
	}
}

func (s *Sentinels) ready(ctx context.Context) error {
	master, err := s.master(ctx)
	if err != nil {
		return err
	}
	replication, err := s.clients[master].Info(ctx, "replication").Result()
	if err != nil {
		return err
	}
	if !strings.Contains(replication, "role:master") || strings.Count(replication, "state=online") != len(s.servers)-1 {
		return fmt.Errorf("the master, %s, says\n%s", master.Addr(), replication)
	}
	for _, server := range s.servers {
		if err := linkUp(ctx, s.clients[server]); err != nil {
			return fmt.Errorf("%s: %w", server.Addr(), err)
		}
	}
	for _, sentinel := range s.sentinels {
		known, err := s.watchers[sentinel].Master(ctx, MasterName).Result()
		if err != nil {
			return err
		}
		// There are other flags while it is being replaced, up to the end.
		if addr := known["ip"] + ":" + known["port"]; addr != master.Addr() || known["flags"] != "master" {
			return fmt.Errorf("sentinel %s knows %s as %s, others %s as the master", sentinel.Addr(), addr, known["flags"], master.Addr())
		}
		if known["num-slaves"] != "2" || known["num-other-sentinels"] != "2" {
			return fmt.Errorf("sentinel %s knows %s replicas and %s others", sentinel.Addr(), known["num-slaves"], known["num-other-sentinels"])
		}
		replicas, err := s.watchers[sentinel].Replicas(ctx, MasterName).Result()
		if err != nil {
			return err
		}
		for _, r := range replicas {
			if r["flags"] != "slave" || r["master-link-status"] != "ok" {
				return fmt.Errorf("sentinel %s sees replica %s as %s, its link as %s", sentinel.Addr(), r["name"], r["flags"], r["master-link-status"])
			}
		}
	}
	return nil
}

// RestartReplica starts a server that is down as a replica of the master, which
// Sentinel would make of it in its own time, and waits until it has its data.
func (s *Sentinels) RestartReplica(tb testing.TB, server *Server) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	host, port, _ := strings.Cut(s.Master(tb).Addr(), ":")
	err := server.Restart()
	if err == nil {
		// Not with the client: for a second, one that has been refused a few times repeats that without a try.
		err = replicaOf(server, host, port)
	}
	for err == nil {
		if err = linkUp(ctx, s.clients[server]); err == nil {
			return
		}
		if pause(ctx) {
			err = nil
		}
	}
	tb.Fatalf("redistest: %v", err)
}

func replicaOf(server *Server, host, port string) error {
	reply, err := roundTrip(server.Addr(), time.Now().Add(startPatience), "REPLICAOF", host, port)
	if err == nil && !strings.HasPrefix(reply, "+OK") {
		err = errors.New(reply)
	}
	if err != nil {
		return fmt.Errorf("%s: REPLICAOF %s %s: %w", server.Addr(), host, port, err)
	}
	return nil
}

// LogTail returns the end of what each process has logged so far.
func (s *Sentinels) LogTail() string { return logTails(append(s.Servers(), s.sentinels...)) }

// Close kills all processes and removes their files. Further calls do nothing.
func (s *Sentinels) Close() error {
	var errs []error
	for _, server := range append(s.Servers(), s.sentinels...) {
		if rdb := s.clients[server]; rdb != nil {
			_ = rdb.Close()
		}
		if watcher := s.watchers[server]; watcher != nil {
			_ = watcher.Close()
		}
		if server != nil {
			errs = append(errs, server.Close())
		}
	}
	return errors.Join(errs...)
}
