package doctor

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock"
)

const (
	whySentinels = "Without a majority of the sentinels there is no failover, " +
		"and without one of them programs do not find the master."
	whyCluster = "Keys are spread over all masters: those of a slot without a master cannot be locked."
)

// opinion is what one sentinel says of the master.
type opinion struct {
	addr   string // of the sentinel
	master map[string]string
	usable error // why there would be no failover
	err    error
}

// lookAtSentinels asks the sentinels of the URL for the master. It returns that, if there is one.
func lookAtSentinels(ctx context.Context, all Options, o *redis.UniversalOptions) (master []string, results []Result) {
	ctx, cancel := context.WithTimeout(ctx, all.connectWithin())
	defer cancel()
	opinions := make([]opinion, len(o.Addrs))
	var wg sync.WaitGroup
	for i, addr := range o.Addrs {
		wg.Go(func() { opinions[i] = askSentinel(ctx, o, addr) })
	}
	wg.Wait()
	addr, f := judgeSentinels(opinions)
	if addr != "" {
		master = []string{addr}
	}
	return master, []Result{f.result("sentinels", "", whySentinels)}
}

func askSentinel(ctx context.Context, o *redis.UniversalOptions, addr string) opinion {
	options := optionsFor(o.Simple())
	options.Addr, options.DB = addr, 0
	options.Username, options.Password = o.SentinelUsername, o.SentinelPassword
	rdb := redis.NewSentinelClient(options)
	defer finish(ctx, rdb.Close)
	answer := opinion{addr: addr}
	if answer.master, answer.err = rdb.Master(ctx, o.MasterName).Result(); answer.err == nil {
		answer.usable = rdb.CkQuorum(ctx, o.MasterName).Err()
	}
	return answer
}

// judgeSentinels returns the master that most of those that answer know.
func judgeSentinels(opinions []opinion) (master string, f finding) {
	votes := make(map[string]int)
	var silent []string
	known, quorum, replicas := 0, "", ""
	var noFailover error
	for _, o := range opinions {
		if o.err != nil {
			silent = append(silent, fmt.Sprintf("%s: %v", o.addr, o.err))
			continue
		}
		addr := net.JoinHostPort(o.master["ip"], o.master["port"])
		if votes[addr]++; votes[addr] > votes[master] {
			master = addr
			quorum, replicas = o.master["quorum"], o.master["num-slaves"]
		}
		others, _ := strconv.Atoi(o.master["num-other-sentinels"])
		known = max(known, others+1)
		if o.usable != nil {
			noFailover = fmt.Errorf("%s: %w", o.addr, o.usable)
		}
	}
	answer := len(opinions) - len(silent)
	text := fmt.Sprintf("%d of %d in the URL answer, of %d that there are; quorum %s; master %s; replicas: %s",
		answer, len(opinions), known, quorum, master, replicas)
	if len(silent) > 0 {
		text += "; " + strings.Join(silent, "; ")
	}
	switch {
	case answer == 0:
		return "", fail("no sentinel knows the master: %s", strings.Join(silent, "; ")).
			remedy("Correct the addresses of the sentinels and the name of the master, or bring the sentinels back.")
	case len(votes) > 1:
		return master, fail("they do not agree on a master: %s", text).
			remedy("Wait for the end of the failover. If it lasts, SENTINEL RESET on those that are wrong.")
	case noFailover != nil:
		return master, fail("there would be no failover: %s; %v", text, noFailover).
			remedy("Bring sentinels back, until a majority of them runs.")
	case len(silent) > 0:
		return master, warn("%s", text).remedy("Bring these sentinels back, or correct their addresses.")
	case known < 3:
		return master, warn("%s", text).remedy("Use three sentinels, on three machines.")
	}
	return master, ok("%s", text)
}

// lookAtCluster asks for the map of the slots, and returns the masters in it.
func lookAtCluster(ctx context.Context, all Options, o *redis.UniversalOptions) (masters []string, results []Result) {
	ctx, cancel := context.WithTimeout(ctx, all.connectWithin())
	defer cancel()
	type answer struct {
		slots []redis.ClusterSlot
		err   error
	}
	answers := make([]answer, len(o.Addrs))
	var wg sync.WaitGroup
	for i, addr := range o.Addrs {
		wg.Go(func() {
			options := optionsFor(o.Simple())
			options.Addr = addr
			rdb := redis.NewClient(options)
			defer finish(ctx, rdb.Close)
			cmd := redis.NewClusterSlotsCmd(ctx, "cluster", "slots") // CLUSTER SHARDS came with Redis 7
			answers[i].err = rdb.Process(ctx, cmd)
			answers[i].slots = cmd.Val()
		})
	}
	wg.Wait()
	var failures []string
	var slots []redis.ClusterSlot
	var asked string
	for i, a := range answers {
		switch {
		case a.err != nil:
			failures = append(failures, fmt.Sprintf("%s: %v", o.Addrs[i], a.err))
		case len(a.slots) > len(slots) || asked == "":
			slots, asked = a.slots, o.Addrs[i]
		}
	}
	if asked == "" {
		f := fail("no node tells the slots: %s", strings.Join(failures, "; "))
		switch {
		case strings.Contains(f.found, "cluster support disabled"):
			f = f.remedy("Use a URL that begins with redis://: this is a single server.")
		case strings.Contains(f.found, "NOPERM"):
			f = f.remedy("Grant +cluster|slots.")
		default:
			f = f.remedy("Correct the addresses of the nodes, or bring the nodes back.")
		}
		return nil, []Result{f.result("cluster", "", whyCluster)}
	}
	masters, f := judgeSlots(slots, asked, failures)
	return masters, []Result{f.result("cluster", "", whyCluster)}
}

// judgeSlots looks at the map of the slots that the node at an address has.
func judgeSlots(slots []redis.ClusterSlot, asked string, failures []string) (masters []string, f finding) {
	const all = 16384
	covered := 0
	seen := make(map[string]bool)
	for _, r := range slots {
		covered += r.End - r.Start + 1
		if len(r.Nodes) == 0 {
			continue
		}
		addr := r.Nodes[0].Addr
		if host, port, err := net.SplitHostPort(addr); err == nil && host == "" { // a node that does not know its own
			host, _, _ = net.SplitHostPort(asked)
			addr = net.JoinHostPort(host, port)
		}
		if seen[addr] {
			continue
		}
		seen[addr] = true
		masters = append(masters, addr)
	}
	text := fmt.Sprintf("%s for %d of %d slots", plural(len(masters), "master"), covered, all)
	switch {
	case covered < all:
		return masters, fail("%s", text).remedy("%s", remedyOf(redislock.ErrClusterDown))
	case len(failures) > 0:
		return masters, warn("%s; of the nodes in the URL: %s", text, strings.Join(failures, "; ")).
			remedy("Bring these nodes back, or correct their addresses.")
	}
	return masters, ok("%s", text)
}
