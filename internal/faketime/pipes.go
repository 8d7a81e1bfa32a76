// Package faketime has what tests of a store need in the fake time of testing/synctest, where neither a busy machine
// nor an unlucky moment decides what happens, and a minute of waiting takes a millisecond: connections to a server that
// lives in the same process, with faults on request, and processes that use it.
package faketime

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/wires"
)

// None is none of conformance's faults.
const None conformance.Fault = -1

// Server is what Pipes lead to.
type Server struct {
	// Connect returns the client's end of a new connection.
	Connect func() (net.Conn, error)

	// Latency is how long a request takes to get there; none if nil. It is random, so that requests meet in other
	// orders each time.
	Latency func(request []byte) time.Duration

	// Greets says that there is no fault for the first request on a connection, whatever the fault is, unless that
	// refuses: for clients that have a mutex locked while they connect. The time of a bubble stands still while
	// somebody waits for a mutex.
	Greets bool
}

// Pipes are the connections of one client. Those of package net could not be used in a bubble of synctest: its time
// does not go on while somebody reads from one.
type Pipes struct {
	server Server

	mu    sync.Mutex
	fault conformance.Fault // of those to come, too
	all   []*pipe
}

// NewPipes returns those of a client that has not connected yet.
func NewPipes(s Server) *Pipes { return &Pipes{server: s, fault: None} }

// Dial makes a connection, in no time.
func (p *Pipes) Dial(context.Context, string, string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == conformance.Refuse {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	there, err := p.server.Connect()
	if err != nil {
		return nil, err
	}
	pipe, here := newPipe(p.server, there, p.fault)
	p.all = append(p.all, pipe)
	return here, nil
}

// Set puts a fault into force in place of the one there is, or of None.
func (p *Pipes) Set(fault conformance.Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
	for _, pipe := range p.all {
		pipe.set(fault)
	}
}

// Break ends all connections.
func (p *Pipes) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pipe := range p.all {
		pipe.close()
	}
}

// pipe is a connection, with faults on request.
type pipe struct {
	Server
	client, server net.Conn // the ends that are ours

	mu      sync.Mutex
	changed sync.Cond // of what follows
	fault   conformance.Fault
	greeted bool // the client is past its greeting
	lost    bool // something did not arrive, so that the connection cannot be healed
	closed  bool
}

// flow is one direction of a pipe.
type flow struct {
	from, to  net.Conn
	toServer  bool
	underWay  []parcel
	exhausted bool // there is nothing more to read
}

type parcel struct {
	data []byte
	due  time.Time
}

// newPipe returns the client's end of a pipe to the server, too.
func newPipe(s Server, server net.Conn, fault conformance.Fault) (*pipe, net.Conn) {
	near, far := net.Pipe()
	p := &pipe{Server: s, client: far, server: server, fault: fault, greeted: !s.Greets}
	p.changed.L = &p.mu
	for _, f := range []*flow{{from: far, to: server, toServer: true}, {from: server, to: far}} {
		go p.read(f)
		go p.write(f)
	}
	return p, near
}

// read takes what the sender has for the other side, so that nobody has to wait until it is read there.
func (p *pipe) read(f *flow) {
	for first := f.toServer; ; first = false {
		data := make([]byte, 4096)
		n, err := f.from.Read(data)
		p.mu.Lock()
		p.greeted = p.greeted || f.toServer && !first
		switch {
		case n == 0:
		case p.drops(f):
			p.lost = true
		default:
			f.underWay = append(f.underWay, parcel{data[:n], time.Now().Add(p.delay(f, data[:n]))})
		}
		f.exhausted = err != nil
		p.changed.Broadcast()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// has reports whether a fault is in force.
func (p *pipe) has(fault conformance.Fault) bool { return p.greeted && p.fault == fault }

func (p *pipe) drops(f *flow) bool {
	return p.has(conformance.BlackHole) || p.has(conformance.DropReplies) && !f.toServer
}

func (p *pipe) delay(f *flow, data []byte) time.Duration {
	switch {
	case p.has(conformance.DelayReplies) && !f.toServer:
		return wires.Late
	case p.has(conformance.LateRequests) && f.toServer:
		return rand.N(wires.Late)
	case f.toServer && p.Latency != nil:
		return p.Latency(data)
	}
	return 0
}

// write delivers what is due.
func (p *pipe) write(f *flow) {
	for {
		next, ok := p.next(f)
		if !ok {
			p.close()
			return
		}
		time.Sleep(time.Until(next.due))
		if _, err := f.to.Write(next.data); err != nil {
			p.close()
			return
		}
	}
}

// next waits for something to deliver. It returns false when there will be nothing more.
func (p *pipe) next(f *flow) (next parcel, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed {
		switch {
		case p.has(conformance.Hang):
		case len(f.underWay) > 0:
			next, f.underWay = f.underWay[0], f.underWay[1:]
			return next, true
		case f.exhausted:
			return parcel{}, false
		}
		p.changed.Wait()
	}
	return parcel{}, false
}

func (p *pipe) set(fault conformance.Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
	if fault == conformance.Refuse || fault == None && p.lost {
		p.closeLocked()
	}
	p.changed.Broadcast()
}

func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeLocked()
}

func (p *pipe) closeLocked() {
	p.closed = true
	_, _ = p.client.Close(), p.server.Close()
	p.changed.Broadcast()
}
