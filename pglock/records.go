package pglock

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockerkit/locker"
)

// Records, for others to read who holds what. Postgres knows the session that has a key; names are in a table. It is
// unlogged: no record outlives a crash of the server, as no session does. Nothing of what is promised to holders
// depends on records, and nothing waits for them.
//
// They are written where that costs nobody much: for who has given his name (the option Holder) soon after the grant,
// for others when the lease is about to be renewed for the first time, so that those that last have one; in batches,
// and on the lookout. A lock that was given back before leaves no trace. A record counts for as long as its session has
// the lock: so it may still be taken for that of who has got the lock there next, until it is removed, soon after the
// release. Those of sessions that are over are swept away by other Lockers.

const (
	// recordAfter is how long records are gathered.
	recordAfter = 50 * time.Millisecond

	// mostRecords is how many are written by one statement.
	mostRecords = 500

	// longestRecorded is the length of the longest name that fits into an index.
	longestRecorded = 2000

	// sweepEvery is how often a Locker that writes records, or looks for revocations, looks for those that are over.
	sweepEvery = 5 * time.Minute
)

// recording is how far a record is.
type recording uint8

const (
	unrecorded recording = iota
	toRecord
	recorded // or about to be
)

// record is what others can read of a holder.
type record struct {
	name        string
	token       uint64
	pid, locker int
	holder      string
	mode        locker.Mode
	slot        int
	since       time.Time
}

// records is what this Locker has to write.
type records struct {
	add    []*holding
	remove []*holding
	tended bool // tendRecords runs, or is about to
	pause  pause
	unread pause // records of others
	swept  time.Time
}

// record has it written that there is a holder. b.mu is held.
func (b *backend) record(h *holding) {
	if h.recorded != unrecorded || len(h.request.Name()) > longestRecorded || b.records.pause.isOn() != nil {
		return
	}
	h.recorded = toRecord
	b.records.add = append(b.records.add, h)
	b.tendRecordsSoon(recordAfter)
}

// unrecord has the record of somebody removed who is no holder any more. b.mu is held.
func (b *backend) unrecord(h *holding) {
	if h.recorded == recorded && !h.session.dead {
		b.records.remove = append(b.records.remove, h)
		b.tendRecordsSoon(recordAfter)
	}
}

// tendRecordsSoon has the records written after a while. b.mu is held.
func (b *backend) tendRecordsSoon(after time.Duration) {
	if b.records.tended || b.closed {
		return
	}
	b.records.tended = true
	time.AfterFunc(after, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.begin(b.tendRecords)
	})
}

// tendRecords writes and removes records, until there is nothing left to be done for now.
func (b *backend) tendRecords() {
	for {
		b.mu.Lock()
		r := &b.records
		add, remove := b.untoldRecords()
		if len(add)+len(remove) == 0 {
			r.tended = false
			if len(r.add)+len(r.remove) > 0 { // it would take a connection that the server does not have
				b.tendRecordsSoon(silence)
			}
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		var messages []string
		if len(add) > 0 {
			messages = append(messages, b.sql.addRecords(b.id, add))
		}
		if len(remove) > 0 {
			messages = append(messages, b.sql.removeRecords(remove))
		}
		_, errs := b.consult(b.life, messages...)
		b.mu.Lock()
		pause := recordAfter
		for i, err := range errs {
			switch refused := r.pause.heed(err); {
			case err == nil:
			case i == 0 && len(add) > 0 && refused:
				for _, h := range add {
					h.recorded = unrecorded
				}
			case i == 0 && len(add) > 0: // they may have been written all the same
				r.add = append(add, r.add...)
				pause = silence
			case !refused:
				r.remove = append(remove, r.remove...)
				pause = silence
			}
		}
		b.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-b.life.Done():
		}
	}
}

// looksOrMay reports whether there is a lookout, or one may be made. b.mu is held.
func (b *backend) looksOrMay() bool { return b.looking != nil || b.waits.mayConnect() }

// untoldRecords returns some records that are to be written, and some that are to be removed. b.mu is held.
func (b *backend) untoldRecords() (add, remove []*holding) {
	r := &b.records
	if !b.looksOrMay() || b.closed {
		return nil, nil
	}
	r.add = slices.DeleteFunc(r.add, func(h *holding) bool {
		_, held := h.session.locks[h]
		return !held
	})
	n := min(len(r.add), mostRecords)
	add, r.add = slices.Clone(r.add[:n]), r.add[n:]
	for _, h := range add {
		h.recorded = recorded
		b.watch(h)
	}
	if len(add) > 0 && (b.looking == nil || b.looking.session == nil || !b.looking.session.hears) {
		b.look()
	}
	n = min(len(r.remove), mostRecords)
	remove, r.remove = slices.Clone(r.remove[:n]), r.remove[n:]
	return add, remove
}

// readRecords reads records by a statement.
func (b *backend) readRecords(ctx context.Context, statement string) (records []record, err error) {
	b.mu.Lock()
	err = b.records.unread.isOn()
	b.mu.Unlock()
	if err != nil {
		return nil, explain(err)
	}
	rows, errs := b.consult(ctx, statement)
	if err := errs[0]; err != nil {
		b.mu.Lock()
		b.records.unread.heed(err)
		b.mu.Unlock()
		return nil, explainUnlessEnded(ctx, err)
	}
	for _, row := range rows[0] {
		r, err := parseRecord(row)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errMismatch, err)
		}
		records = append(records, r)
	}
	return records, nil
}
