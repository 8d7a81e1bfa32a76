package faultproxy

import (
	"errors"
	"net"
	"time"
)

// listen starts to listen on the proxy's port.
func (p *Proxy) listen() error {
	nl, err := listenPatiently(p.Addr())
	if err != nil {
		return err
	}
	l := &listener{nl, make(chan struct{})}
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.wg.Go(func() { p.acceptLoop(l) })
	return nil
}

// listenPatiently retries for a while: where portkeep cannot keep a port, it
// may be in use by somebody's short-lived connection.
func listenPatiently(addr string) (net.Listener, error) {
	deadline := time.Now().Add(listenPatience)
	for {
		l, err := net.Listen("tcp4", addr)
		if err == nil || time.Now().After(deadline) {
			return l, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// unlisten stops listening. When it returns, every connection accepted before
// is in p.conns, and the kernel has reset those not accepted yet.
func (p *Proxy) unlisten() error {
	p.mu.Lock()
	l := p.listener
	p.listener = nil
	p.mu.Unlock()
	if l == nil {
		return nil
	}
	err := l.Close()
	<-l.done
	return err
}

func (p *Proxy) acceptLoop(l *listener) {
	defer close(l.done)
	for {
		client, err := l.Accept()
		switch {
		case err == nil:
			p.add(client.(*net.TCPConn))
		case errors.Is(err, net.ErrClosed):
			return
		default: // too many open files, say: it may pass
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// add takes on a new connection.
func (p *Proxy) add(client *net.TCPConn) {
	p.mu.Lock()
	if p.closed || p.fault.Refuse {
		p.mu.Unlock()
		reset(client)
		return
	}
	p.accepted++
	c := newConn(p, client)
	p.conns[c] = struct{}{}
	upstream := p.upstream
	p.changed()
	p.mu.Unlock()
	// The accept loop itself counts in wg, so wg cannot be zero here.
	p.wg.Go(func() { c.run(upstream) })
}
