package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/internal/testserver"
)

// MasterName is what the sentinels call the master.
const MasterName = "mymaster"

// SentinelOptions are the choices for a new group. The zero ones are fine.
type SentinelOptions struct {
	// DownAfter is after how long a master that does not answer is replaced. 0 means two seconds. Not one or less: a
	// sentinel first asks a new master after a second (or after DownAfter, if that is shorter), and would sometimes
	// replace it before it has asked.
	DownAfter time.Duration

	// Args are further arguments of the servers, as in Options.
	Args []string
}

// Sentinels is a master with two replicas, and three sentinels that watch them. Create one with StartSentinels or
// NewSentinels.
type Sentinels struct {
	group     // the servers, the first of which was the master at the start
	sentinels group
	watchers  map[*Server]*redis.SentinelClient
}

// StartSentinels starts a group on free loopback ports and waits until all of it works. On Linux the processes die
// with this one.
func StartSentinels(opts SentinelOptions) (*Sentinels, error) {
	s := &Sentinels{watchers: make(map[*Server]*redis.SentinelClient)}
	if err := s.start(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sentinels) start(opts SentinelOptions) error {
	if opts.DownAfter == 0 {
		opts.DownAfter = 2 * time.Second
	}
	var host, port string
	args := append([]string{"--repl-diskless-sync-delay", "0"}, opts.Args...)
	for i := range 3 {
		server, err := Start(Options{Args: args})
		if err != nil {
			return err
		}
		s.servers = append(s.servers, server)
		if i == 0 {
			host, port, _ = strings.Cut(server.Addr(), ":")
			args = append([]string{"--replicaof", host, port}, args...)
		}
	}
	config := fmt.Sprintf("sentinel monitor %s %s %s 2\n"+
		"sentinel down-after-milliseconds %[1]s %[4]d\n"+
		"sentinel failover-timeout %[1]s 3000\nsentinel parallel-syncs %[1]s 2\n",
		MasterName, host, port, opts.DownAfter.Milliseconds())
	s.sentinels.servers = make([]*Server, 3)
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			s.sentinels.servers[i], errs[i] = start(Options{}, func(_ int, dir string) []string {
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
	s.connect()
	for _, sentinel := range s.sentinels.servers {
		s.watchers[sentinel] = redis.NewSentinelClient(&redis.Options{
			Addr: sentinel.Addr(), DisableIdentity: true, ContextTimeoutEnabled: true, DialerRetries: 1,
			ReadTimeout: time.Second, MaxRetries: -1,
		})
	}
	return testserver.Poll(context.Background(), groupPatience, s.healthy)
}

// NewSentinels starts a group for one test, and closes it when the test is over. Without a server program, it does as
// New does.
func NewSentinels(tb testing.TB, opts SentinelOptions) *Sentinels {
	tb.Helper()
	return testserver.New(tb, product, func() (*Sentinels, error) { return StartSentinels(opts) })
}

// Servers returns the master and its replicas, in no order that lasts.
func (s *Sentinels) Servers() []*Server { return slices.Clone(s.servers) }

// Sentinels returns the sentinels.
func (s *Sentinels) Sentinels() []*Server { return slices.Clone(s.sentinels.servers) }

// SentinelAddrs returns the addresses of the sentinels, as host:port.
func (s *Sentinels) SentinelAddrs() []string { return addrsOf(s.sentinels.servers) }

// URL returns the addresses of the sentinels as redis+sentinel://host:port,.../mymaster/0.
func (s *Sentinels) URL() string {
	return "redis+sentinel://" + strings.Join(s.SentinelAddrs(), ",") + "/" + MasterName + "/0"
}

// FailoverOptions returns what a client needs to follow the master.
func (s *Sentinels) FailoverOptions() *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: MasterName, SentinelAddrs: s.SentinelAddrs(), DisableIdentity: true, DialerRetries: 1,
	}
}

// Client returns a client that follows the master and is closed with the test.
func (s *Sentinels) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	rdb := redis.NewFailoverClient(s.FailoverOptions())
	tb.Cleanup(func() { rdb.Close() })
	return rdb
}

// master returns the server that most of the sentinels take for the master.
func (s *Sentinels) master(ctx context.Context) (*Server, error) {
	votes := make(map[string]int)
	var failure error
	for _, sentinel := range s.sentinels.servers {
		addr, err := s.watchers[sentinel].GetMasterAddrByName(ctx, MasterName).Result()
		if err != nil || len(addr) != 2 {
			failure = err
			continue
		}
		votes[addr[0]+":"+addr[1]]++
	}
	for _, server := range s.servers {
		if votes[server.Addr()] > len(s.sentinels.servers)/2 {
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

// AwaitFailover waits until most of the sentinels agree on a master that is not old, which says itself that it is one.
func (s *Sentinels) AwaitFailover(tb testing.TB, old *Server) (master *Server) {
	tb.Helper()
	s.await(tb, "a master", func(ctx context.Context) (err error) {
		if master, err = s.master(ctx); err != nil {
			return err
		}
		if master == old {
			return fmt.Errorf("%s is still the master", old.Addr())
		}
		return s.isMaster(ctx, master)
	})
	return master
}

// AwaitHealthy waits until there is a master, both others replicate it, and the sentinels know all of them and each
// other. None may be down or paused.
func (s *Sentinels) AwaitHealthy(tb testing.TB) {
	tb.Helper()
	s.await(tb, "a healthy group", s.healthy)
}

func (s *Sentinels) healthy(ctx context.Context) error {
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
		if err := s.linkUp(ctx, server); err != nil {
			return err
		}
	}
	for _, sentinel := range s.sentinels.servers {
		if err := s.knows(ctx, sentinel, master); err != nil {
			return fmt.Errorf("sentinel %s: %w", sentinel.Addr(), err)
		}
	}
	return nil
}

// knows returns an error if a sentinel does not see the group as it is.
func (s *Sentinels) knows(ctx context.Context, sentinel, master *Server) error {
	known, err := s.watchers[sentinel].Master(ctx, MasterName).Result()
	if err != nil {
		return err
	}
	// There are other flags while it is being replaced, up to the end.
	if known["ip"]+":"+known["port"] != master.Addr() || known["flags"] != "master" ||
		known["num-slaves"] != "2" || known["num-other-sentinels"] != "2" {
		return fmt.Errorf("of the master %s it knows %v", master.Addr(), known)
	}
	replicas, err := s.watchers[sentinel].Replicas(ctx, MasterName).Result()
	if err != nil {
		return err
	}
	for _, r := range replicas {
		if r["flags"] != "slave" || r["master-link-status"] != "ok" {
			return fmt.Errorf("it sees the replica %v", r)
		}
	}
	return nil
}

// RestartReplica starts a server that is down as a replica of the master, which Sentinel would make of it in its own
// time, and waits until it has its data.
func (s *Sentinels) RestartReplica(tb testing.TB, server *Server) {
	tb.Helper()
	host, port, _ := strings.Cut(s.Master(tb).Addr(), ":")
	if err := server.Restart(); err != nil {
		tb.Fatal(err)
	}
	// Not with the client: for a second, one that has been refused a few times repeats that without a try.
	reply, err := roundTrip(server.Addr(), time.Now().Add(startPatience), "REPLICAOF", host, port)
	if err != nil || !strings.HasPrefix(reply, "+OK") {
		tb.Fatalf("redistest: REPLICAOF: %q, %v", reply, err)
	}
	s.await(tb, "its data", func(ctx context.Context) error { return s.linkUp(ctx, server) })
}

// LogTail returns the end of what each process has logged so far.
func (s *Sentinels) LogTail() string { return s.group.LogTail() + s.sentinels.LogTail() }

// Close kills all processes and removes their files. Further calls do nothing.
func (s *Sentinels) Close() error {
	for _, watcher := range s.watchers {
		watcher.Close()
	}
	return errors.Join(s.sentinels.Close(), s.group.Close())
}
