package faultproxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/lockerkit/locker/internal/faultproxy"
)

func TestForwards(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	client := dial(t, p)
	echoes(t, client)

	// Much more than all buffers hold, so both directions must run at a time.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		client.Write(big)
		client.CloseWrite()
	})
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, big) {
		t.Fatalf("got back %d of %d bytes, %v", len(got), len(big), err)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())

	t.Run("client first", func(t *testing.T) {
		client, server := pair(t, p, u)
		send(t, client, "last words")
		client.CloseWrite()
		expect(t, server, "last words")
		expectEOF(t, server)
		send(t, server, "still here")
		expect(t, client, "still here")
		server.Close()
		expectEOF(t, client)
	})
	t.Run("server first", func(t *testing.T) {
		client, server := pair(t, p, u)
		send(t, server, "last words")
		server.CloseWrite()
		expect(t, client, "last words")
		expectEOF(t, client)
		send(t, client, "still here")
		expect(t, server, "still here")
		client.Close()
		expectEOF(t, server)
	})
	await(t, p, "the end of all connections", func() bool { return p.Open() == 0 })
}

func TestPassesOnResets(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())

	client, server := pair(t, p, u)
	client.SetLinger(0)
	client.Close()
	expectReset(t, server)

	client, server = pair(t, p, u)
	send(t, server, "bye")
	expect(t, client, "bye")
	server.SetLinger(0)
	server.Close()
	expectReset(t, client)
}

func TestPassesOnLastWords(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	// Redis does this when it has too many clients.
	send(t, server, "go away")
	server.Close()
	expect(t, client, "go away")
	expectEOF(t, client)
	// The first write may arrive at the closed socket; what comes back is a
	// reset, which in the end must get to the client.
	for {
		if _, err := client.Write([]byte("but")); err != nil {
			return
		}
	}
}

func TestNoUpstream(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	u.Close()
	p := startProxy(t, u.Addr().String())
	// The reset may come so early that it is Dial which reports it.
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		expectReset(t, withDeadline(t, conn))
	} else if !isReset(err) {
		t.Fatal(err)
	}

	// A black hole does not let on that the server is down.
	p.Set(faultproxy.BlackHole())
	client := dial(t, p)
	send(t, client, "anybody?")
	awaitDropped(t, p, 8)
	expectNothing(t, client)
	p.Heal()
	expectReset(t, client)
}

func TestSetUpstream(t *testing.T) {
	t.Parallel()
	u1, u2 := newUpstream(t), newUpstream(t)
	p := startProxy(t, u1.Addr().String())
	client1, server1 := pair(t, p, u1)
	p.SetUpstream(u2.Addr().String())
	client2, server2 := pair(t, p, u2)
	flows(t, client1, server1)
	flows(t, client2, server2)
}

func TestCounters(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	check := func(accepted, open int) {
		t.Helper()
		if p.Accepted() != accepted || p.Open() != open || len(p.Conns()) != open {
			t.Fatalf("accepted %d, open %d, %d conns; want %d, %d, %[5]d",
				p.Accepted(), p.Open(), len(p.Conns()), accepted, open)
		}
	}
	check(0, 0)
	c1, c2 := dial(t, p), dial(t, p)
	echoes(t, c1)
	echoes(t, c2)
	check(2, 2)
	c1.Close()
	await(t, p, "one to go", func() bool { return p.Open() == 1 })
	check(2, 1)
	if got := string(p.Conns()[0].Sent()); got != "hello" {
		t.Errorf("Sent() = %q", got)
	}
	p.ResetAll()
	check(2, 0)
}

func TestWaitGivesUp(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := p.Wait(ctx, func() bool { return false })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	faults := map[string]faultproxy.Fault{
		"healthy":   {},
		"BlackHole": faultproxy.BlackHole(),
		"Hang":      faultproxy.Hang(),
		"Delay":     faultproxy.Delay(patience * 10),
		"Refuse":    faultproxy.Refuse(),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUpstream(t)
			p := startProxy(t, u.Addr().String())
			client, server := pair(t, p, u)
			flows(t, client, server)
			p.Set(fault)
			if !fault.Refuse {
				send(t, client, "lost in transit")
			}
			var wg sync.WaitGroup
			for range 2 { // concurrently, and then once more in the cleanup
				wg.Go(func() {
					if err := p.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, end := range []net.Conn{client, server} {
				if _, err := io.Copy(io.Discard, end); err != nil && !isReset(err) {
					t.Error("a connection survived:", err)
				}
			}
			if _, err := net.Dial("tcp", p.Addr()); !isRefused(err) {
				t.Errorf("Dial = %v", err)
			}
			p.Heal() // must not bring it back
			if _, err := net.Dial("tcp", p.Addr()); !isRefused(err) {
				t.Errorf("Dial after Heal = %v", err)
			}
		})
	}
}

// TestConcurrentUse has the race detector and the deadlines look for trouble
// while everything is called at once.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	stop := make(chan struct{})
	var clients, faults sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", p.Addr())
				if err != nil {
					continue
				}
				conn.Write([]byte("hello"))
				for _, c := range p.Conns() {
					c.Sent()
					c.Set(faultproxy.Delay(1))
					c.Heal()
				}
				conn.Close()
			}
		})
	}
	for _, f := range []faultproxy.Fault{
		faultproxy.BlackHole(), faultproxy.Hang(), faultproxy.Refuse(), faultproxy.DropReplies(),
	} {
		faults.Go(func() {
			for range 10 {
				p.Set(f)
				p.SetWhere(func(sent []byte) bool { return len(sent) > 2 }, faultproxy.Hang())
				p.ResetAll()
				p.Heal()
			}
		})
	}
	faults.Wait()
	close(stop)
	clients.Wait()
	p.Heal()
	echoes(t, dial(t, p))
}
