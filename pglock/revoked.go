package pglock

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/lockerkit/locker"
)

// Revocations, as holders see them; see revoke.go for who makes them. They are in a table, by the key and the session
// of the holder, and up to a token: a later holder, also on that session, has a greater one. A Locker learns of them by
// looking there: when a notification says so, for which it listens as soon as it has a lease that is renewed, or is
// recorded, and behind that at renewals, four times per TTL at most. It looks on the lookout, never on a session that
// has leases.
//
// What is revoked is not renewed any more, and stays on its session until its holder has released it, or its time is
// over: the session goes on for other locks, so this Locker sees to that. If it is frozen, or cut off, the server ends
// the session, and with it all of its locks.

// revokedChannel is that of the notifications: a key, some of whose holders have to look.
const revokedChannel = "locker_revoked"

const (
	revocationsSQL = `SELECT key, pid, locker, token, broken, encode(by_whom, 'hex'), encode(reason, 'hex')
FROM $ns.revocation`
	doneSQL = `DELETE FROM $ns.revocation WHERE key = %d AND pid = %d AND locker = %d AND token = %d AND broken = %t`
)

// looks are those for revocations.
type looks struct {
	last  *look // may be over
	begun time.Time
	again bool // there is news since the last one has begun
	pause pause
}

// look is one of them.
type look struct{ over chan struct{} }

// await waits for the end of a look, but not for longer than until the given time. There may be none.
func (l *look) await(until time.Time) {
	if l == nil {
		return
	}
	patience := time.NewTimer(time.Until(until))
	defer patience.Stop()
	select {
	case <-l.over:
	case <-patience.C:
	}
}

func (l *look) isOver() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// watch notes that a lock has lasted for a while: from now on it is worth a lookout. b.mu is held.
func (b *backend) watch(h *holding) {
	if !h.watched {
		h.watched = true
		b.watched++
	}
}

// isRevoked reports whether somebody who has the key here was told to let it go.
func (s *slot) isRevoked() bool {
	return slices.ContainsFunc(s.held, func(h *holding) bool { return h.revoked != nil })
}

// refusal is what a renewal of a lock that was taken away returns.
func (h *holding) refusal() error { return fmt.Errorf("%w: %w", locker.ErrLost, h.revoked) }

// lookEvery looks for revocations if the last look is so long ago, and returns the look to wait for. b.mu is held.
func (b *backend) lookEvery(d time.Duration) *look {
	if b.watched > 0 && time.Since(b.looks.begun) >= d && b.looksOrMay() {
		b.look()
	}
	return b.looks.last
}

// look looks for revocations, once more if it does so already. b.mu is held.
func (b *backend) look() {
	l := &b.looks
	if l.last != nil && !l.last.isOver() {
		l.again = true
		return
	}
	if l.pause.isOn() != nil {
		return
	}
	this := &look{make(chan struct{})}
	if b.begin(func() { b.lookNow(this) }) {
		l.last, l.begun, l.again = this, time.Now(), false
	}
}

// lookNow is a look.
func (b *backend) lookNow(this *look) {
	rows, err := b.readRevocations()
	if err == nil {
		b.heed(rows)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.sweep()
	}
	b.looks.pause.heed(err)
	close(this.over)
	if b.looks.again {
		b.look()
	}
}

// readRevocations reads all revocations that there are, on a lookout that listens for more.
func (b *backend) readRevocations() ([][]string, error) {
	s, err := b.lookoutNow(b.life)
	if err != nil {
		return nil, err
	}
	messages := []string{b.sql.revocations}
	b.mu.Lock()
	hears := s.hears
	b.mu.Unlock()
	if !hears {
		messages = []string{"LISTEN " + revokedChannel + ";" + markSQL(hearsMark, b.id), b.sql.revocations}
	}
	rows, errs := b.consultOn(b.life, s, messages...)
	last := len(messages) - 1
	b.mu.Lock()
	s.hears = hears || errs[0] == nil // one look at a time
	b.mu.Unlock()
	return rows[last], errs[last]
}

// sweep begins to remove what there is of sessions that are over, if it is time for that. b.mu is held.
func (b *backend) sweep() {
	if time.Since(b.records.swept) < sweepEvery {
		return
	}
	b.records.swept = time.Now()
	b.begin(func() { b.consult(b.life, b.sql.sweepHolders, b.sql.sweepRevocations) })
}

// revocation is a row of revocationsSQL.
type revocation struct {
	key    int64
	pid    uint64
	locker int64
	token  uint64 // the greatest one that it is about
	by     *locker.Revocation
}

func parseRevocation(row []string) (r revocation, err error) {
	if len(row) != 7 {
		return r, errMismatch
	}
	var errs [6]error
	var by, reason []byte
	r.key, errs[0] = strconv.ParseInt(row[0], 10, 64)
	r.pid, errs[1] = strconv.ParseUint(row[1], 10, 32)
	r.locker, errs[2] = strconv.ParseInt(row[2], 10, 64)
	r.token, errs[3] = strconv.ParseUint(row[3], 10, 63)
	by, errs[4] = hex.DecodeString(row[5])
	reason, errs[5] = hex.DecodeString(row[6])
	r.by = &locker.Revocation{By: string(by), Reason: string(reason), Broken: row[4] == "t"}
	return r, errors.Join(errs[:]...)
}

// heed tells those who hold here what was taken away, and forgets what is about nobody any more.
func (b *backend) heed(rows [][]string) {
	for _, row := range rows {
		r, err := parseRevocation(row)
		if err != nil || r.locker != int64(b.id) {
			continue
		}
		b.mu.Lock()
		about, told := b.holdersOf(r)
		switch {
		case len(about) > 0:
		case b.slots[r.key].mayGet(r.pid): // it may be about him: his answer is still on its way
			time.AfterFunc(silence, func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.look()
			})
		default:
			done := fmt.Sprintf(b.sql.done, r.key, r.pid, r.locker, r.token, r.by.Broken)
			b.begin(func() { b.consult(b.life, done) })
		}
		b.mu.Unlock()
		if len(told) > 0 {
			b.takeAway(told, r.by)
		}
	}
}

// holdersOf returns those whom a revocation is about, and notes that they are not renewed any more; and those of them
// who have to be told. b.mu is held.
func (b *backend) holdersOf(r revocation) (about, told []*holding) {
	s := b.slots[r.key]
	if s == nil {
		return nil, nil
	}
	for _, h := range s.held {
		if uint64(h.session.conn.PID()) != r.pid || h.token > r.token {
			continue
		}
		about = append(about, h)
		if h.revoked == nil || r.by.Broken && !h.revoked.Broken {
			h.revoked = r.by
			told = append(told, h)
		}
	}
	return about, told
}

// mayGet reports whether somebody may become a holder on a session before long. The slot may be nil.
func (s *slot) mayGet(pid uint64) bool {
	if s == nil {
		return false
	}
	waits := s.place != nil && s.place.session != nil && uint64(s.place.session.conn.PID()) == pid
	return waits || s.busy+len(s.asked)+len(s.joined)+len(s.leaving) > 0
}

// takeAway tells holders that their lock was taken away. One that is broken is given back at once, and else when its
// time is over, unless its holder has released it before.
func (b *backend) takeAway(hs []*holding, r *locker.Revocation) {
	requests := make([]locker.Request, len(hs))
	for i, h := range hs {
		requests[i] = h.request
	}
	locker.ReportLost(requests, r)
	for _, h := range hs {
		b.mu.Lock()
		left := time.Until(h.expires)
		b.mu.Unlock()
		if r.Broken {
			b.free(h)
		} else {
			time.AfterFunc(left, func() { b.free(h) })
		}
	}
}

// free gives a lock back that is still held.
func (b *backend) free(h *holding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.slot.holdingOf(h.request.Owner) == h {
		b.letGo(h, false)
	}
}

// heard is told that somebody who has a key has to look whether his lock was taken away.
func (b *backend) heard(key int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.slots[key]; s != nil {
		b.look()
	}
}
