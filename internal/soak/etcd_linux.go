package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/soak/history"
)

// openEtcd makes the Locker of a worker, whose connections go through its proxies.
func openEtcd(spec workerSpec, opts []locker.Option) (locker.Locker, func(), error) {
	var addrs []string
	for _, addr := range spec.Servers {
		addrs = append(addrs, spec.way(addr))
	}
	client, err := etcdClient(addrs...)
	if err != nil {
		return nil, nil, err
	}
	return etcdlock.New(client, opts...), func() { _ = client.Close() }, nil
}

func etcdClient(addrs ...string) (*clientv3.Client, error) {
	config, err := etcdlock.ParseURL("etcd://" + strings.Join(addrs, ","))
	if err != nil {
		return nil, err
	}
	return clientv3.New(config)
}

type etcdStore struct {
	soak    *soak
	cluster *etcdtest.Cluster
	clients []*clientv3.Client // one for each member
}

func newEtcdStore(s *soak) (*etcdStore, error) {
	if err := useServerProgram(s.dir, etcdtest.EnvProgram); err != nil {
		return nil, err
	}
	e := &etcdStore{soak: s}
	var err error
	opts := etcdtest.Options{Members: 3}
	if etcdtest.CanSlowDisks() {
		opts.Flags = []string{"--unsafe-no-fsync=false"}
	}
	if e.cluster, err = etcdtest.Start(opts); err != nil {
		return nil, err
	}
	for _, addr := range e.addrs() {
		client, err := etcdClient(addr)
		if err != nil {
			return nil, err
		}
		e.clients = append(e.clients, client)
	}
	return e, nil
}

func (e *etcdStore) addrs() []string     { return e.cluster.Endpoints() }
func (e *etcdStore) reachable() []string { return e.addrs() }
func (e *etcdStore) close() error        { return e.cluster.Close() }

// leaderStoodStill is the one case in which etcd ends leases that are alive: the leader is stopped for longer than what
// is left of them, and goes on.
const leaderStoodStill = "leader frozen"

func (e *etcdStore) rules() history.Rules {
	return history.Rules{Gaps: []history.Gap{
		{Name: "a leader that stood still has deleted living leases", Events: []string{"server: " + leaderStoodStill}},
	}}
}

func (e *etcdStore) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, client := range e.clients {
		if _, err := client.Get(ctx, "soak-health"); err != nil {
			return err
		}
	}
	return nil
}

// leftovers are keys of locks, and leases that have not ended a while after the processes have.
func (e *etcdStore) leftovers() (left []string, err error) {
	time.Sleep(longestTTL(storeEtcd) + time.Second) // leases that were given up, with nothing attached to them
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	keys, err := e.clients[0].Get(ctx, etcdlock.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	for _, kv := range keys.Kvs {
		left = append(left, fmt.Sprintf("key %q", kv.Key))
	}
	leases, err := e.clients[0].Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, lease := range leases.Leases {
		left = append(left, fmt.Sprintf("lease %x", lease.ID))
	}
	return left, nil
}

// leader returns the number of the leader, or -1.
func (e *etcdStore) leader() int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for i, client := range e.clients {
		if status, err := client.Status(ctx, e.addrs()[i]); err == nil && status.Leader == status.Header.MemberId {
			return i
		}
	}
	return -1
}

func (e *etcdStore) faults() []fault {
	longest := longestTTL(storeEtcd)
	maintain := func(what string, do func(ctx context.Context, member int) error) fault {
		return fault{2, what, 0, 0, func(rng *rand.Rand, _ *history.Event) (func() error, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			_ = do(ctx, rng.IntN(len(e.clients))) // there may be no leader just now
			return nil, nil
		}}
	}
	slow := func(what string, members func(*rand.Rand) []int) fault {
		return fault{4, what, 3 * longest, longest / 2, func(rng *rand.Rand, ev *history.Event) (func() error, error) {
			return e.slowDisks(rng, ev, members(rng)...)
		}}
	}
	one := func(rng *rand.Rand) node { return e.cluster.Member(rng.IntN(3)) }
	return []fault{
		maintain("member defragmented", func(ctx context.Context, i int) error {
			_, err := e.clients[i].Defragment(ctx, e.addrs()[i])
			return err
		}),
		maintain("compacted", func(ctx context.Context, i int) error {
			resp, err := e.clients[i].Get(ctx, "soak-health")
			if err == nil {
				_, err = e.clients[i].Compact(ctx, resp.Header.Revision)
			}
			return err
		}),
		maintain("leader moved", func(ctx context.Context, i int) error {
			to, err := e.clients[i].Status(ctx, e.addrs()[i])
			if leader := e.leader(); err == nil && leader >= 0 {
				_, err = e.clients[leader].MoveLeader(ctx, to.Header.MemberId)
			}
			return err
		}),
		killed(4, "member killed, started with its data", longest, one, node.Restart),
		{1, "member ended in order", longest / 2, 0, func(rng *rand.Rand, ev *history.Event) (func() error, error) {
			member := e.cluster.Member(rng.IntN(3))
			ev.Server = member.Addr()
			return member.Restart, member.Stop()
		}},
		{1, "all killed, started with their data", 0, 0, func(*rand.Rand, *history.Event) (func() error, error) {
			return nil, e.cluster.Restart()
		}},
		{4, "member frozen", 2 * longest, 0, func(rng *rand.Rand, ev *history.Event) (func() error, error) {
			return e.freeze(rng.IntN(3), ev)
		}},
		{2, "leader gone", 2 * longest, longest, func(_ *rand.Rand, ev *history.Event) (func() error, error) {
			return e.freeze(e.leader(), ev)
		}},
		{2, "majority frozen", longest, 0, func(rng *rand.Rand, ev *history.Event) (func() error, error) {
			first := rng.IntN(3)
			one, err1 := e.freeze(first, ev)
			two, err2 := e.freeze((first+1)%3, ev)
			return func() error { return errors.Join(one(), two()) }, errors.Join(err1, err2)
		}},
		{6, "member cut off from members", 2 * longest, 0, e.cutOff},
		slow("slow disk of a member", func(rng *rand.Rand) []int { return []int{rng.IntN(3)} }),
		slow("slow disks of all", func(*rand.Rand) []int { return []int{0, 1, 2} }),
	}
}

// slowDisks has each write to the disks of members take from 60 to 150 ms.
func (e *etcdStore) slowDisks(rng *rand.Rand, ev *history.Event, numbers ...int) (end func() error, err error) {
	if !etcdtest.CanSlowDisks() {
		return nil, errNotNow
	}
	delay := 60*time.Millisecond + below(rng, 90*time.Millisecond)
	var ends []func()
	end = func() error {
		for _, end := range ends {
			end()
		}
		return nil
	}
	for _, n := range numbers {
		m := e.cluster.Member(n)
		ev.Server += m.Addr() + " "
		one, err := m.SlowDisk(delay)
		if err != nil {
			_ = end()
			return nil, err
		}
		ends = append(ends, one)
	}
	return end, nil
}

// freeze freezes a member.
func (e *etcdStore) freeze(number int, ev *history.Event) (func() error, error) {
	if number < 0 {
		return nil, errNotNow
	}
	if e.leader() == number {
		ev.What = "server: " + leaderStoodStill
	}
	member := e.cluster.Member(number)
	ev.Server += member.Addr()
	return func() error {
		defer time.Sleep(500 * time.Millisecond) // what it sends when it goes on has arrived
		return member.Resume()
	}, member.Pause()
}

// cutOff cuts a member off from the others, and not from clients: mostly the leader.
func (e *etcdStore) cutOff(rng *rand.Rand, ev *history.Event) (func() error, error) {
	number := e.leader()
	if ev.What = "server: leader cut off from members"; rng.IntN(3) == 0 || number < 0 {
		number, ev.What = rng.IntN(3), "server: member cut off from members"
	}
	if !ownNetwork() {
		return nil, errNotNow
	}
	ev.Server = e.cluster.Member(number).Addr()
	return cutOff(ev.Server)
}
