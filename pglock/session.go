package pglock

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lockerkit/locker"
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
// What is sent goes out as messages of the simple query protocol, and the answers come in the same order. Requests
// for locks of many goroutines go together: whoever comes while enough batches are under way leaves the
// request to be sent with the next, so that batches grow as the load does. Goroutines that submit write for themselves; one
// goroutine reads. It sees at once when the server ends the session, by which all its locks are lost.
type session struct {
	conn *pgconn.PgConn
	b    *backend

	mu      sync.Mutex
	seq     int64
	waiting []*request // not yet sent
	out     []*message // sent, in order
	batches int        // of those
	heard   time.Time  // when the last answer came, or the first question was asked after the last answer
	spoke   time.Time  // when something was last sent
	want    time.Duration
	timeout time.Duration // the idle_session_timeout that the server has confirmed; less than want if it is to be changed
	cause   error         // why the session is over
	buf     []byte

	// For the backend, and guarded by its mutex.
	locks    map[int64]*holding
	dead     bool
	used     time.Time // when it was last needed
	ticker   *time.Timer
	sweeper  *time.Timer
	sweepsAt time.Time
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
func (s *session) submit(r *request) {
	s.mu.Lock()
	if cause := s.cause; cause != nil {
		s.mu.Unlock()
		r.then(outcome{err: cause})
		return
	}
	s.waiting = append(s.waiting, r)
	err := s.flushLocked()
	s.mu.Unlock()
	s.failIf(err)
}

// flushLocked sends a batch if there is something to be sent and few are under way.
func (s *session) flushLocked() error {
	if s.batches >= batchesOut || len(s.waiting) == 0 {
		return nil
	}
	n := min(len(s.waiting), most)
	batch := append([]*request(nil), s.waiting[:n]...)
	s.waiting = append(s.waiting[:0], s.waiting[n:]...)
	m := &message{batch: true}
	m.answered = func(a answer) { s.settle(batch, a) }
	s.batches++
	return s.sendLocked(m, func(sql []byte, seq int64) []byte { return appendBatch(sql, seq, batch) })
}

// appendBatch writes the statements for some requests: first what is given back, then what is wanted.
func appendBatch(sql []byte, seq int64, batch []*request) []byte {
	unlocks, tries := split(batch)
	if len(unlocks) > 0 {
		sql = appendExecute(sql, "locker_unlock", seq, keysOf(unlocks))
	}
	switch len(tries) {
	case 0:
	case 1:
		sql = append(sql, "EXECUTE locker_try("...)
		sql = append(strconv.AppendInt(sql, seq, 10), ',')
		sql = append(strconv.AppendInt(sql, tries[0].key, 10), ");"...)
	default:
		sql = appendExecute(sql, "locker_try_many", seq, keysOf(tries))
	}
	return sql
}

// appendExecute writes the execution of a prepared statement for an array of keys.
func appendExecute(sql []byte, name string, seq int64, keys []int64) []byte {
	sql = append(append(append(sql, "EXECUTE "...), name...), '(')
	sql = append(strconv.AppendInt(sql, seq, 10), ",'{"...)
	for i, key := range keys {
		if i > 0 {
			sql = append(sql, ',')
		}
		sql = strconv.AppendInt(sql, key, 10)
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
	if s.want != s.timeout && !m.patient {
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
	conn := s.conn.Conn()
	if err := conn.SetWriteDeadline(m.sent.Add(writePatience)); err != nil {
		return err
	}
	_, err := conn.Write(buf)
	return err
}

// setTimeout makes the idle_session_timeout d with the next message.
func (s *session) setTimeout(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = d
}

// idleTimeout returns for how long the server may wait for a message, at least.
func (s *session) idleTimeout() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(s.timeout, s.want)
}

// read takes the answers in, until the session is over.
func (s *session) read() {
	var a answer
	for {
		msg, err := s.conn.Frontend().Receive()
		if err != nil {
			if a.err != nil { // what the server said before it hung up
				err = a.err
			}
			s.fail(err)
			return
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			row := make([]string, len(msg.Values))
			for i, v := range msg.Values {
				row[i] = string(v)
			}
			a.rows = append(a.rows, row)
		case *pgproto3.ErrorResponse:
			a.err = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			if err := s.deliver(a); err != nil {
				s.fail(err)
				return
			}
			a = answer{}
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

// settle tells the requests of a batch what became of them.
func (s *session) settle(batch []*request, a answer) {
	unlocks, tries := split(batch)
	rows := a.rows
	var unlocked []bool
	if len(unlocks) > 0 && len(rows) > 0 && len(rows[0]) == 2 {
		unlocked, rows = parseBools(rows[0][1]), rows[1:]
	}
	for i, r := range unlocks {
		if i < len(unlocked) {
			r.then(outcome{done: unlocked[i]})
		} else {
			s.unlockAgain(r, a.err)
		}
	}
	s.granted(tries, answer{sent: a.sent, rows: rows, err: a.err}, true)
}

// split returns the requests to give back, and those to take.
func split(batch []*request) (unlocks, tries []*request) {
	for _, r := range batch {
		if r.unlock {
			unlocks = append(unlocks, r)
		} else {
			tries = append(tries, r)
		}
	}
	return unlocks, tries
}

// granted tells requests for locks what became of them. If there was no token for a lock that was taken, it may raise
// the ceiling of tokens and ask again.
func (s *session) granted(rs []*request, a answer, raise bool) {
	if len(rs) == 0 {
		return
	}
	var grants []grant
	if a.err == nil && len(a.rows) > 0 {
		grants = parseGrants(a.rows[0], keysOf(rs))
	}
	var tokenless []*request
	for i, r := range rs {
		switch {
		case grants == nil:
			s.giveUp(r, a.err)
		case !grants[i].taken:
			r.then(outcome{})
		case grants[i].token > 0:
			r.then(outcome{done: true, token: grants[i].token, sent: a.sent})
		case raise:
			tokenless = append(tokenless, r)
		default:
			s.giveUp(r, errNoTokens)
		}
	}
	if len(tokenless) > 0 {
		s.raise(tokenless)
	}
}

func keysOf(rs []*request) []int64 {
	keys := make([]int64, len(rs))
	for i, r := range rs {
		keys[i] = r.key
	}
	return keys
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

// giveUp ends a try that failed: its lock may have been taken, since what locks a session has does not depend on whether the
// transaction succeeds.
func (s *session) giveUp(r *request, err error) {
	if err == nil {
		err = errMismatch
	}
	s.submit(&request{key: r.key, unlock: true, then: func(outcome) { r.then(outcome{err: err}) }})
}

// raise raises the ceiling of tokens, which has been reached, or below which the tokens were lost in a crash of the server,
// and then mints those for the given locks.
func (s *session) raise(rs []*request) {
	s.askText(&message{answered: func(a answer) {
		if a.err != nil {
			for _, r := range rs {
				s.giveUp(r, a.err)
			}
			return
		}
		s.mint(rs, false)
	}}, s.b.sql.raise)
}

// mint mints tokens for locks that the session has.
func (s *session) mint(rs []*request, raise bool) {
	s.ask(&message{answered: func(a answer) { s.granted(rs, a, raise) }}, func(sql []byte, seq int64) []byte {
		return appendExecute(sql, "locker_mint", seq, keysOf(rs))
	})
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
	s.b.lost(s, cause)
	_ = s.conn.Conn().Close()
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
func (s *session) close() {
	conn := s.conn.Conn()
	_ = conn.SetWriteDeadline(time.Now().Add(writePatience))
	_, _ = conn.Write([]byte{'X', 0, 0, 0, 4})
	s.fail(locker.ErrClosed)
}

// cancel ends the statement that the session executes, if it still does. When it has returned without an error, no
// statement that is sent later can be hit.
func (s *session) cancel(ctx context.Context) error { return s.conn.CancelRequest(ctx) }

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
