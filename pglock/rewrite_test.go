package pglock_test

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// rewrite puts a proxy between the tests and a server that changes what passes, by functions that must not change its
// length. It returns the connection string for the proxy. What they look for is expected to arrive in one piece, as
// what is sent in one piece does on loopback.
func rewrite(t *testing.T, dsn string, toServer, toClient func([]byte) []byte) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn // of the goroutine that accepts, until it has ended
	var accepting, piping sync.WaitGroup
	pipe := func(to, from net.Conn, change func([]byte) []byte) {
		defer to.Close()
		defer from.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			p := buf[:n]
			if change != nil {
				p = change(p)
			}
			if len(p) != n {
				t.Errorf("%d bytes were made %d", n, len(p))
			}
			if _, err := to.Write(p); err != nil {
				return
			}
		}
	}
	accepting.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			conns = append(conns, client, behind)
			piping.Go(func() { pipe(behind, client, toServer) })
			piping.Go(func() { pipe(client, behind, toClient) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		accepting.Wait()
		for _, c := range conns {
			c.Close()
		}
		piping.Wait()
	})
	u.Host = l.Addr().String()
	return u.String()
}
