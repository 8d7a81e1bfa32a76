// Package strangers has servers of the wrong kind, for tests of what clients of other kinds make of them. Each answers
// as the real one does to what it does not understand.
package strangers

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
)

// Nobody returns an address at which connections are refused, which nobody else gets until the test ends.
func Nobody(t testing.TB) (addr string) {
	t.Helper()
	proxy := faultproxy.New(t, "127.0.0.1:1")
	proxy.Set(faultproxy.Refuse())
	return proxy.Addr()
}

// Redis starts a server that answers as Redis does, line by line, and returns its address.
func Redis(t testing.TB) (addr string) {
	t.Helper()
	return Serve(t, func(conn net.Conn) {
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			answer := "-ERR unknown command\r\n"
			if strings.HasPrefix(lines.Text(), "PING") {
				answer = "+PONG\r\n"
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
		}
	})
}

// Postgres starts a server that answers as Postgres without TLS does: it hangs up at what is no message of its
// protocol.
func Postgres(t testing.TB) (addr string) {
	t.Helper()
	return Serve(t, answering(func(asked []byte) string {
		if bytes.Equal(asked, []byte{0, 0, 0, 8, 4, 210, 22, 47}) { // SSLRequest
			return "N"
		}
		return ""
	}))
}

// HTTP2 starts a server that begins as those of gRPC do, such as etcd: with its settings, and it hangs up at what is
// not the beginning of HTTP/2.
func HTTP2(t testing.TB) (addr string) {
	t.Helper()
	settings := string([]byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0})
	return Serve(t, answering(func([]byte) string { return settings }))
}

// HTTP starts a server that answers as one of HTTP/1.1 does, and returns its address.
func HTTP(t testing.TB) (addr string) {
	t.Helper()
	return Serve(t, answering(func([]byte) string { return "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" }))
}

// answering answers the first bytes that come, and hangs up.
func answering(answer func(asked []byte) string) func(net.Conn) {
	return func(conn net.Conn) {
		buf := make([]byte, 4096)
		n, _ := conn.Read(buf)
		_, _ = io.WriteString(conn, answer(buf[:n]))
		if tcp, ok := conn.(*net.TCPConn); ok { // lest what is unread resets the connection
			_ = tcp.CloseWrite()
			_ = tcp.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, tcp)
		}
	}
}

// Serve has each connection to a new address served until the test ends.
func Serve(t testing.TB, with func(net.Conn)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				with(conn)
			}()
		}
	}()
	return listener.Addr().String()
}
