package faketime

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/lockerkit/locker/conformance"
	"github.com/lockerkit/locker/internal/wires"
)

// latency is how long a script takes to get to the server at most, so that they meet in other orders each time.
const latency = 4 * time.Millisecond

// noFault is none of conformance's.
const noFault conformance.Fault = -1

// wire is a connection to a server that lives in the same process, with faults on request. The connections of package
// net could not be used in a bubble of synctest: its time does not go on while somebody reads from one.
//
// To connect takes no time, whatever the fault, unless that refuses: there is none for the first request, a greeting.
// go-redis keeps a subscription locked while it connects, so that nobody can close it, and the time of a bubble stands
// still while somebody waits for a mutex.
type wire struct {
	client, server net.Conn // the ends that are ours

	mu      sync.Mutex
	changed sync.Cond // of what follows
	fault   conformance.Fault
	greeted bool // the client is past its greeting
	lost    bool // something did not arrive, so that the connection cannot be healed
	closed  bool
}

// flow is one direction of a wire.
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

// newWire returns the client's end of a wire to the server, too.
func newWire(server net.Conn, fault conformance.Fault) (*wire, net.Conn) {
	near, far := net.Pipe()
	w := &wire{client: far, server: server, fault: fault}
	w.changed.L = &w.mu
	for _, f := range []*flow{{from: far, to: server, toServer: true}, {from: server, to: far}} {
		go w.read(f)
		go w.write(f)
	}
	return w, near
}

// read takes what the sender has for the other side, so that nobody has to wait until it is read there.
func (w *wire) read(f *flow) {
	for first := f.toServer; ; first = false {
		data := make([]byte, 4096)
		n, err := f.from.Read(data)
		w.mu.Lock()
		w.greeted = w.greeted || f.toServer && !first
		switch {
		case n == 0:
		case w.drops(f):
			w.lost = true
		default:
			f.underWay = append(f.underWay, parcel{data[:n], time.Now().Add(w.delay(f, data[:n]))})
		}
		f.exhausted = err != nil
		w.changed.Broadcast()
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// has reports whether a fault is in force.
func (w *wire) has(fault conformance.Fault) bool { return w.greeted && w.fault == fault }

func (w *wire) drops(f *flow) bool {
	return w.has(conformance.BlackHole) || w.has(conformance.DropReplies) && !f.toServer
}

func (w *wire) delay(f *flow, data []byte) time.Duration {
	switch {
	case w.has(conformance.DelayReplies) && !f.toServer:
		return wires.Late
	case w.has(conformance.LateRequests) && f.toServer:
		return rand.N(wires.Late)
	case f.toServer && bytes.Contains(data, []byte("evalsha")):
		return rand.N(latency)
	}
	return 0
}

// write delivers what is due.
func (w *wire) write(f *flow) {
	for {
		next, ok := w.next(f)
		if !ok {
			w.close()
			return
		}
		time.Sleep(time.Until(next.due))
		if _, err := f.to.Write(next.data); err != nil {
			w.close()
			return
		}
	}
}

// next waits for something to deliver. It returns false when there will be nothing more.
func (w *wire) next(f *flow) (p parcel, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.closed {
		switch {
		case w.has(conformance.Hang):
		case len(f.underWay) > 0:
			p, f.underWay = f.underWay[0], f.underWay[1:]
			return p, true
		case f.exhausted:
			return parcel{}, false
		}
		w.changed.Wait()
	}
	return parcel{}, false
}

// set puts a fault into force in place of the one there is, or of none.
func (w *wire) set(fault conformance.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
	if fault == conformance.Refuse || fault == noFault && w.lost {
		w.closeLocked()
	}
	w.changed.Broadcast()
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closeLocked()
}

func (w *wire) closeLocked() {
	w.closed = true
	_, _ = w.client.Close(), w.server.Close()
	w.changed.Broadcast()
}
