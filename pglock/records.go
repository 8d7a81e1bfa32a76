package pglock

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// Records, for others to read who holds what. Postgres knows the session that has a key; names are in a table. It is
// unlogged: no record outlives a crash of the server, as no session does. Nothing of what is promised to holders depends
// on records, and nothing waits for them.
//
// They are written where that costs nobody much: for who has given his name (the option Holder) soon after the grant, for
// others when the lease is about to be renewed for the first time, so that most of those that last have one; in
// batches, and on the lookout. A lock that was given back before leaves no trace. A record counts for as long as its
// session has the lock. Those of sessions that are over are swept away by other Lockers.

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
		if !b.looksOrMay() { // it would take a connection that the server does not have
			b.giveUpRecords(r.add)
			r.add = nil
		}
		add, remove := b.untoldRecords()
		if len(add)+len(remove) == 0 {
			r.tended = false
			if len(r.remove) > 0 {
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
		if len(add) > 0 && errs[0] != nil {
			b.giveUpRecords(add)
			r.pause.heed(errs[0])
		}
		if len(remove) > 0 && errs[len(errs)-1] != nil && !r.pause.heed(errs[len(errs)-1]) {
			r.remove = append(remove, r.remove...)
		}
		b.mu.Unlock()
		select {
		case <-time.After(recordAfter):
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

// giveUpRecords notes that there may be no records, for the time being. b.mu is held.
func (b *backend) giveUpRecords(hs []*holding) {
	for _, h := range hs {
		h.recorded = unrecorded // the next renewal tries again
	}
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

// What is written about holders, and read. The clock is that of the server.
const (
	addRecordsSQL = `INSERT INTO $ns.holder (name, token, pid, locker, holder, mode, slot, since)
SELECT decode(name, 'hex'), token, pid, %d, decode(holder, 'hex'), mode, slot,
	clock_timestamp() - age * interval '1 microsecond'
FROM unnest('%s'::text[], '%s'::bigint[], '%s'::bigint[], '%s'::text[], '%s'::bigint[], '%s'::bigint[], '%s'::bigint[])
	AS new (name, token, pid, holder, mode, slot, age)
ON CONFLICT DO NOTHING`
	removeRecordsSQL = `DELETE FROM $ns.holder USING unnest('%s'::text[], '%s'::bigint[]) AS old (name, token)
WHERE holder.name = decode(old.name, 'hex') AND holder.token = old.token`
	recordsSQL = `SELECT encode(name, 'hex'), token, pid, locker, encode(holder, 'hex'), mode, slot,
	(extract(epoch FROM since) * 1000000)::bigint
FROM $ns.holder WHERE %s ORDER BY name, token`
	namesSQL = `name IN (SELECT DISTINCT name FROM $ns.holder WHERE %s AND name > %s ORDER BY name LIMIT %d)`
	sweepSQL = `WITH living AS MATERIALIZED (
	SELECT pid, objid::bigint AS locker FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = %[1]d
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
DELETE FROM %[2]s WHERE NOT EXISTS (SELECT FROM living WHERE pid = %[3]s.pid AND locker = %[3]s.locker)`
)

// operating are the statements for seeing locks, and for taking them away.
type operating struct {
	add, remove, records, names, sweepHolders        string // of holders
	revocations, done, sweepRevocations              string
	fence, noteRevoked, noteBroken, broken, withdraw string
}

func operatingIn(fill func(sql string) string) operating {
	return operating{
		add: fill(addRecordsSQL), remove: fill(removeRecordsSQL), records: fill(recordsSQL), names: fill(namesSQL),
		sweepHolders:     fmt.Sprintf(sweepSQL, lockerMark, fill("$ns.holder"), "holder"),
		sweepRevocations: fmt.Sprintf(sweepSQL, lockerMark, fill("$ns.revocation"), "revocation"),
		revocations:      fill(revocationsSQL), done: fill(doneSQL), fence: fill(fenceSQL),
		noteRevoked: fill(strings.NewReplacer("$broken", "", "$true", "", "$again", anewSQL).Replace(noteSQL)),
		noteBroken:  fill(strings.NewReplacer("$broken", ", broken", "$true", ", true", "$again", "%[7]s != ''").Replace(noteSQL)),
		broken:      fill(brokenSQL), withdraw: fill(withdrawSQL),
	}
}

func (o operating) addRecords(id int32, hs []*holding) string {
	var names, holders []string
	var tokens, pids, modes, slots, ages []int64
	for _, h := range hs {
		names, holders = append(names, h.request.Name()), append(holders, h.request.Holder)
		tokens, pids = append(tokens, int64(h.token)), append(pids, int64(h.session.conn.PID())) //nolint:gosec // it fits
		modes, slots = append(modes, int64(h.request.Mode)), append(slots, int64(h.number))
		ages = append(ages, time.Since(h.granted).Microseconds())
	}
	return fmt.Sprintf(o.add, id, hexArray(names), arrayOf(tokens), arrayOf(pids), hexArray(holders), arrayOf(modes),
		arrayOf(slots), arrayOf(ages))
}

func (o operating) removeRecords(hs []*holding) string {
	var names []string
	var tokens []int64
	for _, h := range hs {
		names, tokens = append(names, h.request.Name()), append(tokens, int64(h.token)) //nolint:gosec // it fits
	}
	return fmt.Sprintf(o.remove, hexArray(names), arrayOf(tokens))
}

// recordsOf returns the statement for the records of a name.
func (o operating) recordsOf(name string) string {
	return fmt.Sprintf(o.records, "name = "+bytea(name))
}

// recordsUnder returns the statement for those of the next names that begin with a prefix.
func (o operating) recordsUnder(prefix, after string) string {
	return fmt.Sprintf(o.records, fmt.Sprintf(o.names, under(prefix), bytea(after), pageSize))
}

// under returns the condition for names that begin with a prefix.
func under(prefix string) string {
	condition := "name >= " + bytea(prefix)
	end := []byte(prefix)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) > 0 {
		end[len(end)-1]++
		condition += " AND name < " + bytea(string(end))
	}
	return condition
}

// bytea writes bytes as Postgres reads them.
func bytea(s string) string { return `'\x` + hex.EncodeToString([]byte(s)) + "'::bytea" }

// hexArray writes an array of bytes in hexadecimal.
func hexArray(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = `"` + hex.EncodeToString([]byte(text)) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// parseRecord reads a row of recordsSQL.
func parseRecord(row []string) (r record, err error) {
	const texts = "\x01\x00\x00\x00\x01\x00\x00\x00" // which columns are bytes
	if len(row) != len(texts) {
		return r, fmt.Errorf("%d columns", len(row))
	}
	var bytes [len(texts)][]byte
	var numbers [len(texts)]int64
	for i, text := range row {
		if texts[i] == 1 {
			bytes[i], err = hex.DecodeString(text)
		} else {
			numbers[i], err = strconv.ParseInt(text, 10, 64)
		}
		if err != nil {
			return r, err
		}
	}
	return record{
		name: string(bytes[0]), token: uint64(numbers[1]), pid: int(numbers[2]), locker: int(numbers[3]), //nolint:gosec // it fits
		holder: string(bytes[4]), mode: locker.Mode(numbers[5]), slot: int(numbers[6]), since: time.UnixMicro(numbers[7]), //nolint:gosec // likewise
	}, nil
}
