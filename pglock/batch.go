package pglock

import (
	"cmp"
	"encoding/binary"
	"runtime"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/lockerkit/locker"
)

// Batches. Requests for locks of many goroutines go together: whoever comes while enough batches are under way leaves
// the request to be sent with the next, so that batches grow as the load does.

const (
	// mostRequests is how many requests go into one batch: so many that the server is busy with it for less than a
	// millisecond, and that what is under way fits into the smallest buffer of a socket, so that to write never waits.
	mostRequests = 128

	// mostTogether is how many there are in one with readers or holders of slots, of whom each takes up to five entries
	// of the lock table until it is done.
	mostTogether = 32

	// batchesOut is how many batches are under way at a time: the server works on one while the answers to the other
	// are dealt with here. As long as few requests are under way, to wait for others costs more than it saves.
	batchesOut = 2
	few        = 8
	fewOut     = 4

	// If a turn of the scheduler takes longer than this, the program's own work keeps the processors busy. Then so many
	// requests go out at once before a turn is tried again.
	longTurn = time.Millisecond
	hurried  = 1000
)

// request asks for the lock of one key, or gives it back.
type request struct {
	key    int64
	unlock bool
	mode   locker.Mode
	then   func(outcome)

	// In a mode that is not exclusive, see together.go:
	marks  marks
	beside bool   // the session has the lock for others, too: only what is beyond that is taken or given back
	slots  int    // how many there are; 0 for a reader
	gaps   []span // the numbers of those that may be taken
	number int    // of the slot that was taken, or is given back; none if there is none
}

// together reports whether there may be several holders.
func (r *request) together() bool { return r.mode != locker.ModeExclusive }

// part are the requests of a batch that one statement answers.
type part struct {
	statement string
	unlock    bool
	together  bool
	requests  []*request
}

// partsOf sorts requests: first what is given back, then what is wanted. Those that have to pass a gate come last, in
// the order of their gates, so that no two wait for each other's.
func partsOf(rs []*request) (free, gated []part) {
	all := [...]part{
		{statement: "locker_unlock", unlock: true}, {statement: "locker_leave", unlock: true, together: true},
		{statement: "locker_try"}, {statement: "locker_enter", together: true},
	}
	for _, r := range rs {
		i := 0
		if !r.unlock {
			i = 2
		}
		if r.together() {
			i++
		}
		all[i].requests = append(all[i].requests, r)
	}
	slices.SortFunc(all[3].requests, func(r, other *request) int { return cmp.Compare(r.marks.gate, other.marks.gate) })
	isEmpty := func(p part) bool { return len(p.requests) == 0 }
	return slices.DeleteFunc(all[:3], isEmpty), slices.DeleteFunc(all[3:], isEmpty)
}

// outcome is what became of a request.
type outcome struct {
	done   bool   // taken, or given back
	token  uint64 // of a lock that was taken
	number int    // of a slot that was taken
	sent   time.Time
	wanted bool  // somebody polls for what was given back
	err    error // why the outcome is none; the lock is not held then, or the session is over

	unknown bool // err is that of a probe: whether somebody waits is not known
	beside  bool // as in the request
}

// submit sends a request, now or with the next batch. then is called when its outcome is known, on another goroutine or
// on this one.
func (w *wire) submit(r *request) { w.submitAndRead(r, nil) }

// submitAndRead is submit, after which the caller itself may read answers for a while, until arrived reports true.
func (w *wire) submitAndRead(r *request, arrived func() bool) {
	w.mu.Lock()
	if cause := w.cause; cause != nil {
		w.mu.Unlock()
		r.then(outcome{err: cause})
		return
	}
	w.waiting = append(w.waiting, r)
	if w.gathering {
		w.mu.Unlock()
		return
	}
	if arrived != nil && max(w.asked, w.came) > fewOut {
		w.gatherLocked()
	}
	err := w.flushLocked()
	direct := arrived != nil && err == nil && !w.reading && !w.alone
	if direct {
		w.reading = true
	} else {
		w.watchLocked()
	}
	w.mu.Unlock()
	w.failIf(err)
	if direct {
		w.readUntil(arrived)
	}
}

// gatherLocked lets those go first who are about to ask, too, such as who has got an answer of the last batch: what
// they ask goes with the next. It costs a turn of the scheduler, and saves messages. It unlocks w.mu for that time.
func (w *wire) gatherLocked() {
	if w.hurry > 0 {
		w.hurry--
		return
	}
	start := time.Now()
	w.gathering = true
	w.mu.Unlock()
	runtime.Gosched()
	w.mu.Lock()
	w.gathering = false
	if time.Since(start) > longTurn {
		w.hurry = hurried
	}
}

// flushLocked sends a batch if there is something to be sent and few are under way.
func (w *wire) flushLocked() error {
	most := batchesOut
	if w.asked+len(w.waiting) <= few {
		most = fewOut
	}
	if w.batches >= most || len(w.waiting) == 0 {
		return nil
	}
	n := min(len(w.waiting), mostRequests)
	if n > mostTogether && slices.ContainsFunc(w.waiting[:n], (*request).together) {
		n = mostTogether
	}
	free, gated := partsOf(w.waiting[:n])
	w.waiting = slices.Delete(w.waiting, 0, n)
	if w.needsTimeoutLocked() { // before there are locks that depend on it
		if err := w.sendQueryLocked(&message{answered: func(answer) {}}, beatSQL); err != nil {
			return err
		}
	}
	if len(free) > 0 {
		err := w.sendLocked(w.batchLocked(free),
			func(buf []byte, seq int64) []byte { return appendBatch(buf, seq, free) })
		if err != nil {
			return err
		}
	}
	if len(gated) > 0 {
		return w.sendQueryLocked(w.batchLocked(gated),
			func(sql []byte, seq int64) []byte { return appendEnter(sql, seq, gated[0]) })
	}
	return nil
}

// batchLocked returns the message for a batch, which is about to be under way.
func (w *wire) batchLocked(parts []part) *message {
	n := 0
	for _, p := range parts {
		n += len(p.requests)
	}
	w.batches++
	w.asked += n
	return &message{requests: n, answered: func(a answer) { w.dealOut(parts, a) }}
}

// appendBatch writes the messages for some requests.
//
// These are several messages of the extended query protocol, which takes the server a third less time than to parse
// EXECUTE. After the first of them, it waits for the next without an idle timeout. They are in one write, so they
// arrive together; should a connection be cut in between all the same, keepalives end the session (see timeoutSQL).
func appendBatch(buf []byte, seq int64, parts []part) []byte {
	for _, p := range parts {
		buf = appendExecute(buf, seq, p)
	}
	buf, _ = (&pgproto3.Sync{}).Encode(buf) // fails only for messages of a gigabyte, as do those below
	return buf
}

// appendExecute writes the execution of a prepared statement for some requests: of the form for one, or of that with an
// array for each parameter.
func appendExecute(buf []byte, seq int64, p part) []byte {
	name, columns := p.statement, 1
	if len(p.requests) == 1 {
		name += "_one"
	}
	if p.together {
		columns = 3
	}
	parameters := append(make([][]byte, 0, 1+columns), appendInt8(nil, seq))
	for i := range columns {
		parameters = append(parameters, p.parameter(i))
	}
	buf, _ = (&pgproto3.Bind{
		PreparedStatement:    name,
		ParameterFormatCodes: []int16{pgtype.BinaryFormatCode},
		Parameters:           parameters,
	}).Encode(buf)
	buf, _ = (&pgproto3.Execute{}).Encode(buf)
	return buf
}

// parameter is a parameter of the statement, in binary: nil for NULL, and an array if there are several requests.
func (p part) parameter(i int) (value []byte) {
	if len(p.requests) == 1 {
		if n, ok := p.requests[0].column(i); ok {
			value = appendInt8(nil, n)
		}
		return value
	}
	const dimensions, nulls, first = 1, 1, 1
	for _, n := range []int{dimensions, nulls, pgtype.Int8OID, len(p.requests), first} {
		value = binary.BigEndian.AppendUint32(value, uint32(n))
	}
	for _, r := range p.requests {
		if n, ok := r.column(i); ok {
			value = appendInt8(append(value, 0, 0, 0, 8), n)
		} else {
			value = append(value, 0xff, 0xff, 0xff, 0xff)
		}
	}
	return value
}

// appendInt8 writes a bigint as Postgres does.
func appendInt8(buf []byte, n int64) []byte { return binary.BigEndian.AppendUint64(buf, uint64(n)) }

// dealOut tells the requests of a batch what became of them.
func (w *wire) dealOut(parts []part, a answer) {
	for _, p := range parts {
		var row []string
		if len(a.rows) > 0 {
			row, a.rows = a.rows[0], a.rows[1:]
		}
		switch {
		case p.unlock:
			w.unlocked(p.requests, row)
		case p.together:
			token, numbers := parseEnter(row)
			taken := make([]bool, len(numbers))
			for i, r := range p.requests[:min(len(p.requests), len(numbers))] {
				r.number, taken[i] = numbers[i], numbers[i] != none
			}
			w.tried(p.requests, token, taken, a)
		default:
			token, taken := parseTry(row)
			w.tried(p.requests, token, taken, a)
		}
	}
}

// unlocked tells requests to give locks back what became of them; row is nil if there is no answer.
func (w *wire) unlocked(rs []*request, row []string) {
	done, wanted := parseUnlock(row)
	var free []int64
	for i, r := range rs {
		if i >= len(done) {
			w.unlockAgain(r)
			continue
		}
		if wanted[i] {
			free = append(free, r.key)
		}
		r.then(outcome{done: done[i], wanted: wanted[i]})
	}
	if len(free) > 0 {
		w.events.tellFree(free)
	}
}

// tried tells requests for locks what became of them.
func (w *wire) tried(rs []*request, token uint64, taken []bool, a answer) {
	if a.err != nil || len(taken) != len(rs) {
		w.giveUp(rs, a.err)
		return
	}
	tokenless := rs[:0:0]
	for i, r := range rs {
		switch {
		case !taken[i]:
			r.then(outcome{beside: r.beside})
		case w.mayUse(token):
			r.then(r.granted(token, a))
		default:
			tokenless = append(tokenless, r)
		}
	}
	if len(tokenless) > 0 {
		w.raise(tokenless)
	}
}

// granted is the outcome of a request for a lock that the session has.
func (r *request) granted(token uint64, a answer) outcome {
	return outcome{done: true, token: token, number: r.number, sent: a.sent, beside: r.beside}
}

// unlockAgain repeats what failed although the session lives: somebody may have cancelled the statement, or the lock
// table has no room for a look whether somebody wants the lock. A second failure ends the session, and with it the
// lock.
func (w *wire) unlockAgain(r *request) {
	if r.together() {
		w.free(r, r.then) // the first attempt may have done it
		return
	}
	w.askText(&message{answered: func(a answer) {
		if a.err != nil {
			w.fail(a.err) // unless that is why there is an error
			r.then(outcome{err: w.overBy()})
			return
		}
		r.then(outcome{done: true}) // the first attempt may have done it
	}}, "SELECT %d, pg_advisory_unlock(%d)", r.key)
}

// unlockAll gives back the lock that a session for waiting may have. To unlock what it may not have would put
// a warning into the log of the server. The session's mark is put on anew.
func (w *wire) unlockAll(then func()) {
	w.askText(&message{answered: func(a answer) {
		if a.err != nil {
			w.fail(a.err)
		}
		then()
	}}, "SELECT %d, pg_advisory_unlock_all();"+w.conn.mark)
}

// giveUp ends tries that failed. Their locks may have been taken: what locks a session has does not depend on whether
// its transaction succeeds.
func (w *wire) giveUp(rs []*request, err error) {
	if err == nil {
		err = errMismatch
	}
	for _, r := range rs {
		failed := func(outcome) { r.then(outcome{err: err, beside: r.beside}) }
		if r.together() {
			w.free(r, failed)
		} else {
			w.submit(&request{key: r.key, unlock: true, then: failed})
		}
	}
}

// mint mints a token for locks that the session has. One does for all, as they are for different keys. It may raise the
// ceiling of tokens for that.
func (w *wire) mint(rs []*request, raise bool) {
	w.askText(&message{answered: func(a answer) {
		var token uint64
		if a.err == nil && len(a.rows[0]) == 2 {
			token = parseToken(a.rows[0][1])
		}
		w.minted(rs, token, a, raise)
	}}, "EXECUTE locker_mint(%d)")
}

// minted tells requests for locks that the session has of their token, 0 if none was minted.
func (w *wire) minted(rs []*request, token uint64, a answer, raise bool) {
	switch {
	case w.mayUse(token):
		for _, r := range rs {
			r.then(r.granted(token, a))
		}
	case a.err != nil:
		w.giveUp(rs, a.err)
	case raise:
		w.raise(rs)
	default:
		w.giveUp(rs, errNoTokens)
	}
}

// mayUse reports whether there is a token, and no crash can make the server forget it.
func (w *wire) mayUse(token uint64) bool { return token > 0 && token <= w.limit.Load() }

// raise has the limit of tokens raised, and then mints one for the given locks.
func (w *wire) raise(rs []*request) {
	w.events.raiseLimit(func(limit uint64, err error) {
		if err != nil {
			w.giveUp(rs, err)
			return
		}
		w.limit.Store(limit)
		w.mint(rs, false)
	})
}
