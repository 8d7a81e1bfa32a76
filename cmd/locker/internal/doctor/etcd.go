package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
)

// etcdStore is a cluster, by way of the endpoints of a URL.
type etcdStore struct {
	*clientv3.Client
	options Options
	prefix  string // of keys, as they are written in etcd
	named   int    // how many endpoints the URL names
	members []*pb.Member
	failure error // to get these
}

// endpoint is what one endpoint says of itself.
type endpoint struct {
	name   string
	status *clientv3.StatusResponse
	err    error
}

// Etcd checks the members of a URL of package etcdlock.
func Etcd(ctx context.Context, o Options) ([]Result, error) {
	o = o.withDefaults()
	o.Prefix = cmp.Or(o.Prefix, etcdlock.DefaultPrefix)
	ctx, cancel := context.WithTimeout(ctx, o.Within)
	defer cancel()
	config, err := etcdlock.ParseURL(o.URL)
	if err != nil {
		return nil, err
	}
	lock, err := tryLock(ctx, o, etcdlock.Open)
	if err != nil {
		return nil, err
	}
	s := &etcdStore{options: o, prefix: keysBegin(o.Prefix), named: len(config.Endpoints)}
	config.DialTimeout = o.connectWithin() // which bounds the login of a user, too
	config.MaxUnaryRetries = 1             // an endpoint that is down is news
	config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(failFast))
	if s.Client, err = clientv3.New(config); err != nil {
		if lock.err != nil { // package etcdlock says better what it means
			err = lock.err
		}
		return []Result{failure(err).result("connect", "", whyConnect)}, nil
	}
	defer finish(ctx, s.Close)
	endpoints := s.ask(ctx, config.Endpoints)
	var results []Result
	for _, e := range endpoints {
		name := ""
		if len(endpoints) > 1 {
			name = e.name
		}
		f := ok("%s answers", e.name)
		if e.err != nil {
			err := e.err
			if len(endpoints) == 1 && lock.err != nil {
				err = lock.err
			}
			f = failure(err)
		}
		results = append(results, f.result("connect", name, whyConnect))
		if e.err == nil {
			results = append(results, look(ctx, o, name, e, endpointChecks)...)
		}
	}
	if s.askBest(endpoints) {
		s.members, s.failure = s.memberList(ctx)
		results = append(results, look(ctx, o, "", s, etcdChecks)...)
	}
	return ending(results, lock), nil
}

// askBest has the rest be asked of endpoints that may be able to answer, and reports whether there are any.
func (s *etcdStore) askBest(endpoints []endpoint) bool {
	var best, all []string
	for _, e := range endpoints {
		if e.err != nil {
			continue
		}
		all = append(all, e.name)
		if !e.status.IsLearner && e.status.Leader != 0 {
			best = append(best, e.name)
		}
	}
	if len(best) == 0 {
		best = all
	}
	if len(best) > 0 {
		s.SetEndpoints(best...)
	}
	return len(best) > 0
}

// failFast lets a request fail if no connection can be made. The client would wait for one.
func failFast(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
	opts ...grpc.CallOption,
) error {
	return invoke(ctx, method, req, reply, conn, append(opts, grpc.WaitForReady(false))...)
}

// ask asks endpoints how they are, all at the same time.
func (s *etcdStore) ask(ctx context.Context, names []string) []endpoint {
	ctx, cancel := context.WithTimeout(ctx, s.options.connectWithin())
	defer cancel()
	endpoints := make([]endpoint, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			endpoints[i] = endpoint{name: name}
			endpoints[i].status, endpoints[i].err = s.Status(ctx, name)
			if err := endpoints[i].err; err != nil {
				endpoints[i].err = fmt.Errorf("%w: %s: %w", locker.ErrUnavailable, name, err)
			}
		})
	}
	wg.Wait()
	return endpoints
}

func (s *etcdStore) memberList(ctx context.Context) ([]*pb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.lookWithin())
	defer cancel()
	// Not linearizable: without a leader, that is when one wants to know it.
	list, err := s.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	return list.Members, nil
}

// endpointChecks are those of each member that answers.
var endpointChecks = []check[endpoint]{
	{
		name: "version",
		why:  "Before 3.5.13, a leader that had been deposed could confirm leases that were over.",
		look: lookAtEtcdVersion,
	},
	{
		name: "role",
		why:  "A learner refuses nearly everything to clients.",
		look: func(_ context.Context, e endpoint) finding {
			if e.status.IsLearner {
				return fail("the member is a learner").
					remedy("Promote it (etcdctl member promote), or take it from the URL.")
			}
			return ok("voting member")
		},
	},
	{
		name: "leader",
		why:  "Without a leader, nothing can be locked or unlocked, and leases are not renewed.",
		look: func(_ context.Context, e endpoint) finding {
			if e.status.Leader == 0 {
				return fail("the member knows no leader").remedy("%s", remedyOf(etcdlock.ErrNoLeader))
			}
			return ok("there is one, of term %d", e.status.RaftTerm)
		},
	},
	{
		name: "database",
		why:  "A database that has reached its quota grants no locks.",
		look: lookAtDatabase,
	},
}

func lookAtEtcdVersion(_ context.Context, e endpoint) finding {
	var v [3]int
	if n, _ := fmt.Sscanf(e.status.Version, "%d.%d.%d", &v[0], &v[1], &v[2]); n < 3 {
		return unknown("the server says that its version is %q", e.status.Version)
	}
	if slices.Compare(v[:], []int{3, 5, 13}) < 0 {
		return fail("etcd %s", e.status.Version).remedy("%s", remedyOf(etcdlock.ErrVersion))
	}
	return ok("etcd %s", e.status.Version)
}

func lookAtDatabase(_ context.Context, e endpoint) finding {
	used, quota := e.status.DbSize, e.status.DbSizeQuota
	const do = "Compact (--auto-compaction-retention does it by itself) and defragment, " +
		"or raise --quota-backend-bytes."
	switch {
	case quota == 0:
		return ok("%s", size(used)).
			remedy("Compare it with --quota-backend-bytes: before 3.6, etcd does not tell that.")
	case used >= quota:
		return fail("%s, the quota is %s", size(used), size(quota)).remedy(do)
	case used > quota/5*4:
		return warn("%s, the quota is %s", size(used), size(quota)).remedy(do)
	}
	return ok("%s, the quota is %s", size(used), size(quota))
}

// etcdChecks are those of the cluster.
var etcdChecks = []check[*etcdStore]{
	{
		name: "members",
		why: "A majority of the voting members has to run. Three may lose one, five may lose two. " +
			"An even number may lose no more than one less.",
		look: lookAtMembers,
	},
	{
		name: "endpoints",
		why:  "A program that knows one member only cannot lock when that one is down.",
		look: func(_ context.Context, s *etcdStore) finding {
			if s.named == 1 && len(s.members) > 1 {
				return warn("one in the URL, of %d members", len(s.members)).
					remedy("Name all members in the URL, unless there is a load balancer at this address.")
			}
			return ok("%d in the URL", s.named)
		},
	},
	{
		name: "alarms",
		why:  "With the alarm NOSPACE nothing is locked, with CORRUPT nothing can be relied upon.",
		look: lookAtAlarms,
	},
	{
		name: "election timeout",
		why: "One and a half times that is the shortest TTL that etcd grants. " +
			"Dead holders keep their locks for that long, and leases are to outlast an election.",
		look: lookAtElectionTimeout,
	},
	{
		name: "permission to lock",
		why:  "A lock is a key: without readwrite, nobody can lock, wait, revoke or break.",
		look: func(ctx context.Context, s *etcdStore) finding {
			// A version is never negative. But etcd looks first whether all that may happen is allowed.
			never := clientv3.Compare(clientv3.Version(s.key()), "<", 0)
			_, err := s.Txn(ctx).If(never).Then(clientv3.OpPut(s.key(), "")).Commit()
			return s.allowed(err, Fail, "readwrite")
		},
	},
	{
		name: "permission to inspect",
		why: `Without read for all keys with the prefix, "locker show" and "locker list" ` +
			`cannot tell who holds a lock.`,
		look: func(ctx context.Context, s *etcdStore) finding {
			all := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()}
			_, err := s.Get(ctx, s.prefix, all...)
			return s.allowed(err, Warn, "read")
		},
	},
	{
		name: "round trip",
		why:  whyRoundTrip,
		look: func(ctx context.Context, s *etcdStore) finding {
			return roundTrips(ctx, s.options.TTL, func(ctx context.Context) error {
				_, err := s.Get(ctx, s.key(), clientv3.WithCountOnly()) // which a majority confirms
				if errors.Is(err, rpctypes.ErrPermissionDenied) {
					return nil // that took as long
				}
				return err
			})
		},
	},
}

// keysBegin returns what keys with a prefix begin with: some characters are written as others.
func keysBegin(prefix string) string {
	key := etcdlock.Key(prefix)
	return key[:len(key)-1] // without what ends the name
}

// key is one that nobody has.
func (s *etcdStore) key() string { return s.prefix + "locker.doctor" }

// allowed tells what the answer to a request says about a permission.
func (s *etcdStore) allowed(err error, otherwise Status, permission string) finding {
	who := "user " + s.Username
	if s.Username == "" {
		who = "this client"
	}
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		f := finding{status: otherwise, found: fmt.Sprintf("%s lacks %s for %s", who, permission, s.prefix)}
		return f.remedy("etcdctl role grant-permission ROLE --prefix=true %s %s", permission, s.prefix)
	case err != nil && !errors.Is(err, rpctypes.ErrNoSpace): // permissions come first
		return unknown("%v", err)
	}
	return ok("%s has %s for %s", who, permission, s.prefix)
}

func lookAtMembers(ctx context.Context, s *etcdStore) finding {
	if s.failure != nil {
		return unknown("the list of members: %v", s.failure)
	}
	var voters, unstarted int
	var urls []string
	for _, m := range s.members {
		switch {
		case m.IsLearner:
			continue
		case len(m.ClientURLs) == 0:
			unstarted++
		default:
			urls = append(urls, m.ClientURLs[0])
		}
		voters++
	}
	var silent []string
	for _, e := range s.ask(ctx, urls) {
		if e.err != nil {
			silent = append(silent, e.name)
		}
	}
	text := plural(voters, "voting member")
	switch {
	case unstarted > 0:
		return warn("%s, of which %d never started", text, unstarted).remedy("Start them, or remove them.")
	case len(silent) > 0:
		return warn("%s, of which these do not answer here: %s", text, strings.Join(silent, ", ")).
			remedy("Bring them back. If they run, correct --advertise-client-urls.")
	case voters < 3:
		return warn("%s: none may fail", text).remedy("Use three members, or five.")
	case voters%2 == 0:
		return warn("%s, an even number", text).remedy("Add a member, or remove one.")
	}
	return ok("%s, all of which answer", text)
}

func lookAtAlarms(ctx context.Context, s *etcdStore) finding {
	list, err := s.AlarmList(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if len(list.Alarms) == 0 {
		return ok("none")
	}
	var alarms []string
	do := remedyOf(etcdlock.ErrNoSpace)
	for _, a := range list.Alarms {
		alarms = append(alarms, fmt.Sprintf("%s of member %x", a.Alarm, a.MemberID))
		if a.Alarm == pb.AlarmType_CORRUPT {
			do = "Replace the member whose data is corrupt, and then: etcdctl alarm disarm."
		}
	}
	return fail("%s", strings.Join(alarms, ", ")).remedy("%s", do)
}

// lookAtElectionTimeout has a lease granted that is as short as possible: etcd tells its election timeout by no other
// means.
func lookAtElectionTimeout(ctx context.Context, s *etcdStore) finding {
	lease, err := s.Grant(ctx, 1)
	if err != nil {
		return unknown("a lease of 1 s: %v", err)
	}
	_, _ = s.Revoke(ctx, lease.ID) // or it ends by itself
	shortest := time.Duration(lease.TTL) * time.Second
	election := (shortest * 2 / 3).Round(100 * time.Millisecond)
	text := fmt.Sprintf("%v at most, as the shortest TTL is %v; the TTL is to be %v", election, shortest, s.options.TTL)
	const do = "Lower --election-timeout on all members, or use a longer TTL."
	switch {
	case shortest > s.options.TTL:
		return fail("%s", text).remedy(do)
	case shortest > s.options.TTL/2:
		return warn("%s: an election may outlast a lease", text).remedy(do)
	}
	return ok("%s", text)
}
