package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

const (
	// readSize is the most that is read, and so passed on, in one piece.
	readSize = 32 << 10

	// queueMax is how many bytes a pipe holds between reading and writing. It
	// is the capacity of the cable that Delay simulates, so it is ample.
	queueMax = 4 << 20
)

// pipe is one direction of a connection. Two goroutines work on it: readLoop
// puts what comes from src into the queue, writeLoop takes it out for dst.
// All fields but src and dst are guarded by c.mu. src and dst are set before
// the goroutines start.
type pipe struct {
	c        *Conn
	back     *pipe        // the other direction
	src, dst *net.TCPConn // nil if there is no server

	flow    Flow
	queue   []item
	queued  int  // bytes in queue
	reading bool // a read is in progress, or its result not yet dealt with
	ended   bool // there is nothing more to read from src
	dead    bool // dst cannot be written to any more
	lost    bool // something did not and will not arrive
}

// item is something to pass on: bytes, or the way in which src ended.
type item struct {
	kind itemKind
	data []byte
	at   time.Time // when it was read
	luck float64   // its part of the Jitter
}

type itemKind int

const (
	bytesItem itemKind = iota
	finItem
	rstItem
)

func (p *pipe) readLoop() {
	buf := make([]byte, readSize)
	for p.beginRead() {
		n, err := p.src.Read(buf)
		p.endRead(buf[:n], err)
	}
}

// beginRead waits until it is right to read. It returns false when there is
// nothing more to read.
func (p *pipe) beginRead() bool {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && !p.ended &&
		(c.changing || p.flow.Mode == Hold || p.queued >= queueMax) {
		c.cond.Wait()
	}
	p.reading = !c.closed && !p.ended
	return p.reading
}

// endRead deals with the result of a read.
func (p *pipe) endRead(data []byte, err error) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	p.reading = false
	defer c.cond.Broadcast()

	if len(data) > 0 {
		if p == &c.requests {
			c.observe(data) // may put a fault into force
		}
		p.put(item{kind: bytesItem, data: bytes.Clone(data), at: time.Now()})
	}
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded): // interrupted by change
	case errors.Is(err, io.EOF) && !p.back.dead:
		p.ended = true
		p.put(item{kind: finItem, at: time.Now()})
	default:
		// The source has reset the connection, or has ended it without
		// reading all that was sent to it, which amounts to the same.
		p.ended = true
		p.put(item{kind: rstItem, at: time.Now()})
	}
}

// put queues an item, or drops it if that is what the fault says. The caller
// holds c.mu.
func (p *pipe) put(it item) {
	if p.c.closed {
		return
	}
	switch {
	case p.flow.Mode == Drop:
		p.c.drop(len(it.data))
		p.lost = true
	case p.dead: // there is nobody to get it, which is no fault of ours
	default:
		it.luck = rand.Float64()
		p.queue = append(p.queue, it)
		p.queued += len(it.data)
	}
	p.c.proxy.progress(0)
}

func (p *pipe) writeLoop() {
	for {
		it, ok := p.take()
		if !ok {
			return
		}
		switch it.kind {
		case rstItem:
			p.c.Reset()
			return
		case finItem:
			if err := p.dst.CloseWrite(); err != nil {
				p.writeFailed()
			}
			return
		default:
			if _, err := p.dst.Write(it.data); err != nil {
				p.writeFailed()
			}
		}
	}
}

// take waits for the next item whose time has come. It returns false when
// there will be none.
func (p *pipe) take() (item, bool) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed {
		switch {
		case len(p.queue) == 0 && p.ended:
			return item{}, false
		case len(p.queue) == 0 || p.flow.Mode == Hold:
			c.cond.Wait()
		default:
			// Reckoned anew each time, as the fault may have changed.
			delay := p.flow.Delay + time.Duration(p.queue[0].luck*float64(p.flow.Jitter))
			early := time.Until(p.queue[0].at.Add(delay))
			if early > 0 {
				p.waitAtMost(early)
				continue
			}
			it := p.queue[0]
			p.queue = p.queue[1:]
			p.queued -= len(it.data)
			c.cond.Broadcast() // there is room in the queue
			return it, true
		}
	}
	return item{}, false
}

// waitAtMost waits for a change of the connection, but not much longer than d.
func (p *pipe) waitAtMost(d time.Duration) {
	c := p.c
	timer := time.AfterFunc(d, func() {
		c.mu.Lock() // so that the signal cannot come before Wait listens
		defer c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer timer.Stop()
	c.cond.Wait()
}

func (p *pipe) writeFailed() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.fail()
}

// fail notes that dst cannot be written to. It leaves it to the reader of the
// way back to pass on the news, after all that dst had to say, unless dst has
// nothing more to say. The caller holds c.mu.
func (p *pipe) fail() {
	c := p.c
	p.dead = true
	p.queue, p.queued = nil, 0
	defer c.cond.Broadcast()
	if c.closed || !p.back.ended {
		return
	}
	if p.back.flow.Mode != Pass {
		p.back.lost = true // the news would have to take this way
		return
	}
	c.closeLocked(true)
}

// loseUnread takes note of what has come in while everything was to be dropped
// and has not been read yet. No read may be in progress. The caller holds c.mu.
func (p *pipe) loseUnread() {
	if p.flow.Mode == Drop && p.src != nil && !p.ended && !p.c.closed && unread(p.src) {
		p.lost = true
	}
}

// setFlow changes the flow. The caller holds c.mu and checks c.closed afterwards.
func (p *pipe) setFlow(f Flow) {
	p.flow = f
	if f.Mode == Drop && len(p.queue) > 0 {
		p.c.drop(p.queued)
		p.queue, p.queued = nil, 0
		p.lost = true
	}
	if f.Mode == Pass && p.lost {
		p.c.closeLocked(true)
	}
}
