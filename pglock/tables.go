package pglock

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

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

// operatingIn returns them for a namespace. Most are formats, in which its name is no verb.
func operatingIn(namespace string) operating {
	fill := func(sql string) string { return inNamespace(sql, namespace) }
	format := func(sql string) string { return inNamespace(sql, strings.ReplaceAll(namespace, "%", "%%")) }
	return operating{
		add: format(addRecordsSQL), remove: format(removeRecordsSQL),
		records: format(recordsSQL), names: format(namesSQL),
		sweepHolders:     fmt.Sprintf(sweepSQL, lockerMark, fill("$ns.holder"), "holder"),
		sweepRevocations: fmt.Sprintf(sweepSQL, lockerMark, fill("$ns.revocation"), "revocation"),
		revocations:      fill(revocationsSQL), done: format(doneSQL), fence: fill(fenceSQL),
		noteRevoked: format(noteFor("", "", anewSQL)), noteBroken: format(noteFor(", broken", ", true", alwaysSQL)),
		broken: format(brokenSQL), withdraw: format(withdrawSQL),
	}
}

func (o operating) addRecords(id int32, hs []*holding) string {
	var names, holders []string
	var tokens, pids, modes, slots, ages []int64
	for _, h := range hs {
		names, holders = append(names, h.request.Name()), append(holders, h.request.Holder)
		tokens, pids = append(tokens, int64(h.token)), append(pids, int64(h.session.conn.PID()))
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
		names, tokens = append(names, h.request.Name()), append(tokens, int64(h.token))
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
	if len(row) != 8 {
		return r, fmt.Errorf("%d columns", len(row))
	}
	var errs [8]error
	var name, holder []byte
	var mode, since int64
	name, errs[0] = hex.DecodeString(row[0])
	r.token, errs[1] = strconv.ParseUint(row[1], 10, 63)
	r.pid, errs[2] = strconv.Atoi(row[2])
	r.locker, errs[3] = strconv.Atoi(row[3])
	holder, errs[4] = hex.DecodeString(row[4])
	mode, errs[5] = strconv.ParseInt(row[5], 10, 8)
	r.slot, errs[6] = strconv.Atoi(row[6])
	since, errs[7] = strconv.ParseInt(row[7], 10, 64)
	r.name, r.holder, r.mode, r.since = string(name), string(holder), locker.Mode(mode), time.UnixMicro(since)
	return r, errors.Join(errs[:]...)
}
