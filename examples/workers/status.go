package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"
)

// status is the state of a worker, served as JSON: for a dashboard, or for a load balancer that wants to know who
// leads.
type status struct {
	addr string // where to serve it; "" for nowhere

	mu    sync.Mutex
	state state
}

type state struct {
	Worker string `json:"worker"`
	Leads  bool   `json:"leads"`
	Token  uint64 `json:"token,omitempty"` // of the lease, while it leads
	Job    int64  `json:"job,omitempty"`   // in hand
	Done   int64  `json:"done"`            // how many jobs this worker has done
	Error  string `json:"error,omitempty"` // the last failure, until it leads again
}

func newStatus(cfg config) *status { return &status{addr: cfg.http, state: state{Worker: cfg.name}} }

// tell keeps the state up to date.
func (s *status) tell(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.what {
	case leads:
		s.state.Leads, s.state.Token, s.state.Error = true, e.token, ""
	case starts:
		s.state.Job = e.job
	case done:
		s.state.Job = 0
		s.state.Done++
	case drops:
		s.state.Job = 0
	case lost, leaves:
		s.state.Leads, s.state.Token, s.state.Job = false, 0, 0
	}
	if e.err != nil {
		s.state.Error = e.err.Error()
	}
}

// ServeHTTP implements http.Handler.
func (s *status) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	now := s.state
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(now) // a client that has gone away is no concern of ours
}

// serve starts to serve, and returns the address and what ends it, in bounded time.
func (s *status) serve() (addr string, hangUp func(), err error) {
	if s.addr == "" {
		return "", func() {}, nil
	}
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // until hangUp
	}()
	return l.Addr().String(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close() // somebody holds on to a request
		}
		<-ended
	}, nil
}
