package pglock

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// writePatience bounds a write that has to wait all the same. A connection that it happens to is broken.
	writePatience = time.Second

	// silence is how long a session without locks may leave a question unanswered before it is given up, and one with
	// locks before new requests go to another. Locks are worth waiting for up to their TTL.
	silence = 2 * time.Second
)

// wire is one connection to Postgres: what is sent, in which batches, and what comes back. It knows nothing of leases.
//
// What is sent goes out as messages of the simple query protocol, but for batches, and the answers come in the same
// order. A server that got only half of such a message does nothing, and keeps its idle timer running.
type wire struct {
	conn   server
	events events

	mu        sync.Mutex
	seq       int64
	waiting   []*request // not yet sent
	out       []*message // sent, in order
	batches   int        // of those
	asked     int        // requests in those
	came      int        // requests of the last batch that was answered
	gathering bool       // somebody is about to send what is waiting
	hurry     int        // so many who ask do not gather others first
	heard     time.Time  // when the last answer came, or, if later, when something was sent while none was due
	spoke     time.Time  // when something was last sent
	want      time.Duration
	timeout   time.Duration // the idle_session_timeout that the server has confirmed last
	cause     error         // why it is over
	buf       []byte
	limit     atomic.Uint64 // the greatest token that may be used
	reader
}

// newWire returns a wire, of which the events are to be set.
func newWire(conn server, timeout time.Duration, now time.Time) *wire {
	w := &wire{conn: conn, want: timeout, timeout: timeout, heard: now, spoke: now, reader: newReader()}
	w.limit.Store(conn.limit)
	w.alone = conn.Conn().SetReadDeadline(time.Time{}) != nil
	return w
}

// events is told of what happens on a wire, with no mutex of it held.
type events interface {
	// ended: it is over. The connection is closed when this has returned, and closed is called.
	ended(cause error)
	closed()

	notified(channel, payload string)
	tellFree(keys []int64) // somebody polls for what has been given back

	// raiseLimit is to raise the limit of tokens, beyond which they may not be used.
	raiseLimit(then func(limit uint64, err error))
}

// message is one message to the server.
type message struct {
	seq      int64
	sent     time.Time
	timeout  time.Duration // it sets this idle_session_timeout; 0 if none
	requests int           // of a batch; 0 if it is none
	patient  bool          // it may take for ever
	answered func(answer)
}

// answer is what came back: the rows of all statements of the message.
type answer struct {
	sent time.Time
	rows [][]string
	err  error
}

// ask sends a message of its own, beside the batches. The answer comes on another goroutine, or on this one.
func (w *wire) ask(m *message, sql func(sql []byte, seq int64) []byte) {
	w.mu.Lock()
	if cause := w.cause; cause != nil {
		w.mu.Unlock()
		m.answered(answer{err: cause})
		return
	}
	err := w.sendQueryLocked(m, sql)
	w.watchLocked()
	w.mu.Unlock()
	w.failIf(err)
}

// askText is ask for statements that have the number of the message as their only %d.
func (w *wire) askText(m *message, text string, args ...any) {
	w.ask(m, func(sql []byte, seq int64) []byte { return fmt.Appendf(sql, text, append([]any{seq}, args...)...) })
}

// heartbeat sends a heartbeat.
func (w *wire) heartbeat(answered func(answer)) {
	w.ask(&message{answered: answered}, beatSQL)
}

// beatSQL is a heartbeat.
func beatSQL(sql []byte, seq int64) []byte {
	return strconv.AppendInt(append(sql, "SELECT "...), seq, 10)
}

// sendQueryLocked writes a message of statements, with which the idle_session_timeout is set if that is due.
func (w *wire) sendQueryLocked(m *message, sql func(sql []byte, seq int64) []byte) error {
	set := ""
	if w.needsTimeoutLocked() && !m.patient {
		m.timeout = w.want
		set = timeoutSQL(w.want)
	}
	return w.sendLocked(m, func(buf []byte, seq int64) []byte {
		buf = append(sql(append(append(buf, 'Q', 0, 0, 0, 0), set...), seq), 0)
		binary.BigEndian.PutUint32(buf[1:], uint32(len(buf)-1))
		return buf
	})
}

// sendLocked writes a message, of which the answer is to begin with its number.
func (w *wire) sendLocked(m *message, encode func(buf []byte, seq int64) []byte) error {
	w.seq++
	m.seq = w.seq
	w.buf = encode(w.buf[:0], m.seq)
	m.sent = time.Now() // before it is written: this is where validity counts from
	w.spoke = m.sent
	if len(w.out) == 0 {
		w.heard = m.sent
	}
	w.out = append(w.out, m)
	return w.write(w.buf)
}

// write writes to the connection, with patience. If that is not enough, the connection is broken.
func (w *wire) write(buf []byte) error {
	conn := w.conn.Conn()
	if conn.SetWriteDeadline(time.Now().Add(writePatience)) != nil { // not all have deadlines, such as those in tunnels
		defer time.AfterFunc(writePatience, func() { _ = conn.Close() }).Stop()
	}
	if _, err := conn.Write(buf); err != nil {
		return &writeError{err}
	}
	_ = conn.SetWriteDeadline(time.Time{}) // TLS may write when it reads
	return nil
}

// writeError is the error of a write, after which a session is over whatever it was: not to be taken for that of a read
// that was broken off.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }

// setWanted makes the idle_session_timeout d with the next message.
func (w *wire) setWanted(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want = d
}

// idleTimeout returns for how long the server may wait for a message, at least.
func (w *wire) idleTimeout() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	least, _ := w.timeoutsLocked()
	return least
}

// longest returns for how long the server may wait for a message, at most.
func (w *wire) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, most := w.timeoutsLocked()
	return most
}

// fail ends the session. The leases that it carries are lost; their holders are told before the connection is closed,
// by which the server learns that the locks are free.
func (w *wire) fail(err error) { w.end(err, nil) }

// close ends a session that has no locks, and lets the server know. It is over before that: else the server's end of it
// might be taken for the reason.
func (w *wire) close(reason error) { w.end(reason, []byte{'X', 0, 0, 0, 4}) }

// end ends the session, of which the server hears by a last message, if there is one, and as the connection is closed.
func (w *wire) end(err error, farewell []byte) {
	w.mu.Lock()
	if w.cause != nil {
		w.mu.Unlock()
		return
	}
	cause := error(&sessionOver{explain(err)})
	w.cause = cause
	out, waiting := w.out, w.waiting
	w.out, w.waiting = nil, nil
	w.mu.Unlock()
	close(w.over)
	w.events.ended(cause)
	if farewell != nil {
		_ = w.write(farewell)
	}
	_ = w.conn.Conn().Close()
	w.events.closed()
	for _, m := range out {
		m.answered(answer{err: cause})
	}
	for _, r := range waiting {
		r.then(outcome{err: cause})
	}
}

// overBy returns why the session is over; nil if it is not.
func (w *wire) overBy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

func (w *wire) failIf(err error) {
	if err != nil {
		w.fail(err)
	}
}

// cancel ends the statement that the session executes, if it still does. When it has returned without an error, the
// server has dealt with the request, so that it cannot hit a later statement; behind a proxy that is likely, not
// certain.
func (w *wire) cancel(ctx context.Context) error { return w.conn.CancelRequest(ctx) }

// wanted returns the idle_session_timeout that the session is to have.
func (w *wire) wanted() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.want
}

// needsTimeout reports whether the server has yet to be told the idle_session_timeout.
func (w *wire) needsTimeout() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.needsTimeoutLocked()
}

// needsTimeoutLocked compares what is wanted with what the server has confirmed, and with what is on its way to it. A
// message on its way with the same may fail, and then changes nothing.
func (w *wire) needsTimeoutLocked() bool {
	least, most := w.timeoutsLocked()
	return least != most
}

// timeoutsLocked returns the least and the greatest idle_session_timeout that the server may have now, or is to have.
func (w *wire) timeoutsLocked() (least, most time.Duration) {
	least, most = min(w.timeout, w.want), max(w.timeout, w.want)
	for _, m := range w.out {
		if m.timeout != 0 {
			least, most = min(least, m.timeout), max(most, m.timeout)
		}
	}
	return least, most
}

// silentFor returns for how long a question has been waiting for its answer.
func (w *wire) silentFor(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.out) == 0 || w.out[0].patient {
		return 0
	}
	return now.Sub(w.heard)
}

// quietFor returns for how long nothing was sent; 0 for a session that waits in line, to which nothing can be sent.
func (w *wire) quietFor(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.out) > 0 {
		return 0
	}
	return now.Sub(w.spoke)
}
