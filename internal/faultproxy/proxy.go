package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/portkeep"
)

// listenPatience bounds the attempts to listen again after Refuse.
const listenPatience = 5 * time.Second

// Proxy forwards TCP connections to an upstream server, with faults on
// request. Create one with Start. All methods are safe for concurrent use.
type Proxy struct {
	port   *portkeep.Port     // keeps the port ours while we refuse connections
	ctx    context.Context    // ended by Close, to give up on dialling upstream
	cancel context.CancelFunc // ends ctx
	wg     sync.WaitGroup     // all goroutines

	// ops makes the operations that change faults or the listener run one
	// after the other. It is taken before mu and before any Conn's mu.
	ops sync.Mutex

	// mu guards what follows. It may be taken while a Conn's mu is held, so
	// no Conn's mu may be taken while holding it.
	mu       sync.Mutex
	listener *listener // nil while refusing connections and after Close
	closed   bool
	upstream string
	fault    Fault   // for connections to come
	rules    []*rule // for connections to come
	conns    map[*Conn]struct{}
	accepted int
	dropped  int64
	event    chan struct{} // closed on the next change; nil if nobody waits
}

// listener is a net.Listener together with its accept loop.
type listener struct {
	net.Listener
	done chan struct{} // closed when the accept loop has ended
}

// rule is a fault for the connections whose client has sent something particular.
type rule struct {
	match func(sent []byte) bool
	fault Fault
}

// Start starts a proxy for the server at the address upstream (host:port), on
// a free loopback port. The server need not be running yet.
func Start(upstream string) (*Proxy, error) {
	port, err := portkeep.Keep()
	if err != nil {
		return nil, fmt.Errorf("faultproxy: find a port: %w", err)
	}
	p := &Proxy{port: port, upstream: upstream, conns: make(map[*Conn]struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.listen(); err != nil {
		p.cancel()
		port.Close()
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	return p, nil
}

// New starts a proxy for one test, which closes it when it is over.
func New(tb testing.TB, upstream string) *Proxy {
	tb.Helper()
	p, err := Start(upstream)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

// Addr returns the address to connect to, as host:port. It never changes.
func (p *Proxy) Addr() string { return p.port.Addr() }

// SetUpstream makes later connections go to the server at addr (host:port),
// for a server that was restarted elsewhere. Existing connections stay.
func (p *Proxy) SetUpstream(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstream = addr
}

// Close stops listening, closes every connection and waits until all
// goroutines of the proxy have ended. Further calls do nothing.
func (p *Proxy) Close() error {
	p.ops.Lock()
	defer p.ops.Unlock()
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	if again {
		return nil
	}
	p.cancel()
	err := p.unlisten()
	for _, c := range p.Conns() {
		c.close(false)
	}
	p.wg.Wait()
	return errors.Join(err, p.port.Close())
}

// Set puts the fault into force on all present and future connections. It
// replaces every fault set before, with Set, SetWhere or Conn.Set.
//
// After Refuse, every fault but Refuse makes the proxy listen again. Set
// panics if that fails (another program took the port, which portkeep rules
// out on Linux), as the test could not mean anything from then on.
func (p *Proxy) Set(f Fault) {
	p.ops.Lock()
	defer p.ops.Unlock()

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.fault, p.rules = f, nil
	listening := p.listener != nil
	p.mu.Unlock()

	if f.Refuse && listening {
		p.unlisten() // an error here means that it is closed already
	}
	// In parallel, as each connection has to interrupt its reads.
	var wg sync.WaitGroup
	for _, c := range p.Conns() {
		wg.Go(func() { c.replace(f) })
	}
	wg.Wait()
	if !f.Refuse && !listening {
		if err := p.listen(); err != nil {
			panic(fmt.Sprintf("faultproxy: cannot listen again: %v", err))
		}
	}
}

// Heal removes every fault, however it was set. It is Set(Fault{}).
func (p *Proxy) Heal() { p.Set(Fault{}) }

// SetWhere puts the fault into force on those present and future connections
// on which the client has sent, or will send, something that match accepts.
// It happens once per connection, so that Conn.Heal can undo it. Faults for
// several matches may be set; they are undone by Set and Heal.
//
// match gets everything that the client has sent so far, up to the first
// 64 KiB. It is called for what was sent already and then whenever more comes
// in, before that is passed on, so that the very bytes that made it match are
// subject to the fault. (Where they arrive while a reply is just being read,
// there is no saying under which fault that reply falls.) match must not use
// the proxy nor keep the slice.
func (p *Proxy) SetWhere(match func(sent []byte) bool, f Fault) {
	p.ops.Lock()
	defer p.ops.Unlock()
	r := &rule{match, f}
	p.mu.Lock()
	p.rules = append(slices.Clip(p.rules), r)
	conns := p.connsLocked() // later ones get the rule from p.rules
	p.mu.Unlock()
	for _, c := range conns {
		c.addRule(r)
	}
}

// ResetAll resets every connection that the proxy has accepted. It is not a
// lasting fault: new connections are fine.
func (p *Proxy) ResetAll() {
	for _, c := range p.Conns() {
		c.Reset()
	}
}

// Conns returns the connections that are open now, oldest first. A connection
// that a client has just made may still be missing: the client's kernel calls
// it established before the proxy has accepted it. See Wait.
func (p *Proxy) Conns() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connsLocked()
}

func (p *Proxy) connsLocked() []*Conn {
	return slices.SortedFunc(maps.Keys(p.conns), func(a, b *Conn) int {
		return a.number - b.number
	})
}

// Accepted returns how many connections have been accepted so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open returns how many connections are open now: accepted, and not yet closed
// by both sides or reset. Where a fault keeps one side from learning that the
// other has hung up, the connection stays open; see Conn.ClientClosed.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Dropped returns how many bytes were thrown away so far, by reason of a
// fault, on all connections.
func (p *Proxy) Dropped() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}

// Wait blocks until cond returns true, and returns nil then, or until ctx is
// done, and returns its error. It calls cond at once and whenever something
// has happened that a method of Proxy or Conn reports: a connection came or
// went, bytes came in, bytes were dropped.
func (p *Proxy) Wait(ctx context.Context, cond func() bool) error {
	for {
		// Get hold of the event first, lest one between cond and select is missed.
		event := p.nextEvent()
		if cond() {
			return nil
		}
		select {
		case <-event:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Proxy) nextEvent() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.event == nil {
		p.event = make(chan struct{})
	}
	return p.event
}

// changed wakes up Wait. The caller holds p.mu.
func (p *Proxy) changed() {
	if p.event != nil {
		close(p.event)
		p.event = nil
	}
}

// progress notes that something has come in on a connection, or that bytes
// were dropped.
func (p *Proxy) progress(dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped += int64(dropped)
	p.changed()
}

// removed notes that a connection is no longer open.
func (p *Proxy) removed(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	p.changed()
}
