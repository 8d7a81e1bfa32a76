package etcdlock

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// endpointsOf returns the endpoints of a new client, which need not be there.
func endpointsOf(t *testing.T, names []string, opts ...grpc.DialOption) *endpoints {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: names, Logger: zap.NewNop(), DialOptions: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return newEndpoints(client)
}

// eventually waits until cond is true, with the mutex of the endpoints locked.
func (es *endpoints) eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(time.Millisecond) {
		es.mu.Lock()
		ok := cond()
		es.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatalf("not within 30s: %s", what)
}

// TestEndpointsTakenAway has the client lose all of its endpoints: those that it had are asked.
func TestEndpointsTakenAway(t *testing.T) {
	es := endpointsOf(t, []string{"127.0.0.1:1", "127.0.0.1:2"})
	es.client.SetEndpoints()
	if _, n := es.next(nil); n != 1 {
		t.Errorf("%d endpoints before there were any; want that of the client's connection", n)
	}
	es.client.SetEndpoints("127.0.0.1:1", "127.0.0.1:2")
	if _, n := es.next(nil); n != 2 {
		t.Errorf("%d endpoints; want 2", n)
	}
	es.client.SetEndpoints()
	if _, n := es.next(nil); n != 2 {
		t.Errorf("%d endpoints after they were taken away; want those that there were", n)
	}
}

// TestEndpointRemoved has an endpoint be removed before, while and after there is a connection to it. None stays open.
func TestEndpointRemoved(t *testing.T) {
	es := endpointsOf(t, []string{"127.0.0.1:1", "127.0.0.1:2"})
	early, _ := es.next(nil)
	used, _ := es.next([]*endpoint{early})
	l, err := used.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	es.client.SetEndpoints("127.0.0.1:3", "127.0.0.1:4")
	late, _ := es.next(nil)
	if _, err := early.take(t.Context()); !isOutage(err) {
		t.Errorf("an endpoint that is removed is connected to: %v", err)
	}
	if l.conn.GetState() == connectivity.Shutdown {
		t.Error("a connection was closed while it is used")
	}
	changed := make(chan struct{})
	dial := es.stubs.dial
	es.stubs.dial = func(name string) (*grpc.ClientConn, error) { <-changed; return dial(name) }
	es.mu.Lock()
	l.leaveLocked()
	dialed := late.dialLocked()
	es.client.SetEndpoints("127.0.0.1:5", "127.0.0.1:6")
	es.refreshLocked()
	es.mu.Unlock()
	close(changed)
	es.eventually(t, "the connection is closed", func() bool { return l.conn.GetState() == connectivity.Shutdown })
	<-dialed
	es.mu.Lock()
	defer es.mu.Unlock()
	if late.link != nil || !isOutage(late.err) {
		t.Errorf("an endpoint that was removed while it was connected to has %v, %v", late.link, late.err)
	}
}

// stuckConn is a connection that can no more be written to, as its peer does not read.
type stuckConn struct {
	net.Conn
	stuck *atomic.Bool
	over  <-chan struct{}
}

func (c stuckConn) Write(b []byte) (int, error) {
	if c.stuck.Load() {
		<-c.over
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// TestConnectionThatHangsIsReplaced has a connection given up that takes seconds to close. Others are asked meanwhile.
func TestConnectionThatHangsIsReplaced(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	var stuck atomic.Bool
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return stuckConn{c, &stuck, over}, err
	}
	addr := listener.Addr().String()
	es := endpointsOf(t, []string{addr, addr}, grpc.WithContextDialer(dial))
	e, _ := es.next(nil)
	l, err := e.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.conn.Connect()
	es.eventually(t, "there is a connection", func() bool { return l.conn.GetState() == connectivity.Ready })
	es.mu.Lock()
	defer es.mu.Unlock()
	l.leaveLocked()
	stuck.Store(true)
	l.made = l.made.Add(-time.Minute)
	start := time.Now()
	e.suspectLocked(start)
	if took := time.Since(start); took > 3*time.Second { // five, if it waits
		t.Errorf("to give a connection up took %v", took)
	}
	if e.link != nil {
		t.Error("it is still used")
	}
}
