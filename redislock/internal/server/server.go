package server

import (
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// Server is a locker.Backend and locker.Queue.
type Server struct {
	Client      *conn.Client
	Scripts     *scripts.Set
	Line        *Line
	Outbox      *Outbox
	closeClient func() error // nil if the client is the caller's
}

// Features implements the optional method of locker.Backend.
func (b *Server) Features() locker.Features {
	return locker.Features{
		HeedsContext: true, Queue: true, Shared: true, Slots: true, Inspect: true, Revoke: true, MinHold: true,
		Adopt: true,
	}
}

// String names the backend in errors.
func (b *Server) String() string { return "redis" }

// Close implements locker.Backend.
func (b *Server) Close() error {
	// All of this waits for what is under way, for long if the server does not answer. Whoever closes a Locker is in a
	// hurry then; what is left ends by itself.
	closed := make(chan error, 1)
	go func() {
		b.Line.close()
		b.Outbox.close()
		b.Client.Drain()
		var err error
		if b.closeClient != nil {
			err = b.closeClient()
		}
		closed <- err
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(conn.MaxTimeout):
		return nil
	}
}

var (
	_ locker.Backend   = (*Server)(nil)
	_ locker.Queue     = (*Server)(nil)
	_ locker.Inspector = (*Server)(nil)
	_ locker.Revoker   = (*Server)(nil)
	_ locker.Adopter   = (*Server)(nil)
)
