package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// testClient returns a client of the server that the tests share.
func testClient(t *testing.T, o redis.Options) *Client {
	o.Addr, o.DisableIdentity = redistest.Address(t), true
	rdb := redis.NewClient(&o)
	c := New(rdb)
	t.Cleanup(func() {
		c.Drain()
		_ = rdb.Close()
	})
	return c
}

func testNames(key string, owner byte) scripts.Names {
	return scripts.NamesOf(locker.Request{Prefix: "test:", Key: key, Owner: locker.Owner{owner, 1}},
		strings.Repeat("p", 32))
}

// requestsFor returns requests for keys, of an owner for each.
func requestsFor(keys ...string) []*request {
	var rs []*request
	for i, key := range keys {
		rs = append(rs, &request{
			script: scripts.Default().Take, ctx: context.Background(),
			words: testNames(key, byte(i)).TakeWords(10*time.Second, ""),
		})
	}
	return rs
}

// take and free have a request for a lock, and to free it, answered.
func take(t *testing.T, c *Client, key string) {
	t.Helper()
	r := requestsFor(key)[0]
	reply, err := c.group.run(t.Context(), time.Time{}, r.script, r.words)
	if _, granted := reply.(string); err != nil || !granted {
		t.Errorf("to take a key that is free: %v, %v", reply, err)
	}
}

func free(t *testing.T, c *Client, key string) {
	t.Helper()
	reply, err := c.group.run(t.Context(), time.Time{}, scripts.Default().Give, testNames(key, 0).GiveWords())
	if err != nil || reply != int64(1) {
		t.Errorf("to free a key: %v, %v", reply, err)
	}
}

// TestOneRequestFails: what shares a call with a request that fails, or is refused, is as if it were alone.
func TestOneRequestFails(t *testing.T) {
	c := testClient(t, redis.Options{})
	admin := c.UniversalClient
	for _, known := range []bool{false, true} { // the script, by the server
		name := fmt.Sprint(t.Name(), known)
		if err := admin.HSet(t.Context(), "test:"+name+"2", "not", "a lock").Err(); err != nil {
			t.Fatal(err)
		}
		if err := admin.Set(t.Context(), "test:"+name+"3", "somebody", time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		rs := requestsFor(name+"0", name+"1", name+"2", name+"3")
		rs = append(rs, requestsFor(name + "0")[0]) // again: it has the lock by then
		rs = append(rs, &request{
			script: scripts.Default().Give, words: testNames(name, 9).GiveWords(), ctx: t.Context(),
		})
		if !known {
			admin.ScriptFlush(t.Context())
		}
		if !c.patiently(rs) {
			t.Fatal("no answer")
		}
		for i := range 2 {
			if _, ok := rs[i].reply.(string); !ok || rs[i].err != nil {
				t.Fatalf("request %d: %v, %v; want a token", i, rs[i].reply, rs[i].err)
			}
		}
		if rs[2].reply != nil || rs[2].err != nil {
			t.Errorf("a hash: %v, %v; want nothing: the script for all cases has to say that", rs[2].reply, rs[2].err)
		}
		if refused, ok := rs[3].reply.([]any); !ok || len(refused) != 3 || refused[0] != "somebody" {
			t.Errorf("a lock of somebody: %v, %v; want his value", rs[3].reply, rs[3].err)
		}
		if rs[4].reply != nil || rs[4].err != nil {
			t.Errorf("the same owner again: %v, %v; want nothing, as before", rs[4].reply, rs[4].err)
		}
		if rs[5].reply != int64(0) || rs[5].err != nil {
			t.Errorf("to release what one has not: %v, %v; want 0", rs[5].reply, rs[5].err)
		}
	}
}

// TestReadOnlyDropsTheConnection: a master that has become a replica keeps its connections. Its name may stand for
// another server by now, so that a connection that says so is of no use.
func TestReadOnlyDropsTheConnection(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 1})
	defer rdb.Close()
	c := New(rdb)
	id := func() int64 {
		id, err := rdb.ClientID(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if err := rdb.ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	for name, requests := range map[string]func(keys ...string) []*request{
		"quick": requestsFor,
		"not": func(keys ...string) []*request {
			rs := requestsFor(keys...)
			for i, r := range rs {
				r.script = scripts.Default().Acquire
				r.words = testNames(keys[i], byte(i)).AcquireWords(time.Minute, 0, "")
			}
			return rs
		},
	} {
		for _, keys := range [][]string{{"a"}, {"a", "b", "c"}} {
			before := id()
			c.patiently(requests(keys...))
			if id() == before {
				t.Errorf("%s, %d requests: the connection has been kept", name, len(keys))
			}
			before = id()
			r := requests("a")[0]
			c.briefly(t.Context(), r)
			if !errors.Is(c.Explain(r.err), ErrReadOnly) || id() == before {
				t.Errorf("%s, alone: %v, or the connection has been kept", name, r.err)
			}
		}
	}
}

// TestUnsent: a request that waits for a call to end is not sent if its ctx ends first, or its time has come, and the
// caller is told: also one who did not heed his ctx at first, as answers came fast.
func TestUnsent(t *testing.T) {
	c := testClient(t, redis.Options{})
	g := c.group
	for _, near := range []bool{false, true} {
		for _, until := range []time.Time{{}, time.Now().Add(20 * time.Millisecond)} {
			g.mu.Lock()
			g.calls = maxCalls // none of which ends
			g.near = near
			g.mu.Unlock()
			ctx, cancel := context.WithCancel(t.Context())
			if until.IsZero() {
				time.AfterFunc(20*time.Millisecond, cancel)
			}
			r := requestsFor(t.Name())[0]
			if _, err := g.run(ctx, until, r.script, r.words); !IsDial(err) || !IsContext(err) {
				t.Errorf("a request whose time is over: %v; want an error that says so, and that nothing was sent", err)
			}
			cancel()
			g.mu.Lock()
			if len(g.waiting) > 0 {
				t.Errorf("%d requests wait, of callers that have gone", len(g.waiting))
			}
			g.calls = 0
			g.mu.Unlock()
		}
	}
	take(t, c, t.Name())
	free(t, c, t.Name())
}

// hanging is a connection that may lose what is written.
type hanging struct {
	net.Conn
	hangs *atomic.Bool
}

func (c hanging) Write(p []byte) (int, error) {
	if c.hangs.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// TestConnectionsHang: the requests that are under way by connections that hang are on their own.
func TestConnectionsHang(t *testing.T) {
	addr := redistest.Address(t)
	hangs := new(atomic.Bool)
	g := testClient(t, redis.Options{Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return hanging{conn, hangs}, err
	}}).group
	hangs.Store(true)
	g.mu.Lock()
	g.near = false // else they are given up soon
	g.mu.Unlock()
	var hung sync.WaitGroup
	defer hung.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range together {
		hung.Go(func() {
			r := requestsFor(fmt.Sprint(t.Name(), "hung", i))[0]
			_, _ = g.run(ctx, time.Time{}, r.script, r.words)
		})
		for calls := 0; calls <= i; time.Sleep(time.Millisecond) {
			g.mu.Lock()
			calls = g.calls
			g.mu.Unlock()
		}
	}
	hangs.Store(false)
	start := time.Now()
	r := requestsFor(fmt.Sprint(t.Name(), "well"))[0]
	_, err := g.run(t.Context(), time.Time{}, r.script, r.words)
	if took := time.Since(start); err != nil || took > MaxTimeout {
		t.Errorf("beside %d connections that hang: %v, after %v", together, err, took)
	}
	cancel()
}

// TestCallsAreBounded: Redis does nothing else during a call. The hooks of the client that is given see all of them.
func TestCallsAreBounded(t *testing.T) {
	var mu sync.Mutex
	var calls []int // how many requests were in each
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t), DisableIdentity: true})
	rdb.AddHook(redistest.Hook(func(cmds ...redis.Cmder) {
		mu.Lock()
		defer mu.Unlock()
		for _, cmd := range cmds {
			if strings.HasPrefix(cmd.Name(), "eval") {
				keys, _ := cmd.Args()[2].(int)
				calls = append(calls, keys/requestsFor("")[0].words.Keys)
			}
		}
	}))
	defer rdb.Close()
	c := New(rdb)
	const callers = 5 * groupSize / 2
	g := c.group
	g.mu.Lock() // all of them wait
	g.calls = maxCalls
	g.mu.Unlock()
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() { take(t, c, fmt.Sprint(t.Name(), i)) })
	}
	for waiting := 0; waiting < callers; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		waiting = len(g.waiting)
		g.mu.Unlock()
	}
	g.mu.Lock()
	g.calls = 0
	g.callLocked()
	g.mu.Unlock()
	all.Wait()
	mu.Lock()
	total := 0
	for _, n := range calls {
		total += n
		if n > groupSize {
			t.Errorf("%d requests in a call; want at most %d", n, groupSize)
		}
	}
	if total < callers || len(calls) > callers/10 {
		t.Errorf("%d requests were in %d calls, of %v; want %d in a few", total, len(calls), calls, callers)
	}
	mu.Unlock()
	for i := range callers {
		all.Go(func() { free(t, c, fmt.Sprint(t.Name(), i)) })
	}
	all.Wait()
}
