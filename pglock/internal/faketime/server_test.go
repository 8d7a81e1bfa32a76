package faketime

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker/internal/faketime"
)

// simulated is a server of Postgres: it knows the statements that pglock sends, and no others.
type simulated struct {
	mu        sync.Mutex
	locks     map[lockID]*advisory
	processes map[uint32]*process
	pids      uint32
	token     uint64
}

// process is a process of the server. It reads ahead, and executes one message after the other.
type process struct {
	*simulated
	pid     uint32
	backend *pgproto3.Backend
	conn    net.Conn
	over    chan struct{} // closed when it is to end
	end     func()
	cancels chan struct{}

	sending sync.Mutex
	timeout time.Duration // idle_session_timeout
	waits   atomic.Bool
	hears   bool // guarded by simulated.mu
}

// step is a statement, or several: the text of a simple query, or the prepared statement and its parameters.
type step struct {
	text       string
	parameters [][]byte
}

func newSimulated() *simulated {
	return &simulated{locks: make(map[lockID]*advisory), processes: make(map[uint32]*process), token: 1e15}
}

// connect returns the client's end of a new connection.
func (s *simulated) connect() (net.Conn, error) {
	near, far := net.Pipe()
	go s.serve(far)
	return near, nil
}

// newPool returns a pool, which is closed with the test, and its connections.
func (s *simulated) newPool(t *testing.T) (*pgxpool.Pool, *faketime.Pipes) {
	t.Helper()
	config, err := pgxpool.ParseConfig("postgres://app@127.0.0.1:5432/simulated?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	pipes := faketime.NewPipes(faketime.Server{
		Connect: s.connect,
		Latency: func([]byte) time.Duration { return rand.N(4 * time.Millisecond) },
	})
	config.ConnConfig.DialFunc = pipes.Dial
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, pipes
}

func (s *simulated) serve(conn net.Conn) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	first, err := backend.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if cancel, ok := first.(*pgproto3.CancelRequest); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p := s.processes[cancel.ProcessID]; p != nil {
			select {
			case p.cancels <- struct{}{}:
			default:
			}
		}
		return
	}
	s.mu.Lock()
	s.pids++
	over := make(chan struct{})
	p := &process{
		simulated: s, pid: s.pids, backend: backend, conn: conn,
		over: over, end: sync.OnceFunc(func() { close(over) }), cancels: make(chan struct{}, 1),
	}
	s.processes[p.pid] = p
	s.mu.Unlock()
	p.send(&pgproto3.AuthenticationOk{}, &pgproto3.ParameterStatus{Name: "server_version", Value: "17.0"},
		&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"},
		&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"},
		&pgproto3.BackendKeyData{ProcessID: p.pid, SecretKey: []byte{0, 0, 0, 0}},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	p.live()
}

func (p *process) send(messages ...pgproto3.BackendMessage) {
	p.sending.Lock()
	defer p.sending.Unlock()
	for _, m := range messages {
		p.backend.Send(m)
	}
	_ = p.backend.Flush() // what reads will notice
}

// live executes what comes, until the connection or the server ends, or nothing has come for too long.
func (p *process) live() {
	messages := make(chan []step)
	go func() {
		defer close(messages)
		p.read(messages)
		if p.waits.Load() { // the server looks once a second whether there is still somebody
			time.Sleep(rand.N(time.Second))
		}
		p.end()
	}()
	for {
		var idle <-chan time.Time
		if p.timeout > 0 {
			idle = time.After(p.timeout)
		}
		select {
		case steps, ok := <-messages:
			if ok && p.executeAll(steps) {
				continue
			}
		case <-p.over:
			p.send(fatal("57P01"))
		case <-idle:
			p.send(fatal("57P05"))
		}
		break
	}
	_ = p.conn.Close()
	// Its locks are free after that: the operating system may take as long for the process as for its client.
	time.Sleep(time.Millisecond)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.processes, p.pid)
	p.end()
	p.unlockAll()
}

// read reads messages until the connection ends.
func (p *process) read(to chan<- []step) {
	var steps []step
	for {
		message, err := p.backend.Receive()
		if err != nil {
			return
		}
		switch m := message.(type) {
		case *pgproto3.Query:
			steps = []step{{text: m.String}}
		case *pgproto3.Bind:
			s := step{text: m.PreparedStatement}
			for _, parameter := range m.Parameters {
				s.parameters = append(s.parameters, slices.Clone(parameter))
			}
			steps = append(steps, s)
			continue
		case *pgproto3.Execute:
			continue
		case *pgproto3.Sync:
		default: // such as Terminate
			return
		}
		select {
		case to <- steps:
			steps = nil
		case <-p.over:
			return
		}
	}
}

// executeAll executes the steps of a message. It returns false if the process has to end.
func (p *process) executeAll(steps []step) bool {
	select {
	case <-p.cancels: // it came too late for the one before
	default:
	}
	var answer []pgproto3.BackendMessage
	for _, s := range steps {
		rows, code := p.execute(s)
		select {
		case <-p.over:
			p.send(fatal("57P01"))
			return false
		default:
		}
		if code != "" {
			answer = append(answer, &pgproto3.ErrorResponse{Severity: "ERROR", Code: code, Message: s.text})
			break
		}
		for _, row := range rows {
			fields, values := make([]pgproto3.FieldDescription, len(row)), make([][]byte, len(row))
			for i, v := range row {
				fields[i].Name = []byte("column")
				if v != null {
					values[i] = []byte(v)
				}
			}
			answer = append(answer, &pgproto3.RowDescription{Fields: fields}, &pgproto3.DataRow{Values: values},
				&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		}
	}
	p.send(append(answer, &pgproto3.ReadyForQuery{TxStatus: 'I'})...)
	return true
}

func fatal(code string) *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "simulated"}
}
