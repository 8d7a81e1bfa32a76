package main

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"time"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

// server runs programs for tests.
type server struct {
	docker *docker
	socket string
	shared string // directory
}

// serve accepts connections until the listener is closed.
func (s *server) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go s.handle(conn)
	}
}

// handle runs the program of one connection; see package contained.
func (s *server) handle(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing is to be said any more
	decode, teller := json.NewDecoder(conn), &teller{encode: json.NewEncoder(conn)}
	var r contained.Request
	if decode.Decode(&r) != nil {
		return
	}
	b, err := s.docker.start(context.Background(), r, s.socket, s.shared)
	if err != nil {
		teller.tell(contained.Event{Ended: true, Error: err.Error()})
		return
	}
	defer b.remove()
	teller.tell(contained.Event{Started: true})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.copyOutput(teller)
		e := contained.Event{Ended: true}
		if e.Code, err = b.exitCode(); err != nil {
			e.Error = err.Error()
		}
		teller.tell(e)
	}()
	for {
		var o contained.Order
		if decode.Decode(&o) != nil {
			return // who wanted it is gone, or has heard of its end
		}
		e := contained.Event{Done: true}
		if err := b.obey(o); err != nil {
			e.Error = err.Error()
			if isGone(err) {
				awaitEnd(ended)
			}
		}
		teller.tell(e)
	}
}

// awaitEnd waits until the end of a program has been told, which is a better answer to an order that it has not lived
// to see.
func awaitEnd(ended <-chan struct{}) {
	select {
	case <-ended:
	case <-time.After(orderPatience): // it was something else, then
	}
}

// teller tells one side of a connection what happens. If it does not listen any more, nobody wants to know.
type teller struct {
	mu     sync.Mutex
	encode *json.Encoder
}

func (t *teller) tell(e contained.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.encode.Encode(e)
}

// Write tells of output.
func (t *teller) Write(text []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(text), t.encode.Encode(contained.Event{Output: text})
}
