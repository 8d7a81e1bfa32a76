package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"github.com/lockerkit/locker/cmd/locker/internal/child"
)

// signals takes all signals that are for a command, from before anything is locked for it: while no command runs, one
// ends whatever is waited for; then they go to the command.
type signals struct {
	ctx context.Context // ends with a caught as its cause
	end context.CancelCauseFunc

	mu       sync.Mutex
	command  *child.Child // nil if none runs
	shutdown bool         // the command was sent one by which daemons are ended
}

// catchSignals begins to take them. It is not ended: the process is about to exit then.
func catchSignals() *signals {
	s := &signals{}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	if len(child.Harmful) > 0 { // or all would be meant
		signal.Notify(make(chan os.Signal, 1), child.Harmful...)
	}
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, child.Relayed()...)
	go func() {
		for number := range caught {
			s.take(number)
		}
	}()
	return s
}

func (s *signals) take(number os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.command != nil:
		s.shutdown = s.shutdown || s.command.ShutDownBy(number)
		s.command.Signal(number)
	case child.Ends(number):
		s.end(&caught{number})
	}
}

// start starts a command that gets the signals from now on, unless one has ended everything.
func (s *signals) start(start func() (*child.Child, error)) (*child.Child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, context.Cause(s.ctx)
	}
	c, err := start()
	if err == nil {
		s.command = c
	}
	return c, err
}

// ended notes that the command has ended. It reports whether that was wanted by a signal.
func (s *signals) ended() (shutdown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.command = nil
	return s.shutdown
}
