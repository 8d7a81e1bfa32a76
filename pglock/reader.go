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
// are lost. That is a goroutine of the wire, the watch. But an answer that it reads for somebody else costs two changes
// of goroutine, which may take as long as Postgres does: so whoever has sent something and is going to wait for the
// answer reads it himself if nobody else is reading. The watch takes over when there are more answers to come than that
// one, when the answer takes long, as this read cannot be broken off by a context, and when nothing is going on.

const (
	// patience is how long a caller may be busy reading, and not look at its context.
	patience = 20 * time.Millisecond

	// quiet is for how long nothing is sent before the watch takes over.
	quiet = 500 * time.Microsecond
)

// reader is the reading side of a wire.
type reader struct {
	reading bool        // somebody reads; guarded by wire.mu, as is the next
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

// watch is the goroutine of a wire. It is born reading.
func (w *wire) watch() {
	for {
		if err := w.readAnswer(); err != nil {
			w.fail(err)
			return
		}
		if w.stillReading() {
			continue
		}
		select {
		case <-w.wake:
		case <-w.over:
			return
		}
	}
}

// stillReading reports whether there is more to be read. If not, the next who waits for an answer may read it.
func (w *wire) stillReading() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.out) == 0 {
		w.restLocked()
	}
	return w.reading
}

// restLocked ends the reading, until somebody waits for an answer or nothing has been going on for a while.
func (w *wire) restLocked() {
	w.reading = false
	if w.armed {
		return
	}
	w.armed = true
	if w.idle == nil {
		w.idle = time.AfterFunc(quiet, w.rested)
	} else {
		w.idle.Reset(quiet)
	}
}

// rested is called a while after the last reading.
func (w *wire) rested() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rest := quiet - time.Since(w.spoke); rest > 0 && w.cause == nil {
		w.idle.Reset(rest)
		return
	}
	w.armed = false
	w.watchLocked()
}

// watchLocked makes the watch read if nobody does.
func (w *wire) watchLocked() {
	if !w.reading && w.cause == nil {
		w.reading = true
		w.wake <- struct{}{} // it has room: the watch is only woken when nobody reads
	}
}

// readUntil reads answers on the caller's goroutine, whose turn it is, until arrived reports true or it takes too long.
func (w *wire) readUntil(arrived func() bool) {
	conn := w.conn.Conn()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	var err error
	for !arrived() && err == nil {
		err = w.readAnswer()
	}
	_ = conn.SetReadDeadline(time.Time{})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.fail(err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restLocked()
	if len(w.out) > 0 {
		w.watchLocked()
	}
}

// readAnswer reads one answer and delivers it. If it is broken off by a deadline, the next call goes on.
func (w *wire) readAnswer() error {
	for {
		msg, err := w.conn.Frontend().Receive()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			row := make([]string, len(msg.Values))
			for i, v := range msg.Values {
				row[i] = string(v)
			}
			w.partial.rows = append(w.partial.rows, row)
		case *pgproto3.NotificationResponse:
			w.events.notified(msg.Channel, msg.Payload)
		case *pgproto3.ErrorResponse:
			err := pgconn.ErrorResponseToPgError(msg)
			if !isOfStatement(err) {
				// The server is about to end the session, and then to give its locks to others.
				return err
			}
			w.partial.err = err
		case *pgproto3.ReadyForQuery:
			a := w.partial
			w.partial = answer{}
			return w.deliver(a)
		}
	}
}

// fits reports whether this may be the answer to the message with that number, which comes back in its first row.
func (a *answer) fits(seq int64) bool {
	if len(a.rows) == 0 {
		return a.err != nil
	}
	first := a.rows[0]
	return len(first) > 0 && first[0] == strconv.FormatInt(seq, 10)
}

// deliver hands an answer to the message that it belongs to.
func (w *wire) deliver(a answer) error {
	w.mu.Lock()
	if len(w.out) == 0 || !a.fits(w.out[0].seq) {
		w.mu.Unlock()
		return errMismatch
	}
	m := w.out[0]
	w.out[0] = nil
	w.out = w.out[1:]
	w.heard = time.Now()
	if m.timeout != 0 && a.err == nil {
		w.timeout = m.timeout
	}
	var err error
	if m.requests > 0 {
		w.batches--
		w.asked -= m.requests
		w.came = m.requests
		err = w.flushLocked()
	}
	w.mu.Unlock()
	a.sent = m.sent
	m.answered(a)
	return err
}
