package redlock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/redlock"
)

// TestCalledBeforeTheAnswer has messages overtake the answers by which a waiter learns that it is in line: it is
// called all the same, and not by the poll.
func TestCalledBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	a, b := openRedlock(t, servers.Addresses()), openRedlock(t, addresses)
	queue := "{" + redlock.DefaultPrefix + "k}:locker:queue:"
	stranger := strings.Repeat("a", 32) + ":" + strings.Repeat("b", 32)
	place := func(rdb *redis.Client) float64 {
		for _, z := range rdb.ZRangeWithScores(context.Background(), queue, 0, -1).Val() {
			if z.Member != stranger {
				return z.Score
			}
		}
		return 0
	}
	samePlace := func() bool {
		return place(rdbs[1]) == place(rdbs[0]) && place(rdbs[2]) == place(rdbs[0]) && place(rdbs[0]) > 0
	}

	held := mustLock(t, a, "k")
	first := locktest.Started(func() *locker.Lease { return mustLock(t, b, "k") }) // subscribes
	eventually(t, "the subscriptions are there", func() bool {
		for _, rdb := range rdbs {
			if len(rdb.PubSubChannels(context.Background(), "locker:*").Val()) == 0 {
				return false
			}
		}
		return samePlace()
	})
	mustUnlock(t, held)
	mustUnlock(t, first.Get(t))

	const later = 200 * time.Millisecond
	for _, proxy := range proxies {
		proxy.SetWhere(func(sent []byte) bool { return strings.Contains(string(sent), "evalsha") },
			faultproxy.Fault{ToClient: faultproxy.Flow{Delay: later}})
	}
	locktest.Warm(b, 1)                                   // from now on it knows that the servers are not near
	for name, behind := range map[string][]*redis.Client{ // where it comes behind a stranger
		"refused":  rdbs,     // its place is the same everywhere
		"lined up": rdbs[:1], // it has to tell two servers of its place at the third
	} {
		t.Run(name, func(t *testing.T) {
			// turn returns for how long it has waited, and what may be: less than until the poll. That is what is
			// left of the wait for the answers, the answers of servers that are busy with it, and those to another
			// try; and as much as answers take longer at that time, on a machine that is busy with something else.
			turn := func() (took, most time.Duration) {
				begun := time.Now()
				mustUnlock(t, mustLock(t, b, "other"))
				late := time.Since(begun) - 2*later
				held := mustLock(t, a, "k")
				score := float64(time.Now().Add(time.Hour).UnixMicro())
				for _, rdb := range behind {
					rdb.ZAdd(t.Context(), queue, redis.Z{Score: score, Member: stranger})
				}
				got := locktest.Started(func() *locker.Lease { return mustLock(t, b, "k") })
				eventually(t, "it is in line", samePlace)
				for _, rdb := range rdbs {
					rdb.ZRem(t.Context(), queue, stranger)
				}
				mustUnlock(t, held)
				start := time.Now()
				lease := got.Get(t)
				took = time.Since(start)
				mustUnlock(t, lease)
				return took, 5*later + 2*late + 100*time.Millisecond
			}
			locktest.Tries(t, func() error {
				if took, most := turn(); took > most {
					return fmt.Errorf("after the lock was released, it took %v to get it; want %v at most", took, most)
				}
				return nil
			})
		})
	}
}

// repairs matches a request to repair the key k at a server, also one that brings the script along. It is the last of
// what was sent by a connection.
func repairs(sent []byte) bool {
	last := sent[max(bytes.LastIndex(sent, []byte("\r\neval")), 0):]
	confirms := sends(redlock.ConfirmSHA)(last) || sends("not holder and ttl")(last)
	return confirms && sends(redlock.DefaultPrefix+"k\r\n")(last)
}

func sends(what string) func([]byte) bool {
	return func(sent []byte) bool { return strings.Contains(string(sent), what) }
}

// TestMinorityOfAWaiter has a waiter get a minority of the locks, and the request to give them back lost: the lock
// that is left there must not stay until its TTL has passed.
func TestMinorityOfAWaiter(t *testing.T) {
	t.Parallel()
	l, proxies, rdbs := behindProxies(t, time.Minute, 3)
	locktest.Tries(t, func() error {
		defer proxies[0].Heal()
		key := locktest.Unique("k")
		name := redlock.DefaultPrefix + key
		for _, rdb := range rdbs[1:] {
			rdb.Set(t.Context(), name, "foreign", 0)
		}
		proxies[0].SetWhere(sends(redlock.LineupSHA), faultproxy.BlackHole())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		over := make(chan struct{})
		go func() { defer close(over); _, err = l.Lock(ctx, key) }()
		until := func(what string, done func() bool) {
			eventuallyWithin(t, 10*time.Second, what, func() bool {
				select {
				case <-over: // on a busy machine, another server may be late, too: then there is no quorum
					return true
				default:
					return done()
				}
			})
		}
		hasMinority := func() bool { return rdbs[0].Exists(t.Context(), name).Val() == 1 }
		until("it has a minority", hasMinority)
		until("it is in line elsewhere", func() bool { return inLine(t, rdbs[1], key) == 1 })
		time.Sleep(3 * time.Second) // what is sent to the first server gets lost, and is given up after two seconds
		proxies[0].Heal()
		until("the minority is given back, though the waiter still waits", func() bool { return !hasMinority() })
		cancel()
		<-over
		if !errors.Is(err, context.Canceled) {
			return fmt.Errorf("Lock: %w; want Canceled", err)
		}
		return nil
	})
}

// TestLateAfterTTL cuts a server off for longer than a TTL: what was sent to it then arrives when all is over.
func TestLateAfterTTL(t *testing.T) {
	t.Parallel()
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	proxies, addresses := servers.Proxied(t)
	ttl := 3 * time.Second
	l := openRedlock(t, addresses, locker.TTL(ttl))
	locktest.Warm(l, 3)
	// Where the machine is busy, what clears up may not have been sent before it was given up.
	locktest.Tries(t, func() error {
		key := locktest.Unique("k")
		name := redlock.DefaultPrefix + key
		proxies[0].Set(faultproxy.Hang())
		mustUnlock(t, mustLock(t, l, key))
		time.Sleep(2*ttl + 3*time.Second)
		proxies[0].Heal()
		healed, seen := time.Now(), time.Duration(0)
		for time.Since(healed) < 2*ttl {
			if rdbs[0].Exists(t.Context(), name).Val() == 1 {
				seen = time.Since(healed)
			}
			time.Sleep(2 * time.Millisecond)
		}
		t.Logf("last seen %v after the server could be reached again", seen)
		if seen > ttl*2/3 {
			return fmt.Errorf("nobody has the lock, and it was there for %v", seen)
		}
		return nil
	})
}

// TestRepairAfterContest restarts one server after the other while somebody tries the lock again and again: that gets
// him a lesser part of the locks at times, which must not keep the holder from getting it back.
func TestRepairAfterContest(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	servers := redistest.NewIndependent(t, 3)
	rdbs := servers.DialEach(t)
	a, b := openRedlock(t, servers.Addresses(), locker.TTL(ttl)), openRedlock(t, servers.Addresses())
	lease := mustLock(t, a, "k")
	value := ""
	for _, rdb := range rdbs { // on a bare majority, it would not outlive the first restart
		eventuallyWithin(t, 3*ttl, "the lock is everywhere", func() bool {
			value = rdb.Get(t.Context(), redlock.DefaultPrefix+"k").Val()
			return value != ""
		})
	}
	for i, server := range servers {
		server.Kill()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		rdb := dial(t, server.Addr())
		eventuallyWithin(t, 10*time.Second, "the server answers",
			func() bool { return rdb.Ping(t.Context()).Err() == nil })
		if _, err := b.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrLocked) {
			t.Errorf("TryLock: %v; want ErrLocked", err)
		}
		start := time.Now()
		for rdb.Get(t.Context(), redlock.DefaultPrefix+"k").Val() != value {
			if time.Since(start) > 3*ttl {
				t.Errorf("server %d: the holder has not got the lock back", i)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := lease.Err(); err != nil {
		t.Errorf("after each server was restarted, one after the other: %v", err)
	}
}

// TestLateRepair has the request to repair a server arrive when the lock has been given back.
func TestLateRepair(t *testing.T) {
	t.Parallel()
	l, proxies, rdbs := behindProxies(t, 6*time.Second, 3)
	name := redlock.DefaultPrefix + "k"
	lease := mustLock(t, l, "k")
	eventuallyWithin(t, 5*time.Second, "the lock is everywhere",
		func() bool { return rdbs[0].Exists(t.Context(), name).Val() == 1 })
	rdbs[0].FlushAll(t.Context())
	// The first request to repair is held back; its repetition, on another connection, is not.
	held := holdWhere(proxies[0], repairs)
	eventuallyWithin(t, 15*time.Second, "the server is repaired",
		func() bool { return rdbs[0].Exists(t.Context(), name).Val() == 1 })
	mustUnlock(t, lease)
	eventuallyWithin(t, 5*time.Second, "all is over",
		func() bool { return rdbs[0].Exists(t.Context(), name).Val() == 0 })
	if !held() {
		t.Error("no request was held back")
	}
	proxies[0].Heal()
	for start := time.Now(); time.Since(start) < time.Second; time.Sleep(2 * time.Millisecond) {
		if rdbs[0].Exists(t.Context(), name).Val() == 1 {
			t.Fatalf("the late request has brought back a lock that was released, for %v", rdbs[0].PTTL(t.Context(), name).Val())
		}
	}
}

// TestReleaseOfATry has a server leave the first request of a waiter unanswered. What clears up behind that must not be
// taken for the end of the wait: what the waiter gets there later, and cannot use, it still has to give back.
func TestReleaseOfATry(t *testing.T) {
	t.Parallel()
	l, proxies, rdbs := behindProxies(t, 10*time.Second, 3)
	name := redlock.DefaultPrefix + "k"
	foreign := func(ttl time.Duration) {
		for _, rdb := range rdbs {
			rdb.Set(t.Context(), name, "foreign", ttl)
		}
	}
	foreign(0)
	for _, c := range proxies[0].Conns() { // what the present connections carry is not answered
		c.Set(faultproxy.DropReplies())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Lock(ctx, "k")
	}()
	everywhere := func() bool { return inLine(t, rdbs[0], "k")+inLine(t, rdbs[1], "k")+inLine(t, rdbs[2], "k") == 3 }
	eventuallyWithin(t, 10*time.Second, "it is in line everywhere", everywhere)
	time.Sleep(2500 * time.Millisecond) // whatever is not answered has been given up
	callHead(t, rdbs)                   // for nothing: another try, which is refused, too
	time.Sleep(500 * time.Millisecond)
	rdbs[0].Del(ctx, name)           // at this server, it is granted the lock the next time
	locktest.Tries(t, func() error { // what it has may have been granted a moment ago
		callHead(t, rdbs)
		time.Sleep(500 * time.Millisecond)
		if value := rdbs[0].Get(ctx, name).Val(); value != "" {
			return fmt.Errorf("a waiter keeps a minority of the locks: %q, for %v", value, rdbs[0].PTTL(ctx, name).Val())
		}
		return nil
	})
	eventuallyWithin(t, 5*time.Second, "it is in line everywhere", everywhere)
	cancel()
	<-done
}

// TestManyTries lets a waiter try again and again, with a server that does not answer: that costs no more goroutines
// the longer it lasts.
func TestManyTries(t *testing.T) {
	l, proxies, rdbs := behindProxies(t, 10*time.Second, 3)
	name := redlock.DefaultPrefix + "k"
	rdbs[1].Set(t.Context(), name, "foreign", 0)
	proxies[0].Set(faultproxy.BlackHole())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Lock(ctx, "k")
	}()
	rdbs[2].Set(t.Context(), name, "foreign", 0)
	eventually(t, "it is in line",
		func() bool { return inLine(t, rdbs[1], "k") == 1 && inLine(t, rdbs[2], "k") == 1 })
	most := func(during time.Duration) (n int) {
		for start := time.Now(); time.Since(start) < during; time.Sleep(time.Millisecond) {
			callHead(t, rdbs[1:])
			n = max(n, runtime.NumGoroutine())
		}
		return n
	}
	early := most(4 * time.Second) // longer than any request is waited for
	late := most(6 * time.Second)
	cancel()
	<-done
	if late > 300 { // a hundred are there anyhow; there are hundreds of tries in a second
		t.Errorf("%d goroutines in the beginning, %d in the end", early, late)
	}
	t.Logf("%d goroutines in the beginning, %d in the end", early, late)
}

// callHead calls the first in line, whether it is its turn or not.
func callHead(t *testing.T, rdbs []*redis.Client) {
	queue := "{" + redlock.DefaultPrefix + "k}:locker:queue:"
	for _, rdb := range rdbs {
		if head := rdb.ZRange(context.Background(), queue, 0, 0).Val(); len(head) == 1 {
			process, owner, _ := strings.Cut(head[0], ":")
			rdb.Publish(context.Background(), "locker:"+process, owner)
		}
	}
}

// TestContestWithASlowServer has a key that nobody has a majority of, and a server that is slow: TryLock does not wait.
func TestContestWithASlowServer(t *testing.T) {
	t.Parallel()
	l, proxies, rdbs := behindProxies(t, 30*time.Second, 1)
	proxies[0].SetWhere(sends("evalsha"), faultproxy.Delay(250*time.Millisecond))
	for i, rdb := range rdbs[:2] {
		rdb.Set(t.Context(), redlock.DefaultPrefix+"k", "foreign "+strconv.Itoa(i), 0)
	}
	start := time.Now()
	if _, err := l.TryLock(t.Context(), "k"); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock: %v; want ErrLocked", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("TryLock took %v", took)
	}
}
