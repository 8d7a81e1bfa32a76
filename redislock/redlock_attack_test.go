package redislock_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/wires"
	"github.com/lockerkit/locker/redislock"
)

// proxied returns a proxy before each server, and their addresses.
func (s independent) proxied(t *testing.T) (proxies []*faultproxy.Proxy, addresses []string) {
	proxies = wires.New(s.addresses()...).Proxies(t)
	for _, proxy := range proxies {
		addresses = append(addresses, proxy.Addr())
	}
	return proxies, addresses
}

// TestRedlockCalledBeforeTheAnswer has messages overtake the answers by which a waiter learns that it is in line: it is called all
// the same, and not by the poll.
func TestRedlockCalledBeforeTheAnswer(t *testing.T) {
	servers := newIndependent(t, 3)
	rdbs := servers.dialEach(t)
	proxies, addresses := servers.proxied(t)
	a, b := openRedlock(t, servers.addresses()), openRedlock(t, addresses)
	queue := "{" + redislock.DefaultPrefix + "k}:locker:queue:"
	stranger := strings.Repeat("a", 32) + ":" + strings.Repeat("b", 32)
	place := func(rdb *redis.Client) float64 {
		for _, z := range rdb.ZRangeWithScores(context.Background(), queue, 0, -1).Val() {
			if z.Member != stranger {
				return z.Score
			}
		}
		return 0
	}
	samePlace := func() bool { return place(rdbs[1]) == place(rdbs[0]) && place(rdbs[2]) == place(rdbs[0]) && place(rdbs[0]) > 0 }

	held := mustLock(t, a, "k")
	first := make(chan *locker.Lease)
	go func() { first <- mustLock(t, b, "k") }() // subscribes
	eventually(t, 5*time.Second, "the subscriptions are there", func() bool {
		for _, rdb := range rdbs {
			if len(rdb.PubSubChannels(context.Background(), "locker:*").Val()) == 0 {
				return false
			}
		}
		return samePlace()
	})
	mustUnlock(t, held)
	mustUnlock(t, <-first)

	const later = 200 * time.Millisecond
	for _, proxy := range proxies {
		proxy.SetWhere(func(sent []byte) bool { return strings.Contains(string(sent), "evalsha") },
			faultproxy.Fault{ToClient: faultproxy.Flow{Delay: later}})
	}
	mustUnlock(t, mustLock(t, b, "warm")) // from now on it knows that the servers are not near
	for name, behind := range map[string][]*redis.Client{ // where it comes behind a stranger
		"refused":  rdbs,     // its place is the same everywhere
		"lined up": rdbs[:1], // it has to tell two servers of its place at the third
	} {
		t.Run(name, func(t *testing.T) {
			held := mustLock(t, a, "k")
			score := float64(time.Now().Add(time.Hour).UnixMicro())
			for _, rdb := range behind {
				rdb.ZAdd(t.Context(), queue, redis.Z{Score: score, Member: stranger})
			}
			got := make(chan *locker.Lease, 1)
			go func() { got <- mustLock(t, b, "k") }()
			eventually(t, 5*time.Second, "it is in line", samePlace)
			for _, rdb := range rdbs {
				rdb.ZRem(t.Context(), queue, stranger)
			}
			mustUnlock(t, held)
			start := time.Now()
			lease := <-got
			// What is left of the wait for the answers, the answers of servers that are busy with it, and those to another try.
			if took := time.Since(start); took > 5*later+100*time.Millisecond {
				t.Errorf("after the lock was released, it took %v to get it", took)
			}
			mustUnlock(t, lease)
		})
	}
}
