package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/soak/history"
)

// one is a server by chance.
func (r *redisStore) one(rng *rand.Rand) node { return r.servers[rng.IntN(len(r.servers))] }

func (r *redisStore) faults() []fault {
	longest := longestTTL(r.soak.config.store)
	// command is a fault that takes one command, and perhaps one that ends it.
	command := func(what string, begin []any, end ...any) fault {
		return fault{2, what, longest / 2, 0, func(rng *rand.Rand, e *history.Event) (func() error, error) {
			e.Server = r.one(rng).Addr()
			_, _ = r.do(e.Server, begin...) // a replica refuses some of them
			if end == nil {
				return nil, nil
			}
			return func() error { _, _ = r.do(e.Server, end...); return nil }, nil
		}}
	}
	loseData := func(what string, away time.Duration) fault {
		return killed(1, what, 0, r.one, func(n node) error {
			// Tokens need either the data or a clock that is not behind, nor will be soon.
			time.Sleep(max(away, time.Until(r.soak.caughtUp)))
			r.soak.lostData = time.Now()
			return errors.Join(os.RemoveAll(filepath.Join(n.(*redistest.Server).Dir(), "appendonlydir")), n.Restart())
		})
	}
	all := []fault{
		command("clients' connections killed", []any{"client", "kill", "type", "normal", "skipme", "yes"}),
		command("subscribers' connections killed", []any{"client", "kill", "type", "pubsub"}),
		command("scripts flushed", []any{"script", "flush"}),
		command("clients paused", []any{"client", "pause", 1500, "all"}, "client", "unpause"),
		command("writes paused", []any{"client", "pause", 1500, "write"}, "client", "unpause"),
		command("out of memory", []any{"config", "set", "maxmemory", 1}, "config", "set", "maxmemory", 0),
		command("busy with a script", []any{"eval", "local n = 0 for i = 1, 2e7 do n = n + i end return 1", 0}),
		command("log rewritten", []any{"bgrewriteaof"}),
		frozen(4, "frozen", 2*longest, r.one),
		killed(4, "killed, started with its data", longest/2, r.one, r.restart),
	}
	switch r.soak.config.store {
	case storeRedis:
		all = append(all, loseData("data lost", 0), fault{2, "clock set back", 0, 0, r.setClock})
	case storeRedlock:
		// The clock that is behind has to be so by less than the server is away.
		all = append(all, loseData("data lost, and away for the longest TTL", longest+furthestBehind),
			fault{2, "clock set back", 0, 0, r.setClock},
			fault{2, "majority frozen", 3 * time.Second, 0, r.freezeMajority})
	default:
		const replaced = 6 * time.Second // longer than it takes to notice
		all = append(all,
			killed(1, "master killed for long", 0, r.master, func(n node) error {
				time.Sleep(replaced)
				return r.restart(n)
			}),
			fault{1, "master frozen for long", 0, replaced, r.freezeMaster},
			fault{1, "master cut off from servers", 0, replaced, r.cutOffMaster})
		if r.sentinels != nil {
			sentinel := func(rng *rand.Rand) node { return r.sentinels.Sentinels()[rng.IntN(3)] }
			all = append(all, frozen(1, "sentinel frozen", 4*time.Second, sentinel),
				killed(1, "sentinel killed", 4*time.Second, sentinel, node.Restart))
		} else {
			all = append(all, fault{6, "slot moved", 0, 0, r.moveSlot})
		}
		for i, f := range all { // one after the other
			all[i].begin = func(rng *rand.Rand, e *history.Event) (func() error, error) {
				if err := r.soak.await(); err != nil {
					return nil, err
				}
				return f.begin(rng, e)
			}
		}
	}
	return all
}

// rejoin is what the configuration of a server, and an operator, would do for one that is back: it follows the master
// that the sentinels agree upon. They would do that by themselves, after a while.
func (r *redisStore) rejoin(n node) error {
	if r.sentinels == nil {
		return nil
	}
	votes := map[string]int{}
	for _, sentinel := range r.sentinels.SentinelAddrs() {
		reply, err := r.do(sentinel, "sentinel", "get-master-addr-by-name", redistest.MasterName)
		if master, ok := reply.([]any); err == nil && ok && len(master) == 2 {
			votes[fmt.Sprintf("%v %v", master[0], master[1])]++
		}
	}
	for master, n1 := range votes {
		host, port, _ := strings.Cut(master, " ")
		if host+":"+port == n.Addr() {
			host, port = "no", "one"
		}
		if n1 == len(r.sentinels.SentinelAddrs()) {
			_, _ = r.do(n.Addr(), "replicaof", host, port)
		}
	}
	return nil
}

func (r *redisStore) restart(n node) error { return errors.Join(n.Restart(), r.rejoin(n)) }

// freezeMajority freezes two of three servers.
func (r *redisStore) freezeMajority(rng *rand.Rand, _ *history.Event) (func() error, error) {
	first := rng.IntN(3)
	one, two := r.servers[first], r.servers[(first+1)%3]
	return func() error { return errors.Join(one.Resume(), two.Resume()) }, errors.Join(one.Pause(), two.Pause())
}

// setClock sets the clock of a server back. Locks of dead holders last longer by as much.
func (r *redisStore) setClock(rng *rand.Rand, e *history.Event) (func() error, error) {
	e.Server = r.one(rng).Addr()
	return nil, r.soak.setClock(fmt.Sprint(portOf(e.Server)), rng)
}

// master is one of the masters.
func (r *redisStore) master(rng *rand.Rand) node {
	g := r.groups[rng.IntN(len(r.groups))]
	if masters, _ := g.look(); len(masters) > 0 {
		return masters[0]
	}
	return g.servers[0]
}

func (r *redisStore) freezeMaster(rng *rand.Rand, e *history.Event) (func() error, error) {
	n := r.master(rng)
	e.Server = n.Addr()
	return func() error {
		err := n.Resume()
		time.Sleep(time.Second) // it takes itself for the master
		return errors.Join(err, r.rejoin(n))
	}, n.Pause()
}

func (r *redisStore) cutOffMaster(rng *rand.Rand, e *history.Event) (func() error, error) {
	if !ownNetwork() {
		return nil, errNotNow
	}
	n := r.master(rng)
	e.Server = n.Addr()
	mend, err := cutOff(e.Server)
	return func() error {
		err := mend()
		time.Sleep(time.Second) // those who can still reach it
		return errors.Join(err, r.rejoin(n))
	}, err
}

// moveSlot moves the slot of a key to another master.
func (r *redisStore) moveSlot(rng *rand.Rand, e *history.Event) (func() error, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	to := r.master(rng).(*redistest.Server)
	e.Server = to.Addr()
	reply, err := r.do(e.Server, "cluster", "keyslot", "locker:"+key(r.soak.keys, rng))
	slot, ok := reply.(int64)
	if err != nil || !ok {
		return nil, errNotNow
	}
	if r.cluster.MoveSlot(ctx, int(slot), to) != nil {
		e.What += ", not to the end"
		for _, server := range r.servers {
			_, _ = r.do(server.Addr(), "cluster", "setslot", slot, "stable")
		}
	}
	return nil, nil
}

// group is a master and its replicas. A failover is no single event: it takes from the moment when replication was last
// seen to work until there is one master again, whom all others follow. In between, two may answer.
type group struct {
	store   *redisStore
	servers []*redistest.Server
	mu      sync.Mutex
	well    bool
}

func (g *group) settled() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.well
}

// roles says what each server takes itself for.
func (g *group) roles() (text string) {
	for _, server := range g.servers {
		role, err := g.store.do(server.Addr(), "role")
		text += fmt.Sprintf("%s: %v %v; ", server.Addr(), role, err)
	}
	return text
}

// watch notes the failovers, for as long as the program runs.
func (g *group) watch() {
	var master *redistest.Server // when the group was well
	last := now()                // when it was
	seen := map[*redistest.Server]bool{}
	led, repaired := time.Now(), false
	for ; ; time.Sleep(20 * time.Millisecond) {
		at := now()
		masters, well := g.look()
		for _, m := range masters {
			seen[m] = true
		}
		if len(masters) > 0 {
			led = time.Now()
		} else if time.Since(led) > leaderless {
			led, repaired = time.Now(), g.promote() || repaired
		}
		g.mu.Lock()
		g.well = well
		g.mu.Unlock()
		changed := len(seen) > 1 || master != nil && len(seen) == 1 && !seen[master]
		if (changed || repaired) && well {
			g.store.soak.note(history.Event{What: failover, From: last, To: now()})
		}
		if well {
			master, last, seen, repaired = masters[0], at, map[*redistest.Server]bool{}, false
		}
	}
}

// leaderless is for how long there may be no master: longer than any fault lasts. Sentinel may make each of two servers
// a replica of the other, if it is disturbed during a failover, and then it waits for a master for ever.
const leaderless = 30 * time.Second

// promote makes the replica that has received most a master, as an operator would, if all servers answer as replicas.
func (g *group) promote() bool {
	best, most := g.servers[0], int64(-1)
	for _, server := range g.servers {
		info, err := g.store.do(server.Addr(), "info", "replication")
		text, _ := info.(string)
		if err != nil || !strings.Contains(text, "role:slave") {
			return false
		}
		var offset int64
		_, after, _ := strings.Cut(text, "master_repl_offset:")
		if _, err := fmt.Sscan(after, &offset); err == nil && offset > most {
			best, most = server, offset
		}
	}
	_, err := g.store.do(best.Addr(), "replicaof", "no", "one")
	fmt.Printf("all servers are replicas, and have been for %v; %s is made a master: %v\n", leaderless, best.Addr(), err)
	return err == nil
}

// look asks all servers who is a master, and whether the others follow one.
func (g *group) look() (masters []*redistest.Server, well bool) {
	replies := make([]any, len(g.servers))
	var wg sync.WaitGroup
	for i, server := range g.servers {
		wg.Go(func() { replies[i], _ = g.store.do(server.Addr(), "role") })
	}
	wg.Wait()
	followers := 0
	for i, reply := range replies {
		role, _ := reply.([]any)
		switch {
		case len(role) > 0 && role[0] == "master":
			masters = append(masters, g.servers[i])
		case len(role) > 3 && role[0] == "slave" && role[3] == "connected":
			followers++
		}
	}
	return masters, len(masters) == 1 && followers == len(g.servers)-1
}
