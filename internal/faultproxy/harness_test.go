package faultproxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
)

// patience bounds every wait for something that should happen soon.
const patience = 20 * time.Second

// moment is how long a test watches for something that must not happen.
const moment = 10 * time.Millisecond

// upstream is a server of which the test holds every connection.
type upstream struct {
	net.Listener
}

func newUpstream(t *testing.T) upstream {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return upstream{l}
}

// accept returns the next connection that was made to the server.
func (u upstream) accept(t *testing.T) *net.TCPConn {
	t.Helper()
	u.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := u.Accept()
	if err != nil {
		t.Fatal("upstream:", err)
	}
	return withDeadline(t, conn)
}

// newEcho starts a server that sends back what it gets, and ends a connection
// after the client has.
func newEcho(t *testing.T) (addr string) {
	t.Helper()
	u := newUpstream(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := u.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	// Runs after the proxy's cleanup, which ends the connections.
	t.Cleanup(func() {
		u.Close()
		wg.Wait()
	})
	return u.Addr().String()
}

func startProxy(t *testing.T, upstreamAddr string) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.Start(upstreamAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error("Close:", err)
		}
	})
	return p
}

// dial connects to the proxy.
func dial(t *testing.T, p *faultproxy.Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return withDeadline(t, conn)
}

// pair makes a connection through the proxy and returns both ends.
func pair(t *testing.T, p *faultproxy.Proxy, u upstream) (client, server *net.TCPConn) {
	t.Helper()
	client = dial(t, p)
	return client, u.accept(t)
}

// withDeadline sees to it that no test can hang on conn, or leak it.
func withDeadline(t *testing.T, conn net.Conn) *net.TCPConn {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// connOf returns the proxy's side of a connection whose server side the test
// has accepted.
func connOf(t *testing.T, p *faultproxy.Proxy, client net.Conn) *faultproxy.Conn {
	t.Helper()
	for _, c := range p.Conns() {
		if c.ClientAddr().String() == client.LocalAddr().String() {
			return c
		}
	}
	t.Fatal("the proxy does not know the connection")
	return nil
}

// await waits until the proxy has come to the state that cond describes.
func await(t *testing.T, p *faultproxy.Proxy, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Wait(ctx, cond); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

func awaitDropped(t *testing.T, p *faultproxy.Proxy, n int64) {
	t.Helper()
	await(t, p, "dropped bytes", func() bool { return p.Dropped() == n })
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal("write:", err)
	}
}

// expect reads exactly the text.
func expect(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	buf := make([]byte, len(text))
	n, err := io.ReadFull(conn, buf)
	if err != nil || string(buf) != text {
		t.Fatalf("read %q, %v; want %q", buf[:n], err, text)
	}
}

// flows checks that bytes get through both ways.
func flows(t *testing.T, client, server net.Conn) {
	t.Helper()
	send(t, client, "question")
	expect(t, server, "question")
	send(t, server, "answer")
	expect(t, client, "answer")
}

// echoes checks that the echo server answers.
func echoes(t *testing.T, client net.Conn) {
	t.Helper()
	send(t, client, "hello")
	expect(t, client, "hello")
}

// expectEOF reads the end of the stream and nothing before.
func expectEOF(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 100)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes, %v; want EOF", n, err)
	}
}

// expectReset reads a reset and nothing before.
func expectReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 100)); n != 0 || !isReset(err) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

// expectNothing checks that neither bytes nor an end come in for a moment.
func expectNothing(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(moment))
	defer conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(make([]byte, 100))
	if nerr, ok := errors.AsType[net.Error](err); n != 0 || !ok || !nerr.Timeout() {
		t.Fatalf("read %d bytes, %v; want nothing to come", n, err)
	}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) ||
		err != nil && strings.Contains(err.Error(), "forcibly closed") // Windows
}

func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) ||
		err != nil && strings.Contains(err.Error(), "refused") // Windows
}
