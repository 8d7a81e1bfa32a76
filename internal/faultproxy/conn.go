package faultproxy

import (
	"net"
	"slices"
	"sync"
	"time"
)

// seenMax is how much of what a client sent is remembered for matching.
const seenMax = 64 << 10

// Conn is a client's connection through the proxy. All methods are safe for
// concurrent use, also after the connection has ended.
type Conn struct {
	proxy  *Proxy
	number int // counts the connections of the proxy
	client *net.TCPConn

	mu       sync.Mutex
	cond     *sync.Cond   // signals every change of what mu guards
	server   *net.TCPConn // nil while dialling, and if that failed
	closed   bool
	changing bool   // a change of faults is under way: no new reads
	requests pipe   // from the client to the server
	replies  pipe   // from the server to the client
	seen     []byte // the first bytes that the client has sent
	rules    []*rule
	dropped  int64
}

// newConn makes a Conn with the proxy's present fault. The caller holds p.mu.
func newConn(p *Proxy, client *net.TCPConn) *Conn {
	c := &Conn{
		proxy:  p,
		number: p.accepted,
		client: client,
		rules:  p.rules, // is never changed in place
	}
	c.cond = sync.NewCond(&c.mu)
	c.requests = pipe{c: c, src: client, flow: p.fault.ToServer}
	c.replies = pipe{c: c, dst: client, flow: p.fault.ToClient}
	c.requests.back, c.replies.back = &c.replies, &c.requests
	return c
}

// run dials the server and forwards until the connection ends.
func (c *Conn) run(upstream string) {
	var d net.Dialer
	server, err := d.DialContext(c.proxy.ctx, "tcp", upstream)
	if err != nil {
		c.connected(nil)
	} else {
		c.connected(server.(*net.TCPConn))
	}
	var wg sync.WaitGroup
	for _, p := range []*pipe{&c.requests, &c.replies} {
		wg.Go(p.readLoop)
		wg.Go(p.writeLoop)
	}
	wg.Wait()
	c.close(false)
}

// connected takes over the connection to the server, or its absence: nil.
func (c *Conn) connected(server *net.TCPConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed { // while dialling
		if server != nil {
			reset(server)
		}
		return
	}
	if server == nil {
		c.replies.ended = true
		c.requests.fail()
		return
	}
	c.server, c.requests.dst, c.replies.src = server, server, server
}

// Set puts a fault into force on this connection, in place of the one it has.
// Refuse resets the connection.
func (c *Conn) Set(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.change(f)
}

// Heal removes the connection's fault. It is Set(Fault{}).
func (c *Conn) Heal() { c.Set(Fault{}) }

// Reset breaks the connection with a TCP reset to both sides.
func (c *Conn) Reset() { c.close(true) }

// Sent returns what the client has sent so far, up to the first 64 KiB,
// whether or not it was passed on.
func (c *Conn) Sent() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen)
}

// Dropped returns how many bytes were thrown away, by reason of a fault.
func (c *Conn) Dropped() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// ClientAddr returns the client's address: its LocalAddr.
func (c *Conn) ClientAddr() net.Addr { return c.client.RemoteAddr() }

// ClientClosed reports whether the proxy has seen that the client closed its
// side, or reset the connection. Under a fault with Hold it does not look.
func (c *Conn) ClientClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests.ended || c.closed
}

// replace is Set for the whole proxy: it drops the rules, too.
func (c *Conn) replace(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules = nil
	c.change(f)
}

// addRule adds a rule, unless it applies already and so has done its duty.
func (c *Conn) addRule(r *rule) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) > 0 && r.match(c.seen) {
		c.change(r.fault)
		return
	}
	c.rules = append(slices.Clip(c.rules), r)
}

// observe remembers what the client has sent and applies the rules that match
// for the first time. The caller holds c.mu.
func (c *Conn) observe(data []byte) {
	room := seenMax - len(c.seen)
	if room == 0 {
		return // nothing that a rule has not been asked about
	}
	c.seen = append(c.seen, data[:min(len(data), room)]...)
	var pending []*rule
	for _, r := range c.rules {
		if r.match(c.seen) {
			// Not with change: we are in a reader, for which it would wait.
			c.apply(r.fault)
		} else {
			pending = append(pending, r)
		}
	}
	c.rules = pending
}

// change puts a fault into force. It first interrupts the reads in progress
// and has them treated by the old fault, so that there is a clear before and
// after. The caller holds c.mu, which change releases while it waits.
func (c *Conn) change(f Fault) {
	for c.changing {
		c.cond.Wait()
	}
	if c.closed {
		return
	}
	c.changing = true
	c.setReadDeadlines(time.Unix(1, 0)) // long ago: ends every read
	for c.requests.reading || c.replies.reading {
		c.cond.Wait()
	}
	c.setReadDeadlines(time.Time{})
	c.requests.loseUnread()
	c.replies.loseUnread()
	c.apply(f)
	c.changing = false
	c.cond.Broadcast()
}

func (c *Conn) setReadDeadlines(t time.Time) {
	c.client.SetReadDeadline(t)
	if c.server != nil {
		c.server.SetReadDeadline(t)
	}
}

// drop counts bytes that were dropped. The caller holds c.mu.
func (c *Conn) drop(n int) {
	c.dropped += int64(n)
	c.proxy.progress(n)
}

// apply makes f the connection's fault. The caller holds c.mu.
func (c *Conn) apply(f Fault) {
	if f.Refuse {
		c.closeLocked(true)
	}
	if !c.closed {
		c.requests.setFlow(f.ToServer)
	}
	if !c.closed {
		c.replies.setFlow(f.ToClient)
	}
	c.cond.Broadcast()
}

func (c *Conn) close(rst bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(rst)
}

// closeLocked ends the connection, with a reset if so wished.
func (c *Conn) closeLocked(rst bool) {
	if c.closed {
		return
	}
	c.closed = true
	for _, tcp := range []*net.TCPConn{c.client, c.server} {
		switch {
		case tcp == nil:
		case rst:
			reset(tcp)
		default:
			tcp.Close()
		}
	}
	c.cond.Broadcast()
	c.proxy.removed(c)
}

// reset closes a connection with RST instead of FIN.
func reset(tcp *net.TCPConn) {
	tcp.SetLinger(0)
	tcp.Close()
}
