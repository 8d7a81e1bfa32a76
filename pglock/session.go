package pglock

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// most is how many requests go into one batch: so many that the server is busy with it for less than a millisecond,
	// and that what is under way fits into the smallest buffer of a socket, so that to write never has to wait.
	most = 128

	// batchesOut is how many batches are under way at a time: the server works on one while the answers to the other
	// are dealt with here.
	batchesOut = 2

	// writePatience bounds a write that has to wait all the same. A connection that it happens to is broken.
	writePatience = time.Second

	// silence is how long a session without locks may leave a question unanswered before it is given up, and one with
	// locks before new requests go to another. Locks are worth waiting for up to their TTL.
	silence = 2 * time.Second
)

// session is one connection to Postgres, that is used for nothing else than locks.
//
// What is sent goes out as messages of the simple query protocol, and the answers come in the same order. A server that got
// only half of such a message does nothing, and keeps its idle timer running; of the extended protocol, each message stops
// the timer, and a client that was cut off between two of them would keep its locks for good.
//
// Requests for locks of many goroutines go together: whoever comes while enough batches are under way leaves the
// request to be sent with the next, so that batches grow as the load does.
type session struct {
	conn server
	b    *backend

	mu      sync.Mutex
	seq     int64
	waiting []*request // not yet sent
	out     []*message // sent, in order
	batches int        // of those
	heard   time.Time  // when the last answer came, or, if later, when something was sent while none was due
	spoke   time.Time  // when something was last sent
	want    time.Duration
	timeout time.Duration // the idle_session_timeout that the server has confirmed last
	cause   error         // why the session is over
	told    chan struct{} // closed when it is, and all holders of its locks know
	buf     []byte
	reader

	// For the backend, and guarded by its mutex.
	locks  map[int64]*holding
	dead   bool
	used   time.Time // when it was last needed
	place  *place    // that it stands in
	ticker *time.Timer
}

// request asks for the lock of one key, or gives it back.
type request struct {
	key    int64
	unlock bool
	again  bool // this is the second attempt
	then   func(outcome)
}

// outcome is what became of a request.
type outcome struct {
	done  bool   // taken, or given back
	token uint64 // of a lock that was taken
	sent  time.Time
	err   error // why the outcome is none; the lock is not held then, or the session is over
}

// message is one message to the server.
type message struct {
	seq      int64
	sent     time.Time
	timeout  time.Duration // it sets this idle_session_timeout; 0 if none
	batch    bool
	patient  bool // it may take for ever
	answered func(answer)
}

// answer is what came back: the rows of all statements of the message.
type answer struct {
	sent time.Time
	rows [][]string
	err  error
}

// submit sends a request, now or with the next batch. then is called when its outcome is known, on another goroutine or on
// this one.
func (s *session) submit(r *request) { s.submitAndRead(r, nil) }

// submitAndRead is submit, after which the caller itself may read answers for a while, until arrived reports true.
func (s *session) submitAndRead(r *request, arrived func() bool) {
	s.mu.Lock()
	if cause := s.cause; cause != nil {
		s.mu.Unlock()
		r.then(outcome{err: cause})
		return
	}
	s.waiting = append(s.waiting, r)
	err := s.flushLocked()
	direct := arrived != nil && err == nil && !s.reading && !s.alone
	if direct {
		s.reading = true
	} else {
		s.watchLocked()
	}
	s.mu.Unlock()
	s.failIf(err)
	if direct {
		s.readUntil(arrived)
	}
}

// flushLocked sends a batch if there is something to be sent and few are under way.
func (s *session) flushLocked() error {
	if s.batches >= batchesOut || len(s.waiting) == 0 {
		return nil
	}
	n := min(len(s.waiting), most)
	var unlocks, tries []*request
	for _, r := range s.waiting[:n] {
		if r.unlock {
			unlocks = append(unlocks, r)
		} else {
			tries = append(tries, r)
		}
	}
	s.waiting = slices.Delete(s.waiting, 0, n)
	m := &message{batch: true, answered: func(a answer) { s.dealOut(unlocks, tries, a) }}
	s.batches++
	return s.sendLocked(m, func(sql []byte, seq int64) []byte { return appendBatch(sql, seq, unlocks, tries) })
}

// appendBatch writes the statements for some requests: first what is given back, then what is wanted.
func appendBatch(sql []byte, seq int64, unlocks, tries []*request) []byte {
	if len(unlocks) > 0 {
		sql = appendExecute(sql, "locker_unlock", seq, unlocks)
	}
	if len(tries) > 0 {
		sql = appendExecute(sql, "locker_try", seq, tries)
	}
	return sql
}

// appendExecute writes the execution of a prepared statement for the keys of some requests.
func appendExecute(sql []byte, name string, seq int64, rs []*request) []byte {
	sql = append(append(sql, "EXECUTE "...), name...)
	if len(rs) == 1 {
		sql = append(strconv.AppendInt(append(sql, "_one("...), seq, 10), ',')
		return append(strconv.AppendInt(sql, rs[0].key, 10), ");"...)
	}
	sql = append(strconv.AppendInt(append(sql, '('), seq, 10), ",'{"...)
	for i, r := range rs {
		if i > 0 {
			sql = append(sql, ',')
		}
		sql = strconv.AppendInt(sql, r.key, 10)
	}
	return append(sql, "}');"...)
}

// ask sends a message of its own, beside the batches. The answer comes on another goroutine, or on this one.
func (s *session) ask(m *message, sql func(sql []byte, seq int64) []byte) {
	s.mu.Lock()
	if cause := s.cause; cause != nil {
		s.mu.Unlock()
		m.answered(answer{err: cause})
		return
	}
	err := s.sendLocked(m, sql)
	s.watchLocked()
	s.mu.Unlock()
	s.failIf(err)
}

// askText is ask for statements that have the number of the message as their only %d.
func (s *session) askText(m *message, text string, args ...any) {
	s.ask(m, func(sql []byte, seq int64) []byte { return fmt.Appendf(sql, text, append([]any{seq}, args...)...) })
}

// heartbeat sends a heartbeat.
func (s *session) heartbeat(answered func(answer)) {
	s.askText(&message{answered: answered}, "SELECT %d")
}

// sendLocked writes a message.
func (s *session) sendLocked(m *message, sql func(sql []byte, seq int64) []byte) error {
	s.seq++
	m.seq = s.seq
	buf := append(s.buf[:0], 'Q', 0, 0, 0, 0)
	if s.needsTimeoutLocked() && !m.patient {
		m.timeout = s.want
		buf = append(buf, timeoutSQL(s.want)...)
	}
	buf = append(sql(buf, m.seq), 0)
	size := len(buf) - 1
	buf[1], buf[2], buf[3], buf[4] = byte(size>>24), byte(size>>16), byte(size>>8), byte(size)
	s.buf = buf
	m.sent = time.Now() // before it is written: this is where validity counts from
	s.spoke = m.sent
	if len(s.out) == 0 {
		s.heard = m.sent
	}
	s.out = append(s.out, m)
	return s.write(buf)
}

// write writes to the connection, with patience. If that is not enough, the connection is broken.
func (s *session) write(buf []byte) error {
	conn := s.conn.Conn()
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

// setTimeout makes the idle_session_timeout d with the next message. b.mu is held.
func (s *session) setTimeout(d time.Duration) {
	s.mu.Lock()
	s.want = d
	s.mu.Unlock()
	if !s.dead {
		s.ticker.Reset(s.interval()) // which may be shorter now
	}
}

// idleTimeout returns for how long the server may wait for a message, at least.
func (s *session) idleTimeout() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	least, _ := s.timeoutsLocked()
	return least
}

// longest returns for how long the server may wait for a message, at most.
func (s *session) longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, most := s.timeoutsLocked()
	return most
}

// dealOut tells the requests of a batch what became of them.
func (s *session) dealOut(unlocks, tries []*request, a answer) {
	if len(unlocks) > 0 {
		var done []bool
		if len(a.rows) > 0 && len(a.rows[0]) == 2 {
			done = parseBools(a.rows[0][1])
			a.rows = a.rows[1:]
		}
		for i, r := range unlocks {
			if i < len(done) {
				r.then(outcome{done: done[i] || r.again}) // the first attempt may have done it
			} else {
				s.unlockAgain(r, a.err)
			}
		}
	}
	if len(tries) == 0 {
		return
	}
	var taken []bool
	var token uint64
	if a.err == nil && len(a.rows) > 0 {
		token, taken = parseTry(a.rows[0])
	}
	if len(taken) != len(tries) {
		s.giveUp(tries, a.err)
		return
	}
	tokenless := tries[:0:0]
	for i, r := range tries {
		switch {
		case !taken[i]:
			r.then(outcome{})
		case token > 0:
			r.then(outcome{done: true, token: token, sent: a.sent})
		default:
			tokenless = append(tokenless, r)
		}
	}
	if len(tokenless) > 0 {
		s.raise(tokenless)
	}
}

// unlockAgain repeats what failed although the session lives: somebody may have cancelled the statement. A second failure
// ends the session, and with it the lock.
func (s *session) unlockAgain(r *request, err error) {
	if err == nil {
		err = errMismatch
	}
	if r.again {
		s.fail(err)
	}
	r.again = true
	s.submit(r) // fails if the session is over
}

// unlockAll gives back the one lock that a session for waiting may have. To unlock what it may not have would put
// a warning into the log of the server.
func (s *session) unlockAll(then func()) {
	s.askText(&message{answered: func(a answer) {
		if a.err != nil {
			s.fail(a.err)
		}
		then()
	}}, "SELECT %d, pg_advisory_unlock_all()")
}

// giveUp ends tries that failed. Their locks may have been taken: what locks a session has does not depend on whether its
// transaction succeeds.
func (s *session) giveUp(rs []*request, err error) {
	if err == nil {
		err = errMismatch
	}
	for _, r := range rs {
		s.submit(&request{key: r.key, unlock: true, then: func(outcome) { r.then(outcome{err: err}) }})
	}
}

// mint mints a token for locks that the session has. One does for all, as they are for different keys. It may raise the
// ceiling of tokens for that.
func (s *session) mint(rs []*request, raise bool) {
	s.askText(&message{answered: func(a answer) {
		var token uint64
		if a.err == nil && len(a.rows[0]) == 3 {
			token = parseToken(a.rows[0][1], a.rows[0][2])
		}
		switch {
		case token > 0:
			for _, r := range rs {
				r.then(outcome{done: true, token: token, sent: a.sent})
			}
		case a.err != nil:
			s.giveUp(rs, a.err)
		case raise:
			s.raise(rs)
		default:
			s.giveUp(rs, errNoTokens)
		}
	}}, "EXECUTE locker_mint(%d)")
}

// raise raises the ceiling of tokens and then mints one for the given locks.
func (s *session) raise(rs []*request) {
	s.askText(&message{answered: func(a answer) {
		if a.err != nil {
			s.giveUp(rs, a.err)
			return
		}
		s.mint(rs, false)
	}}, s.b.sql.raise, (s.idleTimeout() / 8).Milliseconds())
}

// fail ends the session. The leases that it carries are lost; their holders are told before the connection is closed,
// by which the server learns that the locks are free.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.cause != nil {
		s.mu.Unlock()
		return
	}
	cause := error(&sessionOver{explain(err)})
	s.cause = cause
	out, waiting := s.out, s.waiting
	s.out, s.waiting = nil, nil
	s.mu.Unlock()
	close(s.over)
	s.b.lost(s, cause)
	_ = s.conn.Conn().Close()
	s.b.bury()
	for _, m := range out {
		m.answered(answer{err: cause})
	}
	for _, r := range waiting {
		r.then(outcome{err: cause})
	}
}

func (s *session) failIf(err error) {
	if err != nil {
		s.fail(err)
	}
}

// close ends a session that has no locks, and lets the server know.
func (s *session) close(reason error) {
	_ = s.write([]byte{'X', 0, 0, 0, 4})
	s.fail(reason)
}

// cancel ends the statement that the session executes, if it still does. When it has returned without an error, the server
// has dealt with the request, so that it cannot hit a later statement; behind a proxy that is likely, not certain.
func (s *session) cancel(ctx context.Context) error { return s.conn.CancelRequest(ctx) }

// wanted returns the idle_session_timeout that the session is to have.
func (s *session) wanted() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

// needsTimeout reports whether the server has yet to be told the idle_session_timeout.
func (s *session) needsTimeout() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.needsTimeoutLocked()
}

// needsTimeoutLocked compares what is wanted with what the server has confirmed, and with what is on its way to it. A
// message on its way with the same may fail, and then changes nothing.
func (s *session) needsTimeoutLocked() bool {
	least, most := s.timeoutsLocked()
	return least != most
}

// timeoutsLocked returns the least and the greatest idle_session_timeout that the server may have now, or is to have.
func (s *session) timeoutsLocked() (least, most time.Duration) {
	least, most = min(s.timeout, s.want), max(s.timeout, s.want)
	for _, m := range s.out {
		if m.timeout != 0 {
			least, most = min(least, m.timeout), max(most, m.timeout)
		}
	}
	return least, most
}

// silentFor returns for how long a question has been waiting for its answer.
func (s *session) silentFor(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) == 0 || s.out[0].patient {
		return 0
	}
	return now.Sub(s.heard)
}

// quietFor returns for how long nothing was sent; 0 for a session that waits in line, to which nothing can be sent.
func (s *session) quietFor(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) > 0 {
		return 0
	}
	return now.Sub(s.spoke)
}
