package doctor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/cmd/locker/internal/doctor"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/testserver"
)

const (
	onRedis   = kind("Redis")
	onRedlock = kind("Redlock")
)

// redisServer starts a server with which all is well, but for the arguments.
func redisServer(t *testing.T, args ...string) *redistest.Server {
	t.Helper()
	return redistest.New(t, redistest.Options{Args: append([]string{"--appendonly", "yes"}, args...)})
}

// configure sets a parameter of a server.
func configure(t *testing.T, admin *redis.Client, name, value string) {
	t.Helper()
	if err := admin.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
}

// await polls until a field of INFO is what a test waits for: Redis does not tell when.
func await(t *testing.T, admin *redis.Client, section, want string) {
	t.Helper()
	err := testserver.Poll(t.Context(), time.Minute, func(ctx context.Context) error {
		info, err := admin.Info(ctx, section).Result()
		if err == nil && !strings.Contains(info, want) {
			err = fmt.Errorf("no %s in %s", want, info)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRedisHealthy(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	results := onRedis.examine(t, patient(server.URL()), nil)
	if last := results[len(results)-1]; last.Check != "lock" {
		t.Errorf("the last check is %s", line(last))
	}
	keys := redistest.Dial(t, server.Addr()).Keys(t.Context(), "*").Val()
	for _, key := range keys { // the fencing token and the tombstone of the ping
		if !strings.Contains(key, "locker.ping") {
			t.Errorf("key %q was left behind", key)
		}
	}
}

func TestRedisEviction(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	admin := redistest.Dial(t, server.Addr())
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu",
		"volatile-random", "volatile-ttl"} {
		configure(t, admin, "maxmemory-policy", policy)
		configure(t, admin, "maxmemory", "0")
		wants := map[string]want{"eviction": {doctor.Warn, "maxmemory-policy noeviction"}}
		onRedis.examine(t, patient(server.URL()), wants)
		configure(t, admin, "maxmemory", "1gb")
		wants = map[string]want{"eviction": {doctor.Fail, "maxmemory-policy noeviction"}}
		onRedis.examine(t, patient(server.URL()), wants)
	}
}

func TestRedisHasEvicted(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	admin := redistest.Dial(t, server.Addr())
	if err := admin.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	configure(t, admin, "maxmemory-policy", "allkeys-lru")
	configure(t, admin, "maxmemory", "1")
	_ = admin.Set(t.Context(), "k2", "v", 0).Err() // which has k evicted
	await(t, admin, "stats", "evicted_keys:1")
	configure(t, admin, "maxmemory", "0")
	configure(t, admin, "maxmemory-policy", "noeviction")
	onRedis.examine(t, patient(server.URL()), map[string]want{"evicted keys": {doctor.Warn, "fencing"}})
}

func TestRedisMemory(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	admin := redistest.Dial(t, server.Addr())
	configure(t, admin, "maxmemory", "1")
	onRedis.examine(t, patient(server.URL()), map[string]want{
		"memory": {doctor.Fail, "maxmemory"}, "lock": {doctor.Fail, "First mend"},
	})
	configure(t, admin, "maxmemory", "100mb")
	value := bytes.Repeat([]byte("x"), 1<<20)
	for i := 0; ; i++ {
		if err := admin.Set(t.Context(), fmt.Sprint("k", i), value, 0).Err(); err != nil {
			t.Fatal(err)
		}
		var used int
		for line := range strings.Lines(admin.Info(t.Context(), "memory").Val()) {
			_, _ = fmt.Sscanf(line, "used_memory:%d", &used)
		}
		if used > 92<<20 {
			break
		}
	}
	onRedis.examine(t, patient(server.URL()), map[string]want{"memory": {doctor.Warn, "maxmemory"}})
}

func TestRedisPersistence(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"nothing":       {"--appendonly", "no"},
		"snapshots":     {"--appendonly", "no", "--save", "3600", "1"},
		"without fsync": {"--appendfsync", "no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			do := "appendonly yes"
			if args[0] == "--appendfsync" {
				do = "appendfsync always"
			}
			server := redisServer(t, args...)
			onRedis.examine(t, patient(server.URL()), map[string]want{"persistence": {doctor.Warn, do}})
		})
	}
}

func TestRedisCannotSave(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--appendonly", "yes", "--save", "3600", "1"}
	server := redistest.New(t, redistest.Options{Dir: dir, Args: args})
	admin := redistest.Dial(t, server.Addr())
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := admin.BgSave(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	await(t, admin, "persistence", "rdb_last_bgsave_status:err")
	onRedis.examine(t, patient(server.URL()), map[string]want{
		"saving": {doctor.Fail, "log of the server"}, "lock": {doctor.Fail, "First mend"},
	})
}

func TestRedisReplica(t *testing.T) {
	t.Parallel()
	master := redisServer(t)
	host, port, _ := strings.Cut(master.Addr(), ":")
	replica := redisServer(t, "--replicaof", host, port, "--repl-diskless-sync-delay", "0")
	await(t, redistest.Dial(t, replica.Addr()), "replication", "master_link_status:up")
	onRedis.examine(t, patient(replica.URL()), map[string]want{
		"role": {doctor.Fail, "redis+sentinel://"}, "lock": {doctor.Fail, "First mend"},
	})
	admin := redistest.Dial(t, master.Addr())
	await(t, admin, "replication", "state=online")
	onRedis.examine(t, patient(master.URL()), map[string]want{"replicas": {doctor.Warn, "min-replicas-to-write 1"}})
	configure(t, admin, "min-replicas-to-write", "1")
	await(t, admin, "replication", "min_slaves_good_slaves:1")
	onRedis.examine(t, patient(master.URL()), nil)
	replica.Kill()
	await(t, admin, "replication", "min_slaves_good_slaves:0")
	onRedis.examine(t, patient(master.URL()), map[string]want{
		"replicas": {doctor.Fail, "Bring the replicas back"}, "lock": {doctor.Fail, "First mend"},
	})
}

func TestRedisConnections(t *testing.T) {
	t.Parallel()
	const limit = 100
	server := redisServer(t, "--maxclients", fmt.Sprint(limit))
	admin := redistest.Dial(t, server.Addr())
	var conns []net.Conn
	closeTo := func(n int) {
		for len(conns) > n {
			_ = conns[len(conns)-1].Close()
			conns = conns[:len(conns)-1]
		}
	}
	defer closeTo(0)
	await(t, admin, "clients", "connected_clients:1")
	for len(conns) < 91 {
		conns = append(conns, must(net.Dial("tcp", server.Addr()))(t))
	}
	await(t, admin, "clients", "connected_clients:92")
	onRedis.examine(t, patient(server.URL()), map[string]want{"connections": {doctor.Warn, "maxclients"}})
	await(t, admin, "clients", "connected_clients:92")
	for len(conns) < limit { // one more than there is room for, beside the admin's
		conns = append(conns, must(net.Dial("tcp", server.Addr()))(t))
	}
	await(t, admin, "stats", "rejected_connections:1")
	closeTo(20)
	await(t, admin, "clients", "connected_clients:21")
	onRedis.examine(t, patient(server.URL()), map[string]want{"connections": {doctor.Warn, "maxclients"}})
}

// documented returns the rules of docs/redis.md for those who lock.
func documented(t *testing.T) (rules []string) {
	t.Helper()
	source := string(must(os.ReadFile("../../../../docs/redis.md"))(t))
	_, section, _ := strings.Cut(source, "ACL SETUSER app on >secret ")
	section, _, found := strings.Cut(section, "```")
	if !found {
		t.Fatal("docs/redis.md has no rules for a user")
	}
	return strings.Fields(section)
}

// setUser makes a user of a server, and returns the URL for that.
func setUser(t *testing.T, server *redistest.Server, rules ...string) string {
	t.Helper()
	args := words("acl setuser app reset on >" + secret + " " + strings.Join(rules, " "))
	if err := redistest.Dial(t, server.Addr()).Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	return "redis://app:" + url.PathEscape(secret) + "@" + server.Addr() + "/0"
}

func TestRedisPermissionsOneByOne(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	rules := append(documented(t), "+getrange", "+scan", "+info", "+config|get")
	onRedis.examine(t, patient(setUser(t, server, rules...)), nil)
	for i, rule := range rules {
		switch rule {
		case "resetchannels", "-@all", "+info", "+config|get":
			continue
		case "+hello", "+auth", "+select", "+client": // to connect, of which the client makes do with some
			continue
		}
		t.Run(rule, func(t *testing.T) {
			less := append(append([]string(nil), rules[:i]...), rules[i+1:]...)
			o := patient(setUser(t, server, less...))
			if rule == "+ping" {
				onRedis.examine(t, o, map[string]want{"connect": {doctor.Fail, rule}})
				return
			}
			results, err := doctor.Redis(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			named := false
			for _, r := range results {
				checkForm(t, r)
				switch {
				case r.Status == doctor.OK || r.Check == "lock":
				case strings.HasPrefix(r.Check, "permission to "), r.Check == "clock" && rule == "+time":
					if !strings.Contains(r.Do+" ", rule+" ") && !strings.Contains(r.Do, rule+".") {
						t.Errorf("without %s: %s", rule, line(r))
					}
					wanted := doctor.Fail
					if rule == "+getrange" || rule == "+scan" {
						wanted = doctor.Warn
					}
					named = named || r.Status == wanted
				default:
					t.Errorf("without %s: %s", rule, line(r))
				}
			}
			if !named {
				t.Errorf("nothing says that %s is missing", rule)
			}
		})
	}
}

// TestRedisLeastPermissions has a user who may do what programs need, and one who may only look.
func TestRedisLeastPermissions(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	info := want{doctor.Unknown, "+info"}
	onRedis.examine(t, patient(setUser(t, server, documented(t)...)), map[string]want{
		"role": info, "eviction": info, "evicted keys": info, "memory": info, "persistence": info, "saving": info,
		"replicas": info, "connections": info,
		"permission to inspect": {doctor.Warn, "+getrange"}, "permission to list": {doctor.Warn, "+scan"},
	})
	onRedis.examine(t, patient(setUser(t, server, append(documented(t), "+info", "+getrange", "+scan")...)), nil)
}

func TestRedisWithoutScripts(t *testing.T) {
	t.Parallel()
	none := want{doctor.Fail, "neither renamed nor disabled"}
	onRedis.examine(t, patient(redisServer(t, "--rename-command", "EVAL", "").URL()), map[string]want{
		"permission to lock": none, "permission to revoke": none, "permission to inspect": none,
		"lock": {doctor.Fail, "First mend"},
	})
}

func TestRedisOldVersion(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	info := regexp.MustCompile(`redis_version:\d`)
	old := lying(t, server.Addr(), func(said []byte) []byte {
		return info.ReplaceAll(said, []byte("redis_version:5"))
	})
	wants := map[string]want{"version": {doctor.Fail, "Redis 6.2 or later"}}
	onRedis.examine(t, patient("redis://"+old+"/0"), wants)

	// A user who may not ask by INFO.
	hello := regexp.MustCompile(`(version\r\n\$\d+\r\n)\d`)
	old = lying(t, server.Addr(), func(said []byte) []byte { return hello.ReplaceAll(said, []byte("${1}5")) })
	results := must(doctor.Redis(t.Context(),
		patient(strings.Replace(setUser(t, server, documented(t)...), server.Addr(), old, 1))))(t)
	for _, r := range results {
		if r.Check == "version" && r.Status != doctor.Fail {
			t.Error(line(r))
		}
	}
}

// inAnHour changes the times that a server says.
func inAnHour(said []byte) []byte {
	return timeReply.ReplaceAllFunc(said, func(reply []byte) []byte {
		var seconds int64
		_, _ = fmt.Sscanf(string(reply), "*2\r\n$10\r\n%d", &seconds)
		return fmt.Appendf(nil, "*2\r\n$10\r\n%d", seconds+3600)
	})
}

var timeReply = regexp.MustCompile(`\*2\r\n\$10\r\n\d{10}`)

func TestRedisClock(t *testing.T) {
	t.Parallel()
	addr := lying(t, redisServer(t).Addr(), inAnHour)
	onRedis.examine(t, patient("redis://"+addr+"/0"), map[string]want{"clock": {doctor.Warn, "NTP"}})
}

func TestRedisFarAway(t *testing.T) {
	t.Parallel()
	proxy := behind(t, redisServer(t).Addr())
	proxy.Set(faultproxy.Delay(50 * time.Millisecond))
	o := patient("redis://" + proxy.Addr() + "/0")
	o.TTL = 200 * time.Millisecond
	onRedis.examine(t, o, map[string]want{"round trip": {doctor.Fail, "longer TTL"}, "lock": consequence})
	o.TTL = ttl
	onRedis.examine(t, o, nil)
}

func TestRedisUnreachable(t *testing.T) {
	t.Parallel()
	server := redisServer(t, "--requirepass", "another")
	hanging := behind(t, server.Addr())
	hanging.Set(faultproxy.Hang())
	for name, tc := range map[string]struct{ url, do string }{
		"nobody":         {"redis://:" + secret + "@" + strangers.Nobody(t), "Is the server running?"},
		"hangs":          {"redis://:" + secret + "@" + hanging.Addr(), "Is the server running?"},
		"wrong password": {"redis://:" + secret + "@" + server.Addr(), "Correct user and password"},
		"no password":    {"redis://" + server.Addr(), "Correct user and password"},
		"HTTP":           {"redis://:" + secret + "@" + strangers.HTTP(t), "Is it the right address?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := patient(tc.url)
			if name == "hangs" {
				o = hasty(tc.url)
			}
			onRedis.onlyConnect(t, o, tc.do)
		})
	}
}

// TestRedisHangsLater has a server that answers the first questions only. What could not be asked is no failure.
func TestRedisHangsLater(t *testing.T) {
	t.Parallel()
	proxy := behind(t, redisServer(t).Addr())
	proxy.SetWhere(func(sent []byte) bool { return bytes.Contains(sent, []byte("\r\ninfo\r\n")) }, faultproxy.Hang())
	info := want{status: doctor.Unknown}
	onRedis.eventually(t, hasty("redis://"+proxy.Addr()), "role", map[string]want{
		"role": info, "eviction": info, "evicted keys": info, "memory": info, "persistence": info,
		"saving": info, "replicas": info, "connections": info,
		"permission to lock": info, "permission to wait": info, "permission to share": info,
		"permission to revoke": info, "permission to inspect": info, "permission to list": info, "lock": consequence,
	})
}

func TestRedisUnusableURL(t *testing.T) {
	t.Parallel()
	for _, x := range examinations {
		if results, err := x(t.Context(), patient("ftp://user:"+secret+"@host")); err == nil || results != nil ||
			strings.Contains(err.Error(), secret) {
			t.Errorf("%v, %v", results, err)
		}
	}
}

// groupArgs are those of servers in groups with which all is well.
var groupArgs = []string{"--appendonly", "yes", "--min-replicas-to-write", "1"}

func TestRedisSentinels(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t, redistest.SentinelOptions{Args: groupArgs})
	onRedis.examine(t, patient(s.URL()), nil)

	t.Run("clock of a replica", func(t *testing.T) {
		master := s.Admin(s.Master(t))
		var replica *redistest.Server
		for _, server := range s.Servers() {
			if server != s.Master(t) {
				replica = server
			}
		}
		host, port, _ := net.SplitHostPort(lying(t, replica.Addr(), inAnHour))
		configure(t, s.Admin(replica), "replica-announce-ip", host)
		configure(t, s.Admin(replica), "replica-announce-port", port)
		if err := master.Do(t.Context(), "client", "kill", "type", "replica").Err(); err != nil {
			t.Fatal(err) // it says where it is when it connects again
		}
		await(t, master, "replication", "port="+port+",state=online")
		await(t, master, "replication", "min_slaves_good_slaves:2")
		o := patient(s.URL())
		onRedis.examine(t, o, map[string]want{"replica clocks": {doctor.Fail, "NTP"}})
	})

	s.Sentinels()[0].Kill()
	onRedis.examine(t, patient(s.URL()), map[string]want{
		"sentinels": {doctor.Warn, "Bring these sentinels back"}, "replica clocks": consequence,
	})
	s.Sentinels()[1].Kill()
	last := redis.NewSentinelClient(&redis.Options{Addr: s.SentinelAddrs()[2]})
	defer last.Close()
	err := testserver.Poll(t.Context(), time.Minute, func(ctx context.Context) error {
		if last.CkQuorum(ctx, redistest.MasterName).Err() == nil {
			return errors.New("the quorum is still there")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	onRedis.examine(t, patient(s.URL()), map[string]want{
		"sentinels": {doctor.Fail, "until a majority of them runs"}, "replica clocks": consequence,
	})
	s.Sentinels()[2].Kill()
	results := onRedis.examine(t, patient(s.URL()), map[string]want{
		"sentinels": {doctor.Fail, "addresses of the sentinels"},
	})
	if len(results) != 1 {
		t.Errorf("%d results, want one", len(results))
	}
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, redistest.ClusterOptions{Args: groupArgs})
	results := onRedis.examine(t, patient(c.URL()), nil)
	connected := 0
	for _, r := range results {
		if r.Check == "connect" {
			connected++
		}
	}
	if connected != 3 {
		t.Errorf("%d servers were looked at, want the 3 masters", connected)
	}
	node := c.Nodes()[0]
	configure(t, c.Admin(node), "maxmemory-policy", "allkeys-lru")
	configure(t, c.Admin(node), "maxmemory", "1gb")
	for _, r := range onRedis.examine(t, patient(c.URL()), map[string]want{"eviction": {doctor.Fail, "noeviction"}}) {
		if r.Status != doctor.OK && r.Server != node.Addr() {
			t.Errorf("%s; want %s", line(r), node.Addr())
		}
	}
	configure(t, c.Admin(node), "maxmemory", "0")
	configure(t, c.Admin(node), "maxmemory-policy", "noeviction")

	_, replica, err := c.Master(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	replica.Kill()
	node.Kill() // so that nobody takes over
	for _, other := range c.Nodes() {
		if other == node || other == replica {
			continue
		}
		err := testserver.Poll(t.Context(), time.Minute, func(ctx context.Context) error {
			info, err := c.Admin(other).ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") {
				err = errors.New("the state is still ok")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	onRedis.examine(t, patient(c.URL()), map[string]want{
		"connect": {doctor.Fail, "Is the server running?"}, "cluster state": {doctor.Fail, "CLUSTER NODES"},
		"cluster": {doctor.Warn, "Bring these nodes back"}, "lock": consequence,
	})
}

// TestRedisNoCluster has single servers that are taken for nodes of a cluster, and the reverse.
func TestRedisNoCluster(t *testing.T) {
	t.Parallel()
	onRedis.examine(t, patient("redis+cluster://"+redisServer(t).Addr()), map[string]want{
		"cluster": {doctor.Fail, "redis://"},
	})
	node := redisServer(t, "--cluster-enabled", "yes")
	onRedis.examine(t, patient("redis+cluster://"+node.Addr()), map[string]want{
		"cluster": {doctor.Fail, "CLUSTER NODES"},
	})
	onRedis.examine(t, patient(node.URL()), map[string]want{"lock": {doctor.Fail, "CLUSTER NODES"}})
	if err := redistest.Dial(t, node.Addr()).ClusterAddSlotsRange(t.Context(), 0, 99).Err(); err != nil {
		t.Fatal(err)
	}
	onRedis.examine(t, patient("redis+cluster://"+node.Addr()), map[string]want{
		"cluster": {doctor.Fail, "CLUSTER NODES"}, "cluster state": {doctor.Fail, "CLUSTER NODES"},
		"replicas": {doctor.Warn, "Add a replica"}, "lock": {doctor.Fail, "First mend"},
	})
	args := "acl setuser app on >" + secret + " ~* &* +@all -cluster|slots"
	if err := redistest.Dial(t, node.Addr()).Do(t.Context(), words(args)...).Err(); err != nil {
		t.Fatal(err)
	}
	onRedis.examine(t, patient("redis+cluster://app:"+secret+"@"+node.Addr()), map[string]want{
		"cluster": {doctor.Fail, "+cluster|slots"},
	})
}

// words are the arguments of a command.
func words(command string) (args []any) {
	for word := range strings.FieldsSeq(command) {
		args = append(args, word)
	}
	return args
}

func TestRedlock(t *testing.T) {
	t.Parallel()
	var servers []*redistest.Server
	for range 4 {
		servers = append(servers, redisServer(t, "--appendfsync", "always"))
	}
	urlOf := func(servers []*redistest.Server) string {
		var addrs []string
		for _, s := range servers {
			addrs = append(addrs, s.Addr())
		}
		return "redlock://" + strings.Join(addrs, ",")
	}
	three := servers[:3]
	onRedlock.examine(t, patient(urlOf(three)), nil)
	onRedlock.examine(t, patient(urlOf(servers)), map[string]want{"quorum": {doctor.Warn, "one server more"}})
	onRedlock.examine(t, patient(urlOf(servers[:2])), map[string]want{"quorum": {doctor.Warn, "three servers"}})

	admin := redistest.Dial(t, three[0].Addr())
	configure(t, admin, "appendfsync", "everysec")
	onRedlock.examine(t, patient(urlOf(three)), map[string]want{"persistence": {doctor.Warn, "appendfsync always"}})
	configure(t, admin, "appendfsync", "always")

	three[2].Kill()
	onRedlock.examine(t, patient(urlOf(three)), map[string]want{"connect": {doctor.Fail, "Is the server running?"}})
	three[1].Kill()
	onRedlock.examine(t, patient(urlOf(three)), map[string]want{
		"connect": {doctor.Fail, "Is the server running?"}, "quorum": {doctor.Fail, "empty one"},
		"lock": {doctor.Fail, "First mend"},
	})
}
