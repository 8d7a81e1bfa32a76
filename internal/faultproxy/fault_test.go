package faultproxy_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/faultproxy"
)

func TestRefuse(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	flows(t, client, server)
	addr := p.Addr()
	for range 3 {
		p.Set(faultproxy.Refuse())
		p.Set(faultproxy.Refuse()) // twice is no different
		expectReset(t, client)
		expectReset(t, server)
		if p.Open() != 0 {
			t.Fatalf("%d connections are open", p.Open())
		}
		if _, err := net.Dial("tcp", addr); !isRefused(err) {
			t.Fatalf("Dial = %v; want refused", err)
		}
		p.Heal()
		client, server = pair(t, p, u)
		flows(t, client, server)
	}
	if p.Addr() != addr {
		t.Errorf("Addr changed from %s to %s", addr, p.Addr())
	}
}

func TestBlackHole(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	idleClient, idleServer := pair(t, p, u)
	busyClient, busyServer := pair(t, p, u)
	flows(t, busyClient, busyServer)

	p.Set(faultproxy.BlackHole())
	newClient, newServer := pair(t, p, u) // is dialled all the same
	send(t, busyClient, "12345")
	send(t, busyServer, "123")
	send(t, newClient, "1")
	awaitDropped(t, p, 9)
	for _, end := range []net.Conn{busyClient, busyServer, newClient, newServer, idleServer} {
		expectNothing(t, end)
	}

	p.Heal()
	for _, end := range []net.Conn{busyClient, busyServer, newClient, newServer} {
		expectReset(t, end)
	}
	flows(t, idleClient, idleServer)
	client, server := pair(t, p, u)
	flows(t, client, server)
}

// What was sent during the fault is lost, also if the proxy has had no time to
// read it.
func TestBlackHoleHealedAtOnce(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	for range 20 {
		client, server := pair(t, p, u)
		p.Set(faultproxy.BlackHole())
		send(t, client, "hello")
		p.Heal()
		expectReset(t, server)
		expectReset(t, client)
	}
}

func TestBlackHoleSwallowsTheEnd(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client1, server1 := pair(t, p, u)
	client2, server2 := pair(t, p, u)
	conn1 := connOf(t, p, client1)
	p.Set(faultproxy.BlackHole())
	client1.Close()
	server2.Close()
	await(t, p, "the client's end", conn1.ClientClosed)
	expectNothing(t, server1)
	expectNothing(t, client2)
	if p.Open() != 2 {
		t.Errorf("%d connections are open, want 2", p.Open())
	}
	p.Heal()
	expectReset(t, server1)
	expectReset(t, client2)
}

func TestHang(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	flows(t, client, server)

	p.Set(faultproxy.Hang())
	send(t, client, "request")
	send(t, server, "reply")
	expectNothing(t, server)
	expectNothing(t, client)
	newClient, newServer := pair(t, p, u)
	send(t, newClient, "early")
	expectNothing(t, newServer)

	p.Heal()
	expect(t, server, "request")
	expect(t, client, "reply")
	expect(t, newServer, "early")
	flows(t, client, server)
	if p.Dropped() != 0 {
		t.Errorf("%d bytes were dropped", p.Dropped())
	}
}

func TestHangBlocksTheSender(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.Hang())

	// Fill the buffers until nothing fits in for a moment.
	sent := 0
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for {
		client.SetWriteDeadline(time.Now().Add(moment))
		n, err := client.Write(piece)
		sent += n
		if err != nil {
			break
		}
		if sent > 1<<30 {
			t.Fatal("a gigabyte went into a connection that hangs")
		}
	}

	p.Heal()
	client.CloseWrite()
	got, err := io.Copy(io.Discard, server)
	if err != nil || got != int64(sent) {
		t.Fatalf("%d of %d bytes arrived, %v", got, sent, err)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	const delay, pieces = 100 * time.Millisecond, 50
	p := startProxy(t, newEcho(t))
	client := dial(t, p)
	echoes(t, client)
	p.Set(faultproxy.Delay(delay))

	// Pieces sent apart from each other, each of which is delayed.
	start := time.Now()
	var want strings.Builder
	for i := range pieces {
		piece := string(rune('A' + i))
		want.WriteString(piece)
		send(t, client, piece)
		await(t, p, "arrival", func() bool { return len(p.Conns()[0].Sent()) == len("hello")+i+1 })
	}
	expect(t, client, want.String())
	took := time.Since(start)
	if took < 2*delay {
		t.Errorf("the round trip took %v, less than twice %v", took, delay)
	}
	// One after the other, the pieces would need 50 times the delay.
	if took > pieces/2*delay {
		t.Errorf("the round trip took %v: pieces wait for each other", took)
	}
}

// Jitter delays pieces by random times, and never lets one overtake another.
func TestJitter(t *testing.T) {
	t.Parallel()
	const jitter, pieces = 20 * time.Millisecond, 30
	p := startProxy(t, newEcho(t))
	client := dial(t, p)
	echoes(t, client)
	p.Set(faultproxy.Fault{ToServer: faultproxy.Flow{Jitter: jitter}})
	var longest time.Duration
	for range pieces {
		start := time.Now()
		send(t, client, "x")
		expect(t, client, "x")
		longest = max(longest, time.Since(start))
	}
	if longest < jitter/2 {
		t.Errorf("none of %d pieces was delayed by more than %v, with a jitter of %v", pieces, longest, jitter)
	}
	const text = "abcdefghijklmnopqrstuvwxyz"
	for i := range text {
		send(t, client, text[i:i+1])
	}
	expect(t, client, text)
}

func TestDelayHealed(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.Delay(10 * patience))
	send(t, client, "slow")
	client.CloseWrite()
	await(t, p, "the client's end", p.Conns()[0].ClientClosed)
	expectNothing(t, server)
	p.Heal()
	expect(t, server, "slow") // what is on its way arrives at once
	expectEOF(t, server)
}

// A fault also hits what another fault has kept waiting.
func TestBlackHoleAfterDelay(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.Delay(10 * patience))
	send(t, client, "doomed")
	await(t, p, "arrival", func() bool { return len(p.Conns()[0].Sent()) > 0 })
	p.Set(faultproxy.BlackHole())
	if got := p.Dropped(); got != 6 {
		t.Errorf("Dropped() = %d, want 6", got)
	}
	p.Set(faultproxy.Hang()) // still nothing gets through, so no hole shows
	expectNothing(t, server)
	p.Heal()
	expectReset(t, server)
}

func TestDropReplies(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.DropReplies())
	send(t, client, "do it")
	expect(t, server, "do it")
	send(t, server, "done")
	awaitDropped(t, p, 4)
	expectNothing(t, client)
	send(t, client, "do it again")
	expect(t, server, "do it again")
	p.Heal()
	expectReset(t, client)
	expectReset(t, server)
}

// The client must not learn that the server hung up, not even by writing.
func TestDropRepliesServerGone(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.DropReplies())
	server.SetLinger(0)
	server.Close()
	for range 10 {
		send(t, client, "hello?")
		expectNothing(t, client)
	}
	p.Heal()
	expectReset(t, client)
}

func TestDropRequests(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	client, server := pair(t, p, u)
	p.Set(faultproxy.DropRequests())
	send(t, client, "do it")
	awaitDropped(t, p, 5)
	expectNothing(t, server)
	send(t, server, "news")
	expect(t, client, "news")
	p.Heal()
	expectReset(t, client)
	expectReset(t, server)
}

func TestResetAll(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	clients := []net.Conn{dial(t, p), dial(t, p)}
	for _, c := range clients {
		echoes(t, c)
	}
	p.ResetAll()
	for _, c := range clients {
		expectReset(t, c)
	}
	echoes(t, dial(t, p))
}

func TestFaultOfOneConn(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	goodClient, goodServer := pair(t, p, u)
	badClient, badServer := pair(t, p, u)
	bad := connOf(t, p, badClient)

	bad.Set(faultproxy.Hang())
	send(t, badClient, "wait")
	expectNothing(t, badServer)
	flows(t, goodClient, goodServer)
	bad.Heal()
	expect(t, badServer, "wait")
	flows(t, badClient, badServer)

	bad.Set(faultproxy.BlackHole())
	send(t, badClient, "lost")
	await(t, p, "a loss", func() bool { return bad.Dropped() == 4 })
	p.Heal() // heals all, however they were broken
	expectReset(t, badClient)
	flows(t, goodClient, goodServer)

	connOf(t, p, goodClient).Set(faultproxy.Refuse())
	expectReset(t, goodClient)
	newClient, newServer := pair(t, p, u)
	flows(t, newClient, newServer)
}

func subscribes(sent []byte) bool { return bytes.Contains(sent, []byte("subscribe")) }

func TestSetWhere(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	oldClient, oldServer := pair(t, p, u)
	send(t, oldClient, "subscribe a")
	expect(t, oldServer, "subscribe a")
	plainClient, plainServer := pair(t, p, u)
	flows(t, plainClient, plainServer)

	p.SetWhere(subscribes, faultproxy.BlackHole())
	send(t, oldServer, "message")
	awaitDropped(t, p, 7)
	expectNothing(t, oldClient)
	flows(t, plainClient, plainServer)

	// A later connection, and the word comes in two parts.
	newClient, newServer := pair(t, p, u)
	send(t, newClient, "sub")
	expect(t, newServer, "sub")
	send(t, newClient, "scribe")
	awaitDropped(t, p, 7+6)
	expectNothing(t, newServer)

	// It happens once: what Conn.Heal has healed stays healthy.
	oldConn, newConn := connOf(t, p, oldClient), connOf(t, p, newClient)
	oldConn.Heal()
	expectReset(t, oldClient)
	newConn.Heal()
	expectReset(t, newClient)

	// Heal does away with the rule.
	p.Heal()
	client, server := pair(t, p, u)
	send(t, client, "subscribe b")
	expect(t, server, "subscribe b")
	flows(t, client, server)
}

func TestSetWhereAppliesOnce(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	p := startProxy(t, u.Addr().String())
	p.SetWhere(subscribes, faultproxy.Hang())
	client, server := pair(t, p, u)
	send(t, client, "subscribe")
	await(t, p, "arrival", func() bool { return len(p.Conns()[0].Sent()) > 0 })
	expectNothing(t, server)
	p.Conns()[0].Heal()
	expect(t, server, "subscribe")
	flows(t, client, server)
}

// Many clients match while faults are set and healed: none may hang for ever
// or get a stream with a hole.
func TestStreamsAreNeverHoled(t *testing.T) {
	t.Parallel()
	p := startProxy(t, newEcho(t))
	var wg sync.WaitGroup
	for range 4 {
		conn := dial(t, p)
		wg.Go(func() {
			// A counting stream, which shows every hole.
			var next, seen byte
			buf := make([]byte, 64)
			for range 2000 {
				for i := range buf {
					buf[i] = next
					next++
				}
				if _, err := conn.Write(buf); err != nil {
					return
				}
				// Not all at once, so that writes and faults interleave.
				conn.SetReadDeadline(time.Now().Add(patience))
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				for _, b := range buf[:n] {
					if b != seen {
						t.Errorf("got %d where %d was due", b, seen)
						return
					}
					seen++
				}
			}
		})
	}
	for _, f := range []faultproxy.Fault{
		faultproxy.Delay(time.Millisecond), faultproxy.Hang(), faultproxy.DropReplies(),
		faultproxy.Hang(), faultproxy.BlackHole(), faultproxy.Delay(time.Millisecond),
	} {
		p.Set(f)
		p.Heal()
	}
	p.ResetAll()
	wg.Wait()
}
