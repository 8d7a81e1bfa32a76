package faketime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/redislock"
)

// server is that of one test: it has to live in its bubble.
type server struct {
	*miniredis.Miniredis
	address string
	clients []*client
}

// client is a client and its connections.
type client struct {
	*redis.Client
	server *server

	mu    sync.Mutex
	fault conformance.Fault // of connections to come, too
	wires []*wire
}

// servers are independent of each other.
type servers []*server

// inUse are the servers of the tests that run, by *testing.T.
var inUse sync.Map

// serversOf returns the servers of a test, which it starts if there are none.
func serversOf(t *testing.T, n int) servers {
	t.Helper()
	if s, ok := inUse.Load(t); ok {
		return s.(servers)
	}
	s := newServers(t, n)
	inUse.Store(t, s)
	t.Cleanup(func() { inUse.Delete(t) })
	return s
}

func newServers(t *testing.T, n int) (s servers) {
	t.Helper()
	for range n {
		s = append(s, newServer(t))
	}
	return s
}

// connect returns a client of each server, and what closes them.
func (s servers) connect() (clients []redis.UniversalClient, closeAll func()) {
	for _, one := range s {
		clients = append(clients, one.connect())
	}
	return clients, func() {
		for _, c := range clients {
			_ = c.Close()
		}
	}
}

// cut cuts off the clients that were connected last.
func (s servers) cut(fault conformance.Fault) (heal func()) {
	var all []*client
	for _, one := range s {
		all = append(all, one.clients[len(one.clients)-1])
	}
	set := func(fault conformance.Fault) {
		for _, c := range all {
			c.set(fault)
		}
	}
	set(fault)
	return func() { set(noFault) }
}

// restart ends all connections, and forgets all that there is, in the time that this takes a server at least.
func (s servers) restart(t *testing.T) {
	t.Helper()
	for _, one := range s {
		one.restart(t)
	}
	time.Sleep(10 * time.Millisecond)
}

// made counts the servers, which differ in their addresses.
var made atomic.Int32

func newServer(t *testing.T) *server {
	t.Helper()
	// No name, as go-redis would look it up, outside of the bubble.
	s := &server{Miniredis: miniredis.NewMiniRedis(), address: fmt.Sprintf("127.0.0.1:%d", made.Add(1))}
	s.ClockTTL(true)
	t.Cleanup(s.Close)
	s.learn(t)
	return s
}

// learn has the server see each script once, as one that is in use has. Else the first run of one takes two requests,
// and a fault between them means something else than between a request and its answer.
func (s *server) learn(t *testing.T) {
	t.Helper()
	c := s.newClient()
	defer c.Close()
	l := redislock.New(c.Client)
	lease, err := l.Lock(t.Context(), "learn")
	if err == nil {
		err = lease.Unlock()
	}
	if err = errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	s.FlushAll()
}

// connect returns a client with connections of its own.
func (s *server) connect() *client {
	c := s.newClient()
	s.clients = append(s.clients, c)
	return c
}

func (s *server) newClient() *client {
	c := &client{server: s, fault: noFault}
	c.Client = redis.NewClient(&redis.Options{
		Addr:            s.address,
		Dialer:          c.dial,
		DisableIdentity: true,
		DialerRetries:   1, // see wire
		// They leave a goroutine behind, which a bubble waits for.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return c
}

func (c *client) dial(context.Context, string, string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault == conformance.Refuse {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	there, err := c.server.Dial()
	if err != nil {
		return nil, err
	}
	w, here := newWire(there, c.fault)
	c.wires = append(c.wires, w)
	return here, nil
}

func (c *client) set(fault conformance.Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = fault
	for _, w := range c.wires {
		w.set(fault)
	}
}

// restart ends all connections, and forgets all that there is.
func (s *server) restart(t *testing.T) {
	t.Helper()
	c := s.newClient()
	defer c.Close()
	if err := c.ScriptFlush(t.Context()).Err(); err != nil {
		t.Error(err)
	}
	s.FlushAll()
	for _, c := range s.clients {
		c.mu.Lock()
		for _, w := range c.wires {
			w.close()
		}
		c.mu.Unlock()
	}
}
