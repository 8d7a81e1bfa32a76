package contained

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Process is a program in a container.
type Process struct {
	conn   net.Conn
	encode *json.Encoder

	orders sync.Mutex // one at a time
	done   chan Event // the answer
	ended  chan struct{}
	err    error // how it has ended; valid when ended is closed
}

// Start has a program started, and its output written, also after Start has returned, until it has ended.
func Start(r Request, output io.WriteCloser) (*Process, error) {
	p, err := start(r, output)
	if err != nil {
		output.Close()
		return nil, fmt.Errorf("container of %s: %w", r.Image, err)
	}
	return p, nil
}

func start(r Request, output io.WriteCloser) (*Process, error) {
	conn, err := net.Dial("unix", os.Getenv(EnvSocket))
	if err != nil {
		return nil, fmt.Errorf("$%s: %w", EnvSocket, err)
	}
	p := &Process{conn: conn, encode: json.NewEncoder(conn), done: make(chan Event), ended: make(chan struct{})}
	decode := json.NewDecoder(conn)
	var e Event
	err = p.encode.Encode(r)
	if err == nil {
		err = decode.Decode(&e)
	}
	if err == nil && !e.Started {
		err = errors.New(e.Error)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	go p.hear(decode, output)
	return p, nil
}

// hear writes the output, passes answers on, and notes the end.
func (p *Process) hear(decode *json.Decoder, output io.WriteCloser) {
	defer close(p.ended)
	defer p.conn.Close()
	defer output.Close()
	for {
		var e Event
		switch err := decode.Decode(&e); {
		case err != nil:
			p.err = fmt.Errorf("whoever runs the containers is gone: %w", err)
			return
		case e.Done:
			p.done <- e
		case e.Ended:
			switch {
			case e.Error != "":
				p.err = errors.New(e.Error)
			case e.Code != 0:
				p.err = fmt.Errorf("exit status %d", e.Code)
			}
			return
		default:
			output.Write(e.Output)
		}
	}
}

// order has something done, and waits until it is.
func (p *Process) order(o Order) error {
	p.orders.Lock()
	defer p.orders.Unlock()
	if err := p.encode.Encode(o); err != nil {
		return os.ErrProcessDone
	}
	select {
	case e := <-p.done:
		if e.Error != "" {
			return errors.New(e.Error)
		}
		return nil
	case <-p.ended:
		return os.ErrProcessDone
	}
}

// Signal sends the program a signal. The error is os.ErrProcessDone if it has ended.
func (p *Process) Signal(sig os.Signal) error {
	number, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal %v: %w", sig, errors.ErrUnsupported)
	}
	return p.order(Order{Do: Signal, Signal: int(number)})
}

// Kill ends the program the hard way. It does not wait for that.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// Pause has the kernel stop all of the program, and waits until it has.
func (p *Process) Pause() error { return p.order(Order{Do: Pause}) }

// Resume lets a paused program go on.
func (p *Process) Resume() error { return p.order(Order{Do: Resume}) }

// Wait waits for the end of the program, and returns an error if its exit code was not 0.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}
