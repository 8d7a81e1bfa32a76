package redislock_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// setUser makes the user "app" with password "pw" on a server.
func setUser(t *testing.T, admin *redis.Client, rules string) {
	t.Helper()
	args := []any{"acl", "setuser", "app", "reset", "on", ">pw"}
	for _, rule := range strings.Fields(rules) {
		args = append(args, rule)
	}
	if err := admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
}

// useAll does with two Lockers all that they can do.
func useAll(t *testing.T, a, b locker.Locker, keys int) {
	t.Helper()
	const ttl = 6 * time.Second // its renewals are in time also when the machine is busy
	late := 0
	var modes []locktest.Pending[bool]
	for i := range keys {
		key := "k" + strconv.Itoa(i)
		lease := mustLock(t, a, key, locker.TTL(ttl))
		if _, err := b.TryLock(t.Context(), key); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock: %v; want ErrLocked", err)
		}
		next := locktest.Started(func() *locker.Lease { return mustLock(t, b, key) })
		locktest.Outlives(t, lease, 1) // a renewal, and polls meanwhile
		released := time.Now()
		mustUnlock(t, lease)
		mustUnlock(t, next.Get(t))
		if took := time.Since(released); took > 800*time.Millisecond { // or the machine is very busy
			late++
		}
		modes = append(modes, locktest.Started(func() bool { useModes(t, a, b, key, ttl); return true }))
	}
	if late == keys {
		t.Errorf("all %d handoffs took long: no message arrived", keys)
	}
	for _, used := range modes {
		used.Get(t)
	}
}

// useModes has readers, and holders of slots, come and go while others wait for them.
func useModes(t *testing.T, a, b locker.Locker, key string, ttl time.Duration) {
	t.Helper()
	for _, mode := range []locker.CallOption{locker.Shared(), locker.Slots(2)} {
		leases := []*locker.Lease{mustLock(t, a, key, mode, locker.TTL(ttl)), mustLock(t, b, key, mode)}
		// Each unlocks by itself: on a machine that is busy, the one who is to be behind may be the first in line.
		wait := func(l locker.Locker, opts ...locker.CallOption) locktest.Pending[bool] {
			return locktest.Started(func() bool { mustUnlock(t, mustLock(t, l, key, opts...)); return true })
		}
		next := wait(a)
		time.Sleep(50 * time.Millisecond) // or else it is no different from what is above
		behind := wait(b, mode)
		locktest.Outlives(t, leases[0], 1)
		mustUnlock(t, leases[0])
		mustUnlock(t, leases[1])
		next.Get(t)
		behind.Get(t)
	}
}

// TestPermissionsAreUsed checks that every command which the documentation lists is one that is sent.
func TestPermissionsAreUsed(t *testing.T) {
	t.Parallel()
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	documented := documentedACL(t)
	rules, replicated := documented.server, documented.replicated
	setUser(t, admin, rules+replicated)
	client := func() *redis.Client {
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "app", Password: "pw", DB: 1})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	useAll(t, open(t, client()), open(t, client()), 3)
	replicating := redislock.Config{Replicas: 1, ReplicasWithin: 10 * time.Millisecond}.New(client())
	if _, err := replicating.TryLock(t.Context(), "k"); !errors.Is(err, redislock.ErrReplicas) {
		t.Errorf("without replicas: %v", err)
	}
	if err := replicating.Close(); err != nil {
		t.Error(err)
	}
	stats := admin.Info(t.Context(), "commandstats").Val()
	for _, rule := range strings.Fields(rules + replicated) {
		name, isCommand := strings.CutPrefix(rule, "+")
		switch name {
		case "auth",
			"client",
			"ping",
			"unsubscribe",
			"zrangebyscore": // for older and newer servers, for silent ones, at other moments
			continue
		}
		if isCommand && !strings.Contains(stats, "cmdstat_"+name+":") && !strings.Contains(stats, "cmdstat_"+name+"|") {
			t.Errorf("%s is documented, and not used", rule)
		}
	}
}

func TestPermissionsOnACluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{})
	documented := documentedACL(t)
	rules, more := documented.server, documented.cluster
	for _, node := range c.Nodes() {
		setUser(t, c.Admin(node), rules+more)
	}
	client := func() *redis.ClusterClient {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), Username: "app", Password: "pw"})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	a, b := open(t, client()), open(t, client())
	useAll(t, a, b, 3)
	// Redirections, of which one begins with ASKING.
	lease := mustLock(t, a, "k", locker.TTL(6*time.Second))
	from, _ := c.MasterOf(t, redislock.DefaultPrefix+"k")
	slot := c.Slot(t, redislock.DefaultPrefix+"k")
	for _, to := range c.Nodes()[:3] {
		if to == from {
			continue
		}
		if err := errors.Join(c.BeginMove(t.Context(), slot, from, to), c.MoveKeys(t.Context(), slot, from, to)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if err := lease.Err(); err != nil {
			t.Error(err)
		}
		if err := c.EndMove(t.Context(), slot, from, to); err != nil {
			t.Fatal(err)
		}
		break
	}
	mustUnlock(t, lease)
	for _, node := range c.Nodes()[:3] {
		log, err := c.Admin(node).ACLLog(t.Context(), 10).Result()
		if err != nil || len(log) > 0 {
			t.Errorf("refused on %s: %+v, %v", node.Addr(), log, err)
		}
	}
}

func TestPermissionsOnSentinels(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t, redistest.SentinelOptions{})
	rules := documentedACL(t).sentinel
	for _, sentinel := range s.Sentinels() {
		setUser(t, dial(t, sentinel.Addr()), "-@all "+rules)
	}
	o := s.FailoverOptions()
	o.SentinelUsername, o.SentinelPassword, o.DisableIdentity = "app", "pw", false
	rdb := redis.NewFailoverClient(o)
	defer rdb.Close()
	l := open(t, rdb)
	mustUnlock(t, mustLock(t, l, "k"))
	old := s.Master(t)
	old.Kill()
	s.AwaitFailover(t, old)
	eventuallyWithin(t, 20*time.Second, "the new master is found", func() bool {
		lease, err := l.TryLock(t.Context(), "k")
		return err == nil && lease.Unlock() == nil
	})
	for _, sentinel := range s.Sentinels() {
		log, err := dial(t, sentinel.Addr()).ACLLog(t.Context(), 10).Result()
		if err != nil || len(log) > 0 {
			t.Errorf("refused on sentinel %s: %+v, %v", sentinel.Addr(), log, err)
		}
	}
}

// TestScriptsDisabled has servers on which EVAL, or all scripts, are forbidden in the ways that providers have.
func TestScriptsDisabled(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"eval":    {"--rename-command", "EVAL", ""},
		"evalsha": {"--rename-command", "EVALSHA", ""},
	} {
		server := redistest.New(t, redistest.Options{Args: args})
		t.Run(name, func(t *testing.T) {
			checkFailure(t, open(t, dial(t, server.Addr())), "k", redislock.ErrUnsupported)
		})
	}
	server := redistest.New(t, redistest.Options{})
	rules := documentedACL(t).server
	setUser(t, dial(t, server.Addr()), strings.Replace(rules, "+eval ", "", 1)+" -@scripting")
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "app", Password: "pw"})
	defer rdb.Close()
	checkFailure(t, open(t, rdb), "k", redislock.ErrPermission)
}

// TestErrorsOfServers has servers in states of their own.
func TestErrorsOfServers(t *testing.T) {
	t.Parallel()
	t.Run("too few replicas", func(t *testing.T) {
		server := redistest.New(t, redistest.Options{Args: []string{"--min-replicas-to-write", "1"}})
		checkFailure(t, open(t, dial(t, server.Addr())), "k", redislock.ErrReplicas)
	})
	t.Run("a replica without its master", func(t *testing.T) {
		server := redistest.New(t,
			redistest.Options{Args: []string{"--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no"}})
		checkFailure(t, open(t, dial(t, server.Addr())), "k", redislock.ErrReadOnly)
	})
	t.Run("a cluster with slots of no node", func(t *testing.T) {
		server := redistest.New(t, redistest.Options{Args: []string{"--cluster-enabled", "yes"}})
		checkFailure(t, open(t, dial(t, server.Addr())), "k", redislock.ErrClusterDown)
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr()}, DisableIdentity: true})
		defer rdb.Close()
		if _, err := open(t, rdb).TryLock(t.Context(), "k"); err == nil || errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock: %v", err)
		}
	})
	t.Run("a cluster client of a server that is none", func(t *testing.T) {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{redistest.Address(t)}, DisableIdentity: true})
		defer rdb.Close()
		if _, err := open(t, rdb).TryLock(t.Context(), "k"); err == nil || !strings.Contains(err.Error(), "cluster") {
			t.Errorf("TryLock: %v", err)
		}
	})
	t.Run("busy", func(t *testing.T) {
		server := redistest.New(t, redistest.Options{Args: []string{"--lua-time-limit", "10"}})
		admin := dial(t, server.Addr())
		go func() { _ = admin.Eval(t.Context(), "while true do end", nil).Err() }()
		l := open(t, dial(t, server.Addr()))
		eventuallyWithin(t, 10*time.Second, "TryLock says that the server is busy", func() bool {
			_, err := l.TryLock(t.Context(), "k")
			return errors.Is(err, redislock.ErrBusy)
		})
	})
}
