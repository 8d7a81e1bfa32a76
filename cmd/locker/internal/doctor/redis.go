package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// topology is how servers of Redis belong together.
type topology int

const (
	single topology = iota
	sentinels
	cluster
	independent // of a Redlock
)

// redisServer is one server.
type redisServer struct {
	*redis.Client
	name     string // its address, or "" if it is the only one
	topology topology
	options  Options

	info     map[string]string
	infoErr  error
	config   map[string]string
	refusals map[string]error // by the names of commands: what the server said, nil if it is allowed
}

func redisDefaults(o Options) Options {
	o.Prefix = cmp.Or(o.Prefix, redislock.DefaultPrefix)
	return o.withDefaults()
}

// Redis checks the servers of a URL of package redislock.
func Redis(ctx context.Context, o Options) ([]Result, error) {
	o = redisDefaults(o)
	ctx, cancel := context.WithTimeout(ctx, o.Within)
	defer cancel()
	options, err := redislock.ParseURL(o.URL)
	if err != nil {
		return nil, err
	}
	lock, err := tryLock(ctx, o, redislock.Open)
	if err != nil {
		return nil, err
	}
	var results []Result
	kind, addrs := single, options.Addrs[:1]
	switch {
	case options.MasterName != "":
		kind = sentinels
		addrs, results = lookAtSentinels(ctx, o, options)
	case options.IsClusterMode:
		kind = cluster
		addrs, results = lookAtCluster(ctx, o, options)
	}
	var servers []*redis.Options
	for _, addr := range addrs {
		server := options.Simple()
		server.Addr = addr
		servers = append(servers, server)
	}
	all := lookAtServers(ctx, o, kind, servers)
	results = slices.Concat(append([][]Result{results}, all...)...)
	return ending(results, lock), nil
}

// Redlock checks the servers of a URL of package redlock.
func Redlock(ctx context.Context, o Options) ([]Result, error) {
	o = redisDefaults(o)
	ctx, cancel := context.WithTimeout(ctx, o.Within)
	defer cancel()
	servers, err := redlock.ParseURL(o.URL)
	if err != nil {
		return nil, err
	}
	lock, err := tryLock(ctx, o, redlock.Open)
	if err != nil {
		return nil, err
	}
	all := lookAtServers(ctx, o, independent, servers)
	answer := 0
	for _, results := range all {
		if results[0].Status == OK {
			answer++
		}
	}
	results := append([]Result{quorum(answer, len(servers)).result("quorum", "", whyQuorum)}, slices.Concat(all...)...)
	return ending(results, lock), nil
}

const whyQuorum = "A lock is had on a majority of the servers, so that a minority may fail. " +
	"With an even number, no more may fail than with one less."

func quorum(answer, servers int) finding {
	text := fmt.Sprintf("%d of %d servers answer", answer, servers)
	switch {
	case answer <= servers/2:
		return fail("%s, which is no majority", text).
			remedy("%s", remedyOf(redlock.ErrNoQuorum))
	case servers < 3:
		return warn("%s, and none of them may fail", text).remedy("Use three servers, or five.")
	case servers%2 == 0:
		return warn("%s, an even number", text).remedy("Use one server more, or one less.")
	}
	return ok("%s", text) // of one that does not, more is said below
}

// optionsFor makes the options of a client such that it returns errors soon, and as they are.
func optionsFor(o *redis.Options) *redis.Options {
	tuned := *o
	tuned.ContextTimeoutEnabled = true
	tuned.MaxRetries, tuned.DialerRetries = -1, 1
	tuned.PoolSize, tuned.MinIdleConns = 2, 0
	return &tuned
}

// lookAtServers checks servers, all at the same time. The first result of each says whether it was reached.
func lookAtServers(ctx context.Context, o Options, kind topology, servers []*redis.Options) [][]Result {
	results := make([][]Result, len(servers))
	var wg sync.WaitGroup
	for i, options := range servers {
		wg.Go(func() {
			s := &redisServer{Client: redis.NewClient(optionsFor(options)), topology: kind, options: o}
			defer finish(ctx, s.Close)
			if kind != single {
				s.name = options.Addr
			}
			results[i] = s.lookAt(ctx)
		})
	}
	wg.Wait()
	return results
}

// lookAt makes all checks of one server, if it can be reached.
func (s *redisServer) lookAt(ctx context.Context) []Result {
	f, answers := s.connect(ctx)
	results := []Result{f.result("connect", s.name, whyConnect)}
	if !answers {
		return results
	}
	s.gather(ctx)
	checks := slices.Concat(redisChecks, permissionChecks(s.topology))
	if s.topology == sentinels || s.topology == cluster {
		checks = append(checks, replicaClocks)
	}
	if s.topology == cluster {
		checks = append(checks, clusterState)
	}
	return append(results, look(ctx, s.options, s.name, s, checks)...)
}

// connect reports whether the server answers this user.
func (s *redisServer) connect(ctx context.Context) (f finding, answers bool) {
	ctx, cancel := context.WithTimeout(ctx, s.options.connectWithin())
	defer cancel()
	addr := s.Options().Addr
	err := s.Ping(ctx).Err()
	switch said := reply(err); {
	case err == nil:
		return ok("%s answers", addr), true
	case isRefusal(said):
		return fail("%v", err).remedy("ACL SETUSER %s +ping", s.user()), true
	case said != "" && !shutsOut(said):
		return ok("%s answers: %s", addr, said), true // what that means, the others say
	}
	// Package redislock says better what it means.
	l := redislock.New(s.Client)
	defer finish(ctx, l.Close)
	if better := l.Ping(ctx); better != nil && ctx.Err() == nil {
		err = better
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: no answer from %s within %v", locker.ErrUnavailable, addr, s.options.connectWithin())
	}
	return failure(err), false
}

// shutsOut reports whether an answer means that all others would be the same.
func shutsOut(said string) bool {
	for _, part := range []string{
		"NOAUTH", "WRONGPASS", "invalid password", "without any password configured", "DENIED", "max number of clients",
	} {
		if strings.Contains(said, part) {
			return true
		}
	}
	return false
}

// gather asks what several checks need.
func (s *redisServer) gather(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.options.lookWithin())
	defer cancel()
	var text string
	if text, s.infoErr = s.Info(ctx).Result(); s.infoErr == nil {
		s.info = fieldsOf(text)
	}
	s.config = make(map[string]string) // what the server tells of it
	for _, name := range []string{"appendfsync", "save", "maxclients", "min-replicas-to-write"} {
		values, err := s.ConfigGet(ctx, name).Result()
		if value, found := values[name]; err == nil && found {
			s.config[name] = value
		}
	}
	s.tryCommands(ctx)
}

// fieldsOf parses what INFO and its like return: lines of name:value.
func fieldsOf(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			fields[name] = value
		}
	}
	return fields
}

// number returns a number of INFO.
func (s *redisServer) number(field string) int64 {
	n, _ := strconv.ParseInt(s.info[field], 10, 64) // 0 is what an older server means that has no such field
	return n
}

// unasked is the finding where a command failed. If it was the server that refused it, that can be mended.
func unasked(command string, err error, grant string) finding {
	f := unknown("%s: %v", command, err)
	if reply(err) != "" {
		f = f.remedy("%s", grant)
	}
	return f
}

const grantInfo = "Grant +info to this user for the time of the check, or use another user for it."

// withInfo makes a check of what needs INFO, which a user needs for nothing else.
func withInfo(look func(*redisServer) finding) func(context.Context, *redisServer) finding {
	return func(_ context.Context, s *redisServer) finding {
		if s.infoErr != nil {
			return unasked("INFO", s.infoErr, grantInfo)
		}
		return look(s)
	}
}

// redisChecks are those of every server.
var redisChecks = []check[*redisServer]{
	{
		name: "version",
		why:  "The scripts of the locks use commands that Redis has since 6.2.",
		look: lookAtRedisVersion,
	},
	{
		name: "role",
		why:  "A replica refuses to lock anything: only a master can.",
		look: withInfo(lookAtRole),
	},
	{
		name: "eviction",
		why:  "An evicted key is a lost lock: somebody else gets it while its holder is at work.",
		look: withInfo(lookAtEviction),
	},
	{
		name: "evicted keys",
		why:  "Any of them may have been a lock that was held, or a fencing token.",
		look: withInfo(lookAtEvicted),
	},
	{
		name: "memory",
		why:  "A server without memory grants no locks, and lets nobody wait.",
		look: withInfo(lookAtMemory),
	},
	{
		name: "persistence",
		why: "What the server does not write down, it forgets when it is restarted: " +
			"locks of holders that are still at work, too.",
		look: withInfo(lookAtPersistence),
	},
	{
		name: "saving",
		why:  "A server that cannot save its data refuses to write, and so to lock.",
		look: withInfo(lookAtSaving),
	},
	{
		name: "replicas",
		why: "A master that was cut off from its replicas goes on granting locks that the next master does not know, " +
			"unless it is told to refuse that.",
		look: withInfo(lookAtReplicas),
	},
	{
		name: "connections",
		why: "A server at its limit refuses connections: " +
			"programs cannot lock, or are not called when it is their turn.",
		look: withInfo(lookAtConnections),
	},
	{
		name: "round trip",
		why:  whyRoundTrip,
		look: func(ctx context.Context, s *redisServer) finding {
			return roundTrips(ctx, s.options.TTL, func(ctx context.Context) error {
				err := s.Ping(ctx).Err()
				if reply(err) != "" {
					return nil // an answer is an answer
				}
				return err
			})
		},
	},
	{
		name: "clock",
		why: "Locks do not depend on this difference: the server counts TTLs by its clock alone, " +
			"and programs by their monotonic ones. The times that people read are wrong by it.",
		look: func(ctx context.Context, s *redisServer) finding {
			if _, err := s.now(ctx); err != nil {
				return unasked("TIME", err, "Grant +time.")
			}
			return compareClocks(ctx, s.now)
		},
	},
}

func (s *redisServer) now(ctx context.Context) (time.Time, error) { return s.Time(ctx).Result() }

// lookAtRedisVersion asks by HELLO if INFO is not allowed.
func lookAtRedisVersion(ctx context.Context, s *redisServer) finding {
	product, version := "Redis", s.info["redis_version"]
	if valkey := s.info["valkey_version"]; valkey != "" {
		product, version = "Valkey", valkey
	}
	if version == "" {
		hello, err := s.Do(ctx, "HELLO").Result()
		if err != nil {
			return unasked("HELLO", err, grantInfo)
		}
		version = versionInHello(hello)
	}
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n < 2 {
		return unknown("the server says that its version is %q", version)
	}
	if major < 6 || major == 6 && minor < 2 {
		return fail("%s %s", product, version).remedy("Use Redis 6.2 or later, or Valkey.")
	}
	return ok("%s %s", product, version)
}

// versionInHello finds the version in a reply to HELLO: a map, or, in the older protocol, names and values in turn.
func versionInHello(hello any) string {
	switch hello := hello.(type) {
	case map[any]any:
		return fmt.Sprint(hello["version"])
	case []any:
		for i := 0; i+1 < len(hello); i += 2 {
			if hello[i] == "version" {
				return fmt.Sprint(hello[i+1])
			}
		}
	}
	return ""
}

func lookAtRole(s *redisServer) finding {
	if role := s.info["role"]; role != "master" {
		return fail("the server is a replica of %s", net.JoinHostPort(s.info["master_host"], s.info["master_port"])).
			remedy("%s", remedyOf(redislock.ErrReadOnly))
	}
	return ok("master")
}

func lookAtEviction(s *redisServer) finding {
	policy, limit := s.info["maxmemory_policy"], s.number("maxmemory")
	const do = "Run CONFIG SET maxmemory-policy noeviction, and write it into redis.conf; " +
		"or give the locks a server of their own."
	switch {
	case policy == "":
		return unknown("INFO does not tell maxmemory_policy")
	case policy == "noeviction":
		return ok("maxmemory-policy is noeviction")
	case limit == 0:
		return warn("maxmemory-policy is %s, which will evict locks as soon as maxmemory is set", policy).remedy(do)
	}
	return fail("maxmemory-policy is %s, which evicts locks when maxmemory, %s, is reached", policy, size(limit)).
		remedy(do)
}

func lookAtEvicted(s *redisServer) finding {
	if n := s.number("evicted_keys"); n > 0 {
		return warn("%s since the server was started", plural(int(n), "evicted key")).
			remedy("Set maxmemory-policy noeviction. Look whether something was done twice: see docs/fencing.md.")
	}
	return ok("none since the server was started")
}

func lookAtMemory(s *redisServer) finding {
	used, limit := s.number("used_memory"), s.number("maxmemory")
	if limit == 0 {
		return ok("%s used, without a limit", size(used))
	}
	const text, do = "%s used of %s", "Raise maxmemory, or remove what else is in this server."
	switch {
	case used >= limit:
		return fail(text, size(used), size(limit)).remedy(do)
	case used > limit/10*9:
		return warn(text, size(used), size(limit)).remedy(do)
	}
	return ok(text, size(used), size(limit))
}

func lookAtPersistence(s *redisServer) finding {
	const do = "Set appendonly yes, or keep a server that was restarted away from all programs for the longest TTL."
	fsync, save := s.config["appendfsync"], s.config["save"]
	_, told := s.config["save"]
	switch {
	case s.number("aof_enabled") == 0 && told && save == "":
		return warn("nothing is written to a disk: a restart forgets all locks").remedy(do)
	case s.number("aof_enabled") == 0:
		return warn("snapshots at best: a crash forgets all locks since the last one").remedy(do)
	case fsync == "":
		return ok("appendonly is yes").remedy("Grant +config|get for the check, to see appendfsync.")
	case fsync == "always":
		return ok("appendonly is yes, appendfsync is always: a crash forgets nothing")
	case fsync == "no" || s.topology == independent:
		return warn("appendfsync is %s: a crash forgets the last locks", fsync).
			remedy("Set appendfsync always, or start the server after a crash only when the longest TTL has passed.")
	}
	return ok("appendonly is yes, appendfsync is %s: a crash of the machine forgets the last second", fsync)
}

func lookAtSaving(s *redisServer) finding {
	var failed []string
	for _, field := range []string{"rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"} {
		if status := s.info[field]; status != "" && status != "ok" {
			failed = append(failed, field+" is "+status)
		}
	}
	if len(failed) > 0 {
		return fail("%s", strings.Join(failed, ", ")).remedy("%s", remedyOf(redislock.ErrNotPersisting))
	}
	return ok("the last attempt has succeeded, or there was none")
}

// lookAtReplicas looks whether a failover would keep the locks.
func lookAtReplicas(s *redisServer) finding {
	if s.info["role"] != "master" {
		return ok("of no interest: this is a replica")
	}
	n, least := s.number("connected_slaves"), s.config["min-replicas-to-write"]
	_, refuses := s.info["min_slaves_good_slaves"] // there if the server is to refuse writes without replicas
	var bad []string
	for _, replica := range s.replicas() {
		if replica.state != "online" || replica.lag > 10 {
			bad = append(bad, fmt.Sprintf("%s is %s, and was heard %d s ago", replica.addr, replica.state, replica.lag))
		}
	}
	good, _ := strconv.ParseInt(least, 10, 64)
	switch {
	case refuses && least != "" && s.number("min_slaves_good_slaves") < good:
		return fail("%d in step, but min-replicas-to-write is %s: the server refuses to write",
			s.number("min_slaves_good_slaves"), least).remedy("%s", remedyOf(redislock.ErrReplicas))
	case len(bad) > 0:
		return warn("%s", strings.Join(bad, "; ")).remedy("Look after these replicas.")
	case n == 0 && (s.topology == sentinels || s.topology == cluster):
		return warn("none: nothing takes over when this server dies").remedy("Add a replica.")
	case n == 0:
		return ok("none")
	case !refuses:
		return warn("%s, and min-replicas-to-write is 0", plural(int(n), "replica")).
			remedy("Set min-replicas-to-write 1, and a short min-replicas-max-lag.")
	}
	return ok("%s", plural(int(n), "replica"))
}

// replica is one of a master, as that sees it.
type replica struct {
	addr  string
	state string
	lag   int // seconds
}

// replicas returns those in INFO: lines such as slave0:ip=127.0.0.1,port=6380,state=online,offset=42,lag=0.
func (s *redisServer) replicas() (all []replica) {
	for i := range s.number("connected_slaves") {
		fields := fieldsOf(strings.NewReplacer("=", ":", ",", "\n").Replace(s.info[fmt.Sprintf("slave%d", i)]))
		lag, _ := strconv.Atoi(fields["lag"])
		all = append(all, replica{net.JoinHostPort(fields["ip"], fields["port"]), fields["state"], lag})
	}
	return all
}

func lookAtConnections(s *redisServer) finding {
	used, rejected := s.number("connected_clients"), s.number("rejected_connections")
	limit, _ := strconv.ParseInt(s.config["maxclients"], 10, 64)
	if n := s.number("maxclients"); n > 0 { // since Redis 7
		limit = n
	}
	do := remedyOf(redislock.ErrTooManyConnections)
	switch {
	case limit == 0:
		return ok("%d in use", used).remedy("Grant +config|get for the check, to see maxclients.")
	case used > limit/10*9:
		return warn("%d in use of %d", used, limit).remedy("%s", do)
	case rejected > 0:
		return warn("%d in use of %d; %d were refused since the server was started", used, limit, rejected).
			remedy("%s", do)
	}
	return ok("%d in use of %d", used, limit)
}

// replicaClocks matter where a replica may take over.
var replicaClocks = check[*redisServer]{
	name: "replica clocks",
	why: "A lock is replicated with the time of day at which it ends. " +
		"If the clock of a replica is ahead, it frees locks early when it takes over.",
	look: lookAtReplicaClocks,
}

func lookAtReplicaClocks(ctx context.Context, s *redisServer) finding {
	if s.infoErr != nil {
		return unasked("INFO", s.infoErr, grantInfo)
	}
	master, err := readClock(ctx, s.now)
	if err != nil {
		return unknown("%v", err)
	}
	var apart []string
	allowed := s.options.TTL / 100
	replicas := s.replicas()
	for _, r := range replicas {
		options := optionsFor(s.Options())
		options.Addr = r.addr
		rdb := redis.NewClient(options)
		clock, err := readClock(ctx, func(ctx context.Context) (time.Time, error) { return rdb.Time(ctx).Result() })
		finish(ctx, rdb.Close)
		if err != nil {
			return unknown("replica %s: %v", r.addr, err)
		}
		clock = reading{ahead: clock.ahead - master.ahead, error: clock.error + master.error}
		if clock.certain() > allowed {
			apart = append(apart, fmt.Sprintf("the clock of %s differs by %s", r.addr, short(clock.ahead.Abs())))
		}
	}
	if len(apart) > 0 {
		return fail("%s: more than 1 %% of the TTL", strings.Join(apart, ", ")).
			remedy("Have NTP set the clocks of all servers. A longer TTL allows for more.")
	}
	return ok("the same on %s, to 1 %% of the TTL", plural(len(replicas), "replica"))
}

var clusterState = check[*redisServer]{
	name: "cluster state",
	why:  "A node that takes the cluster for failed refuses everything.",
	look: func(ctx context.Context, s *redisServer) finding {
		text, err := s.ClusterInfo(ctx).Result()
		if err != nil {
			return unasked("CLUSTER INFO", err, "Grant +cluster|info for the check.")
		}
		if state := fieldsOf(text)["cluster_state"]; state != "ok" {
			return fail("cluster_state is %s", state).remedy("%s", remedyOf(redislock.ErrClusterDown))
		}
		return ok("cluster_state is ok")
	},
}

// reply returns what the server said in an error, or "" if it is none of its answers.
func reply(err error) string {
	var said redis.Error
	if errors.As(err, &said) {
		return said.Error()
	}
	return ""
}
