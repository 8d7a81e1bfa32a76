package faketime

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/faketime"
	"github.com/lockerkit/locker/redislock"
)

// latency is how long a script takes to get to the server at most.
const latency = 4 * time.Millisecond

// server is that of one test: it has to live in its bubble.
type server struct {
	*miniredis.Miniredis
	address string
	pipes   []*faketime.Pipes // of each client
}

// servers are independent of each other.
type servers []*server

var inUse faketime.PerTest[servers]

// serversOf returns the servers of a test, which it starts if there are none.
func serversOf(t *testing.T, n int) servers {
	t.Helper()
	return inUse.Of(t, func() servers { return newServers(t, n) })
}

func newServers(t *testing.T, n int) (s servers) {
	t.Helper()
	for range n {
		s = append(s, newServer(t))
	}
	return s
}

// connect returns a client of each server, with connections of its own, and what closes them.
func (s servers) connect() (clients []redis.UniversalClient, pipes []*faketime.Pipes, closeAll func()) {
	for _, one := range s {
		c := one.connect()
		clients, pipes = append(clients, c), append(pipes, one.pipes[len(one.pipes)-1])
	}
	return clients, pipes, func() {
		for _, c := range clients {
			_ = c.Close()
		}
	}
}

// cut cuts off the clients that were connected last.
func (s servers) cut(fault conformance.Fault) (heal func()) {
	var all []*faketime.Pipes
	for _, one := range s {
		all = append(all, one.pipes[len(one.pipes)-1])
	}
	set := func(fault conformance.Fault) {
		for _, p := range all {
			p.Set(fault)
		}
	}
	set(fault)
	return func() { set(faketime.None) }
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
	c, _ := s.newClient()
	defer c.Close()
	l := redislock.New(c)
	lease, err := l.Lock(t.Context(), "learn")
	if err == nil {
		err = lease.Unlock()
	}
	if err = errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	s.FlushAll()
}

// connect returns a client with connections of its own, which can be cut off, and end when the server does.
func (s *server) connect() *redis.Client {
	c, p := s.newClient()
	s.pipes = append(s.pipes, p)
	return c
}

func (s *server) newClient() (*redis.Client, *faketime.Pipes) {
	p := faketime.NewPipes(faketime.Server{
		Connect: s.Dial,
		Latency: func(request []byte) time.Duration {
			if bytes.Contains(request, []byte("evalsha")) {
				return rand.N(latency)
			}
			return 0
		},
		Greets: true, // go-redis keeps a subscription locked while it connects, so that nobody can close it
	})
	return redis.NewClient(&redis.Options{
		Addr:            s.address,
		Dialer:          p.Dial,
		DisableIdentity: true,
		DialerRetries:   1, // between which it waits, with that mutex locked
		// They leave a goroutine behind, which a bubble waits for.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}), p
}

// restart ends all connections, and forgets all that there is.
func (s *server) restart(t *testing.T) {
	t.Helper()
	c, _ := s.newClient()
	defer c.Close()
	if err := c.ScriptFlush(t.Context()).Err(); err != nil {
		t.Error(err)
	}
	s.FlushAll()
	for _, p := range s.pipes {
		p.Break()
	}
}
