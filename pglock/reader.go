package pglock

import (
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Reading. Somebody has to read at any time, to see at once when the server ends the session, by which all its locks
// are lost. That is a goroutine of the session, the watch. But an answer that it reads for somebody else costs two changes
// of goroutine, which may take as long as Postgres does: so whoever has sent something and is going to wait for the answer
// reads it himself if nobody else is reading. The watch takes over when there are more answers to come than that one, when
// the answer takes long, as this read cannot be broken off by a context, and when nothing is going on.

const (
	// patience is how long a caller may be busy reading, and not look at its context.
	patience = 20 * time.Millisecond

	// quiet is for how long nothing is sent before the watch takes over.
	quiet = 500 * time.Microsecond
)

// reader is the reading side of a session.
type reader struct {
	reading bool        // somebody reads; guarded by session.mu, as is the next
	alone   bool        // only the watch can read: the connection has no deadlines
	armed   bool        // idle will fire
	idle    *time.Timer // wakes the watch when nothing is going on
	wake    chan struct{}
	over    chan struct{} // closed when the session is over
	partial answer        // what has been read of an answer; belongs to who reads
}

func newReader() reader {
	return reader{reading: true, wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// watch is the goroutine of a session. It is born reading.
func (s *session) watch() {
	for {
		if err := s.readAnswer(); err != nil {
			s.fail(err)
			return
		}
		if s.stillReading() {
			continue
		}
		select {
		case <-s.wake:
		case <-s.over:
			return
		}
	}
}

// stillReading reports whether there is more to be read. If not, the next who waits for an answer may read it.
func (s *session) stillReading() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) == 0 {
		s.restLocked()
	}
	return s.reading
}

// restLocked ends the reading, until somebody waits for an answer or nothing has been going on for a while.
func (s *session) restLocked() {
	s.reading = false
	if s.armed {
		return
	}
	s.armed = true
	if s.idle == nil {
		s.idle = time.AfterFunc(quiet, s.rested)
	} else {
		s.idle.Reset(quiet)
	}
}

// rested is called a while after the last reading.
func (s *session) rested() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rest := quiet - time.Since(s.spoke); rest > 0 && s.cause == nil {
		s.idle.Reset(rest)
		return
	}
	s.armed = false
	s.watchLocked()
}

// watchLocked makes the watch read if nobody does.
func (s *session) watchLocked() {
	if !s.reading && s.cause == nil {
		s.reading = true
		s.wake <- struct{}{} // it has room: the watch is only woken when nobody reads
	}
}

// readUntil reads answers on the caller's goroutine, whose turn it is, until arrived reports true or it takes too long.
func (s *session) readUntil(arrived func() bool) {
	conn := s.conn.Conn()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	var err error
	for !arrived() && err == nil {
		err = s.readAnswer()
	}
	_ = conn.SetReadDeadline(time.Time{})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.fail(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restLocked()
	if len(s.out) > 0 {
		s.watchLocked()
	}
}

// readAnswer reads one answer and delivers it. If it is broken off by a deadline, the next call goes on.
func (s *session) readAnswer() error {
	for {
		msg, err := s.conn.Frontend().Receive()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			row := make([]string, len(msg.Values))
			for i, v := range msg.Values {
				row[i] = string(v)
			}
			s.partial.rows = append(s.partial.rows, row)
		case *pgproto3.NotificationResponse:
			s.b.hinted(msg.Payload)
		case *pgproto3.ErrorResponse:
			err := pgconn.ErrorResponseToPgError(msg)
			if !isOfStatement(err) {
				// The server is about to end the session, and then to give its locks to others.
				return err
			}
			s.partial.err = err
		case *pgproto3.ReadyForQuery:
			a := s.partial
			s.partial = answer{}
			return s.deliver(a)
		}
	}
}

// deliver hands an answer to the message that it belongs to.
func (s *session) deliver(a answer) error {
	s.mu.Lock()
	if len(s.out) == 0 || len(a.rows) > 0 && a.rows[0][0] != strconv.FormatInt(s.out[0].seq, 10) || len(a.rows) == 0 && a.err == nil {
		s.mu.Unlock()
		return errMismatch
	}
	m := s.out[0]
	s.out[0] = nil
	s.out = s.out[1:]
	s.heard = time.Now()
	if m.timeout != 0 && a.err == nil {
		s.timeout = m.timeout
	}
	var err error
	if m.batch {
		s.batches--
		err = s.flushLocked()
	}
	s.mu.Unlock()
	a.sent = m.sent
	m.answered(a)
	return err
}
